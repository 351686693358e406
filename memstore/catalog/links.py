"""Statements about links: which memory a near-copy was nearly a copy of when it was inserted."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from memstore.catalog.engine import driver_of
from memstore.catalog.schema import link

#: (memory, other memory, cosine)
Link = tuple[int, int, float]


def add(connection: Connection, found: Iterable[Link]) -> None:
    """Write links down, those of memories that are there."""
    driver_of(connection).executemany(
        "INSERT OR REPLACE INTO link (memory_id, other_id, cosine) SELECT ?1, ?2, ?3 "
        "WHERE EXISTS (SELECT 1 FROM memory WHERE id = ?1) "
        "AND EXISTS (SELECT 1 FROM memory WHERE id = ?2)",
        found,
    )


def of(connection: Connection, memory_id: int) -> list[tuple[int, float]]:
    """Return (other memory, cosine) of the links of a memory, in either direction, by id."""
    rows = connection.execute(
        select(link).where((link.c.memory_id == memory_id) | (link.c.other_id == memory_id))
    )
    return sorted(
        (row.other_id if row.memory_id == memory_id else row.memory_id, row.cosine) for row in rows
    )


def forget(connection: Connection, memory_id: int) -> None:
    """Take away the links of a memory, whose text is another now."""
    driver_of(connection).execute(
        "DELETE FROM link WHERE memory_id = ?1 OR other_id = ?1", (memory_id,)
    )


def all_links(connection: Connection) -> dict[int, tuple[int, float]]:
    """Return ``{memory: (other memory, cosine)}`` of every link."""
    return {row.memory_id: (row.other_id, row.cosine) for row in connection.execute(select(link))}
