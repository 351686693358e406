"""The SAE: numpy equals torch, training resumes to the same result, measures are what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from memstore import layout, training
from memstore.errors import InvalidInput, InvalidWeights
from memstore.sae import weights
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE, keep_largest, largest_entries
from memstore.sae.measure import held_out_rows, measure

torch = pytest.importorskip("torch", reason="training needs the train extra")
from memstore.sae import checkpoint  # noqa: E402 - after the check for torch
from memstore.sae.model import TopK  # noqa: E402 - after the check for torch
from memstore.sae.schedule import TrainConfig  # noqa: E402 - after the check for torch
from memstore.sae.train import LOG, Trainer  # noqa: E402 - after the check for torch


def clustered(rows, dimension=16, seed=0):
    """Unit vectors made of a few directions each, as an SAE would like them."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(24, dimension))
    mixing = random.exponential(size=(rows, 24)) * (random.random((rows, 24)) < 0.12)
    vectors = mixing @ directions + 0.05 * random.normal(size=(rows, dimension)) + 0.3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_forward_in_torch_equals_encode_in_numpy():
    """Activations, neurons and reconstruction agree between the two."""
    config = SAEConfig("topk", 16, 40, k=5)
    model = TopK(config, torch.full((16,), 0.1), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.encoder_bias.copy_(torch.randn(40, generator=torch.Generator().manual_seed(1)) * 0.1)
    vectors = clustered(300)
    forward = model(torch.from_numpy(vectors))
    dense = torch.zeros(300, 40).scatter(1, forward.neurons, forward.activations)
    sae = SAE(config, model.tensors())
    assert np.allclose(sae.activations(vectors), dense.detach().numpy(), atol=1e-6)
    decoded = sae.decode(sae.activations(vectors))
    assert np.allclose(decoded, forward.reconstruction.detach().numpy(), atol=1e-6)


def test_the_k_largest_are_kept_and_ties_go_to_the_lower_neuron():
    """Against a plain sort of each row."""
    values = np.random.default_rng(0).integers(0, 4, (400, 12)).astype(np.float32)
    for k in (1, 3, 12):
        kept = keep_largest(values, k)
        for row, result in zip(values, kept, strict=True):
            order = sorted(range(12), key=lambda i: (-row[i], i))[:k]
            assert result.tolist() == [row[i] if i in order else 0 for i in range(12)]


@pytest.mark.parametrize(("architecture", "k", "asked"), [("topk", 4, 12), ("topk", 14, 40)])
def test_a_question_has_three_times_the_neurons(architecture, k, asked):
    """Those of a trace first; all that fire where there are not so many."""
    config = SAEConfig(architecture, 16, 40, k=k)
    dice = np.random.default_rng(0)
    drawn = {name: dice.normal(size=shape) for name, shape in config.shapes().items()}
    sae = SAE(config, {name: tensor.astype(np.float32) for name, tensor in drawn.items()})
    vectors = clustered(50)
    trace, question = (sae.encode(vectors, wide=wide).to_dense() for wide in (False, True))
    assert np.array_equal(question[trace > 0], trace[trace > 0])
    everything = SAE(replace(config, k=40), sae.tensors).activations(vectors)
    for row, values in zip(question, everything, strict=True):
        largest = sorted(values[values > 0], reverse=True)[:asked]
        assert sorted(row[row > 0], reverse=True) == pytest.approx(largest, rel=1e-3)


def test_the_quick_way_to_the_k_largest_keeps_the_same_among_ties():
    """Few different values, so that every edge is crowded, against the plain way."""
    dice = np.random.default_rng(2)
    for k in (1, 3, 8):
        values = np.round(dice.normal(size=(500, 8 * k)), 1).astype(np.float32)
        rows, columns, found = largest_entries(values, k)
        dense = np.zeros_like(values)
        dense[rows, columns] = found
        assert np.array_equal(dense, keep_largest(np.maximum(values, 0), k))


def test_encoding_in_pieces_equals_encoding_at_once():
    """More rows than a batch; the stored float16 is the rounded activation."""
    sae = SAE.load(layout.NARRATIVES_SAE_FOLDER)
    vectors = clustered(5000, 384)
    traces = sae.encode(vectors)
    whole = sae.activations(vectors).astype(np.float16).astype(np.float64)
    assert np.array_equal(traces.to_dense(), whole)


@pytest.fixture(scope="module")
def vectors():
    return clustered(4000)


CONFIG = SAEConfig("topk", 16, 48, k=4)
SCHEDULE = TrainConfig(epochs=6, batch=128, learning_rate=3e-3, dead_rows=1000)


def test_training_explains_variance_and_leaves_no_neuron_dead(vectors, device, tmp_path):
    """A trained SAE explains more than PCA of the same number of numbers a row."""
    schedule = replace(SCHEDULE, device=device)
    model = Trainer(vectors[:3500], CONFIG, schedule, tmp_path).run().cpu()
    result = measure(SAE(CONFIG, model.tensors()), vectors[3500:])
    centred = vectors[3500:] - vectors[:3500].mean(axis=0)
    _, _, axes = np.linalg.svd(vectors[:3500] - vectors[:3500].mean(axis=0), full_matrices=False)
    rest = centred - centred @ axes[:4].T @ axes[:4]
    assert result.fvu < (rest**2).sum() / (centred**2).sum()
    assert result.dead == 0
    norms = model.directions.detach().norm(dim=1).numpy()
    assert np.allclose(norms, 1, atol=1e-5)


def test_an_interrupted_training_ends_like_an_uninterrupted_one(vectors, tmp_path):
    """Ctrl-C at any step, then the same call again: the same weights."""
    whole = Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "whole").run()

    def interrupt(done, total):
        if done >= 70 * 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "cut").run(interrupt)
    resumed = Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "cut")
    resumed.restore()
    assert resumed.step == 70
    again = resumed.run()
    for name, tensor in whole.tensors().items():
        assert np.allclose(again.tensors()[name], tensor, atol=1e-5), name


