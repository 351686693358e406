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
from memstore.core.expression import NeuronQuery
from memstore.core.ranking import Ranked, best
from memstore.core.traces import cosine_parts, idf
from memstore.encoder import Encoder
from memstore.errors import InvalidQuery, MemoryNotFound
from memstore.index.postings import NeuronIndex
from memstore.indices import Indices
from memstore.rows import check_half_life, check_text
from memstore.types import Float32, Float64, Hits, Trace
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
        if by not in get_args(By):
            raise InvalidQuery(f"by={by!r}: use one of {', '.join(get_args(By))}")
        if by == "words":
            return self._words(text, k, where, options)
        vector = self._vector_of(text)
        if by == "hybrid":
            return self._hybrid(text, vector, k, where, options)
        return self._near(vector, k, by, where, options)

    def similar(
        self, memory_id: int, k: int, by: By, where: Where | None, options: Options
    ) -> Hits:
        """Return the k memories nearest to a stored one, itself left out."""
        check_k(k)
        if by not in ("dense", "trace"):
            raise InvalidQuery(f"by={by!r}: similar() goes by 'dense' or 'trace'")
        with self.view() as view:
            found, vectors = traces.vectors_by_ids(
                view.connection, view.encoder.id, [memory_id], view.encoder.dimension
            )
        if not found:
            raise MemoryNotFound(f"no memory has id {memory_id}: `list` shows which there are")
        others = {"id": {"$ne": memory_id}}
        narrowed = others if where is None else {"$and": [where, others]}
        return self._near(vectors[0], k, by, narrowed, options)

    def _vector_of(self, text: str) -> Float32:
        with self.view() as view:
            record = view.encoder
        # Outside the transaction: loading a model takes longer than any reader should hold one.
        encoder = self.load_encoder(record)
        vector: Float32 = encoder.vectors([text])[0]
        return vector

    def _near(self, vector: Float32, k: int, by: By, where: Where | None, options: Options) -> Hits:
        fading = check_half_life(options.half_life)
        with self.view() as view:
            steer = None if options.steer is None else view.resolve(options.steer)
            allowed = view.allowed(where)
            if by == "dense":
                index = self.indices.dense(view.connection, view.state, view.encoder)
                if steer is None and fading is None:
                    found = index.search(vector, k, allowed)
                else:
                    found = index.scores(vector, allowed)
                trace, weights = None, None
            else:
                trace, weights = self._trace_of(view, vector), self._weights(view, options.idf)
                found = self.neuron_index(view).cosine(trace, weights, allowed)
            sides: dict[str, Ranked] = {by: found}
            if steer is not None:
                steering = self.neuron_index(view).weighted(steer, allowed)
                found = ranking.added(found, steering)
            top = best(view.fade(found, fading), k)
            return self._near_hits(view, top, NearParts(sides, steer, trace, weights))

    def _trace_of(self, view: View, vector: Float32) -> Trace:
        return self.load_encoder(view.encoder).traces(vector[None, :])[0]

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
        cosines = dict(asked.sides["dense"].pairs()) if "dense" in asked.sides else {}

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
        if options.steer is not None:
            raise InvalidQuery("steer goes with by='dense', 'trace' or 'hybrid', not 'words'")
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

    def _hybrid(
        self, text: str, vector: Float32, k: int, where: Where | None, options: Options
    ) -> Hits:
        fading = check_half_life(options.half_life)
        depth = max(FUSION_DEPTH, k)
        with self.view() as view:
            sides = self._sides(view, text, vector, where, options, depth)
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
        self,
        view: View,
        text: str,
        vector: Float32,
        where: Where | None,
        options: Options,
        depth: int,
    ) -> dict[str, Ranked]:
        """Return the best of each side of a hybrid search, in order."""
        allowed = view.allowed(where)
        index = self.neuron_index(view)
        dense = self.indices.dense(view.connection, view.state, view.encoder)
        trace, weights = self._trace_of(view, vector), self._weights(view, options.idf)
        sides = {
            "dense": dense.search(vector, depth, allowed),
            "trace": best(index.cosine(trace, weights, allowed), depth),
        }
        if words.terms(text):
            rows = words.search(view.connection, text, view.compile(where), depth)
            sides["words"] = as_ranked(rows)
        if options.steer is not None:
            steering = index.composite(view.resolve(options.steer), allowed)
            sides["steer"] = best(steering, depth)
        if options.weights is None:
            return sides
        if unknown := set(options.weights) - {*reasons.SIDES}:
            raise InvalidQuery(
                f"weights for {sorted(unknown)[0]!r}: a hybrid search has the sides "
                f"{', '.join(reasons.SIDES)}"
            )
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


@dataclass(frozen=True)
class NearParts:
    """What a nearness query was made of, for its reasons."""

    sides: Mapping[str, Ranked]
    steer: NeuronQuery | None
    trace: Trace | None
    weights: Float64 | None


def check_k(k: object) -> None:
    """Raise ``InvalidQuery`` unless ``k`` is a whole number from 1 to a million."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise InvalidQuery(f"k is {k!r}: ask for 1 to {MAX_K:,} hits")


def as_ranked(rows: list[tuple[int, float]]) -> Ranked:
    """Return (id, score) pairs as arrays."""
    ids = np.array([row[0] for row in rows], dtype=np.int64)
    return Ranked(ids, np.array([row[1] for row in rows], dtype=np.float64))
