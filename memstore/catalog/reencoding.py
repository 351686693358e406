"""Statements about moving a store to another encoder: what is made beside, and the switch.

Vectors and traces of the encoder to come gather in ``vector_next`` and ``trace_next``; a trigger
drops those of a memory whose text changes, deleting a memory drops them, too. The switch renames.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from memstore.catalog import traces
from memstore.catalog.engine import Write, driver_of
from memstore.catalog.lists import parameters, places
from memstore.types import Float32, Traces

NEXT = "_next"
PAIRS = ("vector", "trace")
MISSING = (
    "FROM memory WHERE id > ?1 AND NOT EXISTS (SELECT 1 FROM vector_next AS v JOIN trace_next AS t "
    "USING (memory_id) WHERE memory_id = memory.id AND v.encoder_id = ?2 AND t.encoder_id = ?2)"
)


def missing(connection: Connection, encoder_id: int, after: int, count: int) -> list[int]:
    """Return the next so many memories above an id that the encoder has not encoded yet."""
    found = driver_of(connection).execute(
        f"SELECT id {MISSING} ORDER BY id LIMIT ?3", (after, encoder_id, count)
    )
    return [row[0] for row in found]


def aside(connection: Connection, kept: int | None) -> int:
    """Return how many vectors lie aside, but for those of one encoder."""
    found = driver_of(connection).execute(
        f"SELECT count(*) FROM vector{NEXT} WHERE encoder_id IS NOT ?", (kept,)
    )
    return int(found.fetchone()[0])


def count_missing(connection: Connection, encoder_id: int) -> int:
    """Return how many memories the encoder has not encoded yet."""
    [count] = (
        driver_of(connection).execute(f"SELECT count(*) {MISSING}", (0, encoder_id)).fetchone()
    )
    return int(count)


def unchanged(connection: Connection, ids: Sequence[int], since: int) -> list[int]:
    """Return those of these ids whose memories were not written after change ``since``."""
    rows = driver_of(connection).execute(
        f"SELECT id FROM memory WHERE changed <= ? AND id IN {places(len(ids))}",
        (since, *parameters(ids)),
    )
    return [row[0] for row in rows]


def add(
    connection: Connection, encoder_id: int, ids: list[int], vectors: Float32, made: Traces
) -> None:
    """Put aside what the encoder made of some memories, which may have something there already."""
    driver = driver_of(connection)
    for table in PAIRS:
        driver.executemany(f"DELETE FROM {table}{NEXT} WHERE memory_id = ?", [(i,) for i in ids])
    traces.add(connection, encoder_id, ids, vectors, made, NEXT)


def switch(tx: Write, encoder_id: int) -> None:
    """Make what was put aside the store's own, and the encoder with it.

    Indices of before cannot be followed up from here; what was is where the next was.
    """
    driver = driver_of(tx.connection)
    # Renaming would rewrite the view to follow the old tables.
    driver.execute("PRAGMA legacy_alter_table = ON")
    try:
        for table in PAIRS:
            driver.execute(f"ALTER TABLE {table} RENAME TO {table}_was")
            driver.execute(f"ALTER TABLE {table}{NEXT} RENAME TO {table}")
            driver.execute(f"ALTER TABLE {table}_was RENAME TO {table}{NEXT}")
    finally:
        driver.execute("PRAGMA legacy_alter_table = OFF")
    driver.execute(
        "UPDATE store SET encoder_id = ?, log_floor = ?, index_token = NULL",
        (encoder_id, tx.change),
    )


def clear(connection: Connection, kept: int | None, count: int) -> None:
    """Drop some of what was put aside, but for one encoder if given."""
    for table in PAIRS:
        driver_of(connection).execute(
            f"DELETE FROM {table}{NEXT} WHERE memory_id IN (SELECT memory_id FROM {table}{NEXT} "
            "WHERE encoder_id IS NOT ? LIMIT ?)",
            (kept, count),
        )
