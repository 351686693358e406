"""Exports: what comes back is what was there, and a file that cannot be says why."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas
import pytest

from memstore import Encoder, MemoryStore, exports
from memstore.embed.function import FunctionEmbedder
from memstore.errors import (
    DuplicateKey,
    EncoderMismatch,
    InvalidFile,
    StoreDamaged,
    StoreError,
)
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE
from tests.conftest import make_encoder

ROOT = Path(__file__).parent.parent
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
    if name != "all.parquet":  # the same rows, the same bytes, whenever they were written
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
    label = {"neuron": 3, "label": "grief", "grade": 0.25, "method": "given"}
    label |= {"sentence": None, "model": None}
    assert heading["labels"][0] == label
    assert {name: line[name] for name in first.to_dict()} == first.to_dict()
    assert line["vector"] == vectors[0].tolist()
    assert dict(zip(line["neurons"], line["activations"], strict=True)) == trace.to_dict()
    frame = pandas.read_parquet(tmp_path / "all.parquet")
    assert frame["text"].tolist()[0] == first.text
    assert frame["created_at"][0] == first.created_at
    assert np.array_equal(np.stack(frame["vector"]), vectors)
    with gzip.open(tmp_path / "all.jsonl.gz", "rb") as file:
        assert file.read() == (tmp_path / "all.jsonl").read_bytes()


@pytest.mark.parametrize("name", KINDS)
def test_a_plain_export_can_be_imported(filled, tmp_path, encoder, name):
    """Texts, categories, keys, metadata and times of occurrence come back."""
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        store.export(tmp_path / name, {"category": "Routine"})
        kept = list(store.iter({"category": "Routine"}))
    command = [sys.executable, "-m", "memstore", "import", tmp_path / "new.db", tmp_path / name]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    fields = ("text", "category", "key", "metadata", "occurred_at")
    with MemoryStore.open(tmp_path / "new.db", mode="r") as store:
        found = [tuple(getattr(memory, field) for field in fields) for memory in store.iter()]
    assert found == [tuple(getattr(memory, field) for field in fields) for memory in kept]


def test_only_an_empty_store_of_the_same_encoder_loads(filled, tmp_path, encoder):
    """Anything else is refused with the way out, and nothing is changed."""
    file = tmp_path / "all.jsonl"
    with MemoryStore.open(filled, encoder=encoder) as store:
        store.export(file, encoded=True)
        store.export(tmp_path / "plain.jsonl")
        before = list(store.iter())
        with pytest.raises(StoreError, match="only a new store"):
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
    "the last of all ids": lambda row: row | {"id": 2**63 - 1},
    "half a neuron": lambda row: row | {"neurons": [n + 0.5 for n in row["neurons"]]},
    "neurons as text": lambda row: row | {"neurons": [str(n) for n in row["neurons"]]},
    "activation beyond float16": lambda row: row | {"activations": [1e6] * len(row["neurons"])},
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


def test_a_store_that_had_memories_is_not_new(filled, tmp_path, encoder):
    """Emptied is not enough: ids are never used twice. Nor is one with labels."""
    file = tmp_path / "all.jsonl"
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        store.export(file, encoded=True)
    with MemoryStore.open(tmp_path / "emptied.db", encoder=encoder) as store:
        store.delete(store.insert_many(["a", "b"]))
        with pytest.raises(StoreError, match="only a new store"):
            store.load(file)
        assert store.insert("c") == 3
    with MemoryStore.open(tmp_path / "labelled.db", encoder=encoder) as store:
        store.neurons.label(1, "grief")
        with pytest.raises(StoreError, match="only a new store"):
            store.load(file)


def test_an_export_cut_short_is_not_loaded(filled, tmp_path, encoder):
    """A heading says how many there are."""
    file = tmp_path / "all.jsonl"
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        store.export(file, encoded=True)
    file.write_text("\n".join(file.read_text("utf-8").splitlines()[:-3]), "utf-8")
    with MemoryStore.open(tmp_path / "new.db", encoder=encoder) as store:
        with pytest.raises(InvalidFile, match="cut short"):
            store.load(file)
        assert store.count() == 0


@pytest.mark.parametrize("name", ["all.txt", "all.csv", "all.json", "all", "-", "all.parquet.gz"])
def test_a_name_that_import_would_read_as_something_else_is_refused(
    filled, tmp_path, encoder, name
):
    """JSON Lines in a .txt would come back as texts that begin with a brace."""
    with (
        MemoryStore.open(filled, mode="r", encoder=encoder) as store,
        pytest.raises(InvalidFile),
    ):
        store.export(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_import_goes_by_the_format_it_is_told(filled, tmp_path, encoder):
    """An encoded export under another name, and plain lines under one of ours."""
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        store.export(tmp_path / "all.parquet")
    (tmp_path / "all.parquet").rename(tmp_path / "all.bin")
    (tmp_path / "lines.parquet").write_text('"one"\n"two"\n', "utf-8")
    for file, kind, rows in (("all.bin", "parquet", 36), ("lines.parquet", "jsonl", 2)):
        command = [sys.executable, "-m", "memstore", "import", tmp_path / f"{file}.db"]
        done = subprocess.run(
            [*command, tmp_path / file, "--format", kind],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout.startswith(f"{rows} rows"), done.stderr


def test_an_incomplete_memory_is_not_exported_as_if_it_were_whole(path, tmp_path, encoder):
    """A vector is lost: a typed error that names the remedy, and no file."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many(["a", "b", "c"])
        with store._database.driver() as raw:
            raw.execute("DELETE FROM vector WHERE memory_id = 2")
        with pytest.raises(StoreDamaged, match="repair"):
            store.export(tmp_path / "all.jsonl", encoded=True)
        assert not (tmp_path / "all.jsonl").exists()


