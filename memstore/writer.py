"""Writing memories: rows checked, duplicates found, texts encoded, one transaction a batch.

Encoding, the slow part, always happens before the transaction opens, so no writer holds the lock
while a model thinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from sqlalchemy import Connection

from memstore.catalog import memories, neurons, traces
from memstore.catalog.engine import Database, Write
from memstore.catalog.filters import compile_filter
from memstore.catalog.memories import NewMemory
from memstore.core.traces import select
from memstore.core.vectors import unit_vectors
from memstore.encoder import Encoder
from memstore.errors import DuplicateKey, InvalidInput, InvalidVector, MemoryNotFound
from memstore.progress import Report
from memstore.rows import check_row, now
from memstore.types import Float32, Traces

OnDuplicate = Literal["add", "skip"]

#: Memories a transaction: at 250 texts/s a batch is a second of work to lose.
BATCH = 256


@dataclass(frozen=True)
class Batch:
    """Checked rows, where the first of them stands in the input, and its vectors if given."""

    first: int
    rows: list[NewMemory]
    vectors: Float32 | None


@dataclass(frozen=True)
class Encoded:
    """Vectors and traces of some rows of a batch; ``rows[i]`` is the row of vector i."""

    rows: list[int]
    vectors: Float32
    traces: Traces

    def only(self, rows: Sequence[int]) -> Encoded:
        """Return those of these rows, which must all be here."""
        place = {row: i for i, row in enumerate(self.rows)}
        chosen = np.array([place[row] for row in rows], dtype=np.int64)
        return Encoded(list(rows), self.vectors[chosen], select(self.traces, chosen))


class Writer:
    """The mutators of one store. ``written`` counts memories added since it was opened."""

    def __init__(self, database: Database, encoder: Callable[[], Encoder]) -> None:
        self.database, self.encoder = database, encoder
        self.written = 0

    def insert_many(
        self,
        rows: Iterable[Any],
        on_duplicate: OnDuplicate,
        vectors: ArrayLike | None,
        report: Report | None,
    ) -> list[int]:
        """Store rows from any iterable, a batch at a time; returns one id a row, in order."""
        if on_duplicate not in get_args(OnDuplicate):
            raise InvalidInput(f"on_duplicate={on_duplicate!r}: use 'add' or 'skip'")
        if isinstance(rows, str | bytes | Mapping):
            raise InvalidInput("rows is one row, not many: use insert(), or put it into a list")
        total = len(rows) if isinstance(rows, Sequence) else None
        checked: Iterable[NewMemory] = check_rows(rows)
        if total is not None:
            # What is all here is checked whole, so that a bad row leaves the store as it was.
            checked = list(checked)
        given = None if vectors is None else self._given(vectors, total)
        ids: list[int] = []
        for batch in batches(checked, given):
            ids += self._store(batch, on_duplicate == "skip")
            if report is not None:
                report(len(ids), total)
        if given is not None and len(given) != len(ids):
            raise InvalidVector(
                f"{len(given)} vectors for {len(ids)} rows, which were stored: hand in one a row"
            )
        return ids

    def _given(self, vectors: ArrayLike, total: int | None) -> Float32:
        matrix = np.asarray(vectors)
        rows = total if total is not None else (len(matrix) if matrix.ndim else 0)
        return unit_vectors(matrix, rows, self.encoder().dimension)

    def _store(self, batch: Batch, skip: bool) -> list[int]:
        """Store one batch in one transaction; returns one id a row."""
        owners = first_of_each(batch.rows) if skip else list(range(len(batch.rows)))
        while True:
            with self.database.read() as connection:
                known = existing(connection, batch.rows) if skip else {}
            missing = [row for row in sorted(set(owners)) if row not in known]
            if not missing:
                return [known[owner] for owner in owners]
            encoded = self._encode(batch, missing)
            with self.database.write() as tx:
                # Again, now that nobody else can write: another process may have been faster.
                known = existing(tx.connection, batch.rows) if skip else {}
                missing = [row for row in sorted(set(owners)) if row not in known]
                if set(missing) <= set(encoded.rows):
                    known |= self._add(tx, batch, encoded.only(missing))
                    return [known[owner] for owner in owners]
            # A memory that was there before encoding has been deleted since: once more.

    def _encode(self, batch: Batch, rows: list[int]) -> Encoded:
        encoder = self.encoder()
        if batch.vectors is None:
            vectors = encoder.vectors([batch.rows[row].text for row in rows])
        else:
            vectors = batch.vectors[np.array(rows, dtype=np.int64)]
        return Encoded(rows, vectors, encoder.traces(vectors))

    def _add(self, tx: Write, batch: Batch, encoded: Encoded) -> dict[int, int]:
        """Insert encoded rows; returns ``{row: id}``."""
        if not encoded.rows:
            return {}
        new = [batch.rows[row] for row in encoded.rows]
        refuse_known_keys(tx.connection, new, [batch.first + row for row in encoded.rows])
        ids = memories.add(tx.connection, new, tx.change, now())
        encoder_id = neurons.require_encoder(tx.connection).id
        traces.add(tx.connection, encoder_id, ids, encoded.vectors, encoded.traces)
        self.written += len(ids)
        return dict(zip(encoded.rows, ids, strict=True))

    def update(self, memory_id: int, row: NewMemory, fields: set[str]) -> None:
        """Set the named fields of one memory to those of ``row``."""
        encoded = None
        if "text" in fields:
            encoded = self._encode(Batch(0, [row], None), [0])
        with self.database.write() as tx:
            if memory_id not in memories.by_ids(tx.connection, [memory_id]):
                raise MemoryNotFound(f"no memory has id {memory_id}: `list` shows which there are")
            values: dict[str, Any] = {name: getattr(row, name) for name in fields}
            if values.get("key") is not None:
                owner = memories.id_of_key(tx.connection, values["key"])
                if owner not in (None, memory_id):
                    raise DuplicateKey(f"memory {owner} already has the key {values['key']!r}")
            if "category" in values:
                values["category_id"] = memories.category_id(tx.connection, values.pop("category"))
            memories.change(tx.connection, memory_id, values, tx.change, now())
            if encoded is not None:
                traces.remove(tx.connection, [memory_id])
                encoder_id = neurons.require_encoder(tx.connection).id
                traces.add(tx.connection, encoder_id, [memory_id], encoded.vectors, encoded.traces)

    def delete(self, ids: Sequence[int]) -> int:
        """Delete memories by id; returns how many there were."""
        with self.database.write() as tx:
            return memories.remove(tx.connection, ids, tx.change)

    def delete_where(self, where: Mapping[str, Any]) -> int:
        """Delete the memories that pass a filter; returns how many there were."""
        condition = compile_filter(where)
        with self.database.write() as tx:
            ids = memories.ids(tx.connection, condition)
            return memories.remove(tx.connection, ids, tx.change)


def check_rows(rows: Iterable[Any]) -> Iterator[NewMemory]:
    """Yield checked rows; an error names the row, counted from 0."""
    for number, row in enumerate(rows):
        try:
            yield check_row(row)
        except InvalidInput as error:
            raise type(error)(f"row {number}: {error}") from error


def batches(rows: Iterable[NewMemory], vectors: Float32 | None) -> Iterator[Batch]:
    """Yield rows by the batch with the vectors that belong to them."""
    source, first = iter(rows), 0
    while page := list(islice(source, BATCH)):
        part = None if vectors is None else vectors[first : first + len(page)]
        if part is not None and len(part) < len(page):
            raise InvalidVector(
                f"only {first + len(part)} vectors for more rows: hand in one a row"
            )
        yield Batch(first, page, part)
        first += len(page)


def identity(row: NewMemory) -> tuple[str, str | bytes]:
    """Return what makes a row the same as another: its key, or its text where it has none."""
    return ("text", row.content_hash) if row.key is None else ("key", row.key)


def first_of_each(rows: Sequence[NewMemory]) -> list[int]:
    """Return for each row the first row of the same identity."""
    first: dict[tuple[str, str | bytes], int] = {}
    return [first.setdefault(identity(row), number) for number, row in enumerate(rows)]


def existing(connection: Connection, rows: Sequence[NewMemory]) -> dict[int, int]:
    """Return ``{row: id}`` of the rows that are stored already."""
    hashes = {number: row.content_hash for number, row in enumerate(rows) if row.key is None}
    keys = {number: row.key for number, row in enumerate(rows) if row.key is not None}
    by_hash = memories.ids_of_hashes(connection, list(hashes.values()))
    by_key = memories.ids_of_keys(connection, keys.values())
    found = {number: by_hash[value] for number, value in hashes.items() if value in by_hash}
    return found | {number: by_key[value] for number, value in keys.items() if value in by_key}


def refuse_known_keys(
    connection: Connection, rows: Sequence[NewMemory], numbers: Sequence[int]
) -> None:
    """Raise ``DuplicateKey`` for a key that is taken, in the store or earlier in the batch."""
    keys = [row.key for row in rows if row.key is not None]
    if not keys:
        return
    taken = set(memories.ids_of_keys(connection, keys))
    for number, row in zip(numbers, rows, strict=True):
        if row.key in taken:
            raise DuplicateKey(
                f"row {number}: another memory has the key {row.key!r}: use upsert(), "
                "on_duplicate='skip' or another key"
            )
        if row.key is not None:
            taken.add(row.key)
