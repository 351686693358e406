"""Every architecture: numpy as torch, losses as written, training that does what it is for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from memstore import layout, training
from memstore.encoder import Encoder
from memstore.errors import InvalidInput, InvalidWeights
from memstore.sae import weights
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE
from memstore.sae.measure import measure
from tests.test_sae import clustered

torch = pytest.importorskip("torch", reason="training needs the train extra")
from memstore.sae.loss import KL_BOUNDS, jump, kl_sparsity, step  # noqa: E402 - after torch
from memstore.sae.schedule import TrainConfig  # noqa: E402 - after torch
from memstore.sae.train import LOG, Trainer  # noqa: E402 - after torch

SIZES = {
    "topk": {"k": 6},
    "batch_topk": {"k": 6},
    "jump_relu": {"k": 6},
    "matryoshka": {"k": 6, "prefixes": (8, 24, 64)},
    "relu": {},
    "sparse_memory": {},
    "sparse_memory_text": {"event_size": 50},
}


@pytest.fixture(scope="module")
def narratives():
    """Real vectors: of the 450 sample narratives, by the shipped embedder; and their categories."""
    rows = json.loads(layout.NARRATIVES.read_text("utf-8"))
    vectors = Encoder.default().vectors([row["text"] for row in rows])
    return vectors, [row["category"] for row in rows]


def trained(vectors, architecture, folder, *, neurons=64, epochs=8, more=None, **options):
    config = SAEConfig(architecture, vectors.shape[1], neurons, **(more or SIZES[architecture]))
    schedule = TrainConfig(epochs=epochs, batch=50, dead_rows=600, **options)
    return Trainer(vectors, config, schedule, folder)


def log_of(folder):
    return [json.loads(line) for line in (folder / LOG).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("architecture", SIZES)
def test_encode_in_numpy_equals_forward_in_torch(architecture, device, narratives, tmp_path):
    """Activations and reconstruction after training, from a weights folder, on real vectors."""
    vectors, _ = narratives
    trainer = trained(vectors, architecture, tmp_path / "run", device=device)
    model = trainer.run().cpu()
    weights.save(tmp_path / "sae", trainer.config, model.tensors())
    sae = SAE.load(tmp_path / "sae")
    assert sae.config == trainer.config
    with torch.no_grad():
        forward = model(torch.from_numpy(vectors))
    dense = forward.activations
    if forward.neurons is not None:
        dense = torch.zeros(len(vectors), 64).scatter(1, forward.neurons, forward.activations)
    activations = sae.activations(vectors)
    assert (activations > 0).any()
    # A value at an edge may fall to either side of it in another summation order.
    assert np.isclose(activations, dense.numpy(), atol=1e-5).mean() > 0.9999
    assert np.allclose(sae.decode(dense.numpy()), forward.reconstruction.numpy(), atol=1e-5)
    expected = activations.astype(np.float16).astype(np.float64)
    assert np.array_equal(sae.encode(vectors).to_dense(), expected)
    # Alone, in a small batch and in a large one: bit for bit.
    for size in (1, 2, 7, 100):
        pages = [sae.activations(vectors[a : a + size]) for a in range(0, 200, size)]
        assert np.array_equal(np.concatenate(pages)[:200], activations[:200])


@pytest.mark.parametrize("architecture", SIZES)
def test_cut_training_ends_with_the_same_weights(architecture, device, narratives, tmp_path):
    vectors, _ = narratives

    def run(name, report=None):
        trainer = trained(vectors, architecture, tmp_path / name, device=device)
        return trainer.run(report).tensors()

    def interrupt(done, total):
        if done >= 23 * 50:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", interrupt)
    again = run("cut")
    for name, tensor in whole.items():
        assert np.allclose(again[name], tensor, atol=1e-6), name
    steps = [line["step"] for line in log_of(tmp_path / "cut")]
    assert steps == sorted(set(steps))


# --- the prototype's formulas ---------------------------------------------------------------------


def standing_for(trainer, **options):
    from memstore.sae.model import Standing

    neurons = trainer.config.neurons
    nothing = torch.zeros(neurons)
    return Standing(1.0, nothing.bool(), nothing, 1.0, trainer.sparsity, **options)


def test_sparse_memory_has_the_prototypes_loss(tmp_path):
    """MSE + KL(0.05 || mean activation), in plain numpy, where the formula is defined."""
    dice = np.random.default_rng(0)
    events = dice.random((40, 300)).astype(np.float32)
    trainer = trained(events, "sparse_memory", tmp_path, neurons=30, sparsity=0.7)
    model = trainer.model
    with torch.no_grad():
        # Means of 0.0x to 0.9, between the bounds: where nothing needed mending.
        model.encoder.bias.add_(0.1)
    forward = model(torch.from_numpy(events))
    found = model.loss(torch.from_numpy(events), forward, standing_for(trainer))

    tensors = {n: t.astype(np.float64) for n, t in model.tensors().items()}
    encoded = np.maximum(events @ tensors["encoder.weight"].T + tensors["encoder.bias"], 0)
    decoded = encoded @ tensors["decoder.weight"].T + tensors["decoder.bias"]
    decoded = 1 / (1 + np.exp(-decoded))
    mean = encoded.mean(axis=0)
    inside = (mean > KL_BOUNDS[0]) & (mean < KL_BOUNDS[1])
    assert inside.sum() > 10
    divergence = 0.05 * np.log(0.05 / mean[inside])
    divergence += 0.95 * np.log(0.95 / (1 - mean[inside]))
    outside = kl_sparsity(torch.from_numpy(encoded[:, ~inside]), 0.05)
    penalty = divergence.sum() + float(outside)
    expected = ((decoded - events) ** 2).mean() + 0.7 * penalty
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_sparse_memory_text_has_the_prototypes_loss(narratives, tmp_path):
    """Squared error to the projection and L1, each weighted by the row's category."""
    vectors, categories = narratives
    by_category = {"Strong Emotional": (2, 1), "Complex/Chaotic": (1, 0.5), "Routine": (0.5, 3)}
    row_weights = np.array([by_category[c] for c in categories], dtype=np.float32)
    trainer = trained(vectors, "sparse_memory_text", tmp_path, neurons=30, sparsity=0.01)
    model, batch = trainer.model, torch.from_numpy(vectors)
    standing = standing_for(trainer, row_weights=torch.from_numpy(row_weights))
    found = model.loss(batch, model(batch), standing)

    t = {n: v.astype(np.float64) for n, v in model.tensors().items()}
    projected = np.maximum(vectors @ t["projection.weight"].T + t["projection.bias"], 0)
    encoded = np.maximum(projected @ t["encoder.weight"].T + t["encoder.bias"], 0)
    decoded = 1 / (1 + np.exp(-(encoded @ t["decoder.weight"].T + t["decoder.bias"])))
    errors, norms = ((decoded - projected) ** 2).mean(axis=1), np.abs(encoded).sum(axis=1)
    expected = (row_weights[:, 0] * errors).mean() + 0.01 * (row_weights[:, 1] * norms).mean()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_kl_penalty_is_finite_everywhere_and_pulls_towards_the_target():
    """At 0, at 1 and above, where the formula is infinite or none; smooth where it is mended."""
    means = torch.tensor([0.0, 1e-4, 0.02, 0.05, 0.3, 1.0, 1.5, 40.0], dtype=torch.float64)
    activations = means.repeat(3, 1).requires_grad_()
    penalty = kl_sparsity(activations, 0.05)
    penalty.backward()
    slopes = activations.grad.sum(dim=0)
    assert torch.isfinite(penalty)
    assert torch.isfinite(slopes).all()
    assert (slopes[:3] < 0).all()
    assert abs(float(slopes[3])) < 1e-9
    assert (slopes[4:] > 0).all()
    for edge in KL_BOUNDS:
        near = [
            kl_sparsity(torch.tensor([[edge + d]], dtype=torch.float64), 0.05)
            for d in (-1e-9, 1e-9)
        ]
        assert float(near[0]) == pytest.approx(float(near[1]), abs=1e-5)


