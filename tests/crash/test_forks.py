"""A store that was open before a fork is closed to the child, and unharmed in the parent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from soak import outcome

from memstore import MemoryStore
from memstore.hits import Hits
from tests.conftest import DIMENSION, make_encoder

ENCODER = make_encoder()
#: Every public method but ``open`` and ``close``, called as people do.
CALLS: dict[str, Callable[[MemoryStore], object]] = {
    "insert": lambda store: store.insert("lost"),
    "insert_many": lambda store: store.insert_many(["lost", "too"], on_duplicate="skip"),
    "update": lambda store: store.update(1, category="lost"),
    "upsert": lambda store: store.upsert(key="lost", text="lost"),
    "delete": lambda store: store.delete(1),
    "delete_where": lambda store: store.delete_where({"key": "parent"}),
    "stats": lambda store: store.stats(),
    "optimize": lambda store: store.optimize(),
    "reencode": lambda store: store.reencode(ENCODER),
    "check": lambda store: store.check(),
    "repair": lambda store: store.repair(),
    "backup": lambda store: store.backup(store._database.path.with_name("backup.db")),
    "export": lambda store: store.export(store._database.path.with_name("all.jsonl")),
    "load": lambda store: store.load(store._database.path.with_name("encoded.jsonl")),
    "get": lambda store: store.get(key="parent"),
    "iter": lambda store: list(store.iter()),
    "count": lambda store: store.count({"key": "parent"}),
    "trace": lambda store: store.trace(1),
    "traces": lambda store: store.traces(),
    "iter_vectors": lambda store: list(store.iter_vectors()),
    "top": lambda store: store.top(3),
    "composite": lambda store: store.composite("+3 -5"),
    "search": lambda store: store.search("parent"),
    "search by trace": lambda store: store.search("parent", by="trace"),
    "search by words": lambda store: store.search("parent", by="words"),
    "search by hybrid": lambda store: store.search("parent", by="hybrid"),
    "similar": lambda store: store.similar(1),
    "search_vector": lambda store: store.search_vector([1.0] * DIMENSION),
    "explain": lambda store: store.explain(1),
    "diff": lambda store: store.diff(1, 1),
    "audit": lambda store: store.audit(),
    "copies": lambda store: store.copies(1),
    "novelty": lambda store: store.novelty("parent"),
    "diverse": lambda store: store.diverse(Hits(), 3),
    "lenses": lambda store: list(store.lenses),
    "lenses.save": lambda store: store.lenses.save("lost", "3"),
    "explain_query": lambda store: store.explain_query("+3"),
    "neurons": lambda store: store.neurons[3],
    "neurons.label": lambda store: store.neurons.label(3, "lost"),
    "neurons.alike": lambda store: store.neurons.alike(3),
    "neurons.labels": lambda store: store.neurons.labels(),
    "neurons.of": lambda store: store.neurons.of([3]),
    "neurons.made": lambda store: store.neurons.made(),
    "neurons.make_labels": lambda store: store.neurons.make_labels(),
    "len(neurons)": lambda store: len(store.neurons),
}


def test_every_public_method_is_among_the_calls():
    """Whoever adds a method says here how to call it."""
    own = {name for name in dir(MemoryStore) if not name.startswith("_")}
    assert own - {"open", "close"} <= CALLS.keys()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_an_inherited_store_is_closed_to_every_method(path, busy):
    """Whatever threads of the parent held when it forked; and the parent goes on unharmed."""
    with (
        MemoryStore.open(path, encoder=ENCODER, busy_timeout=0.5) as store,
        ThreadPoolExecutor(1) as another,
    ):
        store.insert("parent", key="parent")
        store.search("parent", by="hybrid")
        store.export(path.with_name("encoded.jsonl"), encoded=True)
        before, indices = store.stats(), store._indices
        locks = [store._database._writing, indices.dense_turn, indices._loading, store._loading]
        for lock in locks if busy else []:
            another.submit(lock.acquire).result()
        told = {name: outcome(functools.partial(call, store)) for name, call in CALLS.items()}
        closing_ended = outcome(store.close)
        for lock in locks if busy else []:
            another.submit(lock.release).result()
        assert closing_ended == "no error"
        assert {name: how for name, how in told.items() if how != "StoreClosed"} == {}
        assert store.stats() == before
        store.insert("parent again")
        assert [memory.text for memory in store.iter()] == ["parent", "parent again"]
        assert store.check() == []
    assert {each.name for each in path.parent.iterdir()} == {path.name, "encoded.jsonl"}
