"""Statements about categories: names that memories share."""

from __future__ import annotations

from collections.abc import Iterator

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


def prune(connection: Connection) -> None:
    """Delete the categories that nothing uses any more: their names may tell, too."""
    connection.execute(
        text(
            "DELETE FROM category WHERE NOT EXISTS "
            "(SELECT 1 FROM memory WHERE category_id = category.id)"
        )
    )


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
