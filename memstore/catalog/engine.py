"""Connections and transactions: one SQLite file, one writer at a time, readers that never wait.

SQLAlchemy hands out connections; this module decides when a transaction begins, how it begins and
what its failures are called. No statement about memories belongs here.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from memstore.errors import (
    InvalidInput,
    NotAStore,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreNotFound,
    StoreReadOnly,
)

Mode = Literal["rw", "r"]

#: Written into the SQLite header ("mems"), so that a file says what it is without being opened.
APPLICATION_ID = 0x6D656D73
SQLITE_MAGIC = b"SQLite format 3\x00"
#: FTS5, upserts, RETURNING and json_each with types all exist from here on.
OLDEST_SQLITE = (3, 35, 0)


@dataclass(frozen=True)
class Write:
    """An open write transaction and the change number that its rows carry."""

    connection: Connection
    change: int


class Database:
    """One store's connections. ``path`` is None for a store in memory."""

    def __init__(self, path: Path | None, mode: Mode, busy_timeout: float) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreError(
                f"Python's sqlite3 is built on SQLite {sqlite3.sqlite_version}; memstore needs "
                f"{'.'.join(map(str, OLDEST_SQLITE))} or newer: update Python"
            )
        self.path, self.mode = path, mode
        self.busy_timeout = busy_timeout
        # One connection serves every thread of a store in memory, so they take turns.
        self._turn: threading.RLock | nullcontext[None] = (
            nullcontext() if path else threading.RLock()
        )
        self._uri = ":memory:" if path is None else file_uri(path, mode)
        self.engine = self._engine()

    @property
    def name(self) -> str:
        """The store's path as errors print it."""
        return ":memory:" if self.path is None else str(self.path)

    def _engine(self) -> Engine:
        pool = (
            {"poolclass": StaticPool}
            if self.path is None
            else {
                "poolclass": QueuePool,
                "max_overflow": 64,
            }
        )
        engine = create_engine("sqlite://", creator=self._connect, **pool)
        event.listen(engine, "begin", _begin)
        return engine

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._uri,
            uri=self.path is not None,
            timeout=self.busy_timeout,
            check_same_thread=False,
            # The driver's own BEGIN would come late and split migrations; _begin sends ours.
            isolation_level=None,
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read transaction: all its statements see one and the same state."""
        with self._turn, translated(self.name), self.engine.connect() as connection:
            connection.begin()
            yield connection

    @contextmanager
    def write(self) -> Iterator[Write]:
        """Open the write transaction and raise the change number; rolls back on any exception.

        Raises ``StoreLocked`` where another process holds the lock beyond the busy timeout.
        """
        with self.exclusive() as connection:
            change = connection.execute(
                text("UPDATE store SET change = change + 1 WHERE id = 1 RETURNING change")
            ).scalar_one()
            yield Write(connection, change)

    @contextmanager
    def exclusive(self) -> Iterator[Connection]:
        """Open the write transaction without touching the change number."""
        if self.mode == "r":
            raise StoreReadOnly(
                f'{self.name} was opened with mode="r": open it with mode="rw" to write'
            )
        with self._turn, translated(self.name), self.engine.connect() as connection:
            writer = connection.execution_options(memstore_begin="IMMEDIATE")
            with writer.begin():
                yield writer

    @contextmanager
    def driver(self) -> Iterator[sqlite3.Connection]:
        """Lend the driver's connection outside any transaction: pragmas, VACUUM, backup."""
        with self._turn, translated(self.name), self.engine.connect() as connection:
            raw = connection.connection.driver_connection
            if not isinstance(raw, sqlite3.Connection):
                raise StoreError(f"{self.name} is not connected through sqlite3: open it again")
            yield raw

    def close(self) -> None:
        """Close every connection; SQLite folds the WAL into the file when the last one goes."""
        self.engine.dispose()


def _begin(connection: Connection) -> None:
    kind = connection.get_execution_options().get("memstore_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {kind}")


def file_uri(path: Path, mode: Mode) -> str:
    """Return SQLite's URI for a file.

    A reader in a folder it cannot write cannot make the WAL's shared memory. There nobody else can
    write either, so SQLite may be told that the file does not change (``immutable``).
    """
    where = quote(str(path.resolve()))
    if mode == "rw":
        return f"file:{where}?mode=rwc"
    writable = os.access(path.parent, os.W_OK) and not is_read_only_media(path.parent)
    wal = path.with_name(path.name + "-wal")
    return f"file:{where}?mode=ro" + ("" if writable or wal.exists() else "&immutable=1")


def is_read_only_media(folder: Path) -> bool:
    """Return whether the file system is mounted read-only, which ``os.access`` hides from root."""
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def inspect_file(path: Path) -> Literal["missing", "empty", "store"]:
    """Return what lies at ``path``, without locking it. Raises ``NotAStore`` for anything else."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return "missing"
    except IsADirectoryError as error:
        raise NotAStore(f"{path} is a folder: name the store's file inside it") from error
    except PermissionError as error:
        raise StoreReadOnly(f"no permission to read {path}: change it or choose another") from error
    if not header:
        return "empty"
    application_id = int.from_bytes(header[68:72], "big")
    if not header.startswith(SQLITE_MAGIC) or application_id != APPLICATION_ID:
        kind = (
            "a SQLite database of another program" if header.startswith(SQLITE_MAGIC) else "a file"
        )
        raise NotAStore(f"{path} is {kind}, not a memstore store: choose another path")
    return "store"


def require_folder(path: Path) -> None:
    """Raise unless a store could be written at ``path``."""
    if not path.parent.is_dir():
        raise StoreNotFound(f"the folder {path.parent} does not exist: create it first")
    if not os.access(path.parent, os.W_OK) or is_read_only_media(path.parent):
        raise StoreReadOnly(
            f"cannot write in {path.parent}: choose another folder, or open an existing store "
            'with mode="r"'
        )


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn SQLite's errors into memstore's, by result code; others pass unchanged."""
    try:
        yield
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise store_error(name, error.orig) from error
        raise
    except sqlite3.Error as error:
        raise store_error(name, error) from error
    except UnicodeEncodeError as error:
        raise InvalidInput(f"text that is not valid Unicode: {error.reason}; repair it") from error


def store_error(name: str, error: sqlite3.Error) -> StoreError:
    """Return memstore's error for a SQLite error (https://sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        # A full disk met while growing the WAL's shared memory comes as an I/O error.
        code = sqlite3.SQLITE_FULL
    kind, remedy = {
        sqlite3.SQLITE_BUSY: (
            StoreLocked,
            "is being written by another process: try again, or open it with a longer busy_timeout",
        ),
        sqlite3.SQLITE_LOCKED: (StoreLocked, "is locked: try again"),
        sqlite3.SQLITE_READONLY: (StoreReadOnly, 'cannot be written: open it with mode="r"'),
        sqlite3.SQLITE_PERM: (StoreReadOnly, "cannot be opened: check its permissions"),
        sqlite3.SQLITE_CANTOPEN: (StoreReadOnly, "cannot be opened: check path and permissions"),
        sqlite3.SQLITE_FULL: (StoreFull, "has no space left: free some and repeat the call"),
        sqlite3.SQLITE_CORRUPT: (StoreDamaged, "is damaged: restore a backup"),
        sqlite3.SQLITE_NOTADB: (NotAStore, "is not a memstore store: choose another path"),
    }.get(code & 0xFF, (StoreError, "failed: see SQLite's message"))
    return kind(f"{name} {remedy} (SQLite: {error})")
