"""Whole columns of the catalog as arrays, read past SQLAlchemy, which takes five times as long."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from memstore.catalog.engine import driver_of
from memstore.catalog.lists import parameters, places
from memstore.types import Int64


def moments(connection: Connection, ids: Int64 | None = None) -> tuple[Int64, Int64]:
    """Return every memory's id, ascending, and when it happened, or else was stored.

    In microseconds since 1970. With ``ids``, of these memories alone.
    """
    among = "" if ids is None else f"WHERE id IN {places(len(ids))}"
    rows = driver_of(connection).execute(
        f"SELECT id, coalesce(occurred_at, created_at) FROM memory {among} ORDER BY id",
        () if ids is None else parameters(ids.tolist()),
    )
    found = pairs(rows)
    return found[:, 0], found[:, 1]


def to_months(times: Int64) -> NDArray[np.datetime64]:
    """Return the months (UTC) of microseconds since 1970."""
    return (times // 1_000_000).astype("datetime64[s]").astype("datetime64[M]")


def categories(connection: Connection) -> tuple[Int64, Int64, list[str]]:
    """Return the ids of memories that have a category, ascending, its place, and the names."""
    driver = driver_of(connection)
    named = dict(driver.execute("SELECT id, name FROM category ORDER BY id").fetchall())
    # From the index on categories alone, which has both columns and no texts.
    rows = driver.execute("SELECT id, category_id FROM memory WHERE category_id IS NOT NULL")
    found = pairs(rows)
    found = found[np.argsort(found[:, 0])]
    own = np.searchsorted(np.array(list(named), dtype=np.int64), found[:, 1])
    return found[:, 0], own, list(named.values())


def newest(connection: Connection, count: int) -> list[int]:
    """Return the ids of the memories stored last, ascending."""
    rows = driver_of(connection).execute("SELECT id FROM memory ORDER BY id DESC LIMIT ?", (count,))
    return sorted(id for (id,) in rows)


def pairs(rows: Iterable[tuple[int, int]]) -> Int64:
    """Return rows of two numbers as an (n, 2) array."""
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64).reshape(-1, 2)
