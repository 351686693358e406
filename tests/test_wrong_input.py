"""Wrong input: one typed error that names the remedy, and the store as it was."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from memstore import MemoryStore, N
from memstore.errors import (
    EncoderMismatch,
    InvalidExpression,
    InvalidFilter,
    InvalidInput,
    InvalidMetadata,
    InvalidQuery,
    InvalidText,
    InvalidTime,
    InvalidVector,
    InvalidWeights,
    MemstoreError,
    NotAStore,
    StoreError,
    StoreFull,
    StoreNotFound,
    StoreReadOnly,
    UnknownNeuron,
)
from tests.conftest import make_encoder

NAN = np.full((1, 6), np.nan)

WRONG = {
    "empty text": (InvalidText, lambda s: s.insert("")),
    "blank text": (InvalidText, lambda s: s.insert(" \n")),
    "NUL byte": (InvalidText, lambda s: s.insert("a\x00b")),
    "1 MB text": (InvalidText, lambda s: s.insert("x" * 1_000_000)),
    "half a surrogate pair": (InvalidText, lambda s: s.insert("\ud800")),
    "text that is a number": (InvalidText, lambda s: s.insert(7)),
    "NUL in category": (InvalidInput, lambda s: s.insert("a", category="\x00")),
    "empty key": (InvalidInput, lambda s: s.insert("a", key="")),
    "unknown field": (InvalidInput, lambda s: s.insert_many([{"text": "a", "mood": 1}])),
    "a row that is a list": (InvalidInput, lambda s: s.insert_many([["a"]])),
    "one row as many": (InvalidInput, lambda s: s.insert_many({"text": "a"})),
    "text as many": (InvalidInput, lambda s: s.insert_many("abc")),
    "metadata that is a list": (InvalidMetadata, lambda s: s.insert("a", metadata=[1])),
    "metadata with NaN": (InvalidMetadata, lambda s: s.insert("a", metadata={"x": float("nan")})),
    "metadata with a set": (InvalidMetadata, lambda s: s.insert("a", metadata={"x": {1}})),
    "metadata with number names": (InvalidMetadata, lambda s: s.insert("a", metadata={1: 2})),
    "a time that is none": (InvalidTime, lambda s: s.insert("a", occurred_at="yesterday")),
    "on_duplicate": (InvalidInput, lambda s: s.insert("a", on_duplicate="replace")),
    "NaN vector": (InvalidVector, lambda s: s.insert_many(["a"], vectors=NAN)),
    "zero vector": (InvalidVector, lambda s: s.insert_many(["a"], vectors=np.zeros((1, 6)))),
    "wrong dimension": (InvalidVector, lambda s: s.insert_many(["a"], vectors=np.ones((1, 7)))),
    "too few vectors": (
        InvalidVector,
        lambda s: s.insert_many(["a", "b"], vectors=np.ones((1, 6))),
    ),
    "too few for a stream": (
        InvalidVector,
        lambda s: s.insert_many(iter(["a", "b"]), vectors=np.ones((1, 6))),
    ),
    "a vector of words": (InvalidVector, lambda s: s.insert_many(["a"], vectors=[["x"] * 6])),
    "neuron past the last": (UnknownNeuron, lambda s: s.top(10)),
    "negative neuron": (UnknownNeuron, lambda s: s.top(-1)),
    "name nobody gave": (UnknownNeuron, lambda s: s.top("grief")),
    "bad expression": (InvalidExpression, lambda s: s.composite("15 %")),
    "empty expression": (InvalidExpression, lambda s: s.composite({})),
    "bad filter operator": (InvalidFilter, lambda s: s.search("a", where={"x": {"$near": 1}})),
    "filter on a list": (InvalidFilter, lambda s: s.top(1, where=[1])),
    "filter of the wrong type": (InvalidFilter, lambda s: s.count({"id": "seven"})),
    "filter with infinity": (InvalidFilter, lambda s: s.count({"x": float("inf")})),
    "filter with a strange path": (InvalidFilter, lambda s: s.count({'a".b': 1})),
    "k of zero": (InvalidQuery, lambda s: s.top(1, k=0)),
    "k that is no number": (InvalidQuery, lambda s: s.search("a", k="5")),
    "unknown kind of search": (InvalidQuery, lambda s: s.search("a", by="magic")),
    "words without words": (InvalidQuery, lambda s: s.search("?!", by="words")),
    "half-life": (InvalidTime, lambda s: s.search("a", half_life="soon")),
    "half-life of nothing": (InvalidTime, lambda s: s.search("a", half_life="0d")),
    "weights of no side": (InvalidQuery, lambda s: s.search("a", by="hybrid", weights={"x": 1})),
    "a weight that is no number": (
        InvalidQuery,
        lambda s: s.search("a", by="hybrid", weights={"dense": float("nan")}),
    ),
    "weights without hybrid": (InvalidQuery, lambda s: s.search("a", weights={"dense": 1})),
    "idf without neurons": (InvalidQuery, lambda s: s.search("a", idf=True)),
    "steer by words": (InvalidQuery, lambda s: s.search("a", by="words", steer="1")),
    "similar by words": (InvalidQuery, lambda s: s.similar(1, by="words")),
    "delete by an empty inner filter": (
        InvalidFilter,
        lambda s: s.delete_where({"$and": [{}]}),
    ),
    "upsert without key": (InvalidInput, lambda s: s.upsert(key=None, text="x")),
    "a time before all time": (
        InvalidTime,
        lambda s: s.insert("a", occurred_at="0001-01-01T00:00:00+14:00"),
    ),
    "deep metadata": (InvalidMetadata, lambda s: s.insert("a", metadata=nested(500))),
    "a weight beyond floats": (InvalidExpression, lambda s: s.composite({1: 10**400})),
    "a bound beyond floats": (InvalidExpression, lambda s: N[5] > 10**400),
    "a filter beyond 64 bits": (InvalidFilter, lambda s: s.count({"x": 10**400})),
    "min_score that is text": (InvalidExpression, lambda s: s.composite("1", min_score="a")),
    "weights that are a list": (
        InvalidQuery,
        lambda s: s.search("a", by="hybrid", weights=["dense"]),
    ),
    "no weights": (InvalidQuery, lambda s: s.search("a", by="hybrid", weights={})),
    "ragged vectors": (InvalidVector, lambda s: s.insert_many(["a", "b"], vectors=[[1, 2], [3]])),
    "grade that is text": (InvalidInput, lambda s: s.neurons.label(1, "a", grade="x")),
    "expressions joined by and": (InvalidExpression, lambda s: N[15] and ~N[7]),
    "a chained comparison": (InvalidExpression, lambda s: 0.1 < N[5] < 0.3),
    "words without end": (
        InvalidQuery,
        lambda s: s.search(" ".join(f"a{i}" for i in range(1001)), by="words"),
    ),
    "a path below a file": (StoreError, lambda s: MemoryStore.open(s.p / "x.db")),
    "a path with NUL": (StoreError, lambda s: MemoryStore.open("a\x00b.db")),
    "an endless path": (StoreError, lambda s: MemoryStore.open("a" * 5000)),
    "empty delete filter": (InvalidFilter, lambda s: s.delete_where({})),
    "id that is text": (InvalidQuery, lambda s: s.delete(["7"])),
    "update of nothing": (InvalidInput, lambda s: s.update(1)),
    "update to empty text": (InvalidText, lambda s: s.update(1, text="")),
    "label that is empty": (InvalidInput, lambda s: s.neurons.label(1, "")),
    "grade beyond one": (InvalidInput, lambda s: s.neurons.label(1, "x", grade=2)),
    "another encoder": (EncoderMismatch, lambda s: MemoryStore.open(s.p, encoder=make_encoder(1))),
}


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"x": value}
    return value


def dump(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        lines = [line for line in connection.iterdump() if "sqlite_sequence" not in line]
    return lines


@pytest.fixture
def filled(path, encoder):
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([{"text": "a b c", "key": "k"}, "d e f"])
        store.p = path
        yield store


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_typed_error_and_changes_nothing(filled, case):
    """The kind of error is right, the message offers a way out, the file is as before."""
    kind, call = WRONG[case]
    before = dump(filled.p)
    with pytest.raises(kind) as caught:
        call(filled)
    assert isinstance(caught.value, MemstoreError)
    assert len(str(caught.value)) > 20
    assert dump(filled.p) == before


def test_a_deep_filter_ends_in_an_error_not_in_recursion(filled):
    """Nesting is bounded, by operators and by $not."""
    where = {"x": 1}
    for _ in range(10_000):
        where = {"$not": where}
    with pytest.raises(InvalidFilter, match="nested"):
        filled.count(where)
    field = {"$eq": 1}
    for _ in range(10_000):
        field = {"$not": field}
    with pytest.raises(InvalidFilter, match="nested"):
        filled.count({"x": field})


def test_sql_in_a_filter_is_only_text(filled):
    """Values and metadata names never become SQL."""
    assert filled.count({"category": "x' OR 1=1 --"}) == 0
    assert filled.count({"x') OR 1=1 --": 1}) == 0
    assert filled.count() == 2


@pytest.mark.parametrize("content", [b"hello, this is a text file of mine" * 20, b"\x00" * 4096])
def test_a_file_that_is_no_store_is_refused_and_left_alone(path, content):
    """Whatever it is, not a byte of it changes."""
    path.write_bytes(content)
    for mode in ("rw", "r"):
        with pytest.raises(NotAStore, match="choose another path"):
            MemoryStore.open(path, mode=mode)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_left_alone(path):
    """SQLite's header alone does not make a store."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NotAStore, match="another program"):
        MemoryStore.open(path)
    assert path.read_bytes() == before


