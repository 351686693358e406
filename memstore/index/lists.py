"""Lists of product codes: how many there are, how they are trained, how they are read; FAISS.

The figures behind each choice are in docs/benchmarks.md.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from memstore.types import Float32

#: Up to so many vectors one list is read whole: at 100,000 lists save a sixth, at 200,000 half.
ONE_LIST = 120_000
#: Training: vectors a list, rounds of k-means, vectors for the product quantiser.
POINTS, ROUNDS, CODEBOOK = 40, 6, 20_000
#: Dimensions that share a 4-bit code: the first that leaves nothing over and enough codes. At 384,
#: codes of 3 (64 bytes) find with half the candidates what codes of 4 find, and each costs a read.
DIMENSIONS_A_CODE, ENOUGH_CODES = (3, 4, 2), 16


#: How much further than the nearest centroid one may lie for its list to be read, in standard
#: deviations of the cosines between centroids. As good for recall as a fixed number of lists that
#: has a third more vectors in it: some questions have their answers in few lists, some in many.
REACH = 1.9
#: Where a share p of all vectors passes a filter, what passes is further away: p to this power
#: times the lists.
WIDENED = -0.2


#: So many candidates may be held in a heap.
HEAPED = 100


class Reading(NamedTuple):
    """How a search reads so many lists: at least and at most which share, how much scored again."""

    least: float
    most: float
    refined: int


#: By the number of lists. Near-copies, of which a large store has many, want candidates.
READING = {
    1: Reading(1.0, 1.0, 48),
    256: Reading(0.06, 0.35, 100),
    512: Reading(0.05, 0.25, 100),
    1024: Reading(0.03, 0.15, 200),
}


class Lists:
    """Lists in FAISS, and which of them a question reads.

    Raises ``ValueError`` for a number of lists that this version never makes.
    """

    def __init__(self, index: Any) -> None:
        self.index, self.count = index, int(index.nlist)
        if self.count not in READING:
            raise ValueError(f"{self.count} lists are what no version now makes")
        self.reading = READING[self.count]
        self.centroids: Float32 = index.quantizer.reconstruct_n(0, self.count)
        self.reach = REACH * float(np.std(self.centroids @ self.centroids.T))

    def scan(self, wanted: int) -> int:
        """Return FAISS' number for how to find so many candidates.

        List by list with a heap, without the blocks of questions that FAISS would choose, took
        three quarters of the time at 689,000 vectors; with one list, or many candidates, more.
        """
        return 10 if self.count > 1 and wanted <= HEAPED else 0

    def probes(self, vector: Float32, passing: float) -> int:
        """Return how many of the nearest lists to read, where this share of the vectors passes."""
        cosines = self.centroids @ vector
        within = np.count_nonzero(cosines >= cosines.max() - self.reach)
        least, most = self.reading.least * self.count, self.reading.most * self.count
        wanted = min(max(within, least), most) * passing**WIDENED
        return int(max(1, min(round(wanted), self.count)))


def list_count(total: int) -> int:
    """Return how many lists so many vectors want."""
    if total <= ONE_LIST:
        return 1
    if total <= 400_000:
        return 256
    return 512 if total <= 2_000_000 else 1024


def code_count(dimension: int) -> int:
    """Return how many codes a vector gets."""
    for size in DIMENSIONS_A_CODE:
        if dimension % size == 0 and dimension // size >= ENOUGH_CODES:
            return dimension // size
    return dimension


def train(sample: Float32, count: int) -> Lists:
    """Return empty lists around the centroids of a sample (spherical k-means)."""
    faiss = load_faiss()
    dimension = sample.shape[1]
    quantizer: Any = faiss.IndexFlatIP(dimension)
    if count > 1:
        options = faiss.ClusteringParameters()
        options.niter, options.spherical, options.seed = ROUNDS, True, 1
        options.min_points_per_centroid, options.max_points_per_centroid = 1, POINTS
        clustering: Any = faiss.Clustering(dimension, count, options)
        clustering.train(sample, quantizer)
    codes = code_count(dimension)
    lists: Any = faiss.IndexIVFPQFastScan(
        quantizer, dimension, count, codes, 4, faiss.METRIC_INNER_PRODUCT
    )
    # Codes of the vectors themselves: tables are made once a query, not once a list.
    lists.by_residual = False
    with one_thread(faiss):
        # Many tiny k-means, of rows from all over: a sample comes by id, oldest first.
        lists.train(np.ascontiguousarray(sample[:: max(1, len(sample) // CODEBOOK)][:CODEBOOK]))
    return Lists(lists)


@functools.cache
def load_faiss() -> Any:
    """Return FAISS, which takes 0.1 s to import and which neuron queries never need.

    Typed as Any: its annotations are those of the C++ side, which its Python wrapper changes.
    """
    import faiss

    # A forked child knows of OpenMP threads that only its parent has, and would wait for them.
    os.register_at_fork(after_in_child=lambda: faiss.omp_set_num_threads(1))
    return faiss


@contextmanager
def one_thread(faiss: Any) -> Iterator[None]:
    """Keep FAISS to the thread that calls it.

    For small work its threads gain nothing, and where cores are busy each waits for the slowest:
    the 99th percentile of a search of 20,000 vectors was 16 ms with two threads, 5 with one.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
