"""Exports: what comes back is what was there, and a file that cannot be says why."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing

import numpy as np
import pandas
import pytest

from memstore import Encoder, MemoryStore
from memstore.embed.function import FunctionEmbedder
from memstore.errors import DuplicateKey, EncoderMismatch, InvalidFile, StoreError
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE
from tests.conftest import make_encoder

KINDS = ["all.jsonl", "all.jsonl.gz", "all.parquet"]


def tables(path):
    """Every row that a person's data is in, as SQLite gives it, but for the numbers of changes."""
    asked = [
        "SELECT memory.id, text, name, key, metadata, occurred_at, created_at, updated_at, "
        "content_hash FROM memory LEFT JOIN category ON category.id = category_id",
        "SELECT name FROM category ORDER BY name",
        "SELECT * FROM vector",
        "SELECT * FROM trace",
        "SELECT fingerprint, name FROM encoder",
        "SELECT neuron, label, grade FROM neuron WHERE label IS NOT NULL",
        "SELECT seq FROM sqlite_sequence WHERE name = 'memory'",
    ]
    with closing(sqlite3.connect(path)) as connection:
        return [connection.execute(query).fetchall() for query in asked]


@pytest.fixture(params=["short", "packed"])
def encoder(request):
    """Vectors stored as float16, and those stored in 10 bits a component."""
    if request.param == "short":
        return make_encoder()
    dice = np.random.default_rng(4)
    config = SAEConfig("topk", dimension=48, neurons=90, k=7)
    tensors = {n: dice.normal(size=s).astype("float32") for n, s in config.shapes().items()}

    def embed(texts):
        return [np.random.default_rng(sum(map(ord, text))).normal(size=48) for text in texts]

    config_of_store = {"embedder": {"kind": "object", "class": "test"}, "sae": "test"}
    return Encoder(
        FunctionEmbedder(embed, 48, "test"), SAE(config, tensors), "test", config_of_store
    )


@pytest.fixture
def filled(path, encoder):
    """A store with all there is: gaps in the ids, times, labels, a neuron that is silent."""
    with MemoryStore.open(path, encoder=encoder) as store:
        for i in range(40):
            store.insert(
                f"memory {i}, café ☕",
                category=["Routine", None, "Ärger"][i % 3],
                key=f"k{i}" if i % 2 else None,
                metadata={"mood": i, "tags": ["a", None, 1.5]} if i % 4 else None,
                occurred_at=f"19{10 + i}-01-01T00:00:00.000001+00:00" if i % 5 else None,
            )
        store.delete([1, 7, 39, 40])
        store.update(5, text="changed later")
        store.neurons.label(3, "grief", grade=0.25)
        store.neurons.label(4, "rain")
    return path


@pytest.mark.parametrize("name", KINDS)
def test_an_encoded_export_is_the_store(filled, tmp_path, encoder, name):
    """Round trip is identity: ids, times, vectors, traces, labels, the next id, every answer."""
    new = tmp_path / "new.db"
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        assert store.export(tmp_path / name, encoded=True) == 36
        with MemoryStore.open(new, encoder=encoder) as loaded:
            assert loaded.load(tmp_path / name) == 36
            assert list(loaded.iter()) == list(store.iter())
            for neuron in range(10):
                assert loaded.top(neuron, 50) == store.top(neuron, 50)
            for by in ("dense", "trace", "words", "hybrid"):
                asked = "memory café", 50
                assert loaded.search(*asked, by=by) == store.search(*asked, by=by)
            assert loaded.check() == []
    assert tables(new) == tables(filled)
    again = tmp_path / f"again-{name}"
    with MemoryStore.open(new, encoder=encoder) as loaded:
        loaded.export(again, encoded=True)
        assert loaded.insert("next") == 41
    if name == "all.jsonl":
        assert again.read_bytes() == (tmp_path / name).read_bytes()


