"""SAEs from and to other libraries: their own code gives the traces that ours gives."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from memstore import Encoder
from memstore.errors import InvalidInput, InvalidWeights
from memstore.interchange import OWN, SAELENS, SAELENS_WEIGHTS, read, write_sparse_encoder
from memstore.sae import weights
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE

pytest.importorskip("torch", reason="interchange needs the train extra")
pytest.importorskip("sentence_transformers", reason="interchange needs the train extra")
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

D, N, K = 16, 40, 5


def random_vectors(count=300, d=D, seed=0):
    return np.random.default_rng(seed).normal(size=(count, d)).astype(np.float32)


def firing(activations):
    return activations > 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "sparse-encoder"
    write_sparse_encoder(Encoder.default().sae, folder)
    return folder


def test_a_stock_sparse_encoder_gives_the_same_traces(exported, narratives):
    """From text to trace through sentence-transformers' own modules, 450 narratives."""
    texts = [row["text"] for row in narratives]
    encoder = Encoder.default()
    theirs = SparseEncoder(str(exported), device="cpu").encode(texts, convert_to_tensor=True)
    theirs = theirs.to_dense().numpy()
    vectors = encoder.vectors(texts)
    ours = encoder.traces(vectors).to_dense()
    # Two sums in float32 may order differently what is equal to their last digit: of such a row
    # the two neurons at the edge may change places, and nothing else.
    tensors = {name: tensor.astype(np.float64) for name, tensor in encoder.sae.tensors.items()}
    exact = (vectors - tensors["decoder.bias"]) @ tensors["encoder.weight"].T
    exact += tensors["encoder.bias"]
    edge = np.argsort(-exact, axis=1)[:, encoder.sae.k - 1 : encoder.sae.k + 1]
    last, next_one = np.take_along_axis(exact, edge, axis=1).T
    [tied] = np.nonzero(last - next_one < 5e-7)
    assert len(tied) <= 1
    certain = np.ones(ours.shape, dtype=bool)
    certain[tied[:, None], edge[tied]] = False
    assert np.array_equal(firing(theirs)[certain], firing(ours)[certain])
    assert np.abs(theirs - ours)[certain].max() < 1e-3  # ours are float16, as stored
    assert np.array_equal(firing(theirs).sum(axis=1), firing(ours).sum(axis=1))


def test_what_was_exported_is_read_back_whole(exported):
    """With the decoder that stock modules have no place for."""
    assert read(exported).fingerprint == Encoder.default().sae.fingerprint
    assert (exported / OWN / weights.WEIGHTS).exists()
    modules = json.loads((exported / "modules.json").read_text())
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)


def test_a_sparse_encoder_trained_on_since_is_read_as_it_is_now(exported, tmp_path):
    """Not as memstore once wrote it beside; and an SAE of another dimension is not written."""
    folder = tmp_path / "tuned"
    shutil.copytree(exported, folder)
    (place,) = folder.glob("*SparseAutoEncoder")
    tensors = load_file(place / "model.safetensors")
    tensors["latent_bias"] = tensors["latent_bias"] + 1
    save_file(tensors, place / "model.safetensors")
    before = Encoder.default().sae.tensors["encoder.bias"]
    assert np.allclose(read(folder).tensors["encoder.bias"], before + 1)
    config = SAEConfig("topk", D, N, k=K)
    drawn = {n: np.ones(shape, np.float32) for n, shape in config.shapes().items()}
    with pytest.raises(InvalidInput, match="dimensions"):
        write_sparse_encoder(SAE(config, drawn), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_matryoshka_comes_back_as_one(tmp_path):
    """Other modules know it as the k largest, which is what decides its traces."""
    config = SAEConfig("matryoshka", 384, N, k=K)
    rng = np.random.default_rng(2)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in config.shapes().items()}
    sae = SAE(config, tensors)
    write_sparse_encoder(sae, tmp_path / "out")
    assert read(tmp_path / "out").fingerprint == sae.fingerprint


