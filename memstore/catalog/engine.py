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

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from memstore.catalog.failures import is_read_only, translated
from memstore.catalog.files import HELD, Mode, file_uri
from memstore.errors import (
    RESCUE,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreLocked,
    StoreReadOnly,
)

#: FTS5, upserts, RETURNING and json_each with types all exist from here on.
OLDEST_SQLITE = (3, 35, 0)
WRITER_CACHE_KIB = 65_536
#: As much as SQLite maps at most, unless it was built to map more.
READER_MAP_BYTES = 2_147_418_112


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
        # SQLite lets a waiting writer try again after longer and longer naps; one that writes batch
        # after batch in this process would starve every other thread, so here they queue.
        self._writing = threading.Lock()
        self._uri = ":memory:" if path is None else file_uri(path, mode)
        self._owner: int | None = os.getpid()
        self._held = HELD.take(path) if path is not None and path.exists() else None
        self.engine = self._engine()
        self._idle: list[tuple[Connection, sqlite3.Connection]] = []

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

    @property
    def is_foreign(self) -> bool:
        """Whether this is a forked child's copy, which must be left alone."""
        return self._owner not in (None, os.getpid())

    def require_own(self) -> None:
        """Raise ``StoreClosed`` after ``close``, and in a forked child.

        SQLite's locks do not survive a fork: a child that went on with its parent's connections
        would lose writes that were acknowledged.
        """
        if self._owner != os.getpid():
            reason = "was closed" if self._owner is None else "was opened before a fork"
            raise StoreClosed(f"{self.name} {reason}: open it again")

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Lend a connection outside any transaction."""
        self.require_own()
        with self._turn, translated(self.name), self.engine.connect() as connection:
            try:
                yield connection
            except (DBAPIError, sqlite3.Error) as error:
                if is_read_only(error):
                    # SQLite opened the file for reading only; once it may be written, a new
                    # connection can.
                    connection.invalidate()
                raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read transaction: all its statements see one and the same state.

        Connections are kept for the next reader, and begin and end in the driver: checking one out
        of a pool and letting SQLAlchemy begin costs several times what a neuron query does.
        """
        self.require_own()
        with self._turn, translated(self.name):
            connection, driver = self._idle.pop() if self._idle else self._reader()
            try:
                driver.execute("BEGIN")
                yield connection
            finally:
                # Where even this fails the connection is beyond use, and not kept.
                connection.rollback()
                driver.rollback()
                self._idle.append((connection, driver))

    def _reader(self) -> tuple[Connection, sqlite3.Connection]:
        connection = self.engine.connect().execution_options(memstore_begin=None)
        driver = driver_of(connection)
        # Vectors are fetched by the hundred from all over the file: mapped, in 0.4 of the time.
        driver.execute(f"PRAGMA mmap_size = {READER_MAP_BYTES}")
        return connection, driver

    @contextmanager
    def write(self) -> Iterator[Write]:
        """Open the write transaction and raise the change number; rolls back on any exception.

        Raises ``StoreLocked`` where another process holds the lock beyond the busy timeout.
        """
        with self.exclusive() as connection:
            change = connection.execute(
                text("UPDATE store SET change = change + 1 WHERE id = 1 RETURNING change")
            ).scalar()
            if change is None:
                raise StoreDamaged(f"{self.name} has lost its row in table store: {RESCUE}")
            yield Write(connection, int(change))

    def require_writable(self) -> None:
        """Raise ``StoreReadOnly`` where the store was opened for reading: before any long work."""
        if self.mode == "r":
            raise StoreReadOnly(
                f'{self.name} was opened with mode="r": open it with mode="rw" to write'
            )

    @contextmanager
    def exclusive(self) -> Iterator[Connection]:
        """Open the write transaction without touching the change number."""
        self.require_writable()
        self.require_own()  # a child of a fork might wait for a lock that only its parent frees
        with self._queued(), self._connection() as connection:
            writer = connection.execution_options(memstore_begin="IMMEDIATE")
            # A bulk insert touches more pages than the 2 MB that SQLite keeps by default.
            driver_of(connection).execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
            with writer.begin():
                yield writer

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """Wait for this process's other writers."""
        if not self._writing.acquire(timeout=self.busy_timeout):
            raise StoreLocked(
                f"{self.name} is being written by another thread: try again, or open it with a "
                "longer busy_timeout"
            )
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def driver(self) -> Iterator[sqlite3.Connection]:
        """Lend the driver's connection outside any transaction: pragmas, VACUUM, backup."""
        with self._connection() as connection:
            yield driver_of(connection)

    def close(self) -> None:
        """Close every connection; SQLite folds the WAL into the file when the last one goes."""
        # A forked child must not touch its parent's connections, not even to close them.
        if not self.is_foreign:
            while self._idle:
                connection, _ = self._idle.pop()
                connection.close()
            self.engine.dispose()
        else:
            self.engine.dispose(close=False)
        if self._held is not None:
            HELD.release(self._held)
        self._owner = self._held = None


def driver_of(connection: Connection) -> sqlite3.Connection:
    """Return the driver's connection: its statements run within the same transaction."""
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        raise StoreError("the store is not connected through sqlite3: open it again")
    return raw


def _begin(connection: Connection) -> None:
    kind = connection.get_execution_options().get("memstore_begin", "DEFERRED")
    if kind is not None:  # None: the reader has begun already
        connection.exec_driver_sql(f"BEGIN {kind}")
