"""Diverse recall: of many hits the few that between them say most.

Greedy maximisation of relevance plus coverage (Lin and Bilmes, "A Class of Submodular Functions for
Document Summarization", ACL 2011): greedy is within 1 - 1/e of the best choice there is.
"""

from __future__ import annotations

import numpy as np

from memstore.core.traces import idf
from memstore.errors import InvalidQuery, brief
from memstore.hits import Hits
from memstore.search import Searcher, check_k


def diverse(searcher: Searcher, hits: Hits, k: int, cover: float) -> Hits:
    """Return k of these hits, chosen for nearness and for what they add, in the order chosen.

    Coverage of a choice: over the neurons that fire for any of the hits, each weighed by its IDF in
    the store, the largest activation among those chosen, as a share of the largest of all.
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
    said, weights = said[:, concepts], rarity[concepts]
    largest = said.max(axis=0, initial=0.0)
    gains = said / np.where(largest > 0, largest, 1.0) * weights / max(float(weights.sum()), 1e-12)
    scores = np.array(hits.scores)
    span = float(scores[0] - scores[-1])
    near = (scores - scores[-1]) / span if span > 0 else np.ones(len(scores))
    chosen: list[int] = []
    covered = np.zeros(gains.shape[1])
    for _ in range(min(k, len(hits))):
        added = np.maximum(gains, covered).sum(axis=1) - covered.sum()
        value = (1 - cover) * near / min(k, len(hits)) + cover * added
        value[chosen] = -np.inf
        best = int(np.argmax(value))
        chosen.append(best)
        covered = np.maximum(covered, gains[best])
    return Hits(hits[row] for row in chosen)
