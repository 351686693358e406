"""Index files as strangers could leave them: what the readers make of them, and what a store does.

A mutant is bent in its bytes; or in its header, sealed again; or in its arrays, sealed again, parts
and all but for their sums: a forgery.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import mutate
import numpy as np

from memstore import MemoryStore
from memstore.core.expression import Condition, NeuronQuery
from memstore.errors import IndexDamaged
from memstore.index import files, storing
from memstore.index.blocks import Block
from memstore.indices import Indices
from memstore.options import Options
from memstore.search import Searcher
from tests.conftest import NEURONS, make_encoder

VECTOR = np.arange(1, 7, dtype=np.float32)


def filled(path: Any, count: int) -> MemoryStore:
    """Return a store with so many memories that differ in every field."""
    store = MemoryStore.open(path, encoder=make_encoder())
    store.insert_many(
        {
            "text": f"memory {i}",
            "category": "abc"[i % 3],
            "key": f"k{i}" if i % 2 else None,
            "occurred_at": f"2026-05-{1 + i % 28:02}",
            "metadata": {"mood": i % 5, "a": {"b": "x" * (i % 3)}, "x": [None, True, i / 2][i % 3]},
        }
        for i in range(count)
    )
    return store


#: What kernel.c takes each array of a block for (docs/index-format.md).
TYPES = {
    "offsets": "<u4",
    "starts": "<u4",
    "neurons": "<u2",
    "activations": "<f2",
    "norm_codes": "|u1",
    "alive": "|u1",
    "runs.starts": "<u4",
    "runs.rows": "<u2",
    "runs.codes": "|u1",
    "sums.runs": "<u8",
    "sums.rows": "<u8",
}


def narrower(block: Block) -> list[str]:
    """Return which arrays of a block have smaller numbers than the kernel reads.

    A read past the end of a map is seen only where nothing lies behind it; this is seen always.
    """
    found = []
    for name, kind in TYPES.items():
        try:
            array = attrgetter(name)(block)
        except AttributeError:  # a block without runs
            continue
        if array is not None and array.dtype.itemsize < np.dtype(kind).itemsize:
            found.append(f"{name}: {array.dtype}")
    return found


class IndexReaders:
    """Index files through the readers, then every kind of neuron query on what they load."""

    #: What memstore/indices.py catches around loading.
    allowed = (IndexDamaged, OSError)
    words = (b"null", b"-1", b"[]", b"{}", b'"<u2"', b'"|O"', b'"<f8"', b"1e99", b'"V9"', b"true")
    words += (b'"shape": [1152921504606846976]', b'"offset": 64', b'"crc32": null', b"[" * 3000)
    query = NeuronQuery(((0, 1.0), (3, 0.5), (6, 2.0), (7, -1.0)))
    bounded = NeuronQuery(((1, 1.0),), (Condition(4, ">", 0.1), Condition(5, "<=", 9.0)))

    def __init__(self, folder: Path) -> None:
        files.os.fsync = lambda _: None  # in this process alone: a mutant need not be durable
        self.scratch, self.folder = folder, folder / "store.db-index"
        with filled(folder / "store.db", 500) as store:
            store.delete(range(50, 100))
            store.optimize()
            store.insert_many(f"late {i}" for i in range(300))
            store.delete(range(200, 220))
            store._save_index_or_warn()
            store.search_vector(VECTOR)
        self.store = MemoryStore.open(folder / "store.db", encoder=make_encoder())
        with self.store._searcher.view() as view:
            state = view.state
            self.stamp = storing.Stamp(state.index_token, view.encoder.fingerprint, state.change)
            self.trace = view.traces(np.array([150]))[150]
        # Their names are random; their kinds and sizes are the same every time.
        ordered = sorted(self.folder.glob("*.idx"), key=lambda f: (f.name[:6], f.stat().st_size))
        self.names = [file.name for file in ordered]
        self.whole = {name: (self.folder / name).read_bytes() for name in self.names}

    def make(self, dice: Random) -> Any:
        name = dice.choice(self.names)
        kind = dice.choice(("bytes", "header", "arrays"))
        if kind == "bytes":
            return kind, name, self.bent(dice, self.whole[name])
        if kind == "header":
            return kind, name, mutate.resealed(dice, self.whole[name], self.words)
        return kind, name, self.forged(dice, name)

    def bent(self, dice: Random, data: bytes) -> bytes:
        if dice.random() < 0.5:
            return mutate.mutated(dice, [data], self.words)
        return mutate.flipped(dice, data)

    def forged(self, dice: Random, name: str) -> bytes:
        file = files.read(self.folder / name, name.split("-")[0])
        fields, arrays = dict(file.fields), dict(file.arrays)
        mutate.forged(dice, fields, arrays)
        forgery = self.scratch / name  # a header may name its file
        files.write(forgery, file.kind, fields, arrays, storing.BY_PARTS)
        return forgery.read_bytes()

    def attempt(self, made: Any) -> None:
        kind, name, data = made
        mutate.replace(self.folder / name, data)
        try:
            self.ask(kind)
        finally:
            mutate.replace(self.folder / name, self.whole[name])

    def ask(self, kind: str) -> None:
        try:
            loaded = storing.load_neurons(
                self.folder, storing.read_manifest(self.folder, self.stamp)
            )
        except self.allowed as error:
            raise IndexDamaged("refused") from error
        if loaded.width != NEURONS:  # which a store does not ask
            return
        for block in loaded.blocks:
            assert narrower(block) == [], "the kernel would read past the end of these"
        loaded.composite(self.query, 9)
        loaded.composite(self.bounded, 9)
        loaded.nearest(self.trace, 9)
        loaded.candidates(self.query)


class IndexOfStore(IndexReaders):
    """The same files under a store: damage never changes an answer, a forgery is at worst one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.truth = self.answers(Indices(None))

    def answers(self, indices: Indices) -> list[Any]:
        searcher = Searcher(self.store._database, indices, lambda _: make_encoder())
        asked = [
            searcher.composite({0: 1.0, 3: 0.5, 6: 2.0, 7: -1.0}, 900, None, None, None),
            searcher.composite("+1 -2 & 4>0.1", 9, None, 0.0, None),
            searcher.similar(150, 9, "trace", None, Options()),
            searcher.by_vector(VECTOR, 900, None, Options()),
        ]
        return [[(hit.id, hit.score) for hit in hits] for hits in asked]

    def ask(self, kind: str) -> None:
        found = self.answers(Indices(self.folder))
        assert kind != "bytes" or found == self.truth