def test_a_heading_that_no_reader_would_take_is_not_written(filled, tmp_path, encoder, monkeypatch):
    """Labels beyond the longest line that import reads: Parquet has no lines."""
    monkeypatch.setattr(exports, "MAX_LINE", 200)
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        with pytest.raises(InvalidFile, match="parquet"):
            store.export(tmp_path / "all.jsonl", encoded=True)
        assert not (tmp_path / "all.jsonl").exists()
        store.export(tmp_path / "all.parquet", encoded=True)
    with MemoryStore.open(tmp_path / "new.db", encoder=encoder) as store:
        assert store.load(tmp_path / "all.parquet") == 36


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_an_encoded_export_under_another_name_goes_by_the_format_it_is_told(tmp_path, kind):
    """`memstore import FILE --format` loads it as it was, like under its own name."""
    with MemoryStore.open(tmp_path / "old.db") as store:
        store.insert_many(["It rained all day.", "A letter came."])
        store.delete([1])
        store.export(tmp_path / f"all.{kind}", encoded=True)
    (tmp_path / f"all.{kind}").rename(tmp_path / "all.bin")
    command = [
        sys.executable,
        "-m",
        "memstore",
        "import",
        tmp_path / "new.db",
        tmp_path / "all.bin",
    ]
    done = subprocess.run(
        [*command, "--format", kind], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1 memories as they were\n", done.stderr
    with MemoryStore.open(tmp_path / "new.db", mode="r") as store:
        assert [memory.id for memory in store.iter()] == [2]


@pytest.mark.parametrize("labels", [None, {}, 3, "grief"])
def test_labels_that_are_no_list_are_not_passed_over(filled, tmp_path, encoder, labels):
    """They would be lost without a word."""
    file = tmp_path / "all.jsonl"
    with MemoryStore.open(filled, mode="r", encoder=encoder) as store:
        store.export(file, encoded=True)
    heading, *rows = file.read_text("utf-8").splitlines()
    file.write_text(
        "\n".join([json.dumps(json.loads(heading) | {"labels": labels}), *rows]), "utf-8"
    )
    with MemoryStore.open(tmp_path / "new.db", encoder=encoder) as store:
        with pytest.raises(InvalidFile, match="labels"):
            store.load(file)
        assert store.count() == 0
