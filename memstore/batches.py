"""Rows by the batch: checked, and encoded one ahead of the one that is being stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.catalog import neurons
from memstore.catalog.engine import Write
from memstore.catalog.memories import NewMemory
from memstore.core.traces import select
from memstore.errors import InvalidInput, InvalidVector
from memstore.rows import check_row
from memstore.types import Float32, Traces

#: Memories a transaction: at 250 texts/s a batch is a second of work to lose.
BATCH = 256
#: With given vectors, where the same second holds many more.
BULK = 16_384


@dataclass(frozen=True)
class Batch:
    """Checked rows, where the first of them stands in the input, and its vectors if given.

    ``embedder`` is the fingerprint of the embedder that given vectors are of.
    """

    first: int
    rows: list[NewMemory]
    vectors: NDArray[np.floating] | None
    embedder: str | None = None


@dataclass(frozen=True)
class Encoded:
    """Vectors and traces of some rows of a batch; ``rows[i]`` is the row of vector i.

    ``fingerprint`` is that of the encoder that made them: a store may move to another meanwhile.
    """

    rows: list[int]
    vectors: Float32
    traces: Traces
    fingerprint: str

    def is_of(self, tx: Write) -> bool:
        """Return whether the store's encoder made this."""
        return neurons.require_encoder(tx.connection).fingerprint == self.fingerprint

    def only(self, rows: Sequence[int]) -> Encoded:
        """Return those of these rows, which must all be here."""
        if rows == self.rows:
            return self
        place = {row: i for i, row in enumerate(self.rows)}
        chosen = np.array([place[row] for row in rows], dtype=np.int64)
        return replace(
            self, rows=list(rows), vectors=self.vectors[chosen], traces=select(self.traces, chosen)
        )


Prepared = tuple[Batch, Encoded]


def check_rows(rows: Iterable[Any]) -> Iterator[NewMemory]:
    """Yield checked rows; an error names the row, counted from 0."""
    for number, row in enumerate(rows):
        try:
            yield check_row(row)
        except InvalidInput as error:
            raise type(error)(f"row {number}: {error}") from error


def batches(
    rows: Iterable[NewMemory],
    vectors: NDArray[np.floating] | None,
    size: int,
    embedder: str | None,
) -> Iterator[Batch]:
    """Yield rows, ``size`` at a time, with the vectors that belong to them."""
    source, first = iter(rows), 0
    while page := list(islice(source, size)):
        part = None if vectors is None else vectors[first : first + len(page)]
        if part is not None and len(part) < len(page):
            raise InvalidVector(
                f"only {first + len(part)} vectors for more rows: hand in one a row"
            )
        yield Batch(first, page, part, embedder)
        first += len(page)


def ahead(source: Iterable[Batch], prepare: Callable[[Batch], Encoded]) -> Iterator[Prepared]:
    """Yield batches with what ``prepare`` made of them, the next one in the making meanwhile.

    Encoding and SQLite each leave a core free. An error in the source comes after everything
    before it was yielded, as if nothing had been done ahead.
    """
    batches = Failing(source)
    batch, following = batches.next(), batches.next()
    if batch is not None and following is None:
        yield batch, prepare(batch)  # alone: no thread for a single insert
    elif batch is not None:
        with ThreadPoolExecutor(1, thread_name_prefix="memstore-encoder") as pool:
            made: Future[Encoded] = pool.submit(prepare, batch)
            while batch is not None:
                encoded = made.result()
                if following is not None:
                    made = pool.submit(prepare, following)
                yield batch, encoded
                batch, following = following, batches.next()
    if batches.failure is not None:
        raise batches.failure


class Failing:
    """An iterator that ends where its source fails, and keeps the failure for later."""

    def __init__(self, source: Iterable[Batch]) -> None:
        self._source = iter(source)
        self.failure: Exception | None = None

    def next(self) -> Batch | None:
        """Return the next batch, None after the last and from a failure on."""
        if self.failure is not None:
            return None
        try:
            return next(self._source, None)
        except Exception as error:  # noqa: BLE001 - raised by who iterates, in its turn
            self.failure = error
            return None
