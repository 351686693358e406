"""Neuron expressions asked of vectors: how far a memory points the way that its neurons stand for.

A neuron stands for a direction in the space of vectors, its column of the SAE's decoder. A trace
keeps only what fired; whatever lay just below that is still in the vector, so a few directions tell
more than the same few activations do. The price: a score here is a cosine, near 0 for most and
never silent, and what it is made of is no longer a list of what fired.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from memstore.catalog import traces
from memstore.core.expression import NeuronQuery
from memstore.core.vectors import cosines
from memstore.encoder import Encoder
from memstore.errors import InvalidExpression
from memstore.hits import Hits
from memstore.nearness import Axes, Question
from memstore.options import Options
from memstore.types import Lens
from memstore.view import Query, View, Where

if TYPE_CHECKING:
    from memstore.search import Searcher


def pointing(
    searcher: Searcher,
    expression: Query,
    k: int,
    where: Where | None,
    min_score: float | None,
    half_life: str | timedelta | None,
) -> Hits:
    """Return the k memories whose vectors point farthest the way of an expression."""

    def question() -> Question:
        with searcher.view() as view:
            query, record = view.resolve(expression, "dense"), view.encoder
        axes = axes_of(searcher.load_encoder(record), query)
        return Question(record.fingerprint, "", axes.direction, None, axes=axes)

    hits = searcher.near(question, k, where, Options(half_life=half_life))
    if not min_score:  # nothing is special about a cosine of 0
        return hits
    return hits[: sum(score > min_score for score in hits.scores)]


def holding(searcher: Searcher, view: View, expression: Query | Lens) -> Sequence[int]:
    """Return the ids, ascending, of the memories that an expression finds or a lens holds for.

    An expression finds the candidates of its composite; a lens holds for what scores above its
    threshold, silent memories among them.
    """
    lens = view.lens(expression)
    if lens is None:
        query = view.resolve(expression)  # type: ignore[arg-type]  # no Lens: it would be one
        if not query.has_positive and not query.conditions:
            raise InvalidExpression(
                "by this, everything passes: what never fires is asked for as '!laughing', what "
                "scores above a bound by a lens"
            )
        found = searcher.ask(view, lambda index: index.candidates(query))
        return sorted(found.ids.tolist())
    query, floor = view.resolve(lens.expression, lens.by), lens.threshold
    if lens.by == "dense":
        return pointed(searcher, view, query, floor)
    if query.has_positive and floor >= 0:
        # Only where a positive neuron fires can a score be above 0: far fewer to look at.
        found = searcher.ask(view, lambda index: index.candidates(query, None, floor))
    else:
        found = searcher.ask(view, lambda index: index.weighted(query))
    return sorted(found.ids[found.scores > floor].tolist())


def pointed(searcher: Searcher, view: View, query: NeuronQuery, floor: float) -> list[int]:
    """Return the ids, ascending, of the memories whose cosine to a direction is above a bound."""
    record = view.encoder
    direction = axes_of(searcher.load_encoder(record), query).direction
    ids: list[int] = []
    for page, vectors in traces.changed_vectors(view.connection, record.id, 0, record.dimension):
        ids += np.array(page)[cosines(vectors, direction) > floor].tolist()
    return sorted(ids)


def axes_of(encoder: Encoder, query: NeuronQuery) -> Axes:
    """Return the direction of an expression and its neurons' shares of it.

    Raises ``InvalidExpression`` for conditions, which bound activations, and for weights that
    cancel out.
    """
    if query.conditions:
        raise InvalidExpression(
            "a condition bounds what fired, and by='dense' asks how far a memory points some way: "
            "put it into where={'$holds': '88>0.3'}"
        )
    numbers = [neuron for neuron, _ in query.terms]
    weights = np.array([weight for _, weight in query.terms])
    rows = weights[:, None] * encoder.sae.directions()[numbers].astype(np.float64)
    length = float(np.linalg.norm(rows.sum(axis=0)))
    if not length > 0:
        raise InvalidExpression("the weights cancel out: no direction is left to look in")
    return Axes(tuple(numbers), rows / length)
