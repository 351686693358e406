"""Backups: made under load, looked at without restoring, restored; and what is no backup."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from memstore import MemoryStore, backups, layout
from memstore.catalog import migrate
from memstore.errors import StoreDamaged, StoreError, StoreNotFound

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def made(path, tmp_path, encoder):
    """A store and a backup of it."""
    backup = tmp_path / "monday.db"
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([{"text": f"memory {i}", "category": "c"} for i in range(300)])
        store.neurons.label(3, "three")
        store.delete([5, 6])
        store.backup(backup)
    return path, backup


def dump(path):
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_the_manifest_says_what_is_in_the_copy(made):
    """Counts and identity from the tables, size and SHA-256 as other programs see them."""
    path, backup = made
    said = json.loads(backups.manifest_path(backup).read_text("utf-8"))
    with closing(sqlite3.connect(path)) as connection:
        one = "SELECT store_id, change, fingerprint FROM store JOIN encoder"
        assert (said["store_id"], said["change"], said["fingerprint"]) == connection.execute(
            one
        ).fetchone()
    assert (said["memories"], said["labels"], said["schema"]) == (298, 1, migrate.HEAD)
    assert said["bytes"] == backup.stat().st_size
    assert said["sha256"] == hashlib.sha256(backup.read_bytes()).hexdigest()
    assert backups.verify(backup) == []
    assert {file.stat().st_mode & 0o077 for file in (backup, backups.manifest_path(backup))} == {0}


def test_a_restored_store_is_the_one_backed_up(made, tmp_path, encoder):
    """Every row of every table, every answer; and it can be written."""
    path, backup = made
    target = tmp_path / "restored.db"
    assert backups.restore(backup, target)["memories"] == 298
    assert dump(target) == dump(path)
    with (
        MemoryStore.open(target, encoder=encoder) as restored,
        MemoryStore.open(path, mode="r", encoder=encoder) as store,
    ):
        assert list(restored.iter()) == list(store.iter())
        for neuron in range(10):
            assert restored.top(neuron, 300) == store.top(neuron, 300)
        assert restored.check() == []
        assert restored.insert("after") == store.stats()["memories"] + 3
    assert backups.verify(backup) == []


def test_a_backup_under_write_load_shows_one_moment(path, tmp_path, encoder):
    """Pairs are inserted in one transaction each: no backup holds half a pair, none is behind."""
    done = threading.Event()
    with MemoryStore.open(path, encoder=encoder, busy_timeout=30) as store:
        store.insert_many(["a 0", "b 0"])

        def write():
            number = 1
            while not done.is_set():
                store.insert_many([f"a {number}", f"b {number}"])
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for round in range(12):
                least = store.count()
                store.backup(tmp_path / f"backup-{round}.db")
                most = store.count()
                assert backups.verify(tmp_path / f"backup-{round}.db") == []
                with MemoryStore.open(
                    tmp_path / f"backup-{round}.db", mode="r", encoder=encoder
                ) as copy:
                    texts = [memory.text for memory in copy.iter()]
                    assert least <= len(texts) <= most
                    assert len(texts) % 2 == 0
                    assert texts[::2] == [text.replace("b", "a") for text in texts[1::2]]
        finally:
            done.set()
            writer.join()
        assert store.count() > 100


def test_every_change_to_a_backup_is_noticed(made):
    """A byte anywhere, an end cut off, one more byte, another manifest, another file."""
    _, backup = made
    content, dice = backup.read_bytes(), np.random.default_rng(2)
    for place in [*dice.integers(len(content), size=60).tolist(), 0, 20, len(content) - 1]:
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << int(dice.integers(8))
        backup.write_bytes(spoiled)
        assert any("sha256" in problem for problem in backups.verify(backup))
    for changed in (content[:-1], content + b"x", content[: len(content) // 2], b"", b"text"):
        backup.write_bytes(changed)
        assert len(backups.verify(backup)) >= 1
    backup.write_bytes(content)
    assert backups.verify(backup) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"memstore_backup": 99}', "[" * 100_000, "\0"]
)
def test_a_manifest_that_says_nothing_is_a_problem(made, tmp_path, content):
    """Said by verify, refused by restore, and no exception but memstore's own."""
    _, backup = made
    backups.manifest_path(backup).write_text(content, "utf-8")
    assert "manifest" in backups.verify(backup)[0]
    with pytest.raises(StoreDamaged, match="older backup"):
        backups.restore(backup, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


def test_nothing_is_restored_over_anything(made, tmp_path):
    """Not over a store, nor beside the WAL of one that is gone: SQLite would play it back."""
    path, backup = made
    before = path.read_bytes()
    with pytest.raises(StoreError, match="exists"):
        backups.restore(backup, path)
    assert path.read_bytes() == before
    (tmp_path / "gone.db-wal").write_bytes(b"old")
    with pytest.raises(StoreError, match="move it away"):
        backups.restore(backup, tmp_path / "gone.db")
    with pytest.raises(StoreNotFound):
        backups.restore(tmp_path / "nobody.db", tmp_path / "new.db")


def test_a_restored_past_takes_no_index_of_the_future(path, tmp_path, encoder):
    """Restored under the old name, beside index files of what has been undone: right answers."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(50)])
        store.optimize()
        store.backup(tmp_path / "copy.db")
        store.delete(list(range(1, 40)))
        store.insert_many([f"undone {i}" for i in range(60)])
        store.optimize()
    path.unlink()
    backups.restore(tmp_path / "copy.db", path)
    with MemoryStore.open(path, encoder=encoder) as store:
        with_files = [store.top(neuron, 100) for neuron in range(10)]
        store.insert_many([f"another {i}" for i in range(60)])
        followed = [store.top(neuron, 200) for neuron in range(10)]
        assert store.check() == []
    shutil.rmtree(layout.index_folder(path))
    with MemoryStore.open(path, mode="r", encoder=encoder) as store:
        assert [store.top(neuron, 200) for neuron in range(10)] == followed
    assert {hit.text.split()[0] for hits in with_files for hit in hits} == {"memory"}


def test_the_copy_before_an_upgrade_can_be_looked_at(path):
    """It has no manifest, and says so; what is in it is well."""
    shutil.copy(FIXTURES / "store-0001.db", path)
    _, backup = migrate.upgrade(path, 5.0)
    problems = backups.verify(backup)
    assert len(problems) == 1
    assert "no manifest" in problems[0]
