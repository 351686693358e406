"""Statistics of one neuron's activations, as pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from memstore.types import Company, Float64, Int64, Telling

#: A firing is strong from this share of a neuron's strongest: below it the texts of one neuron have
#: little to do with each other, and its label says little of them (docs/neurons.md).
STRONG = 0.4
#: Memories that a precision is taken of, those for which a neuron fires strongest.
FIRST = 20
#: Memories that two neurons must both fire for to be called company, and how many are told.
FEWEST, TOLD = 5, 8


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


def tellings(activations: Float64, members: Mapping[str, NDArray[np.bool_]]) -> tuple[Telling, ...]:
    """Return what activations (n,) tell of each category, the one told best first.

    Significance is of the AUC: Mann and Whitney's U, normal with ties corrected, two-sided,
    adjusted over the categories.
    """
    aucs, total = category_auc(activations, members), len(activations)
    fires = activations > 0
    first = np.lexsort((np.arange(total), -activations))[: min(FIRST, int(fires.sum()))]
    found = []
    _, ties = np.unique(activations, return_counts=True)
    for name, auc in aucs.items():
        inside = members[name]
        count = int(inside.sum())
        share = count / total
        lift = float(inside[fires].mean()) / share if fires.any() else 0.0
        precision = float(inside[first].mean()) if len(first) else 0.0
        found.append((name, auc, lift, precision, auc_p(auc, count, total, ties)))
    adjusted = benjamini_hochberg(np.array([one[-1] for one in found]))
    return tuple(
        Telling(name, auc, lift, precision, float(p))
        for (name, auc, lift, precision, _), p in zip(found, adjusted.tolist(), strict=True)
    )


def auc_p(auc: float, inside: int, total: int, ties: NDArray[np.int64]) -> float:
    """Return the two-sided p of an AUC of ``inside`` against the rest, given how many tie."""
    outside = total - inside
    tied = float((ties.astype(np.float64) ** 3 - ties).sum()) / (total * (total - 1))
    spread = math.sqrt(inside * outside / 12 * (total + 1 - tied))
    if not spread > 0:
        return 1.0
    return math.erfc(abs(auc - 0.5) * inside * outside / spread / math.sqrt(2))


def benjamini_hochberg(p: Float64) -> Float64:
    """Return adjusted p: the false discovery rate at which each would be told."""
    order = np.argsort(p, kind="stable")
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    result = np.empty(len(p))
    result[order] = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1.0)
    return result


def company(neuron: int, both: Int64, fires: Int64, total: int) -> tuple[Company, ...]:
    """Return the neurons that fire together with one more often than by chance, most telling first.

    ``both`` counts the memories that each fires for together with it, ``fires`` alone, of
    ``total``. First comes what adds most to the mutual information: count x ln(lift).
    """
    found = []
    for other in np.flatnonzero(both >= FEWEST).tolist():
        lift = int(both[other]) * total / (int(fires[neuron]) * int(fires[other]))
        if other != neuron and lift > 1:
            found.append((int(both[other]) * math.log(lift), other, int(both[other]), lift))
    found.sort(key=lambda one: (-one[0], one[1]))
    return tuple(Company(other, count, lift) for _, other, count, lift in found[:TOLD])


def strata(activations: Float64, parts: int = 10) -> Int64:
    """Return the places of activations in the middle of each tenth, strongest first."""
    order = np.lexsort((np.arange(len(activations)), -activations))
    if len(order) <= parts:
        return np.asarray(order, dtype=np.int64)
    middles = ((np.arange(parts) + 0.5) * len(order) / parts).astype(np.int64)
    return np.asarray(order[middles], dtype=np.int64)
