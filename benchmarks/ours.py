"""memstore as the benchmarks see it: a whole store, and the neuron index by itself."""
# ruff: noqa: D102 - what the methods of an engine do is said once, in the contract

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from engine import DENSE, SPARSE, Batch, Engine, Float32, Found

from memstore import MemoryStore
from memstore.core.expression import NeuronQuery
from memstore.hits import Hits
from memstore.index import storing
from memstore.index.postings import NeuronIndex
from memstore.types import Traces


class MemstoreEngine(Engine):
    """The product through its public door.

    Queries answer with ids and scores, as peers do. What reading the memories adds: scale.py.
    """

    name, kinds, holds = "memstore", SPARSE, "texts, vectors, traces"

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        self.store = MemoryStore.open(folder / "store.db")
        self.near = getattr(self.store, "search_vector", None)
        if self.near is not None:
            self.kinds = SPARSE | DENSE

    def insert(self, batch: Batch) -> None:
        rows = [
            {"text": text, "metadata": {"shade": shade}}
            for text, shade in zip(batch.texts, batch.shade.tolist(), strict=True)
        ]
        self.store.insert_many(rows, vectors=batch.vectors)

    def finish(self) -> None:
        self.store.close()  # which saves both indexes

    def close(self) -> None:
        self.store.close()

    def sparse(self, weights: Mapping[int, float], k: int) -> Found:
        query: Any = dict(weights)
        return pairs(self.store.composite(query, k, fetch=False))

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        if self.near is None:
            raise NotImplementedError("search_vector")
        where = None if below is None else {"shade": {"$lt": below}}
        return pairs(self.near(vector, k, where=where, fetch=False))


def pairs(hits: Hits) -> Found:
    """Return (row, score), which is all that peers answer with."""
    return [(i - 1, score) for i, score in zip(hits.ids, hits.scores, strict=True)]


class MemstoreIndexEngine(Engine):
    """The neuron index by itself, for data that no encoder made (--data zipf)."""

    name, kinds, holds = "memstore-index", SPARSE, "traces"

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        self.folder, self.token = folder, folder / "token"
        self.pages: list[Traces] = []
        self.index = NeuronIndex(width)
        if self.token.exists():
            stamp = storing.Stamp(self.token.read_text(), "zipf", 1)
            self.index = storing.load_neurons(folder, storing.read_manifest(folder, stamp))

    def insert(self, batch: Batch) -> None:
        ids = batch.first + 1 + np.arange(len(batch.indptr) - 1, dtype=np.int64)
        width = self.index.width
        self.pages.append(Traces(ids, batch.indptr, batch.neurons, batch.activations, width))

    def finish(self) -> None:
        index = self.index.apply([], self.pages, 1).compacted(everything=True)
        self.pages = []
        self.index = storing.save_blocks(self.folder, index)
        stamp = storing.Stamp("zipf", "zipf", 1)
        storing.save_manifest(self.folder, self.index, stamp, {"vectors": None})
        self.token.write_text(stamp.token)

    def close(self) -> None:
        self.index = NeuronIndex(self.index.width)

    def sparse(self, weights: Mapping[int, float], k: int) -> Found:
        query = NeuronQuery(tuple(sorted(weights.items())))
        ranked = self.index.composite(query, k).ranked
        return [(i - 1, score) for i, score in ranked.pairs()]

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        raise NotImplementedError("traces alone have no vectors")


OURS: dict[str, type[Engine]] = {"real": MemstoreEngine, "zipf": MemstoreIndexEngine}
