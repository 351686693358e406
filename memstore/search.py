"""Answering queries: the indices find ids and scores, the catalog completes them into hits.

Every query runs in one read transaction, so filter, index and rows show the same state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike
from sqlalchemy import ColumnElement

from memstore import composites, directions, reasons
from memstore.catalog import lenses, neurons, traces, words
from memstore.catalog.engine import Database
from memstore.catalog.filters import asks_neurons, compile_filter
from memstore.catalog.neurons import EncoderRecord
from memstore.core.expression import check_number
from memstore.core.ranking import Ranked, best
from memstore.core.vectors import unit_vectors
from memstore.encoder import Encoder
from memstore.errors import IndexDamaged, InvalidQuery, MemoryNotFound, brief
from memstore.hits import Hits
from memstore.index.postings import NeuronIndex
from memstore.indices import Indices, Moment
from memstore.nearness import Near, Question
from memstore.options import By, Options, Scoring, check_k
from memstore.rows import check_half_life, check_text
from memstore.types import Explanation, Lens, Step
from memstore.view import Filters, Query, View, Where

T = TypeVar("T")


class Searcher:
    """The queries of one store."""

    def __init__(
        self, database: Database, indices: Indices, load: Callable[[EncoderRecord], Encoder]
    ) -> None:
        self.database, self.indices, self.load_encoder = database, indices, load
        self._filters = Filters()
        self._encoders: dict[int, EncoderRecord] = {}
        self._watched = threading.local()

    @contextmanager
    def view(self, *, dense: bool = False) -> Iterator[View]:
        """Open a read transaction; ``dense`` keeps the dense index as old as it until it ends."""
        # First: in a forked child the thread that holds the turn does not exist.
        self.database.require_own()
        with self.indices.dense_turn if dense else nullcontext():
            known = self.indices.published
            with self.database.read() as connection:
                state = neurons.state(connection)
                encoder = self._encoders.get(state.encoder_id or 0)
                if encoder is None:
                    encoder = neurons.require_encoder(connection)
                    self._encoders[encoder.id] = encoder
                steps = getattr(self._watched, "steps", None)
                moment = Moment(connection, state, encoder, known)
                yield View(moment, self._filters, self._holding, steps)

    def _holding(self, view: View, expression: Query | Lens) -> Sequence[int]:
        return directions.holding(self, view, expression)

    def prepare(self, where: Where | None) -> None:
        """Load the encoder that a filter will ask: a transaction should not wait for a model."""
        if where is None or not asks_neurons(where):
            return
        with self.view() as view:
            record = view.encoder
            saved = lenses.all_lenses(view.connection, record.id)
        if any(lens.by == "dense" for lens in saved):
            self.load_encoder(record)

    @contextmanager
    def filtered(self, where: Where | None) -> Iterator[tuple[View, ColumnElement[bool] | None]]:
        """Open a read transaction, and a filter as SQL whose neurons were asked in it."""
        self.prepare(where)
        with self.view() as view:
            yield view, view.compile(where)

    def ask(self, view: View, question: Callable[[NeuronIndex], T]) -> T:
        """Return the neuron index's answer at the view's state.

        An index whose files turn out damaged, or that names memories which are not there, is built
        anew from the catalog, and asked again.
        """
        try:
            return question(self.indices.neurons(view.moment))
        except IndexDamaged as error:
            return question(self.indices.rebuilt(view.moment, error))

    def later(self, view: View, ranked: Ranked, read: Callable[[View, bool], Hits]) -> Hits:
        """Return the hits of a state, their memories read once somebody looks, as they are then.

        ``read`` is told whether neurons are still called what they were called in that state.
        """
        record, change = view.encoder.id, view.state.change

        def now() -> Hits:
            with self.view() as later:
                try:
                    return read(later, later.encoder.id == record)
                except IndexDamaged as error:
                    if later.state.change != change:
                        raise MemoryNotFound(
                            "a memory among these hits was deleted since they were found: ask again"
                        ) from error
                    failure = error
            # Nobody deleted it: an index named what is not there.
            self.indices.distrust_vectors()
            with self.view() as later:
                self.indices.rebuilt(later.moment, failure)
            raise MemoryNotFound(
                "an index named memories that are not there, and is built anew: ask again"
            ) from failure

        return Hits.later(ranked.ids.tolist(), ranked.scores.tolist(), now)

    def explain(self, query: Callable[[], Hits]) -> Explanation:
        """Run a query and return its steps with its hits."""
        steps: list[Step] = []
        self._watched.steps = steps
        began = time.perf_counter()
        try:
            hits = query()
        finally:
            self._watched.steps = None
        return Explanation(tuple(steps), hits, 1e3 * (time.perf_counter() - began))

    # --- neurons ---------------------------------------------------------------------------

    def composite(
        self,
        expression: Query,
        k: int,
        where: Where | None,
        min_score: float | None,
        half_life: str | timedelta | None,
        by: Scoring | None = None,
        fetch: bool = True,
    ) -> Hits:
        """Return the k best of a neuron expression; a lens alone goes by what it was made for.

        Without ``fetch`` hits are read from the catalog when somebody looks at them.
        """
        check_k(k)
        if min_score is not None and min_score != 0:
            check_number(min_score, "min_score")
        if by is not None and by not in get_args(Scoring):
            raise InvalidQuery(f"by={brief(by)}: composites go by 'trace' or 'dense'")
        fading = check_half_life(half_life)
        self.prepare(where)
        if by != "dense":
            with self.view() as view:
                whole = view.whole(expression)
                lens = view.lens(whole) if by is None else None
                if lens is None or lens.by == "trace":
                    # A lens is spelled in numbers: no name is looked for twice.
                    query = view.resolve(whole if lens is None else lens.expression)
                    return composites.firing(self, view, query, k, where, min_score, fading, fetch)
        return directions.pointing(self, expression, k, where, min_score, half_life)

    def condition(self, where: Where, changes: list[int]) -> ColumnElement[bool]:
        """Return a filter as SQL; ``changes`` gets when neurons were asked for it, if they were."""
        if not asks_neurons(where):
            return compile_filter(where, lambda _: ())
        self.prepare(where)
        with self.view() as view:
            changes.append(view.state.change)
            return compile_filter(where, view.holding)

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
        return self.near(lambda: self._question(text, by), k, where, options, hybrid=by == "hybrid")

    def similar(
        self, memory_id: int, k: int, by: By, where: Where | None, options: Options
    ) -> Hits:
        """Return the k memories nearest to a stored one, itself left out."""
        check_k(k)
        if by not in ("dense", "trace"):
            raise InvalidQuery(f"by={brief(by)}: similar() goes by 'dense' or 'trace'")
        options.check(by)

        def question() -> Question:
            with self.view() as view:
                record = view.encoder
                found, vectors = traces.vectors_by_ids(
                    view.connection, record.id, [memory_id], record.dimension
                )
                fired = view.traces(np.array([memory_id], dtype=np.int64))
            if not found:
                raise MemoryNotFound(f"no memory has id {memory_id}: `list` shows which there are")
            trace = fired[memory_id] if by == "trace" else None
            return Question(record.fingerprint, "", vectors[0], trace, without=memory_id)

        return self.near(question, k, where, options)

    def by_vector(self, vector: ArrayLike, k: int, where: Where | None, options: Options) -> Hits:
        """Return the k memories nearest to a vector."""
        check_k(k)
        fading = check_half_life(options.half_life)
        self.prepare(where)
        with self.view(dense=True) as view:
            unit = unit_vectors(np.asarray(vector)[None], 1, view.encoder.dimension)[0]
            question = Question(view.encoder.fingerprint, "", unit, None)
            return self._nearest(view, question, k, where, options, fading, False)

    def _question(self, text: str, by: By) -> Question:
        with self.view() as view:
            record = view.encoder
        # Outside the transaction: loading a model takes longer than any reader should hold one.
        encoder = self.load_encoder(record)
        began = time.perf_counter()
        vectors = encoder.vectors([text])
        trace = None if by == "dense" else encoder.question(vectors[0])
        steps = getattr(self._watched, "steps", None)
        if steps is not None:
            elapsed = 1e3 * (time.perf_counter() - began)
            steps.append(Step("encoder", "embed the text", 0, 1, elapsed))
        return Question(record.fingerprint, text, vectors[0], trace)

    def near(
        self,
        ask: Callable[[], Question],
        k: int,
        where: Where | None,
        options: Options,
        hybrid: bool = False,
    ) -> Hits:
        """Return the k memories nearest to a question.

        ``ask`` makes it, before the transaction, and makes it anew where the store has moved to
        another encoder between the two.
        """
        fading = check_half_life(options.half_life)
        self.prepare(where)
        while True:
            question = ask()
            with self.view(dense=hybrid or question.trace is None) as view:
                if view.encoder.fingerprint == question.fingerprint:
                    return self._nearest(view, question, k, where, options, fading, hybrid)

    def _nearest(
        self,
        view: View,
        question: Question,
        k: int,
        where: Where | None,
        options: Options,
        fading: float | None,
        hybrid: bool,
    ) -> Hits:
        steer = None if options.steer is None else view.resolve(options.steer)
        rarity = options.idf is not False and (hybrid or question.trace is not None)
        near = Near(self, view, question, steer, rarity, fading, options.fetch)

        def answer() -> Hits:
            return near.fused(k, where, options.weights) if hybrid else near.hits(k, where)

        try:
            return answer()
        except IndexDamaged as error:
            # Whichever was asked may have named memories that are not there.
            if hybrid or question.trace is None:
                self.indices.distrust_vectors()
            if question.trace is not None or steer is not None:
                self.indices.rebuilt(view.moment, error)
            return answer()

    def _words(self, text: str, k: int, where: Where | None, options: Options) -> Hits:
        fading = check_half_life(options.half_life)
        self.prepare(where)
        with self.view() as view:
            began = time.perf_counter()
            found = words.search(
                view.connection, text, view.compile(where), k if fading is None else None
            )
            view.note_rows("words", "FTS5", len(found), began)
            top = best(view.fade(found, fading), k)
            scores = dict(found.pairs())
            parts = [{"words": scores[i]} for i in top.ids.tolist()]
            sentence = reasons.side_sentence("words")
            return reasons.later_hits(
                top, view.rows(top.ids), lambda: parts, lambda _, __: [sentence]
            )