def test_a_folder_and_nothing_are_no_stores(tmp_path):
    """A folder, a missing folder, and a missing file for a reader."""
    with pytest.raises(NotAStore):
        MemoryStore.open(tmp_path)
    with pytest.raises(StoreNotFound, match="create it"):
        MemoryStore.open(tmp_path / "no" / "store.db")
    with pytest.raises(StoreNotFound):
        MemoryStore.open(tmp_path / "none.db", mode="r")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_write(path, encoder):
    """Every mutator of a store opened for reading is refused."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("x")
    with MemoryStore.open(path, mode="r", encoder=encoder) as store:
        for call in (
            lambda: store.insert("y"),
            lambda: store.update(1, category="A"),
            lambda: store.delete(1),
            lambda: store.delete_where({"id": 1}),
            lambda: store.neurons.label(1, "x"),
            store.optimize,
            store.repair,
        ):
            with pytest.raises(StoreReadOnly, match='mode="rw"'):
                call()
        assert [hit.text for hit in store.search("x", 1)] == ["x"]


def test_weights_that_are_not_whole_are_refused(tmp_path):
    """A missing file, a torn file, a wrong shape, and a file from a stranger."""
    from memstore import Encoder, layout

    with pytest.raises(InvalidWeights, match="no weights"):
        Encoder.of(sae=tmp_path / "none")
    for name, content in (("config.json", b"{}"), ("weights.safetensors", b"\xff" * 100)):
        folder = tmp_path / name
        shutil.copytree(layout.NARRATIVES_SAE_FOLDER, folder)
        (folder / name).write_bytes(content)
        with pytest.raises(InvalidWeights):
            Encoder.of(sae=folder)
    folder = tmp_path / "shape"
    shutil.copytree(layout.NARRATIVES_SAE_FOLDER, folder)
    config = (folder / "config.json").read_text().replace('"neurons": 30', '"neurons": 31')
    (folder / "config.json").write_text(config)
    with pytest.raises(InvalidWeights, match="shape"):
        Encoder.of(sae=folder)


def mounted(folder: Path, options: str):
    """Mount a tmpfs, or skip: only root may, and not in every container."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("no permission to mount a file system")