def test_a_step_on_one_random_episode_lowers_its_loss(tmp_path):
    """The prototype's own example: 300 numbers, 30 neurons, one episode, Adam at 0.001."""
    episode = np.random.default_rng(7).random((1, 300)).astype(np.float32)
    trainer = trained(
        episode, "sparse_memory", tmp_path, neurons=30, epochs=200, warmup=0.0, decay=0.0
    )
    batch = torch.from_numpy(episode)
    before = float(trainer.model.loss(batch, trainer.model(batch), standing_for(trainer)).detach())
    trainer.take_step(torch.tensor([0]))
    after = float(trainer.model.loss(batch, trainer.model(batch), standing_for(trainer)).detach())
    assert after < before


@torch.no_grad()
def state(model, batch):
    """Error, firings, and how much the target varies over texts, relative to its mean."""
    target, forward = model.project(batch), model(batch)
    error = float((target - forward.reconstruction).pow(2).mean())
    return error, int(forward.fires().sum()), float(target.var(dim=0).mean() / target.mean() ** 2)


def test_a_learned_target_collapses_and_a_given_one_does_not(narratives, tmp_path):
    """The error falls although nothing fires: the target has become the same for every text."""
    batch = torch.from_numpy(narratives[0])
    alike, error, firing = {}, {}, {}
    for learned in (False, True):
        trainer = trained(
            narratives[0], "sparse_memory_text", tmp_path / str(learned), neurons=30, epochs=60,
            more={"event_size": 300}, sparsity=0.01, learned_target=learned,
        )  # fmt: skip
        before, _, _ = state(trainer.model, batch)
        after, firing[learned], alike[learned] = state(trainer.run(), batch)
        error[learned] = after / before
    assert firing[True] == 0
    assert error[True] < 0.03 < error[False]
    assert alike[True] < 0.1 * alike[False]