def test_an_encoded_export_is_plain_to_others(filled, tmp_path, encoder):
    """JSON Lines for anybody's reader, Parquet for pandas; the numbers are those of the store."""
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        for name in KINDS:
            store.export(tmp_path / name, encoded=True)
        first = store.get(2)
        trace = store.trace(2)
        _, vectors = next(store.iter_vectors())
    heading, line, *_ = map(json.loads, (tmp_path / "all.jsonl").read_text("utf-8").splitlines())
    assert heading["encoder"]["fingerprint"] == encoder.fingerprint
    assert heading["labels"][0] == {"neuron": 3, "label": "grief", "grade": 0.25}
    assert {name: line[name] for name in first.to_dict()} == first.to_dict()
    assert line["vector"] == vectors[0].tolist()
    assert dict(zip(line["neurons"], line["activations"], strict=True)) == trace.to_dict()
    frame = pandas.read_parquet(tmp_path / "all.parquet")
    assert frame["text"].tolist()[0] == first.text
    assert frame["created_at"][0] == first.created_at
    assert np.array_equal(np.stack(frame["vector"]), vectors)
    with gzip.open(tmp_path / "all.jsonl.gz", "rb") as file:
        assert file.read() == (tmp_path / "all.jsonl").read_bytes()


def test_a_plain_parquet_export_can_be_imported(filled, tmp_path, encoder, monkeypatch):
    """Texts, categories, keys, metadata and times of occurrence come back."""
    from memstore.files import read_rows

    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        store.export(tmp_path / "plain.parquet", {"category": "Routine"})
        kept = list(store.iter({"category": "Routine"}))
    rows = list(read_rows(str(tmp_path / "plain.parquet"), None, "text"))
    assert [row["metadata"] for row in rows] == [memory.metadata for memory in kept]
    assert [row["text"] for row in rows] == [memory.text for memory in kept]


def test_only_an_empty_store_of_the_same_encoder_loads(filled, tmp_path, encoder):
    """Anything else is refused with the way out, and nothing is changed."""
    file = tmp_path / "all.jsonl"
    with MemoryStore.open(filled, encoder=encoder) as store:
        store.export(file, encoded=True)
        store.export(tmp_path / "plain.jsonl")
        before = list(store.iter())
        with pytest.raises(StoreError, match="only an empty store"):
            store.load(file)
        assert list(store.iter()) == before
    with MemoryStore.open(tmp_path / "other.db", encoder=make_encoder(seed=9)) as other:
        with pytest.raises(EncoderMismatch):
            other.load(file)
        with pytest.raises(InvalidFile, match="no encoded export"):
            other.load(tmp_path / "plain.jsonl")
        assert other.count() == 0


SPOILED = {
    "text": lambda row: row | {"text": ""},
    "no vector": lambda row: {k: v for k, v in row.items() if k != "vector"},
    "short vector": lambda row: row | {"vector": row["vector"][:-1]},
    "long vector": lambda row: row | {"vector": [9.0] * len(row["vector"])},
    "words for a vector": lambda row: row | {"vector": ["a"] * len(row["vector"])},
    "neuron twice": lambda row: row | {"neurons": [2] * len(row["neurons"])},
    "no such neuron": lambda row: row | {"neurons": [*row["neurons"][:-1], 10**6]},
    "one activation less": lambda row: row | {"activations": row["activations"][:-1]},
    "activation below 0": lambda row: row | {"activations": [-1.0] * len(row["activations"])},
    "activation nan": lambda row: row | {"activations": [float("nan")] * len(row["activations"])},
    "id of another": lambda row: row | {"id": 2},
    "id of text": lambda row: row | {"id": "3"},
    "key of another": lambda row: row | {"key": "k1"},
    "no time": lambda row: row | {"created_at": None},
    "a list": lambda row: [row],
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_export_leaves_the_store_empty(filled, tmp_path, encoder, how):
    """One bad row far into the file: a typed error that names it, and nothing is stored."""
    file = tmp_path / "all.jsonl"
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        store.export(file, encoded=True)
    lines = file.read_text("utf-8").splitlines()
    lines[20] = json.dumps(SPOILED[how](json.loads(lines[20])))
    file.write_text("\n".join(lines), "utf-8")
    with MemoryStore.open(tmp_path / "new.db", encoder=encoder) as store:
        with pytest.raises((InvalidFile, DuplicateKey), match=r"all.jsonl row|key 'k1'"):
            store.load(file)
        assert store.count() == 0
        assert store.neurons.labels() == []
