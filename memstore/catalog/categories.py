"""Statements about categories: names that memories share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, func, insert, select, text

from memstore.catalog.schema import category, memory


def id_of(connection: Connection, name: str | None) -> int | None:
    """Return the id of a category, made if it is new."""
    if name is None:
        return None
    found = connection.execute(select(category.c.id).where(category.c.name == name)).scalar()
    if found is None:
        found = connection.execute(
            insert(category).values(name=name).returning(category.c.id)
        ).scalar_one()
    return int(found)


def prune(connection: Connection, ids: Sequence[int] | None = None) -> None:
    """Delete the categories, of these or of all, that nothing uses any more.

    Their names may tell, too.
    """
    statement = (
        "DELETE FROM category WHERE NOT EXISTS "
        "(SELECT 1 FROM memory WHERE category_id = category.id)"
    )
    if ids is None:
        connection.execute(text(statement))
    else:
        listed = " AND id IN (SELECT value FROM json_each(:ids))"
        connection.execute(text(statement + listed), {"ids": json.dumps(list(ids))})


def counts(connection: Connection) -> dict[str, int]:
    """Return ``{category: memories}``, most first, then by name."""
    total = func.count(memory.c.id)
    rows = connection.execute(
        select(category.c.name, total)
        .join(memory, memory.c.category_id == category.c.id)
        .group_by(category.c.id)
        .order_by(total.desc(), category.c.name)
    )
    return {row[0]: row[1] for row in rows}


def by_memory(connection: Connection) -> Iterator[tuple[int, str]]:
    """Yield (memory id, category) of every memory that has one."""
    query = select(memory.c.id, category.c.name).join(
        category, memory.c.category_id == category.c.id
    )
    for row in connection.execute(query):
        yield row[0], row[1]