def test_fine_tuning_starts_from_base_weights(narratives, tmp_path):
    """Encoder and decoder of a network trained on other events; the projection is new."""
    vectors, _ = narratives
    events = np.random.default_rng(1).random((64, 300)).astype(np.float32)
    base = trained(events, "sparse_memory", tmp_path / "base", neurons=30).run().tensors()
    config = SAEConfig("sparse_memory_text", 384, 30, event_size=300)
    tuned = Trainer(vectors, config, TrainConfig(epochs=1), tmp_path / "text", base=base)
    own = tuned.model.tensors()
    assert all(np.array_equal(own[name], base[name]) for name in base)
    smaller = SAEConfig("sparse_memory_text", 384, 20, event_size=300)
    with pytest.raises(InvalidWeights, match="choose the same sizes"):
        Trainer(vectors, smaller, TrainConfig(epochs=1), tmp_path / "no", base=base)


# --- what each of the field's is for --------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors():
    return clustered(1500)


def result(vectors, architecture, folder, **options):
    trainer = trained(vectors, architecture, folder, learning_rate=3e-3, epochs=12, **options)
    return trainer, SAE(trainer.config, trainer.run().tensors())


@pytest.mark.parametrize("architecture", ["batch_topk", "jump_relu"])
def test_k_neurons_fire_on_average(architecture, vectors, tmp_path):
    """And what fires for a text does not depend on the texts beside it."""
    trainer, sae = result(vectors, architecture, tmp_path)
    measured = measure(sae, vectors)
    assert 0.6 * trainer.config.k < measured.l0 < 1.5 * trainer.config.k
    assert measured.fvu < 0.5
    alone = np.concatenate([sae.activations(row[None]) for row in vectors[:50]])
    assert np.allclose(alone, sae.activations(vectors)[:50], atol=1e-5)


