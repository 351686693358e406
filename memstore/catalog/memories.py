"""Statements about memories: their rows, times and content hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import ColumnElement, Connection, Row, func, select, text, update

from memstore.catalog import categories
from memstore.catalog.engine import driver_of
from memstore.catalog.lists import parameters, places
from memstore.catalog.schema import category, deletion, memory
from memstore.errors import RESCUE, StoreDamaged
from memstore.types import Int64, Memory

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
DECODE = json.JSONDecoder().raw_decode

COLUMNS = (
    memory.c.id,
    memory.c.text,
    category.c.name.label("category"),
    memory.c.key,
    memory.c.metadata,
    memory.c.occurred_at,
    memory.c.created_at,
    memory.c.updated_at,
)
JOINED = memory.outerjoin(category, memory.c.category_id == category.c.id)


class NewMemory(NamedTuple):
    """A checked row on its way in. Times are microseconds since 1970, UTC."""

    text: str
    category: str | None
    key: str | None
    metadata: str
    occurred_at: int | None

    @property
    def content_hash(self) -> int:
        """The number by which the same text is looked up."""
        return content_hash(self.text)


class KeptRow(NamedTuple):
    """A checked row that has its id and its times already."""

    id: int
    new: NewMemory
    created_at: int
    updated_at: int


def content_hash(narrative: str) -> int:
    """Return 64 bits of the SHA-256 of a narrative, by which the same text is looked up."""
    digest = hashlib.sha256(narrative.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def to_microseconds(moment: datetime) -> int:
    """Return microseconds since 1970; a time without a zone is taken as UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (aware - EPOCH) // MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Return the UTC time of a stored number."""
    return EPOCH + value * MICROSECOND


#: (id, text, category, key, metadata, occurred_at) as SQLite gives them.
HitRow = tuple[int, str, str | None, str | None, str, int | None]


class StoredRow(NamedTuple):
    """A row of ``COLUMNS`` as SQLite gives it."""

    id: int
    text: str
    category: str | None
    key: str | None
    metadata: str
    occurred_at: int | None
    created_at: int
    updated_at: int


def to_metadata(stored: str) -> dict[str, Any]:
    """Return metadata from its JSON text."""
    if stored == "{}":
        return {}
    try:
        # As written by us: one object, no blanks around it for loads() to look for.
        found: dict[str, Any] = DECODE(stored)[0]
    except (ValueError, RecursionError) as error:
        raise StoreDamaged(f"the metadata of a memory is damaged ({error}): {RESCUE}") from error
    return found


def untrue(connection: Connection) -> Iterator[int]:
    """Yield the memories whose text does not match its checksum, or whose metadata is no JSON."""
    driver = driver_of(connection)
    for memory_id, text_, known in driver.execute("SELECT id, text, content_hash FROM memory"):
        if content_hash(text_) != known:
            yield memory_id
    query = "SELECT id FROM memory WHERE NOT json_valid(metadata)"
    yield from (row[0] for row in driver.execute(query))


def to_time(stored: int | None) -> datetime | None:
    """Return a time that may be missing."""
    return None if stored is None else from_microseconds(stored)


def to_memory(row: StoredRow | Row[*tuple[Any, ...]]) -> Memory:
    """Return the memory of a row of ``COLUMNS``."""
    return Memory(
        id=row.id,
        text=row.text,
        category=row.category,
        key=row.key,
        metadata=to_metadata(row.metadata),
        occurred_at=to_time(row.occurred_at),
        created_at=from_microseconds(row.created_at),
        updated_at=from_microseconds(row.updated_at),
    )


def add(connection: Connection, rows: Sequence[NewMemory], change: int, now: int) -> list[int]:
    """Insert rows; returns their ids, which ascend in the order given and are never used again."""
    # SQLite holds the write lock, so the ids after the highest ever used are ours to give.
    first = last_id(connection) + 1
    kept = [KeptRow(memory_id, row, now, now) for memory_id, row in enumerate(rows, first)]
    return add_kept(connection, kept, change)


