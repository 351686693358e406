"""Index files are copies: used when they can be believed, ignored otherwise, never fatal."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memstore import MemoryStore, layout
from memstore.core import traces as packed
from memstore.core.expression import NeuronQuery
from memstore.index import segments
from memstore.index.postings import NeuronIndex
from memstore.types import Traces


@pytest.fixture
def saved(path, encoder):
    """A store with a saved index; returns its path and the index folder."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(300)])
        store.delete([5, 6])
        store.optimize()
    return path, layout.index_folder(path)


def answers(path, encoder):
    with MemoryStore.open(path, mode="r", encoder=encoder) as store:
        return [
            [(hit.id, hit.score) for hit in hits]
            for hits in (
                store.top(3, 20),
                store.composite("3 - 0.5*4 + 2", 20),
                store.search("memory 7", 20),
                store.search("memory 7", 20, by="trace"),
            )
        ]


def test_a_saved_index_is_used_and_answers_the_same(saved, encoder, monkeypatch):
    """With the files the catalog's traces are not read; without them the answers are equal."""
    path, folder = saved
    read = []
    original = NeuronIndex.apply
    monkeypatch.setattr(
        NeuronIndex, "apply", lambda self, *a: (read.append(1), original(self, *a))[1]
    )
    with_files = answers(path, encoder)
    assert read == []
    shutil.rmtree(folder)
    assert answers(path, encoder) == with_files
    assert read == [1]


def test_changes_after_saving_are_replayed(saved, encoder):
    """Insert, update and delete since the files were written show in the next query."""
    path, folder = saved
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete([7, 8])
        store.update(9, text="memory 7")
        store.insert("memory 7")
    replayed = answers(path, encoder)
    shutil.rmtree(folder)
    assert answers(path, encoder) == replayed


@pytest.mark.parametrize("kind", ["traces", "vectors"])
def test_damaged_files_are_ignored(saved, encoder, kind):
    """Flipped bytes, truncation, rubbish and nothing at all: the same answers every time."""
    path, folder = saved
    expected = answers(path, encoder)
    file = folder / f"{kind}.seg"
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(25):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        assert answers(path, encoder) == expected
    for size in (0, 5, 20, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert answers(path, encoder) == expected
    file.write_bytes(random.bytes(5000))
    assert answers(path, encoder) == expected


def test_files_of_another_store_or_encoder_are_ignored(saved, encoder, tmp_path):
    """A folder copied beside another store is not believed."""
    _, folder = saved
    other = tmp_path / "other.db"
    with MemoryStore.open(other, encoder=encoder) as store:
        store.insert_many([f"quite other {i}" for i in range(20)])
    expected = answers(other, encoder)
    shutil.copytree(folder, layout.index_folder(other))
    assert answers(other, encoder) == expected
    read = segments.load(folder, "traces", "another token", encoder.fingerprint, 10**9)
    assert read is None


def test_a_restored_older_store_does_not_believe_newer_files(saved, encoder, tmp_path):
    """A backup put back under a newer index folder: the index is from a future that never came."""
    path, folder = saved
    shutil.copy(path, tmp_path / "old.db")
    before = answers(path, encoder)
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete([1, 2, 3, 4])
        store.insert("a future that is undone")
        store.optimize()
    assert answers(path, encoder) != before
    shutil.copy(tmp_path / "old.db", path)
    assert answers(path, encoder) == before
    # Writing goes on to the very change number that the foreign index shows.
    with MemoryStore.open(path, encoder=encoder) as store:
        for i in range(3):
            store.insert(f"another future {i}")
    with_folder = answers(path, encoder)
    shutil.rmtree(folder)
    assert answers(path, encoder) == with_folder


def test_closing_after_many_inserts_saves_the_index(path, encoder):
    """A large import is not replayed by the next process."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(2_500)])
    assert sorted(file.name for file in layout.index_folder(path).iterdir()) == [
        "traces.seg",
        "vectors.seg",
    ]


rows = st.dictionaries(st.integers(0, 9), st.sampled_from([0.25, 0.5, 1.0, 1.5]), max_size=4)


def as_traces(items):
    ids = sorted(items)
    dense = np.zeros((len(ids), 10))
    for place, i in enumerate(ids):
        for neuron, value in items[i].items():
            dense[place, neuron] = value
    return packed.from_dense(dense, np.array(ids, dtype=np.int64))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.dictionaries(st.integers(1, 60), rows), st.sets(st.integers(1, 60)))))
def test_any_history_of_writes_leaves_exactly_the_last_state(history):
    """Segments built, merged and compacted in any order hold what a plain dict holds."""
    index, truth = NeuronIndex(10), {}
    for change, (written, deleted) in enumerate(history, 1):
        deleted = deleted - set(written)
        for i in deleted:
            truth.pop(i, None)
        truth.update(written)
        index.apply(sorted(deleted), [as_traces(written)] if written else [], change)
        assert len(index) == len(truth)
        found = index.composite(NeuronQuery(((3, 1.0), (7, -0.5))))
        expected = {
            i: t.get(3, 0) - 0.5 * t.get(7, 0)
            for i, t in truth.items()
            if 3 in t and t.get(3, 0) - 0.5 * t.get(7, 0) > 0
        }
        assert dict(found.pairs()) == expected
    held: Traces = index.compacted().traces
    assert {int(i): t.to_dict() for i, t in zip(held.ids, held, strict=True)} == {
        i: dict(sorted(t.items(), key=lambda item: (-item[1], item[0]))) for i, t in truth.items()
    }
    assert len(index.segments) <= 2 + len(truth).bit_length()
