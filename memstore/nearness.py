"""Nearness queries: dense, by trace, steered, and all of them fused."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memstore import reasons
from memstore.catalog import words
from memstore.core import ranking
from memstore.core.expression import NeuronQuery
from memstore.core.ranking import Ranked, best, join
from memstore.core.traces import affinity_parts, idf
from memstore.errors import IndexDamaged
from memstore.hits import Hits
from memstore.index.question import Work
from memstore.index.selection import Selection
from memstore.indices import Vectors
from memstore.types import Float32, Float64, Trace
from memstore.view import View, Where

if TYPE_CHECKING:
    from memstore.index.dense import DenseIndex
    from memstore.search import Searcher

#: How far down each side of a hybrid search is read.
FUSION_DEPTH = 100
#: Where vectors are too many to look at all, a steered search completes so many of either side.
STEERED = 1_000


SILENT = Trace(np.empty(0, dtype=np.int64), np.empty(0))


@dataclass(frozen=True)
class Axes:
    """A direction as the sum of ``rows`` (neurons, d), one neuron's share each; a unit vector."""

    neurons: tuple[int, ...]
    rows: Float64

    @property
    def direction(self) -> Float32:
        """The direction, (d,)."""
        return np.asarray(self.rows.sum(axis=0), dtype=np.float32)

    def parts(self, vector: Float32, cosine: float) -> reasons.Parts:
        """Return each neuron's share of a cosine; in sum it, as the index rounded it."""
        shares = self.rows @ vector.astype(np.float64)
        total = float(shares.sum())
        if total:
            shares = shares * (cosine / total)
        names = map(reasons.neuron_name, self.neurons)
        return dict(zip(names, shares.tolist(), strict=True))


@dataclass(frozen=True)
class Question:
    """What a nearness query is near to. With a trace it goes by traces, else by vectors.

    ``fingerprint`` is that of the encoder it is of. ``without`` is a memory to leave out: the one
    that was asked about. ``axes`` are the neurons that the vector is made of, where it is of some.
    """

    fingerprint: str
    text: str
    vector: Float32
    trace: Trace | None
    without: int | None = None
    axes: Axes | None = None


