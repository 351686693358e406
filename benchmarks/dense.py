"""The dense index alone on real vectors: recall@10 and time, plain and filtered; and rounding.

    python benchmarks/dense.py VECTORS.npy --n 100000

VECTORS.npy: float32, unit length. The first 1,000 are held out; 300 of them are asked. Vectors to
score again come from memory, not from SQLite.
"""

import argparse
import time

import numpy as np

from memstore.core.vectors import pack_vectors, unpack_vectors
from memstore.index.dense import DenseIndex
from memstore.index.selection import Selection
from memstore.types import Float32, Int64

HELD_OUT, ASKED, K, PAGE = 1_000, 300, 10, 8_192


class InMemory:
    """A ``dense.Source``: memory i + 1 has vector i."""

    def __init__(self, vectors: Float32) -> None:
        self.vectors = unpack_vectors(pack_vectors(vectors), vectors.shape[1]).astype(np.float16)

    def count(self) -> int:
        """Return how many vectors there are."""
        return len(self.vectors)

    def fetch(self, ids: Int64) -> Float32:
        """Return vectors by id."""
        return self.vectors[ids - 1].astype(np.float32)

    def sample(self, count: int) -> Float32:
        """Return some from all over."""
        n = len(self.vectors)
        chosen = np.random.default_rng(1).choice(n, min(count, n), replace=False)
        return self.fetch(np.sort(chosen) + 1)


def nearest(queries: Float32, vectors: Float32, ids: Int64) -> list[set[int]]:
    found = []
    for query in queries:
        cosines = vectors @ query
        found.append(set(ids[np.argpartition(-cosines, K)[:K]].tolist()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vectors")
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    mapped = np.load(arguments.vectors, mmap_mode="r")
    queries = np.array(mapped[:ASKED])
    vectors = np.array(mapped[HELD_OUT : HELD_OUT + arguments.n])
    ids, source = np.arange(1, len(vectors) + 1, dtype=np.int64), InMemory(vectors)
    began = time.perf_counter()
    index = DenseIndex.for_source(vectors.shape[1], source)
    pages = range(0, len(vectors), PAGE)
    index.apply([], ((ids[a : a + PAGE].tolist(), vectors[a : a + PAGE]) for a in pages), 1)
    print(
        f"{len(vectors):,} vectors, {len(vectors) / (time.perf_counter() - began):,.0f}/s indexed"
    )
    for percent in (100, 50, 10, 1):
        passing = np.random.default_rng(percent).random(len(ids)) < percent / 100
        selected = None if percent == 100 else Selection(ids[passing])
        exact = nearest(queries, vectors[passing], ids[passing])
        taken, right, short = np.empty((arguments.rounds, ASKED)), 0, 0
        for round_ in range(arguments.rounds):
            for number, query in enumerate(queries):
                began = time.perf_counter()
                found, _ = index.search(query, K, source, selected)
                taken[round_, number] = 1e3 * (time.perf_counter() - began)
                right += len(exact[number] & set(found.ids.tolist()))
                short += len(found) < K
        recall = right / (arguments.rounds * ASKED * K)
        median = float(np.median(np.median(taken, axis=0)))
        print(f"{percent:4} % pass: p50 {median:.3f} ms, recall@10 {recall:.4f}, short {short}")
    exact = nearest(queries, vectors, ids)
    scale = np.abs(vectors).max(axis=1, keepdims=True) / 127
    forms = {
        "float16": vectors.astype(np.float16).astype(np.float32),
        "what is stored": unpack_vectors(pack_vectors(vectors), vectors.shape[1]),
        "int8, a scale a vector": np.round(vectors / scale).astype(np.int8) * scale,
    }
    for name, other in forms.items():
        both = list(zip(exact, nearest(queries, other, ids), strict=True))
        hits = np.mean([len(a & b) / K for a, b in both])
        print(f"exact over {name}: {hits:.2%} of the hits, all ten for ", end="")
        print(f"{np.mean([a == b for a, b in both]):.1%} of the queries")


if __name__ == "__main__":
    main()
