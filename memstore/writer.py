"""Writing memories: rows checked, duplicates found, texts encoded, one transaction a batch.

Encoding, the slow part, always happens before the transaction opens, so no writer holds the lock
while a model thinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import ColumnElement

from memstore.batches import BATCH, BULK, Batch, Encoded, ahead, batches, check_rows
from memstore.catalog import categories, links, memories, neurons, traces, words
from memstore.catalog.engine import Database, Write
from memstore.catalog.memories import NewMemory
from memstore.core.traces import empty
from memstore.core.vectors import check_vectors, unit_vectors
from memstore.duplicates import Plan, refuse_known_keys, repeated_within
from memstore.encoder import Encoder
from memstore.errors import (
    DuplicateKey,
    InvalidInput,
    InvalidVector,
    MemoryNotFound,
    brief,
)
from memstore.progress import Report
from memstore.rows import check_row, now
from memstore.types import Float32

OnDuplicate = Literal["add", "skip", "link"]

#: Returns a filter as SQL, and tells the changes at which what it asks of neurons was answered.
Compiled = Callable[[Mapping[str, Any], list[int]], ColumnElement[bool] | None]


class Writer:
    """The mutators of one store.

    ``wrote`` is told how many memories each has added; ``repeated`` says which stored memory each
    of some vectors of an encoder nearly repeats.
    """

    def __init__(
        self,
        database: Database,
        encoder: Callable[[], Encoder],
        wrote: Callable[[int], None],
        repeated: Callable[[Float32, str], dict[int, tuple[int, float]]],
    ) -> None:
        self.database, self.encoder, self.wrote, self.repeated = database, encoder, wrote, repeated
        #: Fingerprint of the embedder that the caller's vectors are of, once that is known.
        self.known_embedder: str | None = None

    def insert_many(
        self,
        rows: Iterable[Any],
        on_duplicate: OnDuplicate,
        vectors: ArrayLike | None,
        report: Report | None,
    ) -> list[int]:
        """Store rows from any iterable, a batch at a time; returns one id a row, in order."""
        if on_duplicate not in get_args(OnDuplicate):
            raise InvalidInput(f"on_duplicate={brief(on_duplicate)}: use 'add', 'skip' or 'link'")
        refuse_one(rows)
        total = len(rows) if isinstance(rows, Sequence) else None
        checked: Iterable[NewMemory] = check_rows(rows)
        if total is not None:
            # What is all here is checked whole, so that a bad row leaves the store as it was.
            checked = list(checked)
            if on_duplicate != "skip":
                with self.database.read() as connection:
                    refuse_known_keys(connection, checked, range(total))
        given = None if vectors is None else self._given(vectors, total)
        embedder = None if given is None else self._embedder_of_given()
        ids: list[int] = []
        skip, size = on_duplicate == "skip", BULK if given is not None else BATCH
        if on_duplicate == "link":
            size = BATCH  # each is compared with every other of its batch
        source = batches(checked, given, size, embedder)
        for batch, encoded in ahead(source, lambda b: self._prepare(b, skip)):
            ids += self._store(batch, skip, encoded, on_duplicate == "link")
            if report is not None:
                report(len(ids), total)
        if given is not None and len(given) != len(ids):
            raise InvalidVector(
                f"{len(given)} vectors for {len(ids)} rows, which were stored: hand in one a row"
            )
        return ids

    def _given(self, vectors: ArrayLike, total: int | None) -> NDArray[np.floating]:
        rows = total
        if rows is None:
            # A stream does not say how many it will be; its vectors do.
            rows = len(vectors) if isinstance(vectors, Sequence | np.ndarray) else 0
        return check_vectors(vectors, rows, self.encoder().dimension)

    def _embedder_of_given(self) -> str:
        """Return the fingerprint of the embedder that handed-in vectors are taken to be of.

        The one that this handle knows: where another process has moved the store to another
        embedder, nothing says that the caller knows.
        """
        encoder = self.encoder()
        now = encoder.embedder.fingerprint
        if self.known_embedder not in (None, now):
            raise InvalidVector(
                f"the store has moved to {encoder.name} since it was opened: open it again, and "
                "hand in vectors of that embedder"
            )
        self.known_embedder = now
        return now

    def _prepare(self, batch: Batch, skip: bool) -> Encoded:
        """Encode the rows of a batch that are not stored yet, as far as can be told."""
        if not skip:
            return self._encode(batch, list(range(len(batch.rows))))
        with self.database.read() as connection:
            plan = Plan.of(connection, batch.rows, skip)
        return self._encode(batch, plan.missing)

    def _store(self, batch: Batch, skip: bool, encoded: Encoded, link: bool) -> list[int]:
        """Store one batch in one transaction; returns one id a row."""
        while True:
            repeats = self.repeated(encoded.vectors, encoded.fingerprint) if link else {}
            within = repeated_within(encoded.vectors) if link else {}
            if skip and not encoded.rows:
                with self.database.read() as connection:
                    plan = Plan.of(connection, batch.rows, skip)
                if not plan.missing:
                    return plan.ids({})
            with self.database.write() as tx:
                # Again, now that nobody else can write: another process may have been faster.
                plan = Plan.of(tx.connection, batch.rows, skip)
                fits = set(plan.missing) <= set(encoded.rows) and encoded.is_of(tx)
                added = self._add(tx, batch, encoded.only(plan.missing)) if fits else {}
                if link and fits:
                    # What an earlier row repeats was found with it; the earlier row says so.
                    own = {row: (added[other], cosine) for row, (other, cosine) in within.items()}
                    for row in {*own, *repeats}:
                        both = [to[row] for to in (repeats, own) if row in to]
                        links.add(tx.connection, [(added[row], *max(both, key=itemgetter(1)))])
            if fits:
                self.wrote(len(added))
                return plan.ids(added)
            # A memory that was there before encoding has been deleted since, or the store has moved
            # to another encoder: once more.
            encoded = self._prepare(batch, skip)

    def _encode(self, batch: Batch, rows: list[int]) -> Encoded:
        encoder = self.encoder()
        if not rows:
            nothing = np.empty((0, encoder.dimension), np.float32)
            return Encoded([], nothing, empty(encoder.neurons), encoder.fingerprint)
        if batch.vectors is not None and encoder.embedder.fingerprint != batch.embedder:
            raise InvalidVector(
                f"the store has moved to {encoder.name} meanwhile, and these vectors are of "
                "another embedder: hand in its own"
            )
        if batch.vectors is None:
            vectors = encoder.vectors([batch.rows[row].text for row in rows])
        else:
            chosen = batch.vectors
            if len(rows) < len(batch.rows):
                chosen = chosen[np.array(rows, dtype=np.int64)]
            vectors = unit_vectors(chosen, len(rows), encoder.dimension)
        return Encoded(rows, vectors, encoder.traces(vectors), encoder.fingerprint)

    def _add(self, tx: Write, batch: Batch, encoded: Encoded) -> dict[int, int]:
        """Insert encoded rows; returns ``{row: id}``."""
        if not encoded.rows:
            return {}
        new = [batch.rows[row] for row in encoded.rows]
        refuse_known_keys(tx.connection, new, [batch.first + row for row in encoded.rows])
        ids = memories.add(tx.connection, new, tx.change, now())
        words.add(tx.connection, ids[0], ids[-1])
        encoder_id = neurons.require_encoder(tx.connection).id
        traces.add(tx.connection, encoder_id, ids, encoded.vectors, encoded.traces)
        return dict(zip(encoded.rows, ids, strict=True))

    def update(self, memory_id: int, row: NewMemory, fields: set[str]) -> None:
        """Set the named fields of one memory to those of ``row``."""
        while True:
            encoded = self._encode(Batch(0, [row], None), [0]) if "text" in fields else None
            with self.database.write() as tx:
                if memory_id not in memories.by_ids(tx.connection, [memory_id]):
                    raise MemoryNotFound(
                        f"no memory has id {memory_id}: `list` shows which there are"
                    )
                if encoded is None or encoded.is_of(tx):
                    self._change(tx, memory_id, row, fields, encoded)
                    return

    def upsert(self, row: NewMemory, fields: set[str]) -> int:
        """Change the memory with the row's key, or insert the row; one transaction."""
        batch = Batch(0, [row], None)
        while True:
            encoded = self._encode(batch, [0])
            with self.database.write() as tx:
                if not encoded.is_of(tx):
                    continue
                found = None if row.key is None else memories.id_of_key(tx.connection, row.key)
                added = {} if found is not None else self._add(tx, batch, encoded)
                if found is not None:
                    self._change(tx, found, row, fields, encoded)
            self.wrote(len(added))
            return added[0] if found is None else found

    def _change(
        self,
        tx: Write,
        memory_id: int,
        row: NewMemory,
        fields: set[str],
        encoded: Encoded | None,
    ) -> None:
        values: dict[str, Any] = {name: getattr(row, name) for name in fields}
        if values.get("key") is not None:
            owner = memories.id_of_key(tx.connection, values["key"])
            if owner not in (None, memory_id):
                raise DuplicateKey(
                    f"memory {owner} already has the key {values['key']!r}: choose another"
                )
        if "category" in values:
            values["category_id"] = categories.id_of(tx.connection, values.pop("category"))
        before = memories.hit_rows(tx.connection, [memory_id])[memory_id]
        memories.change(tx.connection, memory_id, values, tx.change, now())
        if encoded is not None:
            self._replace(tx, [memory_id], encoded)
            if before[1] != row.text:
                links.forget(tx.connection, memory_id)

    def _replace(self, tx: Write, ids: list[int], encoded: Encoded) -> None:
        """Put the encoding of another text in place of the one there is."""
        traces.remove(tx.connection, ids)
        encoder_id = neurons.require_encoder(tx.connection).id
        traces.add(tx.connection, encoder_id, ids, encoded.vectors, encoded.traces)

    def mend(self, ids: Sequence[int]) -> None:
        """Encode the texts of these memories again, whose vectors or traces are lost or broken."""
        for start in range(0, len(ids), BATCH):
            page = ids[start : start + BATCH]
            while not self._mended(page):
                pass  # a text has changed meanwhile, or the store's encoder

    def _mended(self, page: Sequence[int]) -> bool:
        with self.database.read() as connection:
            found = memories.by_ids(connection, page)
        texts = {memory_id: found[memory_id].text for memory_id in page if memory_id in found}
        rows = [check_row(text) for text in texts.values()]
        encoded = self._encode(Batch(0, rows, None), list(range(len(rows))))
        with self.database.write() as tx:
            current = memories.by_ids(tx.connection, list(texts))
            if not encoded.is_of(tx) or {i: m.text for i, m in current.items()} != texts:
                return False
            for memory_id in texts:
                memories.change(tx.connection, memory_id, {}, tx.change, now())
            self._replace(tx, list(texts), encoded)
        return True

    def delete(self, ids: Sequence[int]) -> int:
        """Delete memories by id; returns how many there were."""
        with self.database.write() as tx:
            return memories.remove(tx.connection, ids, tx.change)

    def delete_where(self, where: Mapping[str, Any], compiled: Compiled) -> int:
        """Delete the memories that pass a filter; returns how many there were.

        What a filter asks of neurons is answered before the transaction; where others have written
        between the two, once more while it keeps them waiting: a reader then sees what it changes.
        """
        while True:
            answered: list[int] = []
            condition = compiled(where, answered)
            with self.database.write() as tx:
                current = all(tx.change == one + 1 for one in answered)
                if not current and self.database.path is not None:
                    condition, current = compiled(where, []), True
                # In memory there is one connection, and none to ask beside it: once more.
                if current and condition is not None:
                    ids = memories.ids(tx.connection, condition)
                    return memories.remove(tx.connection, ids, tx.change)


def refuse_one(rows: object) -> None:
    """Raise ``InvalidInput`` for what is not a number of rows to go through."""
    if isinstance(rows, str | bytes | Mapping):
        raise InvalidInput("rows is one row, not many: use insert(), or put it into a list")
    if not isinstance(rows, Iterable):
        raise InvalidInput(f"rows is {brief(rows)}, nothing to go through: hand in a list")
    if hasattr(rows, "columns"):
        raise InvalidInput("rows is a table: hand in its rows, frame.to_dict('records')")