@dataclass(frozen=True)
class Near:
    """One nearness query over one state of the store."""

    searcher: Searcher
    view: View
    question: Question
    steer: NeuronQuery | None
    idf: bool
    fading: float | None
    fetch: bool = True

    def hits(self, k: int, where: Where | None) -> Hits:
        """Return the k nearest by vector or by trace, steered and faded."""
        view, selected = self.view, self.view.selected(where)
        weights = self._weights()
        spare = k + (self.question.without is not None)
        if self.question.trace is not None:
            nearness = self._by_trace(spare, weights, selected)
        else:
            nearness = self._by_vector(spare, selected)
        nearness = self._without_itself(nearness)
        found = nearness
        if self.steer is not None:
            steer, among = self.steer, Selection(np.sort(nearness.ids))
            found = ranking.added(
                nearness, self.searcher.ask(view, lambda i: i.weighted(steer, among))
            )
        return self._hits(best(view.fade(found, self.fading), k), nearness, weights)

    def _without_itself(self, found: Ranked) -> Ranked:
        if self.question.without is None:
            return found
        kept = found.ids != self.question.without
        return Ranked(found.ids[kept], found.scores[kept])

    def _weights(self) -> Float64 | None:
        if not self.idf:
            return None
        return self.searcher.ask(self.view, lambda i: idf(i.fires, len(i)))

    def _by_trace(self, k: int, weights: Float64 | None, selected: Selection | None) -> Ranked:
        began = time.perf_counter()
        trace = self.question.trace or SILENT
        if self.steer is None and self.fading is None:
            found = self.searcher.ask(self.view, lambda i: i.nearest(trace, k, weights, selected))
            self.view.note("trace", found.work, began)
            return found.ranked
        everyone = self.searcher.ask(self.view, lambda i: i.affinities(trace, weights, selected))
        self.view.note_rows("trace", "every row that shares a neuron", len(everyone), began)
        return everyone

    # --- vectors ---------------------------------------------------------------------------

    def _by_vector(self, k: int, selected: Selection | None) -> Ranked:
        if self.steer is None and self.fading is None:
            return self._nearest(k, selected)
        index, source = self._dense()
        began = time.perf_counter()
        if index.trained_for and self.steer is not None:
            selected = self._meeting(selected)
        found = index.scores(self.question.vector, source, selected)
        if index.trained_for and self.steer is not None and self.steer.has_positive:
            found = join([found, self._steered(index, source, found, selected)])
        self.view.note_rows("dense", "cosines, to steer or fade", len(found), began)
        return found

    def _nearest(self, k: int, selected: Selection | None) -> Ranked:
        began = time.perf_counter()
        found, work = nearest(self.searcher, self.view, self.question.vector, k, selected)
        self.view.note("dense", work, began)
        return found

    def _dense(self) -> tuple[DenseIndex, Vectors]:
        source = Vectors(self.view.moment)
        return self.searcher.indices.dense(self.view.moment, source), source

    def _steered(
        self, index: DenseIndex, source: Vectors, known: Ranked, selected: Selection | None
    ) -> Ranked:
        """Return the cosines of what steer alone would put first and nearness has missed."""
        steer = self.steer or NeuronQuery(())
        found = self.searcher.ask(self.view, lambda i: i.composite(steer, STEERED, selected))
        more = np.setdiff1d(found.ranked.ids, known.ids)
        return index.cosines(self.question.vector, source, more)

    def _meeting(self, selected: Selection | None) -> Selection | None:
        """Return those of the selected memories that meet the conditions of steer."""
        if self.steer is None or not self.steer.conditions:
            return selected
        bounds = NeuronQuery((), self.steer.conditions)
        found = self.searcher.ask(self.view, lambda i: i.weighted(bounds, selected))
        return Selection(np.sort(found.ids))

    # --- hits ------------------------------------------------------------------------------

    def _hits(self, top: Ranked, nearness: Ranked, weights: Float64 | None) -> Hits:
        view, trace, steer = self.view, self.question.trace, self.steer
        if self.question.axes is not None:
            return self._pointing(top, nearness, self.question.axes)
        fired = view.traces(top.ids) if trace is not None or steer is not None else {}
        wanted = [neuron for neuron, _ in steer.terms] if steer else []
        if trace is not None:
            wanted += trace.neurons.tolist()
        cosines = dict(nearness.pairs())

        def parts() -> list[reasons.Parts]:
            return [
                nearness_parts(trace, steer, cosines[i], fired.get(i, SILENT), weights)
                for i in top.ids.tolist()
            ]

        def read(now: View, named: bool) -> Hits:
            labels = now.labels(wanted if named else [])
            steering = reasons.composite_sentences(steer or NeuronQuery(()), labels)

            def sentences(_: int, own: reasons.Parts) -> list[str]:
                return [
                    steering(name, share)
                    if name.startswith("steer ")
                    else reasons.SIDES[name]
                    if name in reasons.SIDES
                    else reasons.shared_sentence(name, labels)
                    for name, share in own.items()
                ]

            return reasons.later_hits(top, now.rows(top.ids), parts, sentences)

        return read(view, True) if self.fetch else self.searcher.later(view, top, read)

    def _pointing(self, top: Ranked, nearness: Ranked, axes: Axes) -> Hits:
        """Return hits whose parts are the neurons that a direction is made of."""
        view, cosines = self.view, dict(nearness.pairs())
        ids = np.sort(top.ids)
        vectors = dict(zip(ids.tolist(), Vectors(view.moment).fetch(ids), strict=True))
        labels = view.labels(list(axes.neurons))

        def parts() -> list[reasons.Parts]:
            return [axes.parts(vectors[i], cosines[i]) for i in top.ids.tolist()]

        def sentences(_: int, own: reasons.Parts) -> list[str]:
            return [reasons.pointing_sentence(name, labels) for name in own]

        return reasons.later_hits(top, view.rows(top.ids), parts, sentences)

    # --- fusion ----------------------------------------------------------------------------

    def fused(self, k: int, where: Where | None, mixed: Mapping[str, float] | None) -> Hits:
        """Return the k best of all sides: by reciprocal ranks, or mixed by weights."""
        sides = self._sides(where, max(FUSION_DEPTH, k), mixed)
        if mixed is None:
            shares = ranking.reciprocal_ranks(sides)
        else:
            shares = ranking.weighted_sums(sides, mixed)
        top = best(self.view.fade(ranking.ranked_sums(shares), self.fading), k)
        ranks = {
            name: {i: rank for rank, i in enumerate(side.ids.tolist(), 1)}
            for name, side in sides.items()
        }

        def sentences(memory_id: int, own: reasons.Parts) -> list[str]:
            return [reasons.side_sentence(side, ranks[side][memory_id]) for side in own]

        parts = [shares[memory_id] for memory_id in top.ids.tolist()]
        return reasons.later_hits(top, self.view.rows(top.ids), lambda: parts, sentences)

    def _sides(
        self, where: Where | None, depth: int, mixed: Mapping[str, float] | None
    ) -> dict[str, Ranked]:
        """Return the best of each side of a hybrid search, in order."""
        view, steer = self.view, self.steer
        selected = self._meeting(view.selected(where))
        sides = {"dense": self._nearest(depth, selected)}
        if self.question.trace is not None:
            plain = Near(self.searcher, view, self.question, None, self.idf, None)
            sides["trace"] = plain._by_trace(depth, self._weights(), selected)
        if words.terms(self.question.text):
            began = time.perf_counter()
            found = words.search(view.connection, self.question.text, None, None)
            allowed = found if selected is None else selected.among(found)
            sides["words"] = best(allowed, depth)
            view.note_rows("words", "FTS5", len(found), began)
        if steer is not None and steer.has_positive:
            # Without a positive term every memory is a candidate, and ranks would go by id.
            began = time.perf_counter()
            ranked = self.searcher.ask(view, lambda i: i.composite(steer, depth, selected))
            view.note("steer", ranked.work, began)
            sides["steer"] = ranked.ranked
        if mixed is None:
            return sides
        return {name: side for name, side in sides.items() if mixed.get(name)}


def nearest(
    searcher: Searcher, view: View, vector: Float32, k: int, selected: Selection | None = None
) -> tuple[Ranked, Work]:
    """Return the k nearest to a vector, in a state opened for dense queries, and how.

    An index whose file named what is not there is built anew, and asked again.
    """
    source = Vectors(view.moment)
    try:
        return searcher.indices.dense(view.moment, source).search(vector, k, source, selected)
    except IndexDamaged:
        searcher.indices.distrust_vectors()
        return searcher.indices.dense(view.moment, source).search(vector, k, source, selected)


def nearness_parts(
    trace: Trace | None,
    steer: NeuronQuery | None,
    cosine: float,
    fired: Trace,
    weights: Float64 | None,
) -> reasons.Parts:
    """Return the shares of one hit's score, before any fading: by vectors where no trace is given.

    A function of its own, so that hits which are made later hold on to no state of the store.
    """
    if trace is None:
        own = {"dense": cosine}
    else:
        own = reasons.shared_parts(affinity_parts(trace, fired, weights))
    if steer is not None:
        own |= reasons.composite_parts(steer, fired, "steer ")
    return own
