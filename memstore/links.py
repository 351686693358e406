"""Near-copies at insert: which memory a new one nearly repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memstore.core.vectors import NEAR_COPY
from memstore.nearness import nearest
from memstore.types import Float32

if TYPE_CHECKING:
    from memstore.search import Searcher


def repeated(
    searcher: Searcher, vectors: Float32, fingerprint: str
) -> dict[int, tuple[int, float]]:
    """Return ``{row: (id, cosine)}`` of vectors (n, d) that a stored memory is near to.

    Nothing of vectors of another encoder: they will be made anew.
    """
    found: dict[int, tuple[int, float]] = {}
    with searcher.view(dense=True) as view:
        if view.encoder.fingerprint != fingerprint:
            return found
        for row, vector in enumerate(vectors):
            ranked, _ = nearest(searcher, view, vector, 1)
            for memory_id, cosine in ranked.pairs():
                if cosine >= NEAR_COPY:
                    found[row] = memory_id, cosine
    return found
