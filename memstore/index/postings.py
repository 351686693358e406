"""Exact neuron queries over immutable segments of traces, in numpy.

A segment holds its traces twice: by memory (CSR, to complete a row) and by neuron (postings, to
find rows). Scores are float64 sums of weight x stored activation in ascending order of neurons, so
they equal a plain loop over the stored values bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.core import traces as packed
from memstore.core.expression import NeuronQuery
from memstore.core.ranking import NOTHING, Ranked, join
from memstore.core.traces import norm_of, weigh
from memstore.types import Float64, Int64, Trace, Traces

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Segment:
    """Traces of some memories, ids ascending, with their postings.

    Postings of neuron j: ``rows[starts[j]:starts[j + 1]]`` (ascending) and the ``values`` beside
    them. ``alive`` marks the rows that still count.
    """

    traces: Traces
    starts: Int64
    rows: NDArray[np.uint32]
    values: NDArray[np.float16]
    alive: Mask

    @classmethod
    def build(cls, traces: Traces) -> Segment:
        """Return the segment of some traces whose ids ascend."""
        rows = np.repeat(np.arange(len(traces), dtype=np.uint32), np.diff(traces.indptr))
        by_neuron = np.argsort(traces.neurons, kind="stable")
        fires = np.bincount(traces.neurons, minlength=traces.width)
        starts = np.zeros(traces.width + 1, dtype=np.int64)
        np.cumsum(fires, out=starts[1:])
        return cls(
            traces=traces,
            starts=starts,
            rows=rows[by_neuron],
            values=traces.activations[by_neuron],
            alive=np.ones(len(traces), dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.traces)

    @property
    def ids(self) -> Int64:
        """Memory ids, ascending."""
        return self.traces.ids

    @cached_property
    def live(self) -> int:
        """How many rows still count."""
        return int(np.count_nonzero(self.alive))

    def postings(self, neuron: int) -> tuple[NDArray[np.uint32], Float64]:
        """Return (rows, activations) of one neuron, dead rows included."""
        span = slice(int(self.starts[neuron]), int(self.starts[neuron + 1]))
        return self.rows[span], self.values[span].astype(np.float64)

    def column(self, neuron: int) -> Float64:
        """Return one neuron's activation in every row, 0 where it is silent."""
        column = np.zeros(len(self))
        rows, values = self.postings(neuron)
        column[rows] = values
        return column

    def positions(self, ids: Int64) -> Int64:
        """Return the rows of those of the ids that are here."""
        if not len(self):
            return np.empty(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.asarray(at[self.ids[at] == ids], dtype=np.int64)

    def mask(self, ids: Int64) -> Mask:
        """Return which rows have one of the ids."""
        mask = np.zeros(len(self), dtype=bool)
        mask[self.positions(ids)] = True
        return mask

    def without(self, ids: Int64) -> Segment:
        """Return the segment with these ids dead."""
        gone = self.positions(ids)
        if not self.alive[gone].any():
            return self
        alive = self.alive.copy()
        alive[gone] = False
        return replace(self, alive=alive)

    def living(self) -> Traces:
        """Return the traces of the rows that still count."""
        if self.live == len(self):
            return self.traces
        return packed.select(self.traces, np.flatnonzero(self.alive))

    def composite(
        self, query: NeuronQuery, allowed: Int64 | None, min_score: float | None
    ) -> Ranked:
        """Return every candidate of a composite with its score, unordered."""
        scores, passing = self.sums(query), self.meeting(query)
        if query.has_positive:
            passing &= self.raised(query)
            if min_score is not None:
                passing &= scores > min_score
        return self._ranked(passing, scores, allowed)

    def weighted(self, query: NeuronQuery, allowed: Int64 | None) -> Ranked:
        """Return the weighted sum of every live row that meets the conditions, 0 and below too."""
        return self._ranked(self.meeting(query), self.sums(query), allowed)

    def sums(self, query: NeuronQuery) -> Float64:
        """Return the weighted sum of every row."""
        scores = np.zeros(len(self))
        for neuron, weight in query.terms:
            rows, values = self.postings(neuron)
            scores[rows] += weight * values
        return scores

    def raised(self, query: NeuronQuery) -> Mask:
        """Return the rows in which at least one positively weighted neuron fires."""
        raised = np.zeros(len(self), dtype=bool)
        for neuron, weight in query.terms:
            if weight > 0:
                raised[self.postings(neuron)[0]] = True
        return raised

    def meeting(self, query: NeuronQuery) -> Mask:
        """Return which rows live and meet every condition."""
        passing = self.alive.copy()
        for condition in query.conditions:
            passing &= condition.holds(self.column(int(condition.neuron)))
        return passing

    def cosine(self, trace: Trace, weights: Float64 | None, allowed: Int64 | None) -> Ranked:
        """Return the memories that share a neuron with ``trace`` and the cosine of the two."""
        products = np.zeros(len(self))
        for neuron, value in zip(
            trace.neurons.tolist(), weigh(trace, weights).tolist(), strict=True
        ):
            rows, values = self.postings(neuron)
            products[rows] += value * (values if weights is None else values * weights[neuron])
        shared = self.alive & (products > 0)
        norms = self.norms(weights) * norm_of(weigh(trace, weights))
        scores = np.divide(products, norms, out=np.zeros(len(self)), where=shared)
        return self._ranked(shared, scores, allowed)

    def norms(self, weights: Float64 | None) -> Float64:
        """Return the L2 norm of every row, its activations times ``weights`` first."""
        values = self.traces.activations.astype(np.float64)
        if weights is not None:
            values *= weights[self.traces.neurons]
        rows = np.repeat(np.arange(len(self)), np.diff(self.traces.indptr))
        return np.sqrt(np.bincount(rows, values * values, minlength=len(self)))

    def _ranked(self, passing: Mask, scores: Float64, allowed: Int64 | None) -> Ranked:
        if allowed is not None:
            passing &= self.mask(allowed)
        rows = np.flatnonzero(passing)
        return Ranked(self.ids[rows], scores[rows])


class NeuronIndex:
    """The segments of one store under one encoder, brought up to date by ``apply``.

    Not safe for threads by itself: whoever owns it lets them take turns.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.change = 0
        self.segments: tuple[Segment, ...] = ()

    @classmethod
    def from_arrays(
        cls, width: int, change: int, arrays: Mapping[str, NDArray[Any]]
    ) -> NeuronIndex:
        """Return the index of arrays that ``to_arrays`` once gave."""
        index = cls(width)
        traces = Traces(
            arrays["ids"], arrays["indptr"], arrays["neurons"], arrays["activations"], width
        )
        alive = np.ones(len(traces), dtype=bool)
        segment = Segment(traces, arrays["starts"], arrays["rows"], arrays["values"], alive)
        index.segments, index.change = (segment,), change
        return index

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the live rows as one compact segment's arrays, for a file."""
        segment = self.compacted()
        traces = segment.traces
        return {
            "ids": traces.ids,
            "indptr": traces.indptr,
            "neurons": traces.neurons,
            "activations": traces.activations,
            "starts": segment.starts,
            "rows": segment.rows,
            "values": segment.values,
        }

    def __len__(self) -> int:
        return sum(segment.live for segment in self.segments)

    def apply(self, deleted: Sequence[int], written: Iterable[Traces], change: int) -> None:
        """Take in what changed up to ``change``: deleted ids, and traces of written memories."""
        pages = [page for page in written if len(page)]
        fresh = packed.concatenate(pages) if pages else packed.empty(self.width)
        gone = np.concatenate([np.array(deleted, dtype=np.int64), fresh.ids])
        if len(gone):
            self.segments = tuple(segment.without(gone) for segment in self.segments)
        if len(fresh):
            self.segments = grown(self.segments, Segment.build(fresh))
        self.change = change

    def compacted(self) -> Segment:
        """Return all live rows as one segment."""
        return merged(self.segments, self.width)

    def composite(
        self, query: NeuronQuery, allowed: Int64 | None = None, min_score: float | None = 0.0
    ) -> Ranked:
        """Return every candidate of a composite with its score, unordered.

        Candidates: live, among ``allowed`` ids where given, every condition met, and at least one
        positively weighted neuron firing with a score above ``min_score``. A query without a
        positive term takes every live memory that meets the conditions, whatever its score.
        """
        return join([s.composite(query, allowed, min_score) for s in self.segments])

    def weighted(self, query: NeuronQuery, allowed: Int64 | None = None) -> Ranked:
        """Return the weighted sum of every live memory that meets the conditions, unordered."""
        return join([s.weighted(query, allowed) for s in self.segments])

    def cosine(
        self, trace: Trace, weights: Float64 | None = None, allowed: Int64 | None = None
    ) -> Ranked:
        """Return the memories that share a neuron with ``trace`` and the cosine of the two."""
        if not len(trace):
            return NOTHING
        return join([s.cosine(trace, weights, allowed) for s in self.segments])

    def activations(self, neuron: int) -> Ranked:
        """Return (ids, activations) of the live memories for which a neuron fires, unordered."""
        return self.composite(NeuronQuery(((neuron, 1.0),)))

    def fires(self) -> Int64:
        """Return how many live memories each neuron fires for."""
        total = np.zeros(self.width, dtype=np.int64)
        for segment in self.segments:
            total += np.bincount(segment.living().neurons, minlength=self.width)
        return total

    def statistics(self) -> tuple[Int64, Float64, Float64]:
        """Return (fires, mean activation where it fires, largest activation), one a neuron."""
        traces = self.compacted().traces
        values = traces.activations.astype(np.float64)
        fires = np.bincount(traces.neurons, minlength=self.width)
        sums = np.bincount(traces.neurons, values, minlength=self.width)
        maxima = np.zeros(self.width)
        np.maximum.at(maxima, traces.neurons, values)
        return fires, sums / np.maximum(fires, 1), maxima


def merged(segments: Sequence[Segment], width: int) -> Segment:
    """Return one segment of the live rows of several, ids ascending."""
    if not segments:
        return Segment.build(packed.empty(width))
    if len(segments) == 1 and segments[0].live == len(segments[0]):
        return segments[0]
    joined = packed.concatenate([segment.living() for segment in segments])
    return Segment.build(packed.select(joined, np.argsort(joined.ids, kind="stable")))


def grown(segments: tuple[Segment, ...], fresh: Segment) -> tuple[Segment, ...]:
    """Return the segments with a fresh one added, merging neighbours until sizes fall by half.

    So their number stays logarithmic and each row is copied a logarithmic number of times, whether
    memories come one by one or in bulk.
    """
    stack = [*(s for s in segments if s.live), fresh]
    while len(stack) > 1 and stack[-2].live < 2 * len(stack[-1]):
        last = stack.pop()
        stack[-1] = merged([stack[-1], last], fresh.traces.width)
    return tuple(stack)
