"""Every mutator, in one list, under the same trials: a new one costs one line.

Each is checked on the open store and from a second connection, when it succeeds, when its
transaction fails at the end, and when the lock is taken.
"""

from __future__ import annotations

import sqlite3

import pytest

from memstore import MemoryStore
from memstore.catalog import engine
from memstore.errors import StoreLocked

MUTATORS = {
    "insert": lambda s: s.insert("third", category="new"),
    "insert_many": lambda s: s.insert_many(["third", "fourth"]),
    "insert with vectors": lambda s: s.insert_many(["third"], vectors=[[1, 2, 3, 4, 5, 6]]),
    "update metadata": lambda s: s.update(1, metadata={"x": 1}),
    "update text": lambda s: s.update(1, text="changed", category="new"),
    "upsert new": lambda s: s.upsert(key="k2", text="third"),
    "upsert known": lambda s: s.upsert(key="k1", text="changed"),
    "delete": lambda s: s.delete([1]),
    "delete_where": lambda s: s.delete_where({"category": "A"}),
    "label": lambda s: s.neurons.label(3, "three"),
}


def dump(path):
    connection = sqlite3.connect(path)
    lines = [line for line in connection.iterdump() if "sqlite_sequence" not in line]
    connection.close()
    return lines


def change(path):
    connection = sqlite3.connect(path)
    number = connection.execute("SELECT change FROM store").fetchone()[0]
    connection.close()
    return number


@pytest.fixture
def filled(path, encoder):
    with MemoryStore.open(path, encoder=encoder, busy_timeout=0.1) as store:
        store.insert_many([{"text": "first", "category": "A", "key": "k1"}, "second"])
        yield store, path


@pytest.mark.parametrize("name", MUTATORS)
def test_a_mutator_is_one_durable_transaction(filled, name):
    """On return another connection sees it; the change number rose by exactly one."""
    store, path = filled
    before, number = dump(path), change(path)
    MUTATORS[name](store)
    assert dump(path) != before
    assert change(path) == number + 1
    assert store.check() == []


@pytest.mark.parametrize("name", MUTATORS)
def test_a_mutator_that_fails_at_commit_changes_nothing(filled, name, monkeypatch):
    """Everything is rolled back, on disk and in the answers of the open store."""
    store, path = filled
    answers = [hit.id for hit in store.search("first", 10)]
    before = dump(path)

    class Broken(Exception):
        pass

    original = engine.Database.exclusive

    def breaking(self):
        manager = original(self)

        class Wrapped:
            def __enter__(self):
                return manager.__enter__()

            def __exit__(self, *error):
                failure = error if error[0] else (Broken, Broken(), None)
                manager.__exit__(*failure)
                raise failure[1]

        return Wrapped()

    monkeypatch.setattr(engine.Database, "exclusive", breaking)
    with pytest.raises(Broken):
        MUTATORS[name](store)
    monkeypatch.undo()
    assert dump(path) == before
    assert [hit.id for hit in store.search("first", 10)] == answers
    assert store.check() == []


@pytest.mark.parametrize("name", MUTATORS)
def test_a_mutator_meets_a_lock_with_a_typed_error(filled, name):
    """While another connection writes: StoreLocked, nothing changed, and it works afterwards."""
    store, path = filled
    before = dump(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreLocked):
        MUTATORS[name](store)
    other.execute("ROLLBACK")
    other.close()
    assert dump(path) == before
    MUTATORS[name](store)
    assert dump(path) != before
