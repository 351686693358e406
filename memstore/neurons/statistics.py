"""Statistics of one neuron's activations, as pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from memstore.types import Float64

#: A firing is strong from this share of a neuron's strongest: below it the texts of one neuron have
#: little to do with each other, and its label says little of them (docs/neurons.md).
STRONG = 0.4


def histogram(activations: Float64, bins: int = 10) -> tuple[int, ...]:
    """Return counts in equal bins from 0 to the largest activation."""
    largest = float(activations.max(initial=0.0))
    counts, _ = np.histogram(activations, bins=bins, range=(0.0, largest or 1.0))
    return tuple(counts.tolist())


def midranks(values: Float64) -> Float64:
    """Return ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def category_auc(
    activations: Float64, members: Mapping[str, NDArray[np.bool_]]
) -> dict[str, float]:
    """Return ``{category: AUC}`` of an activation for being in each category, best first.

    The chance that a random member has a stronger activation than a random other, ties counting
    half (Mann and Whitney 1947). Categories that hold nothing or everything are left out.
    """
    ranks = midranks(activations)
    total = len(activations)
    result = {}
    for name, inside in members.items():
        count = int(np.count_nonzero(inside))
        if 0 < count < total:
            above = float(ranks[inside].sum()) - count * (count + 1) / 2
            result[name] = above / (count * (total - count))
    return dict(sorted(result.items(), key=lambda item: (-item[1], item[0])))
