"""Deleted means gone: from every kind of query at once, from the file after optimize."""

from __future__ import annotations

import pytest

from memstore import MemoryStore, layout
from memstore.errors import StoreLocked

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


def everything(path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.rglob("*") if file.is_file())


def test_optimize_says_when_a_reader_keeps_deleted_text_alive(path, encoder):
    """An error names it; once the reader is done, optimize finishes the work."""
    with MemoryStore.open(path, encoder=encoder, busy_timeout=0.2) as store:
        secret = store.insert(SECRET)
        with MemoryStore.open(path, mode="r", encoder=encoder) as reader:
            with reader._database.read() as connection:
                connection.exec_driver_sql("SELECT count(*) FROM memory").scalar()
                store.delete(secret)
                with pytest.raises(StoreLocked, match="optimize again"):
                    store.optimize()
            store.optimize()
            assert b"quasar" not in everything(path)


def test_category_names_that_nothing_uses_go_too(path, encoder):
    """A name can tell as much as a text."""
    with MemoryStore.open(path, encoder=encoder) as store:
        memory_id = store.insert("an ordinary text", category="quasar-diagnosis")
        store.update(memory_id, category=None)
        store.optimize()
    assert b"quasar" not in everything(path)


def test_an_index_that_cannot_be_written_does_not_keep_secrets(path, encoder, caplog):
    """A file where the index folder should be: optimize does its work and warns."""
    layout.index_folder(path).write_text("in the way")
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete(store.insert(SECRET))
        store.optimize()
        assert b"quasar" not in everything(path)
    assert "index was not saved" in caplog.text


def test_new_files_are_private(path, tmp_path, encoder):
    """Nobody else may read the store, its WAL, its index or a backup."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("private")
        store.optimize()
        store.insert("private too")
        store.backup(tmp_path / "backup.db")
        found = {file: file.stat().st_mode & 0o077 for file in tmp_path.rglob("*")}
    assert len(found) >= 6
    assert {file.name: mode for file, mode in found.items() if mode and file.is_file()} == {}
