"""Statements about vectors and traces: what an encoder made of each memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import Connection, delete, func, insert, select

from memstore.catalog.schema import deletion, memory, trace, vector
from memstore.core import traces as packed
from memstore.core.vectors import pack_vector, unpack_vectors
from memstore.types import Float32, Traces

#: Rows fetched at a time when a whole store is read: a page of vectors is 12 MB.
PAGE = 8192


def add(
    connection: Connection, encoder_id: int, ids: Sequence[int], vectors: Float32, traces: Traces
) -> None:
    """Store one vector and one trace a memory."""
    connection.execute(
        insert(vector),
        [
            {"memory_id": i, "encoder_id": encoder_id, "vector": pack_vector(v)}
            for i, v in zip(ids, vectors, strict=True)
        ],
    )
    connection.execute(
        insert(trace),
        [
            {"memory_id": i, "encoder_id": encoder_id, "neurons": n, "activations": a}
            for i, (n, a) in zip(ids, packed.pack(traces), strict=True)
        ],
    )


def remove(connection: Connection, ids: Sequence[int]) -> None:
    """Drop vectors and traces of memories whose text is about to change."""
    for table in (vector, trace):
        connection.execute(delete(table).where(table.c.memory_id.in_(ids)))


def by_ids(connection: Connection, encoder_id: int, ids: Iterable[int], width: int) -> Traces:
    """Return the traces of these memories, ids ascending; missing ones are left out."""
    wanted = func.json_each(json.dumps(list(ids))).table_valued("value")
    rows = connection.execute(
        select(trace.c.memory_id, trace.c.neurons, trace.c.activations)
        .where(trace.c.encoder_id == encoder_id, trace.c.memory_id.in_(select(wanted.c.value)))
        .order_by(trace.c.memory_id)
    )
    return packed.unpack([tuple(row) for row in rows], width)


def vectors_by_ids(
    connection: Connection, encoder_id: int, ids: Iterable[int], dimension: int
) -> tuple[list[int], Float32]:
    """Return (ids ascending, their vectors); missing ones are left out."""
    wanted = func.json_each(json.dumps(list(ids))).table_valued("value")
    rows = connection.execute(
        select(vector.c.memory_id, vector.c.vector)
        .where(vector.c.encoder_id == encoder_id, vector.c.memory_id.in_(select(wanted.c.value)))
        .order_by(vector.c.memory_id)
    ).all()
    return [row.memory_id for row in rows], unpack_vectors((r.vector for r in rows), dimension)


def changed_traces(
    connection: Connection, encoder_id: int, since: int, width: int
) -> Iterator[Traces]:
    """Yield the traces of memories written after change ``since``, ids ascending, by the page."""
    for ids in changed_ids(connection, since):
        yield by_ids(connection, encoder_id, ids, width)


def changed_vectors(
    connection: Connection, encoder_id: int, since: int, dimension: int, after: int = 0
) -> Iterator[tuple[list[int], Float32]]:
    """Yield (ids ascending, vectors) of memories written after change ``since``, by the page.

    Only ids above ``after``.
    """
    for ids in changed_ids(connection, since, after):
        yield vectors_by_ids(connection, encoder_id, ids, dimension)


def changed_ids(connection: Connection, since: int, after: int = 0) -> Iterator[list[int]]:
    """Yield ids of memories written after change ``since``, ascending, by the page.

    A replay touches only what changed (index ``memory_changed``); a full read walks the table.
    """
    if since > 0:
        query = select(memory.c.id).where(memory.c.changed > since, memory.c.id > after)
        ids = sorted(connection.execute(query).scalars())
        for start in range(0, len(ids), PAGE):
            yield ids[start : start + PAGE]
        return
    while True:
        query = select(memory.c.id).where(memory.c.id > after).order_by(memory.c.id).limit(PAGE)
        page = list(connection.execute(query).scalars())
        if not page:
            return
        yield page
        after = page[-1]


def deleted(connection: Connection, since: int) -> list[int]:
    """Return the ids of memories deleted after change ``since``."""
    query = select(deletion.c.memory_id).where(deletion.c.changed > since)
    return list(connection.execute(query).scalars())
