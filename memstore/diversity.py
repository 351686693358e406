"""Diverse recall: of many hits the few that between them say most.

Greedy maximisation of relevance plus coverage (Lin and Bilmes, "A Class of Submodular Functions for
Document Summarization", ACL 2011): greedy is within 1 - 1/e of the best choice there is.
"""

from __future__ import annotations

import numpy as np

from memstore.core.traces import idf
from memstore.errors import InvalidQuery, brief
from memstore.hits import Hits
from memstore.options import check_k
from memstore.search import Searcher
from memstore.types import Float64


def diverse(searcher: Searcher, hits: Hits, k: int, cover: float) -> Hits:
    """Return k of these hits, chosen for nearness and for what they add, in the order chosen.

    What a choice covers: over the neurons that fire for any of the hits, each weighed by its IDF in
    the store, the largest activation among those chosen by the largest of all, summed up; as a
    share of what k hits cover that are chosen for this alone. Nearness is the mean of the scores,
    brought to 0 to 1.
    """
    check_k(k)
    if not isinstance(cover, int | float) or not 0 <= cover <= 1:
        raise InvalidQuery(f"cover={brief(cover)}: 0 goes by nearness alone, 1 by coverage alone")
    with searcher.view() as view:
        fired = view.traces(np.sort(np.array(hits.ids, dtype=np.int64)))
        rarity = searcher.ask(view, lambda index: idf(index.fires, len(index)))
    if not hits:
        return hits
    said = np.zeros((len(hits), len(rarity)))
    for row, memory_id in enumerate(hits.ids):
        if memory_id in fired:  # it may have been deleted since
            own = fired[memory_id]
            said[row, own.neurons] = own.activations
    concepts = np.flatnonzero(said.any(axis=0))
    shares = said[:, concepts] / said[:, concepts].max(axis=0) * rarity[concepts]
    scores = np.array(hits.scores)
    span = float(scores.max() - scores.min())
    near = (scores - scores.min()) / span if span > 0 else np.ones(len(scores))
    count = min(k, len(hits))
    most = shares[greedy(np.zeros(len(near)), shares, count)].max(axis=0).sum() or 1.0
    return Hits(
        hits[row] for row in greedy((1 - cover) * near / count, cover * shares / most, count)
    )


def greedy(near: Float64, shares: Float64, count: int) -> list[int]:
    """Return so many rows, one after another the one that adds most: ``near`` and new shares."""
    chosen: list[int] = []
    covered = np.zeros(shares.shape[1])
    for _ in range(count):
        value = near + np.maximum(shares, covered).sum(axis=1) - covered.sum()
        value[chosen] = -np.inf
        best = int(np.argmax(value))
        chosen.append(best)
        covered = np.maximum(covered, shares[best])
    return chosen