def test_more_l1_means_fewer_firing_and_worse_reconstruction(vectors, tmp_path):
    measures = [
        measure(result(vectors, "relu", tmp_path / str(weight), sparsity=weight)[1], vectors)
        for weight in (0.002, 0.02, 0.2)
    ]
    assert measures[0].l0 > measures[1].l0 > measures[2].l0
    assert measures[0].fvu < measures[1].fvu < measures[2].fvu


def test_each_prefix_of_a_matryoshka_reconstructs_alone(vectors, tmp_path):
    """Better, from its first neurons, than a TopK that was never asked to."""
    first = {}
    for architecture in ("matryoshka", "topk"):
        _, sae = result(vectors, architecture, tmp_path / architecture)
        inside = sae.activations(vectors)
        inside[:, 8:] = 0
        error = ((vectors - sae.decode(inside)) ** 2).sum()
        first[architecture] = error / ((vectors - vectors.mean(axis=0)) ** 2).sum()
    assert first["matryoshka"] < first["topk"]


def test_a_frozen_decoder_stays_as_it_was_drawn(vectors, tmp_path):
    trainer = trained(vectors, "topk", tmp_path, frozen_decoder=True)
    drawn = trainer.model.directions.detach().clone()
    assert torch.equal(trainer.run().directions, drawn)


def test_what_is_far_below_a_threshold_does_not_move_it(vectors, tmp_path):
    """Rows of z < 0 lie outside the box around a small threshold, where ReLU(z) = 0 would not."""
    model = trained(vectors, "jump_relu", tmp_path).model
    with torch.no_grad():
        model.threshold.fill_(0.02)
        model.encoder_bias.fill_(-5.0)
    forward = model(torch.from_numpy(vectors[:50]))
    assert not forward.fires().any()
    step(forward.pre_activations, model.threshold, model.BANDWIDTH).sum().backward()
    assert not model.threshold.grad.any()


def test_straight_through_gradients_are_those_of_the_paper():
    """dL/dt of arXiv 2407.14435: -t/w inside the box for the jump, -1/w for the step."""
    values = torch.tensor([[0.01, 0.09, 0.11, 0.5]])
    for function, share in ((jump, 0.1), (step, 1.0)):
        thresholds = torch.full((4,), 0.1, requires_grad=True)
        found = function(values, thresholds, 0.04)
        assert (
            found.tolist()
            == (values * (values > 0.1) if function is jump else (values > 0.1).float()).tolist()
        )
        found.sum().backward()
        expected = [0.0, -share / 0.04, -share / 0.04, 0.0]
        assert thresholds.grad.tolist() == pytest.approx(expected)


def test_training_stops_where_held_out_vectors_gain_nothing(vectors, tmp_path):
    """Patience counts epochs; the log has their FVU."""
    config = SAEConfig("topk", 16, 64, k=6)
    schedule = TrainConfig(epochs=60, batch=50, learning_rate=1e-12, patience=2)
    Trainer(vectors[:1000], config, schedule, tmp_path, held_out=-vectors[:200]).run()
    epochs = [line for line in log_of(tmp_path) if "held_out_fvu" in line]
    assert 3 <= len(epochs) < 60
    assert all(line["held_out_fvu"] > 0 for line in epochs)


def test_a_gpu_that_is_not_there_is_one_clear_error(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, schedule = SAEConfig("topk", 16, 64, k=6), TrainConfig(device="cuda")
    with pytest.raises(InvalidInput, match="train on the cpu"):
        training.train(vectors, config, schedule, training.Split(), tmp_path, np.float32)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"architecture": "relu", "k": 3}, "says nothing to relu"),
        ({"architecture": "matryoshka", "k": 3, "prefixes": [8, 4, 16]}, "must ascend"),
        ({"architecture": "matryoshka", "k": 3, "prefixes": "abc"}, "list of numbers"),
        ({"architecture": "jump_relu"}, "whole number"),
    ],
)
def test_configs_that_cannot_be(fields, complaint):
    with pytest.raises(InvalidWeights, match=complaint):
        SAEConfig.from_dict({"dimension": 8, "neurons": 16, **fields})
