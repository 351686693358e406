"""Schema versions: one SELECT to recognise a current store, Alembic only to create or upgrade.

Alembic costs 0.75 s to import, so nothing imports it until a store must be created or upgraded.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from memstore import durable, layout
from memstore.catalog.engine import Database
from memstore.catalog.failures import translated
from memstore.catalog.files import APPLICATION_ID, inspect_file
from memstore.errors import (
    StoreDamaged,
    StoreLocked,
    StoreNotFound,
    StoreOutOfDate,
    StoreTooNew,
)

#: The newest migration. A test compares it with the files in ``migrations/versions``.
HEAD = "0006"


def revision(connection: Connection) -> str | None:
    """Return the schema's revision, or None where no migration has run."""
    try:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except OperationalError as error:
        if "no such table" in str(error.orig):
            return None
        raise
    return None if found is None else str(found)


def is_set_up(database: Database) -> bool:
    """Return whether any migration has run."""
    with database.read() as connection:
        return revision(connection) is not None


def require_current(database: Database) -> None:
    """Raise ``StoreOutOfDate`` or ``StoreTooNew`` unless the schema is the one of this version."""
    with database.read() as connection:
        found = revision(connection)
    if found is None:
        raise StoreNotFound(
            f"{database.name} was never set up: run `memstore init {database.name}`"
        )
    if found < HEAD:
        raise StoreOutOfDate(database.name, found, HEAD)
    if found > HEAD:
        raise StoreTooNew(database.name, found, HEAD)


def create(database: Database) -> None:
    """Make a new store by running the migrations, or finish one whose making was cut short.

    Harmless where another process was faster.
    """
    with database.driver() as raw:
        raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    use_wal(database)
    with database.exclusive() as connection:
        if revision(connection) is not None:
            return
        run_migrations(connection, HEAD)
        connection.execute(
            text("INSERT INTO store VALUES (1, :store_id, 0, 0, NULL, NULL, :now)"),
            {"store_id": uuid.uuid4().hex, "now": time.time_ns() // 1000},
        )


def use_wal(database: Database) -> None:
    """Have readers and the writer not wait for each other; a copy comes without.

    SQLite does not wait for a lock here, so this does.
    """
    deadline = time.monotonic() + database.busy_timeout
    while True:
        try:
            with database.driver() as raw:
                raw.execute("PRAGMA journal_mode = WAL")
            return
        except StoreLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def run_migrations(connection: Connection, target: str) -> None:
    """Run every migration up to ``target`` inside the transaction that is open."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(layout.migrations_folder()))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, target)


def upgrade(path: Path, busy_timeout: float, target: str = HEAD) -> tuple[str, Path | None]:
    """Bring an older store to the current schema; returns (old revision, backup or None).

    A backup is written beside the store first. All migrations run in one transaction with foreign
    keys off: with them on, an Alembic batch ALTER deletes CASCADE children without an error.
    """
    if inspect_file(path) != "store":
        raise StoreNotFound(f"no store at {path}: check the path")
    database = Database(path, "rw", busy_timeout)
    try:
        with database.read() as connection:
            found = revision(connection)
        if found is None:
            raise StoreNotFound(f"{path} was never set up: run `memstore init {path}`")
        if found > target:
            raise StoreTooNew(str(path), found, target)
        if found == target:
            return found, None
        backup = backup_path(path, found)
        copy_store(database, backup)
        try:
            _upgrade_in_place(database, target)
        except BaseException:
            with database.read() as connection:
                is_unchanged = revision(connection) == found
            if is_unchanged:  # copies would pile up with every try
                backup.unlink()
            raise
        return found, backup
    finally:
        database.close()


def _upgrade_in_place(database: Database, target: str) -> None:
    with database.driver() as raw:
        # Inside a transaction this pragma is silently ignored, hence the driver's connection. The
        # pool hands the same one to the block below, since no other is out.
        raw.execute("PRAGMA foreign_keys = OFF")
    try:
        with database.exclusive() as connection:
            run_migrations(connection, target)
            broken = connection.execute(text("PRAGMA foreign_key_check")).all()
            if broken:
                raise StoreDamaged(
                    f"{database.name}: the upgrade would leave {len(broken)} rows without their "
                    "parent, so it was rolled back: report this with the output of `memstore check`"
                )
    finally:
        with database.driver() as raw:
            raw.execute("PRAGMA foreign_keys = ON")


def backup_path(path: Path, found: str) -> Path:
    """Return a free name beside the store for the backup before an upgrade."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    candidate = path.with_name(f"{path.name}.{found}.{stamp}.backup")
    number = 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{found}.{stamp}-{number}.backup")
    return candidate


def copy_store(database: Database, target: Path) -> None:
    """Copy a live store to a new file, which appears whole or not at all."""
    with durable.appearing(target) as part:
        copy_into(database, part)


def copy_into(database: Database, file: Path, mode: Literal["DELETE", "WAL"] = "DELETE") -> None:
    """Copy a live store into an empty file through SQLite's backup API.

    ``mode``: how the copy keeps its journal. A backup is one file; a store is in WAL mode.
    """
    with (
        database.driver() as raw,
        translated(str(file)),
        closing(sqlite3.connect(file)) as copy,
    ):
        raw.backup(copy)
        copy.execute(f"PRAGMA journal_mode = {mode}")
