"""Answering queries: the indices find ids and scores, the catalog completes them into hits.

Every query runs in one read transaction, so filter, index and rows show the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

import numpy as np

from memstore import reasons
from memstore.catalog import neurons, traces, words
from memstore.catalog.engine import Database
from memstore.catalog.neurons import EncoderRecord
from memstore.core import ranking
from memstore.core.expression import MAX_WEIGHT, NeuronQuery, check_number
from memstore.core.ranking import Ranked, best
from memstore.core.traces import cosine_parts, idf
from memstore.encoder import Encoder
from memstore.errors import InvalidQuery, MemoryNotFound
from memstore.index.postings import NeuronIndex
from memstore.indices import Indices
from memstore.rows import check_half_life, check_text
from memstore.types import Float32, Float64, Hits, Int64, Trace
from memstore.view import Query, View, Where

By = Literal["dense", "trace", "hybrid", "words"]
Parts = dict[int, dict[str, float]]

MAX_K = 1_000_000
#: How far down each side of a hybrid search is read.
FUSION_DEPTH = 100


class Searcher:
    """The queries of one store."""

    def __init__(
        self, database: Database, indices: Indices, load: Callable[[EncoderRecord], Encoder]
    ) -> None:
        self.database, self.indices, self.load_encoder = database, indices, load

    @contextmanager
    def view(self) -> Iterator[View]:
        """Open a read transaction. The indices stay this thread's until it ends."""
        with self.indices.turn, self.database.read() as connection:
            encoder = neurons.require_encoder(connection)
            yield View(connection, neurons.state(connection), encoder)

    def neuron_index(self, view: View) -> NeuronIndex:
        """Return the neuron index at the view's state."""
        return self.indices.neurons(view.connection, view.state, view.encoder)

    # --- neurons ---------------------------------------------------------------------------

    def composite(
        self,
        expression: Query,
        k: int,
        where: Where | None,
        min_score: float | None,
        half_life: str | timedelta | None,
    ) -> Hits:
        """Return the k best of a neuron expression."""
        check_k(k)
        if min_score is not None:
            check_number(min_score, "min_score")
        fading = check_half_life(half_life)
        with self.view() as view:
            query = view.resolve(expression)
            found = self.neuron_index(view).composite(query, view.allowed(where), min_score)
            return self.composite_hits(view, query, best(view.fade(found, fading), k))

    def composite_hits(self, view: View, query: NeuronQuery, top: Ranked) -> Hits:
        """Return the hits of a composite, each neuron's share beside it."""
        fired = view.traces(top.ids)
        labels = view.labels([neuron for neuron, _ in query.terms])
        return reasons.build_hits(
            top,
            view.rows(top.ids),
            lambda i: reasons.composite_parts(query, fired[i], labels),
        )

    # --- texts -----------------------------------------------------------------------------

    def search(
        self,
        text: str,
        k: int,
        by: By,
        where: Where | None,
        options: Options,
    ) -> Hits:
        """Return the k memories nearest to a text."""
        check_k(k)
        check_text(text)
        options.check(by)
        if by == "words":
            return self._words(text, k, where, options)
        question = self._question(text, by)
        if by == "hybrid":
            return self._hybrid(question, k, where, options)
        return self._near(question, k, where, options)

    def similar(
        self, memory_id: int, k: int, by: By, where: Where | None, options: Options
    ) -> Hits:
        """Return the k memories nearest to a stored one, itself left out."""
        check_k(k)
        if by not in ("dense", "trace"):
            raise InvalidQuery(f"by={by!r}: similar() goes by 'dense' or 'trace'")
        options.check(by)
        with self.view() as view:
            found, vectors = traces.vectors_by_ids(
                view.connection, view.encoder.id, [memory_id], view.encoder.dimension
            )
            fired = view.traces(np.array([memory_id], dtype=np.int64))
        if not found:
            raise MemoryNotFound(f"no memory has id {memory_id}: `list` shows which there are")
        others = {"id": {"$ne": memory_id}}
        narrowed = others if where is None else {"$and": [where, others]}
        trace = fired[memory_id] if by == "trace" else None
        return self._near(Question("", vectors[0], trace), k, narrowed, options)

    def _question(self, text: str, by: By) -> Question:
        with self.view() as view:
            record = view.encoder
        # Outside the transaction: loading a model takes longer than any reader should hold one.
        encoder = self.load_encoder(record)
        vectors = encoder.vectors([text])
        trace = None if by == "dense" else encoder.traces(vectors)[0]
        return Question(text, vectors[0], trace)

    def _near(self, question: Question, k: int, where: Where | None, options: Options) -> Hits:
        fading = check_half_life(options.half_life)
        with self.view() as view:
            steer = None if options.steer is None else view.resolve(options.steer)
            allowed = view.allowed(where)
            weights = self._weights(view, options.idf)
            if question.trace is not None:
                found = self.neuron_index(view).cosine(question.trace, weights, allowed)
            else:
                index = self.indices.dense(view.connection, view.state, view.encoder)
                if steer is None and fading is None:
                    found = index.search(question.vector, k, allowed)
                else:
                    found = index.scores(question.vector, allowed)
            nearness = found
            if steer is not None:
                steering = self.neuron_index(view).weighted(steer, allowed)
                found = ranking.added(found, steering)
            top = best(view.fade(found, fading), k)
            return self._near_hits(view, top, NearParts(nearness, steer, question.trace, weights))

    def _weights(self, view: View, wanted: bool) -> Float64 | None:
        if not wanted:
            return None
        index = self.neuron_index(view)
        return idf(index.fires(), len(index))

    def _near_hits(self, view: View, top: Ranked, asked: NearParts) -> Hits:
        fired = view.traces(top.ids)
        wanted = [n for n, _ in asked.steer.terms] if asked.steer else []
        if asked.trace is not None:
            wanted += asked.trace.neurons.tolist()
        labels = view.labels(wanted)
        cosines = dict(asked.nearness.pairs())

        def explain(memory_id: int) -> tuple[dict[str, float], dict[str, str]]:
            if asked.trace is None:
                parts = {"dense": cosines[memory_id]}
                sentences = reasons.side_sentences(parts)
            else:
                shares = cosine_parts(asked.trace, fired[memory_id], asked.weights)
                parts, sentences = reasons.shared_parts(shares, labels)
            if asked.steer is not None:
                more, why = reasons.composite_parts(asked.steer, fired[memory_id], labels)
                for name, share in more.items():
                    parts[f"steer {name}"] = share
                    sentences[f"steer {name}"] = why[name]
            return parts, sentences

        return reasons.build_hits(top, view.rows(top.ids), explain)

    def _words(self, text: str, k: int, where: Where | None, options: Options) -> Hits:
        fading = check_half_life(options.half_life)
        with self.view() as view:
            rows = words.search(
                view.connection, text, view.compile(where), k if fading is None else None
            )
            found = as_ranked(rows)
            scores = dict(rows)
            top = best(view.fade(found, fading), k)
            sentences = reasons.side_sentences(["words"])
            return reasons.build_hits(
                top, view.rows(top.ids), lambda i: ({"words": scores[i]}, sentences)
            )

    def _hybrid(self, question: Question, k: int, where: Where | None, options: Options) -> Hits:
        fading = check_half_life(options.half_life)
        depth = max(FUSION_DEPTH, k)
        with self.view() as view:
            sides = self._sides(view, question, where, options, depth)
            if options.weights is None:
                parts = ranking.reciprocal_ranks(sides)
            else:
                parts = ranking.weighted_sums(sides, options.weights)
            found = ranking.ranked_sums(parts)
            top = best(view.fade(found, fading), k)
            ranks = {
                name: {i: rank for rank, i in enumerate(side.ids.tolist(), 1)}
                for name, side in sides.items()
            }

            def explain(memory_id: int) -> tuple[dict[str, float], dict[str, str]]:
                shares = parts[memory_id]
                places = {side: ranks[side][memory_id] for side in shares}
                return shares, reasons.side_sentences(shares, places)

            return reasons.build_hits(top, view.rows(top.ids), explain)

    def _sides(
        self, view: View, question: Question, where: Where | None, options: Options, depth: int
    ) -> dict[str, Ranked]:
        """Return the best of each side of a hybrid search, in order."""
        index = self.neuron_index(view)
        steer = None if options.steer is None else view.resolve(options.steer)
        allowed = view.allowed(where)
        if steer is not None and steer.conditions:
            allowed = np.sort(index.weighted(NeuronQuery((), steer.conditions), allowed).ids)
        dense = self.indices.dense(view.connection, view.state, view.encoder)
        sides = {"dense": dense.search(question.vector, depth, allowed)}
        if question.trace is not None:
            weights = self._weights(view, options.idf)
            sides["trace"] = best(index.cosine(question.trace, weights, allowed), depth)
        if words.terms(question.text):
            found = as_ranked(words.search(view.connection, question.text, None, None))
            sides["words"] = best(among(found, allowed), depth)
        if steer is not None and steer.has_positive:
            # Without a positive term every memory is a candidate, and ranks would go by id.
            sides["steer"] = best(index.composite(steer, allowed), depth)
        if options.weights is None:
            return sides
        return {name: side for name, side in sides.items() if options.weights.get(name)}


