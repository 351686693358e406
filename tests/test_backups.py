"""Backups: made under load, looked at without restoring, restored; and what is no backup."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from memstore import MemoryStore, backups, durable, layout
from memstore.catalog import migrate
from memstore.errors import StoreDamaged, StoreError, StoreLocked, StoreNotFound
from memstore.recovery import recover

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"


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
        assert store.count() > 2


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


# --- what went wrong once ------------------------------------------------------------------------

LOST_LOCKS = """
import sys
from memstore import MemoryStore
from tests.conftest import make_encoder
with MemoryStore.open(sys.argv[1], encoder=make_encoder()) as store:
    store.insert("theirs")
"""


def journal_mode(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]


def test_a_restored_store_keeps_its_log_like_any_other(made, tmp_path, encoder):
    """A copy is one file; the store made of it, and a copy opened to write, have a WAL."""
    _, backup = made
    assert journal_mode(backup) == "delete"
    target = tmp_path / "restored.db"
    backups.restore(backup, target)
    assert journal_mode(target) == "wal"
    with (
        MemoryStore.open(target, encoder=encoder) as store,
        store._database.read() as connection,
    ):
        connection.exec_driver_sql("SELECT count(*) FROM memory").scalar()
        store.insert("while somebody reads")
    MemoryStore.open(backup, encoder=encoder).close()
    assert journal_mode(backup) == "wal"


def test_a_hot_journal_is_rolled_back_by_the_next_to_open(made, encoder):
    """A copy that another program was writing to when it was killed."""
    _, backup = made
    code = (
        "import os, signal, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 5')\n"
        "c.execute('BEGIN')\n"
        "c.execute(\"UPDATE memory SET text = text || 'half done' \")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(backup)], check=False)
    assert backup.with_name(backup.name + "-journal").stat().st_size > 0
    with MemoryStore.open(backup, encoder=encoder) as store:
        assert all("half done" not in memory.text for memory in store.iter())
        assert store.check() == []


@pytest.mark.parametrize("make", ["backup", "export", "restore"])
def test_what_came_meanwhile_is_not_written_over(made, tmp_path, encoder, monkeypatch, make):
    """Somebody makes a file at the target while ours is being written: theirs stays."""
    path, backup = made
    target = tmp_path / ("late.jsonl" if make == "export" else "late.db")

    def late(handle):
        target.write_text("precious")

    monkeypatch.setattr(durable.os, "fsync", late)
    with MemoryStore.open(path, encoder=encoder) as store:
        work = {
            "backup": lambda: store.backup(target),
            "export": lambda: store.export(target),
            "restore": lambda: backups.restore(backup, target),
        }
        with pytest.raises(StoreError, match="exists by now"):
            work[make]()
    monkeypatch.undo()
    assert target.read_text() == "precious"
    assert not list(tmp_path.glob("*part*"))


def test_a_part_of_somebody_else_is_left_alone(path, tmp_path, encoder):
    """A link in its place is not followed; what is being written is private from the start."""
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    (tmp_path / f"a.jsonl{durable.PART}").symlink_to(precious)
    os.link(precious, tmp_path / f"b.jsonl{durable.PART}")
    (tmp_path / f"c.jsonl{durable.PART}").write_text("left by a killed process")
    (tmp_path / f"c.jsonl{durable.PART}").chmod(0o644)
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("x")
        for name in ("a.jsonl", "b.jsonl"):
            with pytest.raises(StoreError):
                store.export(tmp_path / name)
        store.export(tmp_path / "c.jsonl")
    assert precious.read_text() == "precious"
    assert (tmp_path / "c.jsonl").stat().st_mode & 0o777 == 0o600


def test_two_writers_of_one_target_do_not_mix(tmp_path):
    """The second is told so, and what the first makes is whole."""
    target = tmp_path / "one.jsonl"
    with durable.appearing(target) as part:
        part.write_text("first")
        with pytest.raises(StoreLocked, match="another process"), durable.appearing(target):
            pass
    assert target.read_text() == "first"


def test_a_store_that_is_open_here_is_not_read_beside_sqlite(path, tmp_path, encoder):
    """Opening and closing its file would drop its locks, and another process the WAL under it."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("ours")
        for work in (
            lambda: backups.verify(path),
            lambda: backups.restore(path, tmp_path / "new.db"),
            lambda: recover(path, tmp_path / "out.jsonl"),
        ):
            with pytest.raises(StoreError, match="close it first"):
                work()
        subprocess.run([sys.executable, "-c", LOST_LOCKS, str(path)], cwd=ROOT, check=True)
        kept = store.insert("acknowledged")
        assert path.with_name(path.name + "-wal").exists()
        assert store.get(kept).text == "acknowledged"
    assert backups.verify(path)[0].startswith("no manifest")


@pytest.mark.parametrize("end", ["-journal", "-wal", "-shm"])
def test_names_that_sqlite_uses_are_refused(made, tmp_path, encoder, end):
    """A leftover beside the target, or a target called like one, would be played back."""
    path, backup = made
    (tmp_path / f"gone.db{end}").write_bytes(b"old")
    with pytest.raises(StoreError, match="move it away"):
        backups.restore(backup, tmp_path / "gone.db")
    with (
        MemoryStore.open(path, encoder=encoder) as store,
        pytest.raises(StoreError, match="choose another"),
    ):
        store.backup(tmp_path / f"other.db{end}")


def test_a_manifest_of_somebody_else_is_not_written_over(path, tmp_path, encoder):
    """A file that happens to have the name."""
    (tmp_path / "b.db.manifest.json").write_text("precious")
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("x")
        with pytest.raises(StoreError, match="move it away"):
            store.backup(tmp_path / "b.db")
    assert (tmp_path / "b.db.manifest.json").read_text() == "precious"
    assert not (tmp_path / "b.db").exists()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE encoder SET config = '{'",
        "UPDATE encoder SET dimension = 'six'",
        "DELETE FROM store",
    ],
)
def test_damaged_rows_of_the_store_itself_are_named(made, damage):
    """check, verify and open say what is lost, in an error of memstore's own."""
    path, backup = made
    for file in (path, backup):
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(damage)
            connection.commit()
    assert any("recover" in problem for problem in backups.verify(backup))
    for mode in ("rw", "r"):
        with pytest.raises(StoreDamaged, match="recover"):
            MemoryStore.open(path, mode=mode).stats()


def test_names_too_long_or_impossible(path, tmp_path, encoder):
    """One typed error each."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("x")
        for name in ("x" * 300, "a\0b"):
            with pytest.raises(StoreError):
                store.backup(tmp_path / name)
            with pytest.raises(StoreError):
                store.export(tmp_path / f"{name}.jsonl")
            with pytest.raises(StoreError):
                backups.verify(tmp_path / name)
            with pytest.raises(StoreError):
                recover(tmp_path / name, tmp_path / "out.jsonl")
