"""The schema: one truth, versions recognised, upgrades that keep everything."""

from __future__ import annotations

import re
import shutil
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, inspect

from memstore import MemoryStore, layout
from memstore.catalog import migrate, schema
from memstore.catalog.engine import Database
from memstore.errors import StoreOutOfDate, StoreTooNew

FIXTURES = Path(__file__).parent / "fixtures"
NEXT = """
from alembic import op
revision, down_revision = "0007", "0006"
def upgrade():
    op.execute("ALTER TABLE memory RENAME TO old_memory")
    op.execute("ALTER TABLE old_memory RENAME TO memory")
    with op.batch_alter_table("category") as batch:
        from sqlalchemy import Column, Integer
        batch.add_column(Column("colour", Integer))
    {extra}
"""


def test_the_tables_of_the_code_are_those_of_the_migrations(path, encoder):
    """Names, types, keys and null-ness agree; nothing is created from the code."""
    MemoryStore.open(path, encoder=encoder).close()
    found = inspect(create_engine(f"sqlite:///{path}"))
    for table in schema.metadata.sorted_tables:
        columns = {column["name"]: column for column in found.get_columns(table.name)}
        assert list(columns) == [column.name for column in table.columns]
        for column in table.columns:
            real = columns[column.name]
            assert (
                str(real["type"])
                == {
                    "Integer": "INTEGER",
                    "String": "TEXT",
                    "LargeBinary": "BLOB",
                    "Float": "REAL",
                }[type(column.type).__name__]
            )
            if not column.primary_key:
                assert real["nullable"] == column.nullable, (table.name, column.name)
        keys = set(found.get_pk_constraint(table.name)["constrained_columns"])
        assert keys == {column.name for column in table.primary_key}
        real_keys = {
            (k["constrained_columns"][0], k["referred_table"])
            for k in found.get_foreign_keys(table.name)
        }
        assert real_keys == {(k.parent.name, k.column.table.name) for k in table.foreign_keys}
    tables = {table.name for table in schema.metadata.sorted_tables}
    words = {f"memory_words{part}" for part in ("", "_data", "_idx", "_docsize", "_config")}
    assert set(found.get_table_names()) == tables | words | {"alembic_version"}


def test_head_is_the_newest_migration():
    """The constant that saves importing Alembic is right."""
    found = [
        re.search(r'^revision = "(\d+)"', file.read_text(), re.M)[1]
        for file in (layout.migrations_folder() / "versions").glob("*.py")
    ]
    assert max(found) == migrate.HEAD