@dataclass(frozen=True)
class Options:
    """What a text search may be given beside text, k, kind and filter."""

    steer: Query | None = None
    """An expression whose weighted activations are added to the score (hybrid: one more side)."""
    half_life: str | timedelta | None = None
    """Scores halve with every such span of age."""
    idf: bool = False
    """Weight neurons by IDF, so that rare ones count more (by="trace" and "hybrid")."""
    weights: Mapping[str, float] | None = None
    """Hybrid only: a weighted sum of the sides named, instead of reciprocal rank fusion."""

    def check(self, by: object) -> None:
        """Raise ``InvalidQuery`` for an unknown kind, or an option that says nothing to it."""
        if by not in get_args(By):
            raise InvalidQuery(f"by={by!r}: use one of {', '.join(get_args(By))}")
        if self.steer is not None and by == "words":
            raise InvalidQuery("steer goes with by='dense', 'trace' or 'hybrid', not 'words'")
        if self.idf and by not in ("trace", "hybrid"):
            raise InvalidQuery(f"idf weighs neurons: use it with 'trace' or 'hybrid', not {by!r}")
        if self.weights is None:
            return
        if by != "hybrid":
            raise InvalidQuery(f"weights mix the sides of by='hybrid', not of {by!r}")
        if not isinstance(self.weights, Mapping) or not self.weights:
            raise InvalidQuery("weights is a dict of sides: {'dense': 1, 'words': 0.5}")
        for side, weight in self.weights.items():
            if side not in reasons.SIDES:
                known = ", ".join(reasons.SIDES)
                raise InvalidQuery(f"weights for {side!r}: a hybrid search has the sides {known}")
            if not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
                raise InvalidQuery(f"the weight of {side} is {weight!r}: use 0 to {MAX_WEIGHT:g}")


@dataclass(frozen=True)
class Question:
    """What a nearness query is near to. With a trace it goes by traces, else by vectors."""

    text: str
    vector: Float32
    trace: Trace | None


@dataclass(frozen=True)
class NearParts:
    """What a nearness query was made of, for its reasons."""

    nearness: Ranked
    steer: NeuronQuery | None
    trace: Trace | None
    weights: Float64 | None


def check_k(k: object) -> None:
    """Raise ``InvalidQuery`` unless ``k`` is a whole number from 1 to a million."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise InvalidQuery(f"k is {k!r}: ask for 1 to {MAX_K:,} hits")


def among(found: Ranked, allowed: Int64 | None) -> Ranked:
    """Return those of the results whose ids are allowed."""
    if allowed is None:
        return found
    kept = np.isin(found.ids, allowed)
    return Ranked(found.ids[kept], found.scores[kept])


def as_ranked(rows: list[tuple[int, float]]) -> Ranked:
    """Return (id, score) pairs as arrays."""
    ids = np.array([row[0] for row in rows], dtype=np.int64)
    return Ranked(ids, np.array([row[1] for row in rows], dtype=np.float64))