def test_a_checkpoint_of_another_run_is_not_taken_up(vectors, tmp_path):
    """Another seed, other data, the same in another order, other weights of rows, or held out."""
    text = SAEConfig("sparse_memory_text", 16, 12, event_size=8)
    weigh = np.ones((len(vectors), 2), np.float32)
    weigh[::2, 1] = 9
    short = replace(SCHEDULE, epochs=1)
    for config, row_weights in ((CONFIG, None), (text, weigh)):

        def run(schedule=short, rows=vectors, config=config, row_weights=row_weights, **other):
            data = {"row_weights": row_weights, "held_out": vectors[:50], **other}
            return Trainer(rows, config, schedule, tmp_path, **data)

        run().run()
        again = run()
        again.restore()
        assert again.step == len(vectors) // 128
        others = [run(replace(short, seed=1)), run(rows=vectors[::-1]), run(held_out=vectors[1:51])]
        if row_weights is not None:
            others.append(run(row_weights=weigh[:, ::-1]))
        for other in others:
            other.restore()
            assert other.step == 0


def test_ctrl_c_within_a_step_leaves_no_half_step(vectors, tmp_path, monkeypatch):
    """A signal waits for the step to end; what is raised within leaves an older checkpoint."""
    whole = Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "whole").run().tensors()
    plain, steps = TopK.after_step, []

    def pressed(model):
        steps.append(1)
        if len(steps) == 40:
            os.kill(os.getpid(), signal.SIGINT)
        if len(steps) == 100:
            raise KeyboardInterrupt
        plain(model)

    monkeypatch.setattr(TopK, "after_step", pressed)
    monkeypatch.setattr("memstore.sae.train.CHECKPOINT_STEPS", 30)
    for taken in (40, 90):
        with pytest.raises(KeyboardInterrupt):
            Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "cut").run()
        resumed = Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "cut")
        resumed.restore()
        assert resumed.step == taken
    again = resumed.run().tensors()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for name, tensor in whole.items():
        assert np.array_equal(again[name], tensor), name


