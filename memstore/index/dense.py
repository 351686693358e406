"""Exact cosine search through FAISS.

A flat index: every vector is looked at, so the answer is exact at any size. FAISS sums in float32
and cuts ties by chance; the candidates near the edge are therefore scored again in float64 and
ordered like every other answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.core.ranking import NOTHING, Ranked, best
from memstore.types import Float32, Int64

#: More than float32 rounding can move a dot product of two unit vectors of a few thousand numbers.
MARGIN = 1e-4
#: Below this many allowed vectors, scoring them directly beats a scan past all the others.
FEW = 2_000


class DenseIndex:
    """All vectors of one store under one encoder, brought up to date by ``apply``.

    Not safe for threads by itself (nor is FAISS while it grows): its owner lets them take turns.
    """

    def __init__(self, dimension: int) -> None:
        import faiss  # 0.1 s to import, and neuron queries never need it

        # Typed as Any: its annotations are those of the C++ side, which its Python wrapper changes.
        self.faiss: Any = faiss
        self.dimension = dimension
        self.change = 0
        self.ids: Int64 = np.empty(0, dtype=np.int64)
        self.alive: NDArray[np.bool_] = np.empty(0, dtype=bool)
        self.flat = self.faiss.IndexFlatIP(dimension)

    @classmethod
    def from_arrays(
        cls, dimension: int, change: int, arrays: Mapping[str, NDArray[Any]]
    ) -> DenseIndex:
        """Return the index of arrays that ``to_arrays`` once gave."""
        index = cls(dimension)
        index.apply([], [(arrays["ids"].tolist(), arrays["vectors"])], change)
        return index

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return ids (ascending) and vectors of the live rows, for a file."""
        rows = np.flatnonzero(self.alive)
        rows = rows[np.argsort(self.ids[rows], kind="stable")]
        return {"ids": self.ids[rows], "vectors": self._vectors(rows)}

    def __len__(self) -> int:
        return int(np.count_nonzero(self.alive))

    def apply(
        self, deleted: Sequence[int], written: Iterable[tuple[Sequence[int], Float32]], change: int
    ) -> None:
        """Take in what changed up to ``change``: deleted ids, and vectors of written memories."""
        self._kill(np.array(deleted, dtype=np.int64))
        for ids, vectors in written:
            fresh = np.array(ids, dtype=np.int64)
            self._kill(fresh)
            self.flat.add(np.ascontiguousarray(vectors, dtype=np.float32))
            self.ids = np.concatenate([self.ids, fresh])
            self.alive = np.concatenate([self.alive, np.ones(len(fresh), dtype=bool)])
        self._drop_dead()
        self.change = change

    def _kill(self, ids: Int64) -> None:
        if len(ids) and len(self.ids):
            self.alive &= ~np.isin(self.ids, ids)

    def _drop_dead(self) -> None:
        """Rebuild without dead rows once they are a third of all."""
        if 3 * len(self) >= 2 * len(self.alive):
            return
        rows = np.flatnonzero(self.alive)
        vectors = self._vectors(rows)
        self.flat = self.faiss.IndexFlatIP(self.dimension)
        self.flat.add(vectors)
        self.ids, self.alive = self.ids[rows], np.ones(len(rows), dtype=bool)

    def search(self, vector: Float32, k: int, allowed: Int64 | None = None) -> Ranked:
        """Return the k nearest live memories in order, among ``allowed`` ids where given.

        Never fewer than k while k exist.
        """
        rows = self._candidates(vector, k, allowed)
        return best(self._scored(vector, rows), k) if len(rows) else NOTHING

    def scores(self, vector: Float32, allowed: Int64 | None = None) -> Ranked:
        """Return the cosine of every live memory, unordered."""
        return self._scored(vector, np.flatnonzero(self._mask(allowed)))

    def _mask(self, allowed: Int64 | None) -> NDArray[np.bool_]:
        return self.alive if allowed is None else self.alive & np.isin(self.ids, allowed)

    def _candidates(self, vector: Float32, k: int, allowed: Int64 | None) -> Int64:
        """Return rows among which the k nearest surely are."""
        mask = self._mask(allowed)
        count = int(np.count_nonzero(mask))
        if count <= max(k, FEW):
            return np.flatnonzero(mask)
        parameters = self._selecting(mask)
        wanted = min(count, 2 * k + 16)
        query = vector[None, :]
        scores, rows = self.flat.search(query, wanted, params=parameters)
        edge = float(scores[0, k - 1]) - MARGIN
        if scores[0, -1] < edge or wanted == count:
            return np.asarray(rows[0], dtype=np.int64)
        # More ties than the list holds: take all that reach the edge.
        _, _, rows = self.flat.range_search(query, edge, params=parameters)
        return np.asarray(rows, dtype=np.int64)

    def _selecting(self, mask: NDArray[np.bool_]) -> Any:
        if mask.all():
            return None
        bits = np.packbits(mask, bitorder="little")
        selector = self.faiss.IDSelectorBitmap(bits)
        return self.faiss.SearchParameters(sel=selector)

    def _scored(self, vector: Float32, rows: Int64) -> Ranked:
        # Each row is summed alone: a matrix product would round by the shape of its blocks, and
        # two equal vectors could come out unequal.
        vectors, query = self._vectors(rows).astype(np.float64), vector.astype(np.float64)
        # Unit length holds to float32 only; dividing by the norms keeps a cosine within 1.
        norms = np.sqrt((vectors * vectors).sum(axis=1)) * np.sqrt((query * query).sum())
        return Ranked(self.ids[rows], np.minimum((vectors * query).sum(axis=1) / norms, 1.0))

    def _vectors(self, rows: Int64) -> Float32:
        if not len(rows):
            return np.empty((0, self.dimension), dtype=np.float32)
        return np.asarray(self.flat.reconstruct_batch(rows), dtype=np.float32)
