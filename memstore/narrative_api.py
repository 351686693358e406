"""``NarrativeMemoryAPI``: the names of the first prototype, a thin face over a store.

Kept so that code written for the prototype goes on working: the same three methods, the same
meaning, results that support ``.item()``. New code wants ``MemoryStore``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memstore import layout
from memstore.core.expression import Condition, Expression
from memstore.core.ranking import Ranked, best, join
from memstore.encoder import Encoder
from memstore.errors import InvalidQuery
from memstore.files import read_rows
from memstore.hits import Hits
from memstore.opening import IN_MEMORY
from memstore.store import MemoryStore
from memstore.types import Embedder, Float64, Int64


class NarrativeMemoryAPI:
    """Loads weights and narratives, computes their traces, and finds narratives by neuron.

    ``model_path``: a weights folder, or the prototype's ``.pth`` (needs torch); default the
    30-neuron SAE that ships. ``data_path``: a JSON array of ``{"text", "category"}``; default the
    450 sample narratives. ``embedding_model_name``: a sentence-transformers model, its folder, or
    an embedder object; default the all-MiniLM-L6-v2 that ships. An index is a narrative's place in
    the file, from 0.

    Scores are float32, of activations stored as float16. Ties go to the smaller index.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None = None,
        data_path: str | os.PathLike[str] | None = None,
        embedding_model_name: Embedder | str | None = None,
    ) -> None:
        sae = layout.NARRATIVES_SAE_FOLDER if model_path is None else Path(model_path)
        data = layout.NARRATIVES if data_path is None else Path(data_path)
        self.narratives = list(read_rows(os.fspath(data), "json", "text"))
        encoder = Encoder.of(embedding_model_name, sae)
        self.store = MemoryStore.open(IN_MEMORY, encoder=encoder)
        rows = [{name: row.get(name) for name in ("text", "category")} for row in self.narratives]
        self.store.insert_many(rows)

    def get_narrative_text(self, index: int) -> str:
        """Return the text of a narrative. Raises ``InvalidQuery`` outside 0..n-1."""
        if not 0 <= index < len(self.narratives):
            raise InvalidQuery(
                f"index {index}: there are narratives 0 to {len(self.narratives) - 1}"
            )
        return str(self.narratives[index]["text"])

    def retrieve_top_k_memories(self, neuron_index: int, k: int = 5) -> tuple[Int64, np.ndarray]:
        """Return (indices, activations) of the k narratives that activate a neuron most.

        As in the prototype always min(k, n) of them: silent ones, at 0, fill up.
        """
        return self._retrieve([neuron_index], [], k)

    def retrieve_memories_composite(
        self,
        positive_neurons: Sequence[int],
        negative_neurons: Sequence[int] = (),
        k: int = 5,
    ) -> tuple[Int64, np.ndarray]:
        """Return (indices, scores) of the k narratives with the positive neurons high and the
        negative ones low.

        Score: mean activation of the positive neurons less that of the negative ones. As in the
        prototype every narrative is a candidate, whatever its score.
        """
        positive, negative = list(positive_neurons), list(negative_neurons)
        if not positive and not negative:
            raise InvalidQuery("name at least one positive or negative neuron")
        return self._retrieve(positive, negative, k)

    def _retrieve(
        self, positive: Sequence[int], negative: Sequence[int], k: int
    ) -> tuple[Int64, np.ndarray]:
        weights: dict[int, float] = {}
        for sign, neurons in ((1.0, positive), (-1.0, negative)):
            for neuron in neurons:
                share = sign / len(neurons)
                weights[int(neuron)] = weights.get(int(neuron), 0.0) + share
        raising = [neuron for neuron, weight in weights.items() if weight > 0]
        found = [self.store.composite(Expression(tuple(weights.items())), k, min_score=None)]
        if raising:
            # A store wants a positive neuron to fire; the prototype ranked the rest too.
            silent = tuple(Condition(neuron, "<=", 0.0) for neuron in raising)
            rest = tuple((n, weight) for n, weight in weights.items() if weight < 0)
            found.append(self.store.composite(Expression(rest, silent), k, min_score=None))
        top = best(join([as_ranked(hits) for hits in found]), k)
        # The store of this face is filled once, in order: ids run from 1.
        return top.ids - 1, top.scores.astype(np.float32)


def as_ranked(hits: Hits) -> Ranked:
    """Return ids and scores of hits."""
    scores: Float64 = np.array(hits.scores, dtype=np.float64)
    return Ranked(np.array(hits.ids, dtype=np.int64), scores)
