"""Order, decay and fusion: the last step of every query, in one place.

Order is score descending, then id ascending, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memstore.types import Float64, Int64

#: The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
RRF_CONSTANT = 60


@dataclass(frozen=True)
class Ranked:
    """Memory ids and their scores, side by side; in order once ``best`` has been through it."""

    ids: Int64
    scores: Float64

    def __len__(self) -> int:
        return len(self.ids)

    def pairs(self) -> list[tuple[int, float]]:
        """Return (id, score) as Python numbers."""
        return list(zip(self.ids.tolist(), self.scores.tolist(), strict=True))


NOTHING = Ranked(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64))


def best(found: Ranked, k: int) -> Ranked:
    """Return the k first in order. Ties at the edge are cut by id, never by chance."""
    ids, scores = found.ids, found.scores
    if len(ids) > 4 * k:
        # All that tie with the k-th stay in, so the exact sort below can cut among them.
        kept = scores >= -np.partition(-scores, k - 1)[k - 1]
        ids, scores = ids[kept], scores[kept]
    order = np.lexsort((ids, -scores))[:k]
    return Ranked(ids[order], scores[order])


def join(parts: Sequence[Ranked]) -> Ranked:
    """Return all rows of several results, unordered."""
    if not parts:
        return NOTHING
    return Ranked(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def added(a: Ranked, b: Ranked) -> Ranked:
    """Return the ids that both have, with the sum of their scores."""
    ids, left, right = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    return Ranked(ids, a.scores[left] + b.scores[right])


def decay(ages: Float64, half_life: float) -> Float64:
    """Return 0.5 ** (age / half_life) for ages in seconds; the future counts as now."""
    return np.asarray(np.exp2(-np.maximum(ages, 0.0) / half_life), dtype=np.float64)


def decayed(scores: Float64, factors: Float64) -> Float64:
    """Return scores faded by age. A score of 0 or below stays: fading would raise it."""
    return np.where(scores > 0, scores * factors, scores)


def reciprocal_ranks(sides: Mapping[str, Ranked]) -> dict[int, dict[str, float]]:
    """Return ``{id: {side: 1 / (60 + rank)}}`` with ranks from 1; the sum is the fused score."""
    parts: dict[int, dict[str, float]] = {}
    for name, side in sides.items():
        for rank, memory_id in enumerate(side.ids.tolist(), start=1):
            parts.setdefault(memory_id, {})[name] = 1.0 / (RRF_CONSTANT + rank)
    return parts


def weighted_sums(
    sides: Mapping[str, Ranked], weights: Mapping[str, float]
) -> dict[int, dict[str, float]]:
    """Return ``{id: {side: weight x score / best score of that side}}``.

    Dividing by the best brings cosines, BM25 and activations onto one scale; a memory that a side
    did not find gets nothing from it.
    """
    parts: dict[int, dict[str, float]] = {}
    for name, side in sides.items():
        top = float(side.scores.max(initial=0.0))
        for memory_id, score in side.pairs():
            share = weights[name] * (score / top if top > 0 else 0.0)
            parts.setdefault(memory_id, {})[name] = share
    return parts


def ranked_sums(parts: Mapping[int, Mapping[str, float]]) -> Ranked:
    """Return each id with the sum of its parts."""
    ids = np.fromiter(parts, np.int64, len(parts))
    sums = (sum(shares.values()) for shares in parts.values())
    return Ranked(ids, np.fromiter(sums, np.float64, len(parts)))
