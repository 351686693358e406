"""Cosine search through FAISS: exact while that is fast, then product-quantised codes.

Up to ``EXACT`` vectors every one is looked at. Beyond, vectors are 4-bit product codes (Jégou et
al., "Product quantization for nearest neighbor search", TPAMI 2011; scanned in registers as by
André et al., "Cache locality is not enough", VLDB 2015), all in one list, and past ``ONE_LIST`` in
lists around centroids of which a search reads the nearest. The best candidates are scored again,
exactly, from the vectors of the catalog. So the index takes about 72 bytes a vector, and what it
answers are true cosines: only which memories are looked at is approximate (docs/benchmarks.md has
the recall).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memstore.core.ranking import NOTHING, Ranked, best
from memstore.core.vectors import cosines
from memstore.errors import IndexDamaged
from memstore.index.files import IndexFile
from memstore.index.lists import (
    CODEBOOK,
    POINTS,
    Lists,
    list_count,
    load_faiss,
    one_thread,
    train,
)
from memstore.index.question import Work
from memstore.index.selection import Selection
from memstore.types import Float32, Int64

#: More than float32 rounding can move a dot product of two unit vectors of a few thousand numbers.
MARGIN = 1e-4
#: A flat scan of so many vectors of 384 dimensions takes about half a millisecond.
EXACT = 20_000
#: Up to so many that pass a filter are fetched and scored, all of them.
FEW = 300
#: Beyond ``EXACT``, what is to be steered or faded is the nearest so many.
NEAREST = 1_000
#: Candidates scored again: this many (``Reading``), or so many a hit.
REFINED_A_HIT = 5
#: Filters whose rows are remembered.
FILTERS = 4
#: Grown by this factor since training, the lists no longer fit.
OUTGROWN = 4

Mask = NDArray[np.bool_]


class Source(Protocol):
    """Where the vectors are, whatever of them an index keeps."""

    def count(self) -> int:
        """Return how many vectors there are."""

    def fetch(self, ids: Int64) -> Float32:
        """Return the vectors of these memories (ids ascending), (n, d) float32 in their order."""

    def sample(self, count: int) -> Float32:
        """Return about so many vectors from all over, or all where there are fewer."""


@dataclass
class Passing:
    """The rows that a search may find, and how many; ``everyone`` where that is all there are.

    ``asked`` is how often lists were searched for them, ``own`` an exact index of them alone, once
    that has paid.
    """

    mask: Mask
    count: int
    everyone: bool
    asked: int = 0
    own: DenseIndex | None = None

    @cached_property
    def bits(self) -> NDArray[np.uint8]:
        """One bit a row."""
        return np.packbits(self.mask, bitorder="little")

    @property
    def rows(self) -> Int64:
        """Their numbers, ascending."""
        return np.flatnonzero(self.mask)


class DenseIndex:
    """All vectors of one store under one encoder, brought up to date by ``apply``.

    Not safe for threads by itself (nor is FAISS while it grows): its owner lets them take turns.
    ``trained_for`` is how many vectors its lists were made for, 0 while it is exact.
    """

    def __init__(self, dimension: int, lists: Lists | None = None, trained_for: int = 0) -> None:
        self.faiss = load_faiss()
        self.dimension, self.trained_for = dimension, trained_for
        self.change = 0
        self.ids: Int64 = np.empty(0, dtype=np.int64)
        self.alive: Mask = np.empty(0, dtype=bool)
        self.living = 0
        self.lists = lists
        #: What passes the filters asked last, while nothing is written.
        self._filtered: dict[Selection, Passing] = {}
        self.vectors: Any = self._flat() if lists is None else lists.index

    def _flat(self) -> Any:
        # Vectors are stored as float16 (docs/storage.md), so this keeps exactly what is stored.
        kind = self.faiss.ScalarQuantizer.QT_fp16
        return self.faiss.IndexScalarQuantizer(
            self.dimension, kind, self.faiss.METRIC_INNER_PRODUCT
        )

    @classmethod
    def for_source(cls, dimension: int, source: Source) -> DenseIndex:
        """Return an empty index fit for all that is in the source: exact, or trained on it."""
        total = source.count()
        if total <= EXACT:
            return cls(dimension)
        count = list_count(total)
        sample = source.sample(max(CODEBOOK, count * POINTS))
        return cls(dimension, train(sample, count), total)

    @classmethod
    def from_file(
        cls, dimension: int, change: int, file: IndexFile, trained_for: int
    ) -> DenseIndex:
        """Return the index of a file with what ``to_arrays`` once gave. Raises ``IndexDamaged``."""
        index = cls(dimension)
        index.ids = file.array("ids", "<u4 <i8", None).astype(np.int64)
        count = len(index.ids)
        alive = np.unpackbits(
            file.array("alive", "|u1", -(-count // 8)), count=count, bitorder="little"
        )
        if trained_for:
            packed = np.array(file.array("lists", "|u1", None))
            try:
                index.lists = Lists(index.faiss.deserialize_index(packed))
            except (ValueError, RuntimeError, AttributeError) as error:  # FAISS', and of Lists
                raise IndexDamaged(f"{file.name} holds no lists: {error}") from error
            index.vectors, index.trained_for = index.lists.index, trained_for
        elif count:
            vectors = file.array("vectors", "<f2", count, dimension).astype(np.float32)
            if not np.isfinite(vectors).all():
                raise IndexDamaged(f"{file.name} holds what no vector is")
            index.vectors.add(vectors)
        if (index.vectors.ntotal, index.vectors.d) != (count, dimension):
            raise IndexDamaged(f"{file.name} has another number of vectors than of ids")
        index.alive, index.change = alive.astype(bool), change
        index.living = int(np.count_nonzero(index.alive))
        return index

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return ids, which of them count, and vectors or lists, for a file."""
        narrow = int(self.ids.max(initial=0)) < 1 << 32
        arrays = {
            "ids": self.ids.astype(np.uint32) if narrow else self.ids,
            "alive": np.packbits(self.alive, bitorder="little"),
        }
        if self.trained_for:
            return arrays | {"lists": self.faiss.serialize_index(self.vectors)}
        kept = self._kept(np.arange(len(self.ids))).astype(np.float16)
        return arrays | {"vectors": kept}

    def __len__(self) -> int:
        return self.living

    def outgrown(self, total: int) -> bool:
        """Return whether an index made anew for so many vectors would be another one."""
        dead = len(self.ids) - self.living
        if not self.trained_for:
            return total > EXACT or dead > max(self.living, FEW)
        return total > OUTGROWN * self.trained_for or dead > self.living or total <= EXACT // 2

    def apply(
        self, deleted: Sequence[int], written: Iterable[tuple[Sequence[int], Float32]], change: int
    ) -> None:
        """Take in what changed up to ``change``: deleted ids, and vectors of written memories."""
        self._filtered = {}
        self._kill(np.array(deleted, dtype=np.int64))
        parts = [self.ids]
        for ids, vectors in written:
            fresh = np.array(ids, dtype=np.int64)
            self._kill(fresh)
            self.vectors.add(np.ascontiguousarray(vectors, dtype=np.float32))
            parts.append(fresh)
        self.ids = np.concatenate(parts)
        born = np.ones(len(self.ids) - len(self.alive), dtype=bool)
        self.alive = np.concatenate([self.alive, born])
        self.living, self.change = int(np.count_nonzero(self.alive)), change

    def _kill(self, ids: Int64) -> None:
        if len(ids) and len(self.alive):
            known = self.ids[: len(self.alive)]
            if ids.min() > known.max():
                return
            self.alive[np.isin(known, ids)] = False

    def agrees(self, pages: Iterable[tuple[Sequence[int], Float32]]) -> bool:
        """Return whether this holds exactly these vectors; of lists only their ids are known."""
        rows = np.flatnonzero(self.alive)
        rows = rows[np.argsort(self.ids[rows], kind="stable")]
        at = 0
        for ids, vectors in pages:
            mine, at = rows[at : at + len(ids)], at + len(ids)
            if not np.array_equal(self.ids[mine], np.array(ids, dtype=np.int64)):
                return False
            if not self.trained_for and not np.array_equal(self._kept(mine), vectors):
                return False
        return at == len(rows)

    # --- queries ---------------------------------------------------------------------------

    def search(
        self, vector: Float32, k: int, source: Source, selected: Selection | None = None
    ) -> tuple[Ranked, Work]:
        """Return the k nearest live memories in order, and how they were found.

        Exact up to ``EXACT`` vectors. Never fewer than k while k exist.
        """
        passing = self._passing(selected)
        if not passing.count:
            return NOTHING, Work("nothing to look at")
        few = passing.count <= max(k, FEW)
        if few or (self.trained_for and 2 * k * REFINED_A_HIT >= passing.count):
            found = self._scored(vector, passing.rows, source)
            return best(found, k), Work("every vector that passes", rows=passing.count)
        if self.lists is None:
            rows = self._nearest_of_all(vector, k, passing)
            found = self._scored(vector, rows, source)
            return best(found, k), Work("every vector", rows=passing.count)
        passing.asked += 1
        if passing.count <= EXACT and passing.asked * FEW > passing.count:
            if passing.own is None:
                passing.own = self._of(passing, source)
            return passing.own.search(vector, k, source)
        return self._nearest_of_lists(self.lists, vector, k, passing, source)

    def _of(self, passing: Passing, source: Source) -> DenseIndex:
        """Return an exact index of the rows that pass, for a filter that is asked again and again.

        Fetching all their vectors costs about what so many searches of the lists have cost by then:
        ``FEW`` rows a search.
        """
        ids = np.sort(self.ids[passing.rows])
        own = DenseIndex(self.dimension)
        own.apply([], [(ids.tolist(), source.fetch(ids))], self.change)
        return own

    def scores(self, vector: Float32, source: Source, selected: Selection | None = None) -> Ranked:
        """Return the cosine of every live memory, unordered; beyond ``EXACT`` of the nearest."""
        passing = self._passing(selected)
        if self.trained_for and passing.count > EXACT:
            found, _ = self.search(vector, NEAREST, source, selected)
            return found
        return self._scored(vector, passing.rows, source)

    def cosines(self, vector: Float32, source: Source, ids: Int64) -> Ranked:
        """Return the cosines of some live memories (ids ascending), unordered."""
        rows = np.flatnonzero(self.alive & np.isin(self.ids, ids))
        return self._scored(vector, rows, source)

    def _passing(self, selected: Selection | None) -> Passing:
        if selected is None:
            return Passing(self.alive, self.living, self.living == len(self.ids))
        passing = self._filtered.pop(selected, None)
        if passing is None:
            mask = self.alive & selected.mask(self.ids)
            passing = Passing(mask, int(np.count_nonzero(mask)), False)
        if selected.kept:
            self._filtered[selected] = passing  # the last, so that the first was asked longest ago
            if len(self._filtered) > FILTERS:
                del self._filtered[next(iter(self._filtered))]
        return passing

    def _nearest_of_all(self, vector: Float32, k: int, passing: Passing) -> Int64:
        """Return rows among which the k nearest surely are, from a flat scan.

        FAISS sums in float32 and cuts ties by chance, so all near the edge come along.
        """
        parameters = self._selecting(passing, self.faiss.SearchParameters)
        wanted = min(passing.count, 2 * k + 16)
        query = vector[None, :]
        with one_thread(self.faiss):
            scores, rows = self.vectors.search(query, wanted, params=parameters)
        edge = float(scores[0, k - 1]) - MARGIN
        if scores[0, -1] < edge or wanted == passing.count:
            return np.asarray(rows[0], dtype=np.int64)
        # More ties than the list holds: take all that reach the edge.
        _, _, rows = self.vectors.range_search(query, edge, params=parameters)
        return np.asarray(rows, dtype=np.int64)

    def _nearest_of_lists(
        self, lists: Lists, vector: Float32, k: int, passing: Passing, source: Source
    ) -> tuple[Ranked, Work]:
        wanted = max(lists.reading.refined, REFINED_A_HIT * k)
        self.vectors.implem = lists.scan(wanted)
        for probes in (lists.probes(vector, passing.count / self.living), lists.count):
            parameters = self._selecting(passing, self.faiss.IVFSearchParameters, nprobe=probes)
            with one_thread(self.faiss):
                _, rows = self.vectors.search(vector[None, :], wanted, params=parameters)
            rows = rows[0][rows[0] >= 0]
            if len(rows) >= k:
                found = self._scored(vector, rows, source)
                return best(found, k), Work(f"{probes} of {lists.count} lists", rows=len(rows))
        # Cannot happen while lists hold what the mask names, and is answered all the same.
        found = self._scored(vector, passing.rows, source)
        return best(found, k), Work("every vector that passes", rows=passing.count)

    def _selecting(self, passing: Passing, kind: Any, **more: int) -> Any:
        if passing.everyone:
            return kind(**more) if more else None
        return kind(sel=self.faiss.IDSelectorBitmap(passing.bits), **more)

    def _scored(self, vector: Float32, rows: Int64, source: Source) -> Ranked:
        ids = self.ids[rows]
        if self.trained_for:
            ids = np.sort(ids)
            kept = source.fetch(ids)
        else:
            kept = self._kept(rows)
        return Ranked(ids, cosines(kept, vector))

    def _kept(self, rows: Int64) -> Float32:
        """Return the vectors that an exact index keeps."""
        if not len(rows):
            return np.empty((0, self.dimension), dtype=np.float32)
        return np.asarray(self.vectors.reconstruct_batch(rows), dtype=np.float32)