def add_kept(connection: Connection, rows: Sequence[KeptRow], change: int) -> list[int]:
    """Insert rows under the ids and times that they have; returns the ids."""
    # In order of appearance: the same rows make the same store.
    names = dict.fromkeys(row.new.category for row in rows)
    of_name = {name: categories.id_of(connection, name) for name in names}
    # A list, not a generator: between rows SQLite lets other threads in, and Python waits for them.
    packed = [
        (
            memory_id,
            new.text,
            of_name[new.category],
            new.key,
            new.metadata,
            new.occurred_at,
            created_at,
            updated_at,
            new.content_hash,
            change,
        )
        for memory_id, new, created_at, updated_at in rows
    ]
    driver_of(connection).executemany(
        "INSERT INTO memory (id, text, category_id, key, metadata, occurred_at, created_at, "
        "updated_at, content_hash, changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        packed,
    )
    return [row.id for row in rows]


def last_id(connection: Connection) -> int:
    """Return the highest id ever given; 0 where none was."""
    last = connection.execute(
        text("SELECT seq FROM sqlite_sequence WHERE name = 'memory'")
    ).scalar()
    return int(last or 0)


def use_ids_up_to(connection: Connection, last: int) -> None:
    """Have no new memory get an id up to ``last``: memories that are gone had them."""
    if last > last_id(connection):
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = 'memory'"))
        connection.execute(
            text("INSERT INTO sqlite_sequence (name, seq) VALUES ('memory', :last)"),
            {"last": last},
        )


def change(
    connection: Connection, memory_id: int, values: dict[str, Any], change: int, now: int
) -> None:
    """Set columns of one memory and mark it changed."""
    before = None
    if "category_id" in values:
        query = select(memory.c.category_id).where(memory.c.id == memory_id)
        before = connection.execute(query).scalar()
    if "text" in values:
        values = {**values, "content_hash": content_hash(values["text"])}
    connection.execute(
        update(memory)
        .where(memory.c.id == memory_id)
        .values(**values, updated_at=now, changed=change)
    )
    if before is not None:
        categories.prune(connection, [before])


def remove(connection: Connection, ids: Sequence[int], change: int) -> int:
    """Delete memories with all that hangs on them; returns how many there were.

    Categories that nothing uses any more go too.
    """
    listed = {"ids": json.dumps(list(ids))}
    connection.execute(
        text(
            "INSERT OR REPLACE INTO deletion (memory_id, changed) "
            "SELECT id, :change FROM memory WHERE id IN (SELECT value FROM json_each(:ids))"
        ),
        {**listed, "change": change},
    )
    used = connection.execute(
        text(
            "SELECT DISTINCT category_id FROM memory WHERE category_id IS NOT NULL "
            "AND id IN (SELECT value FROM json_each(:ids))"
        ),
        listed,
    ).scalars()
    touched = list(used)
    removed = connection.execute(
        text("DELETE FROM memory WHERE id IN (SELECT value FROM json_each(:ids))"), listed
    ).rowcount
    categories.prune(connection, touched)
    return removed


JOIN = "FROM memory LEFT JOIN category ON category.id = category_id WHERE memory.id IN "
HIT_ROWS = f"SELECT memory.id, text, category.name, key, metadata, occurred_at {JOIN}"
ROWS = (
    "SELECT memory.id, text, category.name, key, metadata, occurred_at, created_at, updated_at "
    f"{JOIN}"
)


def hit_rows(connection: Connection, ids: Sequence[int]) -> dict[int, HitRow]:
    """Return what hits show of the memories with these ids, time and metadata undecoded."""
    if not ids:
        return {}
    found = driver_of(connection).execute(HIT_ROWS + places(len(ids)), parameters(ids))
    return {row[0]: row for row in found}