def stock(folder, *, normalize=False):
    """Save a SparseAutoEncoder of random weights as a SparseEncoder would lie on disk."""
    torch.manual_seed(3)
    module = SparseAutoEncoder(D, N, k=K, k_aux=0, normalize=normalize)
    with torch.no_grad():
        module.pre_bias.normal_()
        module.latent_bias.normal_()
    place = folder / "3_SparseAutoEncoder"
    place.mkdir(parents=True)
    module.save(str(place))
    kind = "sentence_transformers.sparse_encoder.modules.sparse_auto_encoder.SparseAutoEncoder"
    modules = [{"idx": 3, "name": "3", "path": place.name, "type": kind}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return module.eval()


def test_a_sparse_encoder_of_others_is_read(tmp_path):
    module = stock(tmp_path)
    vectors = random_vectors()
    with torch.inference_mode():
        theirs = module({"sentence_embedding": torch.from_numpy(vectors)})["sentence_embedding"]
        rebuilt = module.decode(theirs)
    sae = read(tmp_path)
    ours = sae.activations(vectors)
    assert np.array_equal(firing(theirs.numpy()), firing(ours))
    assert np.allclose(ours, theirs.numpy(), atol=1e-4)
    assert np.allclose(sae.decode(ours), rebuilt.numpy(), atol=1e-3)


def saelens(folder, **settings):
    """Save random weights as SAELens lays them out."""
    rng = np.random.default_rng(9)
    tensors = {
        "W_enc": rng.normal(size=(D, N)),
        "b_enc": rng.normal(size=N),
        "W_dec": rng.normal(size=(N, D)),
        "b_dec": rng.normal(size=D),
    }
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    save_file(tensors, folder / SAELENS_WEIGHTS)
    config = {"architecture": "topk", "d_in": D, "d_sae": N, "k": K, **settings}
    (folder / SAELENS).write_text(json.dumps(config))
    return {name: value.astype(np.float64) for name, value in tensors.items()}


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rescaled", [True, False])
def test_a_topk_sae_of_saelens_is_read(tmp_path, centred, rescaled):
    """Against its definition in float64: sae_in @ W_enc + b_enc, scaled, the k largest, ReLU."""
    t = saelens(tmp_path, apply_b_dec_to_input=centred, rescale_acts_by_decoder_norm=rescaled)
    vectors = random_vectors(seed=1)
    pre = (vectors - t["b_dec"] if centred else vectors) @ t["W_enc"] + t["b_enc"]
    norms = np.linalg.norm(t["W_dec"], axis=1) if rescaled else np.ones(N)
    pre = pre * norms
    edge = np.sort(pre, axis=1)[:, -K][:, None]
    theirs = np.where(pre >= edge, np.maximum(pre, 0), 0)
    rebuilt = theirs / norms @ t["W_dec"] + t["b_dec"]
    sae = read(tmp_path)
    ours = sae.activations(vectors)
    assert np.array_equal(firing(theirs), firing(ours))
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.allclose(sae.decode(ours), rebuilt, rtol=1e-3, atol=1e-3)


def test_what_memstore_has_no_words_for_is_refused(tmp_path):
    for number, settings in enumerate(
        (
            {"architecture": "gated"},
            {"k": None},
            {"normalize_activations": "layer_norm"},
            {"reshape_activations": "hook_z"},
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        saelens(folder, **settings)
        with pytest.raises(InvalidWeights):
            read(folder)
    stock(tmp_path / "normal", normalize=True)
    with pytest.raises(InvalidWeights, match="normalize"):
        read(tmp_path / "normal")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "modules.json").write_text("[]")
    with pytest.raises(InvalidWeights, match="no SparseAutoEncoder"):
        read(tmp_path / "none")
    relu = SAEConfig("relu", D, N)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in relu.shapes().items()}
    with pytest.raises(InvalidInput, match="relu"):
        write_sparse_encoder(SAE(relu, tensors), tmp_path / "out")
