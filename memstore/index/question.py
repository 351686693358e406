"""What is asked of the engine, in one form for composites and nearness, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.core.expression import Condition, NeuronQuery
from memstore.core.ranking import Ranked
from memstore.core.traces import asked, norm_of
from memstore.types import Float64, Trace


@dataclass(frozen=True)
class Question:
    """A weighted sum of activations, under conditions; with ``query_norm`` an affinity.

    ``neurons`` (ascending) and ``weights`` are its terms. ``needs_positive``: only rows in which a
    positively weighted neuron fires. ``floor``: only scores above it. An affinity is the cosine of
    the weights and the square roots of the activations.
    """

    neurons: NDArray[np.uint32]
    weights: Float64
    conditions: Sequence[Condition] = ()
    needs_positive: bool = False
    floor: float | None = None
    query_norm: float | None = None

    @classmethod
    def composite(cls, query: NeuronQuery, min_score: float | None) -> Question:
        """Return the question of a composite and its candidates (docs/queries.md)."""
        positive = query.has_positive
        return cls(*terms_of(query), query.conditions, positive, min_score if positive else None)

    @classmethod
    def weighted(cls, query: NeuronQuery) -> Question:
        """Return the weighted sum of every row that meets the conditions, 0 and below too."""
        return cls(*terms_of(query), query.conditions)

    @classmethod
    def affinity(cls, trace: Trace, factors: Float64 | None) -> Question:
        """Return the affinity of a trace to every row that shares a neuron with it."""
        weights = np.asarray(asked(trace, factors), dtype=np.float64)
        norm = norm_of(weights)
        return cls(trace.neurons.astype(np.uint32), weights, needs_positive=True, query_norm=norm)

    @property
    def positive(self) -> NDArray[np.uint32]:
        """The neurons of positive weight."""
        return self.neurons[self.weights > 0]


@dataclass(frozen=True)
class Work:
    """How an answer was found: the plan and what it read."""

    plan: str
    postings: int = 0
    rows: int = 0
    blocks: int = 0


@dataclass(frozen=True)
class Found:
    """An answer in order, how it was found, and, where that came for free, (hits, terms) shares."""

    ranked: Ranked
    work: Work
    shares: Float64 | None = None


def terms_of(query: NeuronQuery) -> tuple[NDArray[np.uint32], Float64]:
    """Return (neurons, weights) as arrays."""
    return (
        np.array([neuron for neuron, _ in query.terms], dtype=np.uint32),
        np.array([weight for _, weight in query.terms], dtype=np.float64),
    )
