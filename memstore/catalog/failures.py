"""SQLite's failures under memstore's names."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from memstore.errors import (
    RESCUE,
    InvalidInput,
    NotAStore,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)


class translated:  # noqa: N801 - a context manager; every query enters it, and a class is faster
    """Turn SQLite's errors into memstore's, by result code; others pass unchanged."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, sqlite3.Error):
            raise store_error(self.name, cause) from error
        if isinstance(error, PoolTimeout):
            raise StoreLocked(
                f"{self.name} has too many queries open in this process: finish or close some"
            ) from error
        if isinstance(error, UnicodeEncodeError):
            raise InvalidInput(
                f"text that is not valid Unicode: {error.reason}; repair it"
            ) from error


def is_read_only(error: DBAPIError | sqlite3.Error) -> bool:
    """Return whether SQLite refused to write."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None) or 0
    return code & 0xFF == sqlite3.SQLITE_READONLY


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
        sqlite3.SQLITE_READONLY: (
            StoreReadOnly,
            "cannot be written; even a reader needs to write beside it: copy it to a folder of "
            "yours, or change the permissions",
        ),
        sqlite3.SQLITE_PERM: (StoreReadOnly, "cannot be opened: check its permissions"),
        sqlite3.SQLITE_CANTOPEN: (StoreReadOnly, "cannot be opened: check path and permissions"),
        sqlite3.SQLITE_FULL: (StoreFull, "has no space left: free some and repeat the call"),
        sqlite3.SQLITE_CORRUPT: (
            StoreDamaged,
            f"is damaged: {RESCUE}",
        ),
        sqlite3.SQLITE_NOTADB: (
            NotAStore,
            "is not a memstore store: choose another path; if it was one once, `memstore recover` "
            "reads what can be read",
        ),
    }.get(code & 0xFF, (StoreError, "failed: see SQLite's message"))
    return kind(f"{name} {remedy} (SQLite: {error})")
