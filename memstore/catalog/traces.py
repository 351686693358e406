"""Statements about vectors and traces: what an encoder made of each memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from sqlalchemy import Connection, delete, select

from memstore.catalog.engine import driver_of
from memstore.catalog.lists import parameters, places
from memstore.catalog.schema import deletion, memory, trace, vector
from memstore.core import traces as packed
from memstore.core.vectors import pack_vectors, unpack_vectors
from memstore.types import Float32, Traces

#: Rows fetched at a time when a whole store is read: a page of vectors is 12 MB.
PAGE = 8192
TRACES = "SELECT memory_id, neurons, activations FROM trace WHERE encoder_id = ?"
VECTORS = "SELECT memory_id, vector FROM vector WHERE encoder_id = ?"


def add(
    connection: Connection,
    encoder_id: int,
    ids: Sequence[int],
    vectors: Float32,
    traces: Traces,
    suffix: str = "",
) -> None:
    """Store one vector and one trace a memory; with ``suffix`` "_next" in those tables."""
    # Through the driver: SQLAlchemy's dict a row costs more than SQLite does.
    driver = driver_of(connection)
    driver.executemany(
        f"INSERT INTO vector{suffix} (memory_id, encoder_id, vector) VALUES (?, ?, ?)",
        zip(ids, repeat(encoder_id), pack_vectors(vectors)),
    )
    neurons, activations = packed.pack(traces)
    driver.executemany(
        f"INSERT INTO trace{suffix} (memory_id, encoder_id, neurons, activations) "
        "VALUES (?, ?, ?, ?)",
        zip(ids, repeat(encoder_id), neurons, activations),
    )


def remove(connection: Connection, ids: Sequence[int]) -> None:
    """Drop vectors and traces of memories whose text is about to change."""
    for table in (vector, trace):
        connection.execute(delete(table).where(table.c.memory_id.in_(ids)))


def by_ids(connection: Connection, encoder_id: int, ids: Sequence[int], width: int) -> Traces:
    """Return the traces of these memories, ids ascending; missing ones are left out."""
    if not ids:
        return packed.empty(width)
    rows = driver_of(connection).execute(
        f"{TRACES} AND memory_id IN {places(len(ids))} ORDER BY memory_id",
        (encoder_id, *parameters(ids)),
    )
    return packed.unpack(rows.fetchall(), width)


def vectors_by_ids(
    connection: Connection, encoder_id: int, ids: Sequence[int], dimension: int
) -> tuple[list[int], Float32]:
    """Return (ids ascending, their vectors); missing ones are left out."""
    if not ids:
        return [], unpack_vectors([], dimension)
    rows = driver_of(connection).execute(
        f"{VECTORS} AND memory_id IN {places(len(ids))} ORDER BY memory_id",
        (encoder_id, *parameters(ids)),
    )
    found = rows.fetchall()
    return [row[0] for row in found], unpack_vectors([row[1] for row in found], dimension)


def changed_traces(
    connection: Connection, encoder_id: int, since: int, width: int
) -> Iterator[Traces]:
    """Yield the traces of memories written after change ``since``, ids ascending, by the page."""
    if since == 0:
        for rows in walk(connection, TRACES, encoder_id, 0):
            yield packed.unpack(rows, width)
    else:
        for ids in changed_ids(connection, since):
            yield by_ids(connection, encoder_id, ids, width)


def changed_vectors(
    connection: Connection, encoder_id: int, since: int, dimension: int, after: int = 0
) -> Iterator[tuple[list[int], Float32]]:
    """Yield (ids ascending, vectors) of memories written after change ``since``, by the page.

    Only ids above ``after``.
    """
    if since == 0:
        for rows in walk(connection, VECTORS, encoder_id, after):
            yield [row[0] for row in rows], unpack_vectors([row[1] for row in rows], dimension)
    else:
        for ids in changed_ids(connection, since, after):
            yield vectors_by_ids(connection, encoder_id, ids, dimension)


def walk(connection: Connection, rows: str, encoder_id: int, after: int) -> Iterator[list[Any]]:
    """Yield all rows of a table, from the id above ``after`` on, by the page."""
    statement = f"{rows} AND memory_id > ? ORDER BY memory_id LIMIT {PAGE}"
    while page := driver_of(connection).execute(statement, (encoder_id, after)).fetchall():
        yield page
        after = page[-1][0]


def changed_ids(connection: Connection, since: int, after: int = 0) -> Iterator[list[int]]:
    """Yield ids of memories written after change ``since``, ascending, by the page.

    Touches only what changed (index ``memory_changed``).
    """
    query = select(memory.c.id).where(memory.c.changed > since, memory.c.id > after)
    ids = sorted(connection.execute(query).scalars())
    for start in range(0, len(ids), PAGE):
        yield ids[start : start + PAGE]


def deleted(connection: Connection, since: int) -> list[int]:
    """Return the ids of memories deleted after change ``since``."""
    query = select(deletion.c.memory_id).where(deletion.c.changed > since)
    return list(connection.execute(query).scalars())


def count_vectors(connection: Connection) -> int:
    """Return how many vectors there are: one a memory, and those are quicker to count."""
    return int(driver_of(connection).execute("SELECT count(*) FROM memory").fetchone()[0])


def id_range(connection: Connection) -> tuple[int, int]:
    """Return the lowest and the highest memory id; (0, 0) where there are none."""
    row = driver_of(connection).execute("SELECT min(id), max(id) FROM memory").fetchone()
    return (row[0] or 0, row[1] or 0)


def existing(connection: Connection, encoder_id: int, ids: Sequence[int]) -> list[int]:
    """Return those of these ids that have a vector, ascending."""
    rows = driver_of(connection).execute(
        "SELECT memory_id FROM vector WHERE encoder_id = ? "
        f"AND memory_id IN {places(len(ids))} ORDER BY memory_id",
        (encoder_id, *parameters(ids)),
    )
    return [row[0] for row in rows]
