"""Diverse recall: of many hits the few that between them say most.

Greedy maximisation of relevance plus coverage (Lin and Bilmes, "A Class of Submodular Functions for
Document Summarization", ACL 2011): greedy is within 1 - 1/e of the best choice there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.core.traces import idf
from memstore.errors import InvalidQuery, brief
from memstore.hits import Hits
from memstore.nearness import SILENT
from memstore.options import check_k
from memstore.search import Searcher
from memstore.types import Float64, Int64


def diverse(searcher: Searcher, hits: Hits, k: int, cover: float) -> Hits:
    """Return k of these hits, chosen for nearness and for what they add, in the order chosen.

    What a choice covers: over the neurons that fire for any of the hits, each weighed by its IDF in
    the store, the largest activation among those chosen by the largest of all, summed up; as a
    share of what k hits cover that are chosen for this alone. Nearness is the mean of the scores,
    brought to 0 to 1.
    """
    check_k(k)
    is_number = isinstance(cover, int | float | np.floating) and not isinstance(cover, bool)
    if not is_number or not 0 <= cover <= 1:
        raise InvalidQuery(f"cover={brief(cover)}: 0 goes by nearness alone, 1 by coverage alone")
    if not isinstance(hits, Hits):
        raise InvalidQuery(f"diverse() chooses among the hits of a query, not {brief(hits)}")
    with searcher.view() as view:
        fired = view.traces(np.sort(np.array(hits.ids, dtype=np.int64)))
        rarity = searcher.ask(view, lambda index: idf(index.fires, len(index)))
    if not hits:
        return hits
    said = [fired.get(memory_id, SILENT) for memory_id in hits.ids]  # deleted since: says nothing
    neurons = np.concatenate([own.neurons for own in said])
    values = np.concatenate([own.activations for own in said])
    largest = np.zeros(len(rarity))
    np.maximum.at(largest, neurons, values)
    rows = np.repeat(np.arange(len(said)), [len(own) for own in said])
    shares = Shares(rows, neurons, values / largest[neurons] * rarity[neurons], len(said))
    scores = np.array(hits.scores)
    span = float(scores.max() - scores.min())
    near = (scores - scores.min()) / span if span > 0 else np.ones(len(scores))
    count = min(k, len(hits))
    _, covered = shares.greedy(np.zeros(len(near)), 1.0, len(rarity), count)
    most = float(covered.sum()) or 1.0
    chosen, _ = shares.greedy((1 - cover) * near / count, cover / most, len(rarity), count)
    return Hits(hits[row] for row in chosen)


@dataclass(frozen=True)
class Shares:
    """What each hit says of each neuron: entries (row, neuron, share), most of a matrix empty."""

    rows: Int64
    neurons: Int64
    values: Float64
    count: int

    def greedy(
        self, near: Float64, factor: float, width: int, count: int
    ) -> tuple[list[int], Float64]:
        """Return so many rows, one after another the one that adds most, and what they cover.

        A row adds ``near`` and ``factor`` x what nobody chosen has covered yet.
        """
        chosen: list[int] = []
        covered = np.zeros(width)
        for _ in range(count):
            more = np.maximum(self.values - covered[self.neurons], 0.0)
            value = near + factor * np.bincount(self.rows, more, minlength=self.count)
            value[chosen] = -np.inf
            best = int(np.argmax(value))
            chosen.append(best)
            own = self.rows == best
            np.maximum.at(covered, self.neurons[own], self.values[own])
        return chosen, covered
