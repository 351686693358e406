"""Deleted means gone: from every kind of query at once, from the file after optimize."""

from __future__ import annotations

import pytest

from memstore import MemoryStore

SECRET = "zyxwvut the quasar password is hunter"


def asked(store, neuron):
    """Every way to find something."""
    return [
        store.top(neuron, 100),
        store.composite({neuron: 1.0}, 100, min_score=None),
        store.composite(f"!{(neuron + 1) % 10}", 100),
        store.search(SECRET, 100),
        store.search(SECRET, 100, by="trace"),
        store.search(SECRET, 100, by="words"),
        store.search(SECRET, 100, by="hybrid"),
        store.search(SECRET, 100, half_life="10d"),
        store.similar(1, 100),
        store.iter({"text": {"$contains": "quasar"}}),
        store.neurons[neuron].top,
    ]


@pytest.mark.parametrize("how", ["delete", "delete_where", "update"])
def test_a_deleted_text_is_found_by_no_query(path, encoder, how):
    """Before and after reopening, with and without a saved index."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("something else")
        secret = store.insert(SECRET, metadata={"why": "quasar-metadata"})
        store.insert_many([f"memory {i}" for i in range(20)])
        neuron = int(store.trace(secret).neurons[0])
        assert all(any(hit.id == secret for hit in hits) for hits in asked(store, neuron)[3:8])
        store.optimize()
        if how == "delete":
            store.delete(secret)
        elif how == "delete_where":
            store.delete_where({"text": {"$contains": "quasar"}})
        else:
            store.update(secret, text="nothing to see", metadata=None)
        for hits in asked(store, neuron):
            assert all("quasar" not in hit.text for hit in hits)
    with MemoryStore.open(path, encoder=encoder) as store:
        for hits in asked(store, neuron):
            assert all("quasar" not in hit.text for hit in hits)
        store.optimize()
        everything = b"".join(
            file.read_bytes() for file in path.parent.rglob("*") if file.is_file()
        )
        for word in (b"quasar", b"zyxwvut", b"hunter"):
            assert word not in everything
        assert store.check() == []


def test_space_comes_back_after_optimize(path, encoder):
    """Insert, delete, optimize: about the size of the start, however often."""
    sizes = []
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("stays")
        for _ in range(3):
            ids = store.insert_many([f"{i} " + "word " * 400 for i in range(500)])
            store.delete(ids)
            store.optimize()
            sizes.append(store.stats()["bytes"] + store.stats()["index_bytes"])
    assert max(sizes) < sizes[0] * 1.05
    assert sizes[0] < 400_000