def test_the_view_decodes_what_is_stored(path, encoder):
    """Plain SQL gives the neurons and activations of the packed blobs, bit for bit."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"m {i}" for i in range(200)])
    # Activations of every magnitude a float16 has, subnormal ones included.
    values = struct.pack("<6e", 6e-8, 5.96e-8, 6.1e-5, 1.0, 65504.0, 0.333)
    neurons = struct.pack("<6H", 0, 1, 5, 255, 256, 65535)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE trace SET neurons = ?, activations = ? WHERE memory_id = 7", (neurons, values)
        )
        packed = connection.execute("SELECT memory_id, neurons, activations FROM trace").fetchall()
        rows = connection.execute("SELECT memory_id, neuron, activation FROM activation").fetchall()
    connection.close()
    expected = [
        (memory_id, neuron, activation)
        for memory_id, ids, activations in packed
        for neuron, activation in zip(
            struct.unpack(f"<{len(ids) // 2}H", ids),
            struct.unpack(f"<{len(activations) // 2}e", activations),
            strict=True,
        )
    ]
    assert sorted(rows) == sorted(expected)


@pytest.fixture
def next_version(tmp_path, monkeypatch):
    """A memstore with one migration more; returns a function that sets its last statement."""
    folder = tmp_path / "migrations"
    shutil.copytree(layout.migrations_folder(), folder)
    monkeypatch.setattr(layout, "migrations_folder", lambda: folder)

    def write(extra="pass"):
        (folder / "versions" / "0007_next.py").write_text(NEXT.format(extra=extra))

    write()
    return write


def fill(path, encoder):
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([{"text": f"m {i}", "category": "AB"[i % 2]} for i in range(50)])
        store.neurons.label(3, "three")
        return list(store.iter()), store.traces().to_dense()


def test_an_older_store_is_refused_then_upgraded_with_a_backup(
    path, encoder, next_version, monkeypatch
):
    """The error prints the command; the command keeps every memory, trace and label."""
    memories, traces = fill(path, encoder)
    monkeypatch.setattr(migrate, "HEAD", "0007")
    for mode in ("rw", "r"):
        with pytest.raises(StoreOutOfDate, match=f"memstore upgrade {path}"):
            MemoryStore.open(path, mode=mode)
    found, backup = migrate.upgrade(path, 5.0, target="0007")
    assert found == "0006"
    with MemoryStore.open(path, encoder=encoder) as store:
        assert list(store.iter()) == memories
        assert np.array_equal(store.traces().to_dense(), traces)
        assert store.neurons["three"].id == 3
        assert store.check() == []
        store.insert("new words")
    assert migrate.upgrade(path, 5.0, target="0007") == ("0007", None)
    monkeypatch.setattr(migrate, "HEAD", "0006")
    with MemoryStore.open(backup, mode="r", encoder=encoder) as store:
        assert list(store.iter()) == memories


def test_a_newer_store_asks_for_a_newer_package(path, encoder):
    """Another message than for an older one, because the remedy is another."""
    fill(path, encoder)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    connection.close()
    with pytest.raises(StoreTooNew, match="pip install --upgrade memstore-sae"):
        MemoryStore.open(path)
    with pytest.raises(StoreTooNew):
        migrate.upgrade(path, 5.0)


def test_a_failing_migration_leaves_the_old_store(path, encoder, next_version):
    """Half a migration is no migration: everything is rolled back."""
    memories, _ = fill(path, encoder)
    next_version('op.execute("CREATE TABLE half (x)"); raise RuntimeError("broken migration")')
    with pytest.raises(RuntimeError, match="broken migration"):
        migrate.upgrade(path, 5.0, target="0007")
    with MemoryStore.open(path, encoder=encoder) as store:
        assert list(store.iter()) == memories
        with store._database.driver() as raw:
            tables = {row[0] for row in raw.execute("SELECT name FROM sqlite_master")}
            assert raw.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert "half" not in tables


def test_children_survive_a_rebuilt_parent(path, encoder, next_version):
    """With foreign keys on, rebuilding a parent table would delete its CASCADE children."""
    _, traces = fill(path, encoder)
    next_version(
        'op.execute("CREATE TABLE fresh AS SELECT * FROM memory"); '
        'op.execute("DELETE FROM memory"); '
        'op.execute("INSERT INTO memory SELECT * FROM fresh"); op.execute("DROP TABLE fresh")'
    )
    migrate.upgrade(path, 5.0, target="0007")
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute("SELECT count(*) FROM trace").fetchone() == (len(traces),)


def test_a_store_in_memory_is_made_by_the_same_migrations(encoder):
    """There is no second way to make a schema."""
    with MemoryStore.open(":memory:", encoder=encoder) as store:
        assert store.stats()["schema"] == migrate.HEAD


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("store-*.db")), ids=lambda file: file.stem)
def test_frozen_stores_of_every_schema_open(file, path, encoder):
    """A store written by that version: upgraded if need be, read, queried and written."""
    shutil.copy(file, path)
    migrate.upgrade(path, 5.0)
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.check() == []
        assert store.count() == 12
        memory = store.get(key="frozen")
        assert memory.text == "The lake froze over in one night, and we walked across to school."
        assert memory.category == "Routine"
        assert memory.metadata == {"mood": 4, "tags": ["ice"]}
        assert memory.occurred_at.isoformat() == "1962-12-13T06:00:00+00:00"
        neuron = store.neurons["ice"].id
        found = [(hit.id, hit.score) for hit in store.top(neuron, 3)]
        assert found == [(5, 3.59375), (11, 3.59375), (4, 2.83984375)]
        assert store.search("lake school", 1, by="words")[0].key == "frozen"
        if file.stem >= "store-0006":
            lens = store.lenses["cold"]
            assert (lens.expression, lens.threshold) == (f"+{neuron} -0.5*3", 0.1)
            assert [both.other.id for both in store.copies(5)] == [11]
        assert store.get(store.insert("written by a later version")).text.startswith("written")


def test_an_unfinished_creation_is_completed(path, encoder):
    """A file that has our mark but no schema yet, as a crash may leave it, becomes a store."""
    database = Database(path, "rw", 5.0)
    with database.driver() as raw:
        raw.execute("PRAGMA application_id = 1835363699")
        raw.execute("PRAGMA journal_mode = WAL")
    database.close()
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.insert("x") == 1


def test_a_creation_killed_in_its_first_write_is_begun_anew(path, encoder):
    """A first page and a hot journal: rolled back, the file is empty again, and no stranger's."""
    code = (
        "import os, signal, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\n"
        "c.execute('BEGIN')\n"
        "c.execute('CREATE TABLE a (x)')\n"
        "c.execute('INSERT INTO a VALUES (zeroblob(100000))')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.stat().st_size > 0
    assert path.with_name(path.name + "-journal").stat().st_size > 0
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.insert("x") == 1
        assert store.check() == []