def test_cut_at_the_end_of_an_epoch_it_is_still_measured(vectors, tmp_path):
    """Held-out figures, and so patience, are those of an uninterrupted run; each logged once."""
    given = {"held_out": vectors[3500:]}
    whole = Trainer(vectors[:3500], CONFIG, SCHEDULE, tmp_path / "whole", **given)
    whole.run()

    def interrupt(done, total):
        if done == 2 * whole.steps_an_epoch * 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(vectors[:3500], CONFIG, SCHEDULE, tmp_path / "cut", **given).run(interrupt)
    with (tmp_path / "cut" / LOG).open("a") as log:
        log.write('{"step": 9, "epo')  # a line that a full disk cut
    cut = Trainer(vectors[:3500], CONFIG, SCHEDULE, tmp_path / "cut", **given)
    cut.run()
    assert cut.history == whole.history
    assert len(whole.history) == SCHEDULE.epochs
    lines = [json.loads(line) for line in (tmp_path / "cut" / LOG).read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == list(range(1, 7))


def test_a_damaged_checkpoint_is_one_clear_error(vectors, tmp_path):
    Trainer(vectors, CONFIG, replace(SCHEDULE, epochs=1), tmp_path).run()
    file = tmp_path / checkpoint.FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InvalidWeights, match="remove it"):
        Trainer(vectors, CONFIG, replace(SCHEDULE, epochs=1), tmp_path).run()


