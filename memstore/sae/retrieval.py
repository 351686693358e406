"""How well traces find what vectors find: nDCG@10 on texts with known answers.

Scorings of a memory x for a question q, with activations a_x, a_q, reconstructions x_hat, q_hat and
decoder W::

    dense            cos(q, x)
    cosine           cos(a_q, a_x)
    IDF              cos(w a_q, w a_x),  w_j = ln((1 + N) / (1 + df_j)) + 1
    affinity         cos(a_q, sqrt(a_x))
    affinity, IDF    cos(w a_q, sqrt(a_x))
    wide affinity    cos(b_q, sqrt(a_x)), b_q: the 3 k largest of the question instead of its k
    wide, IDF        cos(w b_q, sqrt(a_x)): what ``by="trace"`` does
    reconstructed    cos(q_hat - b_d, x_hat - b_d)
    asymmetric       cos(q - b_d, x_hat - b_d): the question as it is, the memory by its trace
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.core.traces import idf
from memstore.core.vectors import unit_rows
from memstore.errors import InvalidInput
from memstore.sae.config import PROTOTYPES
from memstore.sae.encode import SAE
from memstore.sae.measure import stored
from memstore.types import Float32, Int64

#: Depth at which rankings are compared.
DEPTH = 10


@dataclass(frozen=True)
class Judged:
    """Texts and questions as unit vectors, and which texts answer which question.

    ``questions`` lists (row of the question, rows of the texts to search, rows that answer it).
    """

    texts: Float32
    queries: Float32
    questions: Sequence[tuple[int, Int64, frozenset[int]]]


def ndcg(ranking: Sequence[int], relevant: frozenset[int], depth: int = DEPTH) -> float:
    """Return nDCG of a ranking with binary gains (Järvelin and Kekäläinen 2002).

    sum 1 / log2(1 + rank) over the relevant ones within ``depth``, over the best possible sum.
    """
    gains = 1.0 / np.log2(np.arange(depth) + 2.0)
    found = sum(gains[place] for place, row in enumerate(ranking[:depth]) if row in relevant)
    return float(found / gains[: min(depth, len(relevant))].sum())


def retrieval(sae: SAE, judged: Judged) -> dict[str, float]:
    """Return mean nDCG@10 a scoring; activations are rounded as stored.

    Texts of equal score are in an order drawn once: that of a corpus may know the answers.
    """
    result = {}
    drawn = np.random.default_rng(0).permutation(len(judged.texts))
    for name, queries, texts in scorings(sae, judged.queries, judged.texts):
        total = 0.0
        for query, rows, relevant in judged.questions:
            scores = texts[rows] @ queries[query]
            best = rows[np.lexsort((drawn[rows], -scores))[:DEPTH]]
            total += ndcg(best.tolist(), relevant)
        result[name] = total / len(judged.questions)
    return result


def scorings(
    sae: SAE, queries: Float32, texts: Float32
) -> Iterator[tuple[str, NDArray[np.floating], NDArray[np.floating]]]:
    """Yield (name, queries, texts) whose dot products are the scores, a question's scale aside."""
    yield "dense", queries, texts
    asked, held = stored(sae, queries), stored(sae, texts)
    weights = idf(np.count_nonzero(held, axis=0), len(held))
    yield "cosine", asked, unit_rows(held)
    yield "IDF", asked * weights, unit_rows(held * weights)
    roots = unit_rows(np.sqrt(held))
    yield "affinity", asked, roots
    yield "affinity, IDF", asked * weights, roots
    if sae.chooses_k:
        wide = sae.encode(queries, wide=True).to_dense()
        yield "wide affinity", wide, roots
        yield "wide, IDF", wide * weights, roots
    if sae.config.architecture in PROTOTYPES:
        return  # which decode something else, or not linearly
    bias, decoder = sae.tensors["decoder.bias"], sae.tensors["decoder.weight"]
    rebuilt = unit_rows(held @ decoder.T)
    yield "reconstructed", asked @ decoder.T, rebuilt
    yield "asymmetric", queries - bias, rebuilt


def judged(
    texts: Float32,
    queries: Float32,
    answers: Mapping[int, frozenset[int]],
    text_groups: Sequence[str] | None = None,
    query_groups: Sequence[str] | None = None,
) -> Judged:
    """Return questions to ask: each in all texts, or in those of its own group.

    Questions without an answer among the texts they search are left out. Raises ``InvalidInput``
    where none is left.
    """
    everyone = np.arange(len(texts), dtype=np.int64)
    members: dict[str, Int64] = {}
    if text_groups is not None:
        given = np.array(text_groups, dtype=object)
        members = {name: everyone[given == name] for name in dict.fromkeys(text_groups)}
    questions = []
    for query, right in answers.items():
        rows = everyone if query_groups is None else members.get(query_groups[query])
        found = right if rows is None else right & frozenset(rows.tolist())
        if rows is not None and found:
            questions.append((query, rows, frozenset(found)))
    if not questions:
        raise InvalidInput("no question has an answer among the texts it searches: check groups")
    return Judged(texts, queries, questions)
