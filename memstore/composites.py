"""Neuron expressions asked of traces: the k best, each with every neuron's share of its score."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from memstore import reasons
from memstore.core.expression import NeuronQuery
from memstore.core.ranking import Ranked, best
from memstore.hits import Hits
from memstore.index.postings import NeuronIndex
from memstore.types import Float64
from memstore.view import View, Where

if TYPE_CHECKING:
    from memstore.search import Searcher

#: Takes scores apart, later and without the catalog: a dict a hit.
Parts = Callable[[], list[reasons.Parts]]


def firing(  # noqa: PLR0913 - what a composite was asked, in one state
    searcher: Searcher,
    view: View,
    query: NeuronQuery,
    k: int,
    where: Where | None,
    min_score: float | None,
    fading: float | None,
    fetch: bool,
) -> Hits:
    """Return the k best; without ``fetch`` they are read once somebody looks at them."""
    selected = view.selected(where)
    began = time.perf_counter()

    def answer(index: NeuronIndex) -> Hits:
        if fading is not None:
            everyone = index.candidates(query, selected, min_score)
            view.note_rows("neurons", "every candidate, to fade", len(everyone), began)
            return hits_of(view, query, best(view.fade(everyone, fading), k))
        found = index.composite(query, k, selected, min_score)
        view.note("neurons", found.work, began)
        ranked, parts = found.ranked, parts_of(view, query, found.ranked, found.shares)
        if fetch:
            return read(view, query, ranked, parts)
        return searcher.later(
            view, ranked, lambda now, named: read(now, query, ranked, parts, named)
        )

    return searcher.ask(view, answer)


def hits_of(view: View, query: NeuronQuery, ranked: Ranked) -> Hits:
    """Return the hits of a ranking, each neuron's share beside it."""
    return read(view, query, ranked, parts_of(view, query, ranked, None))


def parts_of(view: View, query: NeuronQuery, ranked: Ranked, shares: Float64 | None) -> Parts:
    """Return what takes the scores of a ranking apart; ``shares`` (hits, terms) if known."""
    fired = view.traces(ranked.ids) if shares is None else {}

    def parts() -> list[reasons.Parts]:
        if shares is None:
            return [reasons.composite_parts(query, fired[i]) for i in ranked.ids.tolist()]
        names = [reasons.neuron_name(neuron) for neuron, _ in query.terms]
        return [
            {name: share for name, share in zip(names, own, strict=True) if share}
            for own in shares.tolist()
        ]

    return parts


def read(view: View, query: NeuronQuery, ranked: Ranked, parts: Parts, named: bool = True) -> Hits:
    """Return the hits of a ranking with their memories, as they are in a state.

    Not ``named`` where neurons have other names in that state.
    """
    began = time.perf_counter()
    labels = view.labels([neuron for neuron, _ in query.terms] if named else [])

    def sentences(_: int, own: reasons.Parts) -> list[str]:
        sentence = reasons.composite_sentences(query, labels)
        return [sentence(name, share) for name, share in own.items()]

    hits = reasons.later_hits(ranked, view.rows(ranked.ids), parts, sentences)
    view.note_rows("memories", "rows of the hits", len(hits), began)
    return hits