def by_ids(connection: Connection, ids: Sequence[int]) -> dict[int, Memory]:
    """Return the memories with these ids; missing ones are left out."""
    if not ids:
        return {}
    rows = driver_of(connection).execute(ROWS + places(len(ids)), parameters(ids))
    return {row[0]: to_memory(StoredRow(*row)) for row in rows}


def id_of_key(connection: Connection, key: str) -> int | None:
    """Return the id of the memory with this key."""
    return connection.execute(select(memory.c.id).where(memory.c.key == key)).scalar()


def ids_of_keys(connection: Connection, keys: Iterable[str]) -> dict[str, int]:
    """Return ``{key: id}`` of the keys that exist."""
    wanted = func.json_each(json.dumps(list(keys))).table_valued("value")
    rows = connection.execute(
        select(memory.c.key, memory.c.id).where(memory.c.key.in_(select(wanted.c.value)))
    )
    return {row.key: row.id for row in rows}


def ids_of_texts(connection: Connection, texts: Iterable[str]) -> dict[str, int]:
    """Return ``{text: lowest id}`` of the texts that exist. Hashes find them, texts decide."""
    wanted = {text: content_hash(text) for text in texts}
    rows = driver_of(connection).execute(
        "SELECT text, id FROM memory WHERE content_hash IN (SELECT value FROM json_each(?)) "
        "ORDER BY id DESC",
        (json.dumps(list(wanted.values())),),
    )
    return {text: memory_id for text, memory_id in rows if text in wanted}


def count(connection: Connection, where: ColumnElement[bool] | None = None) -> int:
    """Return how many memories pass ``where``."""
    query = select(func.count()).select_from(memory)
    if where is not None:
        query = select(func.count()).select_from(JOINED).where(where)
    return connection.execute(query).scalar_one()


def ids(connection: Connection, where: ColumnElement[bool]) -> list[int]:
    """Return the ids of the memories that pass ``where``, ascending."""
    query = select(memory.c.id).select_from(JOINED).where(where).order_by(memory.c.id)
    return list(connection.execute(query).scalars())


def ids_query(connection: Connection, where: ColumnElement[bool]) -> tuple[str, tuple[Any, ...]]:
    """Return the SQL, with its parameters, of the ids that pass ``where``: what knows a filter."""
    query = select(memory.c.id).select_from(JOINED).where(where).order_by(memory.c.id)
    compiled = query.compile(
        dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
    )
    values = compiled.construct_params()
    return compiled.string, tuple(values[name] for name in compiled.positiontup or ())


def run_ids_query(connection: Connection, query: tuple[str, tuple[Any, ...]]) -> Int64:
    """Return the ids of an ``ids_query``, ascending."""
    rows = driver_of(connection).execute(*query)
    return np.fromiter((row[0] for row in rows), np.int64)


def page(
    connection: Connection, after: int, size: int, where: ColumnElement[bool] | None
) -> list[Memory]:
    """Return up to ``size`` memories with ids above ``after``, ascending."""
    query = select(*COLUMNS).select_from(JOINED).where(memory.c.id > after)
    if where is not None:
        query = query.where(where)
    rows = connection.execute(query.order_by(memory.c.id).limit(size))
    return [to_memory(row) for row in rows]


def times(connection: Connection, ids: Iterable[int]) -> dict[int, int]:
    """Return ``{id: occurred_at, or created_at where nobody said}`` in microseconds."""
    wanted = func.json_each(json.dumps(list(ids))).table_valued("value")
    moment = func.coalesce(memory.c.occurred_at, memory.c.created_at)
    rows = connection.execute(
        select(memory.c.id, moment).where(memory.c.id.in_(select(wanted.c.value)))
    )
    return {row[0]: row[1] for row in rows}


def forget_deletions(connection: Connection, change: int) -> None:
    """Clear the log of deletions; an index older than ``change`` must then be rebuilt."""
    connection.execute(deletion.delete())
    connection.execute(text("UPDATE store SET log_floor = :change"), {"change": change})
