"""Fixtures that several test files share."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memstore import Encoder, MemoryStore, layout
from memstore.embed.function import FunctionEmbedder
from memstore.index import native
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE

DIMENSION, NEURONS, K = 6, 10, 4
ROOT = Path(__file__).parent.parent
CRASH = Path(__file__).parent / "crash"


def grid_vectors(texts):
    """Texts -> small whole-number vectors, so that ties are frequent; the same text, the same."""
    rows = []
    for text in texts:
        total = sum(map(ord, text))
        rows.append([(total * (i + 3)) % 5 - 2 for i in range(DIMENSION - 1)] + [1])
    return np.array(rows, dtype=np.float32)


def make_encoder(seed: int = 0, neurons: int = NEURONS) -> Encoder:
    """A small real encoder: a function as embedder, random weights as SAE."""
    random = np.random.default_rng(seed)
    config = SAEConfig("topk", DIMENSION, neurons, k=min(K, neurons))
    tensors = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in config.shapes().items()
    }
    return Encoder(
        FunctionEmbedder(grid_vectors, DIMENSION, "grid"),
        SAE(config, tensors),
        name="small",
        config={"embedder": {"kind": "object", "class": "FunctionEmbedder"}, "sae": "small"},
    )


def lively_encoder() -> Encoder:
    """A small encoder without biases: every neuron fires for some vectors and not for others."""
    encoder = make_encoder()
    tensors = {
        name: values * (not name.endswith("bias")) for name, values in encoder.sae.tensors.items()
    }
    return replace(encoder, sae=SAE(encoder.sae.config, tensors))


def fill_lively(store: MemoryStore, count: int) -> None:
    """Store so many memories of two categories, with vectors of small numbers: ties are many."""
    rows = [{"text": f"entry {i}", "category": "ab"[i % 2]} for i in range(count)]
    random = np.random.default_rng(0)
    store.insert_many(rows, vectors=random.integers(-2, 3, (count, DIMENSION)) + 0.1)


@pytest.fixture
def encoder() -> Encoder:
    return make_encoder()


@pytest.fixture
def store(encoder):
    with MemoryStore.open(":memory:", encoder=encoder) as opened:
        yield opened


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture(scope="session")
def narratives() -> list[dict[str, str]]:
    return json.loads(layout.NARRATIVES.read_text("utf-8"))


@pytest.fixture(scope="session")
def narrative_store(tmp_path_factory, narratives) -> Path:
    """A store file with the sample narratives under the shipped encoder. Copy it to write."""
    path = tmp_path_factory.mktemp("narratives") / "narratives.db"
    with MemoryStore.open(path) as opened:
        opened.insert_many(narratives)
    return path


@pytest.fixture(params=["C", "numpy"])
def path_taken(request, monkeypatch):
    """Both ways of answering: the C kernel and numpy."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "load", lambda: None)
    elif native.load() is None:
        pytest.skip("no C kernel was built here")


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    """Where to train: the processor, and a GPU where there is one."""
    torch = pytest.importorskip("torch", reason="training needs the train extra")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return request.param


def built(source: str, folder: Path) -> Path:
    """Return a library built of a C file of tests/crash; skip where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    library = folder / source.replace(".c", ".so")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, CRASH / source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def layer(tmp_path_factory) -> Path:
    """The file layer that dies on demand."""
    return built("layer.c", tmp_path_factory.mktemp("layer"))


@pytest.fixture(scope="session")
def offline(tmp_path_factory) -> Path:
    """The library that ends whoever asks for a socket."""
    return built("offline.c", tmp_path_factory.mktemp("offline"))