@pytest.mark.parametrize(
    ("architecture", "setting"),
    [
        ("topk", {"sparsity": 0.1}),
        ("topk", {"learned_target": True}),
        ("topk", {"patience": 2}),
        ("topk", {"row_weights": (2, 1)}),
        ("sparse_memory", {"frozen_decoder": True}),
        ("sparse_memory", {"row_weights": (1, 2)}),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(architecture, setting, vectors, tmp_path):
    config = SAEConfig(architecture, 16, 48, k=4 if architecture == "topk" else None)
    pair = setting.pop("row_weights", None)
    weigh = None if pair is None else np.tile(np.float32(pair), (len(vectors), 1))
    with pytest.raises(InvalidInput, match="nothing"):
        Trainer(vectors, config, replace(SCHEDULE, **setting), tmp_path, row_weights=weigh)


@pytest.mark.parametrize(
    "setting",
    [{"patience": 0}, {"learning_rate": 0.0}, {"learning_rate": np.nan}, {"seed": 10**14}],
)
def test_schedules_that_cannot_be(setting):
    with pytest.raises(InvalidInput, match="not a training schedule"):
        replace(SCHEDULE, **setting)


def test_a_run_that_diverges_stops_and_spares_older_weights(vectors, tmp_path):
    """Training into a folder with weights of an earlier run."""
    out = tmp_path / "sae"
    weights.save(out, CONFIG, Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "run").model.tensors())
    (out / training.METRICS).write_text("{}")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    wild = replace(SCHEDULE, learning_rate=1e38)
    with pytest.raises(InvalidInput, match="lower learning rate"):
        training.train(vectors, CONFIG, wild, training.Split(), out, np.float32)
    short = replace(SCHEDULE, epochs=1, batch=1000, learning_rate=1e6)  # too few steps for a log
    with pytest.raises(InvalidWeights, match="NaN or infinity"):
        training.train(vectors, CONFIG, short, training.Split(), out, np.float16)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_rows_of_a_category_are_gone_through_more_often(vectors, tmp_path):
    """The same weights as of vectors written out so often; what is held out counts once."""
    categories = ["rare" if row % 7 == 0 else "common" for row in range(len(vectors))]
    repeat = training.row_repeats(categories, {"rare": 3})
    short = replace(SCHEDULE, epochs=2)
    args = (short, training.Split(), tmp_path / "sae", np.float32)
    result = training.train(vectors, CONFIG, *args, repeat=repeat)
    held_out = held_out_rows(vectors, 0.05, training.NEAR_COPY, 0)
    written_out = [
        vectors[row]
        for row in range(len(vectors))
        if not held_out[row]
        for _ in range(3 if row % 7 == 0 else 1)
    ]
    other = Trainer(np.array(written_out), CONFIG, short, tmp_path / "run").run().tensors()
    _, saved = weights.load(tmp_path / "sae")
    assert all(np.array_equal(saved[name], other[name]) for name in other)
    settings = json.loads((tmp_path / "sae" / training.TRAINING).read_text())
    assert settings["rows_an_epoch"] == len(written_out) > settings["rows"]
    assert result == measure(SAE.load(tmp_path / "sae"), vectors[held_out])
    with pytest.raises(InvalidInput, match="no text has the category 'often'"):
        training.row_repeats(categories, {"often": 2})


@pytest.mark.slow
def test_the_mean_of_saes_tuned_from_one(tmp_path):
    """Weight by weight, in columns of length 1, measured on what was held out; others refused."""
    dice, config = np.random.default_rng(0), SAEConfig("topk", 384, 20, k=4)
    texts = [row["text"] for row in json.loads(layout.NARRATIVES.read_text("utf-8"))[:30]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    split = {"split": {"share": 0.5, "near": 0.95, "seed": 0}, "texts": training.text_digest(texts)}
    drawn = {name: dice.normal(size=shape) for name, shape in config.shapes().items()}
    parts = []
    for name in ("first", "second", "stranger"):
        if name == "stranger":
            drawn = {one: dice.normal(size=tensor.shape) for one, tensor in drawn.items()}
        tuned = {one: t + 0.1 * dice.normal(size=t.shape) for one, t in drawn.items()}
        weights.save(tmp_path / name, config, tuned)
        (tmp_path / name / training.TRAINING).write_text(json.dumps(split))
        parts.append(weights.load(tmp_path / name)[1])

    def average(*names):
        folders = [tmp_path / name for name in ("out", *names)]
        given = ["--texts", tmp_path / "texts.jsonl", "--cache", tmp_path / "cache"]
        command = [sys.executable, "scripts/average_saes.py", *folders, *given]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=layout.PACKAGE.parent
        )

    refused = average("first", "stranger")
    assert refused.returncode != 0
    assert "tune both from one" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert average("first", "second").returncode == 0
    _, found = weights.load(tmp_path / "out")
    for name, tensor in found.items():
        expected = (parts[0][name] + parts[1][name]) / 2
        if name == "decoder.weight":
            expected = expected / np.sqrt((expected**2).sum(axis=0))
        assert np.allclose(tensor, expected, rtol=1e-3, atol=1e-3), name
    told = json.loads((tmp_path / "out" / training.METRICS).read_text())
    assert 0 < told["rows"] < len(texts)
    assert training.split_of(tmp_path / "out") == training.split_of(tmp_path / "first")


@pytest.mark.parametrize("out", ["/", "file/x"])
def test_where_no_folder_can_be_is_said_first(out, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="name"):
        training.require_folder(tmp_path / out)


def test_base_weights_are_brought_to_a_decoder_of_unit_norm(vectors, tmp_path):
    """As reading SAELens does it: what a neuron fires grows by its direction's length."""
    base = dict(Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "a").run().tensors())
    grown = np.linspace(0.5, 2, CONFIG.neurons, dtype=np.float32)
    stretched = base | {
        "decoder.weight": base["decoder.weight"] * grown,
        "encoder.weight": base["encoder.weight"] / grown[:, None],
        "encoder.bias": base["encoder.bias"] / grown,
    }
    tuned = Trainer(vectors, CONFIG, SCHEDULE, tmp_path / "b", base=stretched)
    for name, tensor in tuned.model.tensors().items():
        assert np.allclose(tensor, base[name], atol=1e-6), name


def test_thresholds_grow_with_the_directions_they_belong_to(vectors, tmp_path):
    """The same network, stretched, fires the same once it is brought to unit norm."""
    config = SAEConfig("jump_relu", 16, 48, k=4)
    base = Trainer(vectors, config, SCHEDULE, tmp_path / "a").model.tensors()
    stretched = {name: tensor * 0.5 for name, tensor in base.items()}
    kept = {"decoder.weight": base["decoder.weight"] * 2, "decoder.bias": base["decoder.bias"]}
    tuned = Trainer(vectors, config, SCHEDULE, tmp_path / "b", base=stretched | kept)
    for name, tensor in tuned.model.tensors().items():
        assert np.allclose(tensor, base[name], atol=1e-6), name


