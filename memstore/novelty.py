"""What is new about a text to a store: neurons that never fired here, and what no neuron says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from memstore.catalog import columns, traces
from memstore.catalog.neurons import EncoderRecord
from memstore.core.traces import select
from memstore.encoder import Encoder
from memstore.meaning import Fired, in_words
from memstore.nearness import nearest
from memstore.sae.encode import SAE
from memstore.search import Searcher
from memstore.types import Float32, Float64, Traces
from memstore.view import View

#: Memories, the newest, that say how much of a text is usually left unexplained.
COMPARED = 1_000
#: A text is badly read from this share of them on that are read better.
BADLY = 0.95


@dataclass(frozen=True)
class Novelty:
    """How new a text is to a store."""

    first: tuple[Fired, ...]
    """Neurons that fire for it and for no memory, the largest share first."""
    unexplained: float | None
    """The share of its vector's variance that its trace does not give back: 0 is all said, above 1
    worse than silence. None under an SAE that decodes no vectors."""
    rank: float | None
    """The share of the newest memories of which less is unexplained; None in an empty store."""
    nearest: tuple[int, float] | None
    """(id, cosine) of the nearest memory."""

    @property
    def badly_read(self) -> bool:
        """Whether its trace says less of it than of 95 % of the newest memories."""
        return self.rank is not None and self.rank >= BADLY

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "badly_read": self.badly_read}


def novelty(searcher: Searcher, text: str) -> Novelty:
    """Return how new a text is, before it is stored."""
    while True:
        with searcher.view() as view:
            record = view.encoder
        encoder = searcher.load_encoder(record)
        vectors = encoder.vectors([text])
        found = beside(searcher, record, encoder, vectors, encoder.traces(vectors))
        if found is not None:  # else the store has moved to another encoder meanwhile
            return found


def beside(
    searcher: Searcher, record: EncoderRecord, encoder: Encoder, vectors: Float32, fired: Traces
) -> Novelty | None:
    """Return how new a vector (1, d) and its trace are; None in a store of another encoder."""
    with searcher.view(dense=True) as view:
        if view.encoder.id != record.id:
            return None
        words = in_words(searcher, view, fired[0])
        near, _ = nearest(searcher, view, vectors[0], 1)
        left, rank = None, None
        if encoder.sae.decodes_vectors:
            left = float(unexplained(encoder.sae, vectors, fired)[0])
            known = usual(view, encoder.sae)
            rank = float(np.mean(known < left)) if len(known) else None
    return Novelty(
        first=tuple(one for one in words if one.fire_rate == 0),
        unexplained=left,
        rank=rank,
        nearest=next(iter(near.pairs()), None),
    )


def usual(view: View, sae: SAE) -> Float64:
    """Return how much of each of the newest memories is unexplained."""
    record = view.encoder
    ids = sorted(columns.newest(view.connection, COMPARED))
    found, vectors = traces.vectors_by_ids(view.connection, record.id, ids, record.dimension)
    fired = traces.by_ids(view.connection, record.id, found, record.neurons)
    here = np.isin(np.array(found), fired.ids)  # a trace may be lost: `check` reports it
    return unexplained(sae, vectors[here], select(fired, np.arange(len(fired))))


def unexplained(sae: SAE, vectors: Float32, fired: Traces) -> Float64:
    """Return ||x - x_hat||^2 / ||x - b||^2 of each vector x, b being what silence decodes to."""
    given = sae.decode(fired.to_dense().astype(np.float32))
    silence = sae.decode(np.zeros((1, fired.width), dtype=np.float32))
    left = ((vectors - given).astype(np.float64) ** 2).sum(axis=1)
    whole = ((vectors - silence).astype(np.float64) ** 2).sum(axis=1)
    return np.asarray(left / np.maximum(whole, 1e-12), dtype=np.float64)