def unmounted(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path, encoder):
    """Inserting until a real, small file system is full: what was acknowledged stays."""
    volume = tmp_path / "volume"
    mounted(volume, "size=2m")
    (volume / "ballast").write_bytes(b"x" * 500_000)
    try:
        with MemoryStore.open(volume / "store.db", encoder=encoder) as store:
            acknowledged = []

            def fill():
                while True:
                    acknowledged.append(store.insert(f"{len(acknowledged)} " + "x" * 5_000))

            with pytest.raises(StoreFull, match="free some"):
                fill()
            assert len(acknowledged) > 10
            assert [memory.id for memory in store.iter()] == acknowledged
            (volume / "ballast").unlink()
            assert store.insert("room again") > acknowledged[-1]
            assert store.check() == []
    finally:
        unmounted(volume)


def test_a_full_disk_while_optimizing_loses_nothing(tmp_path, encoder):
    """VACUUM needs room for a second copy; without it the first one stays."""
    volume = tmp_path / "volume"
    mounted(volume, "size=3m")
    try:
        with MemoryStore.open(volume / "store.db", encoder=encoder) as store:
            ids = store.insert_many([f"{i} " + "x" * 9_000 for i in range(130)])
            (volume / "ballast").write_bytes(b"x" * max(0, free(volume) - 200_000))
            with pytest.raises(StoreFull):
                store.optimize()
            (volume / "ballast").unlink()
            assert [memory.id for memory in store.iter()] == ids
            assert store.check() == []
    finally:
        unmounted(volume)


def free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_bsize


def test_read_only_media_serve_readers(tmp_path, encoder):
    """A store on a read-only file system: writers are refused, readers served."""
    volume = tmp_path / "volume"
    mounted(volume, "size=8m")
    try:
        with MemoryStore.open(volume / "store.db", encoder=encoder) as store:
            store.insert_many(["first words", "second words"])
        subprocess.run(["mount", "-o", "remount,ro", str(volume)], check=True)
        with pytest.raises(StoreReadOnly, match='mode="r"'):
            MemoryStore.open(volume / "store.db", encoder=encoder)
        with pytest.raises(StoreReadOnly):
            MemoryStore.open(volume / "other.db", encoder=encoder)
        with MemoryStore.open(volume / "store.db", mode="r", encoder=encoder) as store:
            assert store.search("first words", 1)[0].text == "first words"
            assert store.check() == []
    finally:
        unmounted(volume)