def test_measures_equal_their_definitions(vectors):
    """FVU, L0, dead and fire rates from the dense matrix; the read-out by scikit-learn's ridge."""
    Ridge = pytest.importorskip("sklearn.linear_model").Ridge  # noqa: N806 - a class
    sae = SAE(
        CONFIG,
        {
            n: np.random.default_rng(3).normal(size=s).astype(np.float32)
            for n, s in CONFIG.shapes().items()
        },
    )
    found = measure(sae, vectors)
    dense = sae.encode(vectors).to_dense()
    decoded = dense @ sae.tensors["decoder.weight"].T + sae.tensors["decoder.bias"]
    variance = ((vectors - vectors.mean(axis=0)) ** 2).sum()
    assert found.fvu == pytest.approx(((vectors - decoded) ** 2).sum() / variance, rel=1e-4)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    ridge = 1e-2 * dense[even].var(axis=0).mean() * len(dense[even])
    fitted = Ridge(alpha=ridge).fit(dense[even], vectors[even])
    rest = ((fitted.predict(dense[odd]) - vectors[odd]) ** 2).sum()
    spread = ((vectors[odd] - vectors[odd].mean(axis=0)) ** 2).sum()
    assert found.readout_fvu == pytest.approx(rest / spread, rel=1e-3)
    assert found.l0 == pytest.approx((dense > 0).sum(axis=1).mean())
    assert found.dead == ((dense > 0).sum(axis=0) == 0).sum()
    assert found.max_fire_rate == pytest.approx((dense > 0).mean(axis=0).max())


def test_held_out_rows_have_no_near_duplicate_in_training():
    """Copies stay together on the training side; the split is a function of the seed."""
    vectors = clustered(600)
    doubled = np.concatenate([vectors, vectors[:300]])
    mask = held_out_rows(doubled, 0.3, 0.95, seed=5)
    products = doubled[mask] @ doubled[~mask].T
    assert products.max() < 0.95
    assert 0 < mask.sum() < 0.3 * len(doubled)
    assert np.array_equal(mask, held_out_rows(doubled, 0.3, 0.95, seed=5))


def test_weights_come_back_as_they_were_saved(tmp_path):
    """float32 exactly, float16 rounded; the fingerprint follows the numbers."""
    config = SAEConfig("topk", 8, 16, k=3)
    tensors = {
        n: np.random.default_rng(0).normal(size=s).astype(np.float32)
        for n, s in config.shapes().items()
    }
    weights.save(tmp_path / "a", config, tensors)
    loaded_config, loaded = weights.load(tmp_path / "a")
    assert loaded_config == config
    assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)
    weights.save(tmp_path / "b", config, tensors, np.float16)
    assert SAE.load(tmp_path / "a").fingerprint == weights.fingerprint(config, tensors)
    assert SAE.load(tmp_path / "a").fingerprint != SAE.load(tmp_path / "b").fingerprint


KERNELS = """
import numpy as np
from memstore.sae import encode
dice = np.random.default_rng(1)
vectors = dice.normal(size=(700, 384)).astype(np.float32)
weight = dice.normal(size=(300, 384)).astype(np.float32)
product = encode.Product(weight)
whole = product(vectors)
assert np.allclose(whole, vectors @ weight.T, atol=1e-3)
for start, stop in [(0, 1), (0, 3), (5, 18), (13, 77), (0, 200), (101, 699)]:
    assert np.array_equal(product(vectors[start:stop]), whole[start:stop]), (start, stop)
print(encode.is_steady(384))
"""


@pytest.mark.parametrize("kernel", ["Haswell", "SkylakeX", "Nehalem", ""])
def test_a_row_is_the_same_among_others_on_every_processor(kernel):
    """OpenBLAS's kernels for other processors, as it would choose them there."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("OPENBLAS")}
    if kernel:
        environment["OPENBLAS_CORETYPE"] = kernel
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True
    )
    assert done.stdout in ("True\n", "False\n"), done.stderr
