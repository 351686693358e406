"""Inference in numpy: the SAE of a weights folder, vectors in, traces out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memstore.core import traces as packed
from memstore.errors import InvalidWeights
from memstore.sae import weights
from memstore.sae.config import PROTOTYPES, SAEConfig
from memstore.types import Float32, Int64, Traces

#: Up to so many multiplications OpenBLAS takes another way.
SMALL_PRODUCT = 1_000_000
#: Rows and neurons by which it is tried whether BLAS sums every row alike.
PROBED, PROBED_NEURONS = 600, 192
#: How many times k neurons a question is asked by. Nobody stores it, so more of it can be heard.
WIDE = 3
#: Rows encoded at a time: pre-activations of 2,048 neurons take 16 MB.
BATCH = 2048


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder ready to encode.

    ::

        z = W_e (x - b_d) + b_e       x_hat = W_d a + b_d

    ``topk`` (Makhzani and Frey, "k-Sparse Autoencoders", arXiv 1312.5663; Gao et al., arXiv
    2406.04093) and ``matryoshka`` (Bussmann et al., arXiv 2503.17547): a = the k largest of
    ReLU(z). ``relu`` (Bricken et al., "Towards Monosemanticity", 2023): a = ReLU(z). ``batch_topk``
    (Bussmann et al., arXiv 2412.06410) and ``jump_relu`` (Rajamanoharan et al., arXiv 2407.14435):
    a = z where z > t, one threshold for all neurons or one for each.

    The prototype's, ``sparse_memory`` (without a projection, p = x) and ``sparse_memory_text``::

        p = ReLU(W_p x + b_p)    a = ReLU(W_e p + b_e)    p_hat = sigmoid(W_d a + b_d)
    """

    config: SAEConfig
    tensors: dict[str, Float32]

    @classmethod
    def load(cls, path: Path) -> SAE:
        """Return the SAE of a weights folder. Raises ``InvalidWeights``."""
        return cls(*weights.load(path))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of config and weights."""
        return weights.fingerprint(self.config, self.tensors)

    @cached_property
    def _product(self) -> Product:
        return Product(self.tensors["encoder.weight"])

    @cached_property
    def _project(self) -> Product:
        return Product(self.tensors["projection.weight"])

    def activations(self, vectors: Float32) -> Float32:
        """Return the (n, neurons) activations of (n, d) vectors."""
        t = self.tensors
        if self.config.architecture in PROTOTYPES:
            events = vectors
            if "projection.weight" in t:
                events = relu(self._project(vectors) + t["projection.bias"])
            return relu(self._product(events) + t["encoder.bias"])
        values = self._before_relu(vectors)
        if "threshold" in t:
            return np.where(values > t["threshold"], values, np.float32(0))
        return keep_largest(relu(values), self.k)

    @property
    def k(self) -> int:
        """How many neurons may fire for one vector."""
        return (self.config.k if self.chooses_k else None) or self.config.neurons

    @property
    def chooses_k(self) -> bool:
        """Whether activations are the k largest of each vector."""
        return self.config.architecture in ("topk", "matryoshka")

    def encode(self, vectors: Float32, ids: Int64 | None = None, *, wide: bool = False) -> Traces:
        """Return the traces of (n, d) vectors, activations rounded to float16 as stored.

        ``wide`` keeps ``WIDE`` times k neurons, for questions; the same where nobody chooses k.
        """
        k = WIDE * self.k if wide else self.k
        pages = [
            self._page(vectors[start : start + BATCH], k)
            for start in range(0, max(len(vectors), 1), BATCH)
        ]
        joined = packed.concatenate(pages)
        numbers = np.arange(len(vectors), dtype=np.int64) if ids is None else ids
        return Traces(
            numbers, joined.indptr, joined.neurons, joined.activations, self.config.neurons
        )

    def _page(self, vectors: Float32, k: int) -> Traces:
        """Return the traces of one page; for TopK without a dense matrix of activations."""
        if not self.chooses_k:
            return packed.from_dense(self.activations(vectors))
        values = self._before_relu(vectors)
        found = largest_entries(values, k) if k < self.config.neurons else None
        if found is None:
            return packed.from_dense(keep_largest(relu(values), k))
        return packed.from_entries(*found, values.shape)

    def _before_relu(self, vectors: Float32) -> Float32:
        t = self.tensors
        values = self._product(vectors - t["decoder.bias"])
        values += t["encoder.bias"]
        return np.asarray(values, dtype=np.float32)

    @property
    def decodes_vectors(self) -> bool:
        """Whether ``decode`` gives back vectors, not a projection of them."""
        return "projection.weight" not in self.tensors

    def directions(self) -> Float32:
        """Return the (neurons, d) unit vectors that the neurons stand for: the decoder's columns.

        Raises ``InvalidWeights`` for an SAE that decodes something other than the vector.
        """
        if not self.decodes_vectors:
            raise InvalidWeights(
                f"the neurons of a {self.config.architecture} stand for directions in its "
                "projection, not among vectors"
            )
        return self._directions

    @cached_property
    def _directions(self) -> Float32:
        columns = self.tensors["decoder.weight"].T.astype(np.float32)
        lengths = np.linalg.norm(columns, axis=1, keepdims=True)
        return np.asarray(columns / np.maximum(lengths, 1e-12), dtype=np.float32)

    def decode(self, activations: Float32) -> Float32:
        """Return the reconstruction of (n, neurons) activations.

        For ``sparse_memory_text`` that of the projected vector, shape (n, event_size).
        """
        linear = activations @ self.tensors["decoder.weight"].T + self.tensors["decoder.bias"]
        if self.config.architecture in PROTOTYPES:
            return np.asarray(1.0 / (1.0 + np.exp(-linear)), dtype=np.float32)
        return np.asarray(linear, dtype=np.float32)


@dataclass(frozen=True)
class Product:
    """``vectors @ weight.T``, each row the same alone and among others.

    BLAS has other routines for one row, for small products and, on some processors, for the rows
    at an edge, which sum in other orders: one trace in 70 then differed in the last bit of an
    activation from the same text's in a batch. Where it sums by place, this one sums in double
    precision and rounds: at a third of the speed. By estimate one value in 10^8 then still differs,
    before all that is stored is rounded to float16.
    """

    weight: Float32

    def __call__(self, vectors: Float32) -> Float32:
        """Return the (n, rows of the weight) products of (n, d) vectors."""
        if is_steady(self.weight.shape[1]):
            return padded(vectors, self.weight)
        return np.asarray(vectors.astype(np.float64) @ self._wide.T, dtype=np.float32)

    @cached_property
    def _wide(self) -> NDArray[np.float64]:
        return self.weight.astype(np.float64)


def padded(vectors: Float32, weight: Float32) -> Float32:
    """Return ``vectors @ weight.T`` by the routine for large products, however few the rows."""
    fewest = max(2, SMALL_PRODUCT // weight.size + 1)
    n = len(vectors)
    if n < fewest:
        vectors = np.concatenate([vectors, np.zeros((fewest - n, vectors.shape[1]), np.float32)])
    return np.asarray((vectors @ weight.T)[:n], dtype=np.float32)


@cache
def is_steady(dimension: int) -> bool:
    """Return whether this machine's BLAS sums every row alike, wherever it stands: tried once.

    Of OpenBLAS the kernels for AVX-512 do, those for AVX2 do not. Takes a few milliseconds.
    """
    dice = np.random.default_rng(0)
    vectors = dice.normal(size=(PROBED, dimension)).astype(np.float32)
    weight = dice.normal(size=(PROBED_NEURONS, dimension)).astype(np.float32)
    whole = padded(vectors, weight)
    pieces = [(0, 1), (0, 2), (0, 5), (1, 13), (7, 40), (0, 64), (50, 150), (3, 260), (0, 511)]
    return all(np.array_equal(padded(vectors[a:b], weight), whole[a:b]) for a, b in pieces)


def relu(values: NDArray[np.floating]) -> Float32:
    """Return max(values, 0)."""
    return np.asarray(np.maximum(values, 0.0), dtype=np.float32)


def largest_entries(values: Float32, k: int) -> tuple[Int64, Int64, Float32] | None:
    """Return (rows, columns, values) of the positive ones among the k largest of each row.

    Among equals at the edge the lower column stays. None where there are too few columns for k, or
    no rows. The k-th largest of the maxima of 4 k groups is at most the k-th largest of all, and
    far cheaper to find; few values lie between.
    """
    n, width = values.shape
    grouped = values.reshape(n, -1, 4 * k).max(axis=1) if width % (4 * k) == 0 else values
    if grouped.shape[1] < k or n == 0:
        return None
    least = np.partition(grouped, -k, axis=1)[:, -k]
    # Subnormals round to zero in float16, and what is stored is what counts.
    least = np.maximum(least, np.finfo(np.float32).tiny)
    places = np.flatnonzero(values >= least[:, None])
    rows, columns, found = places // width, places % width, values.reshape(-1)[places]
    counts = np.bincount(rows, minlength=n)
    if counts.max() > k:
        order = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        table = np.full((n, int(counts.max())), -np.inf, dtype=np.float32)
        table[rows, order] = found
        edge = np.partition(table, -k, axis=1)[:, -k]
        kept = found >= edge[rows]
        # Equal to the last bit at the edge: one row of 100,000, which once cost its whole page.
        for row in np.flatnonzero(np.bincount(rows[kept], minlength=n) > k):
            own = np.arange(*np.searchsorted(rows, [row, row + 1]))
            kept[own[np.lexsort((columns[own], -found[own]))[k:]]] = False
        rows, columns, found = rows[kept], columns[kept], found[kept]
    return rows, columns, found


def keep_largest(values: Float32, k: int) -> Float32:
    """Return ``values`` with all but the k largest of each row set to 0.

    Among equals at the edge the lower neuron stays, so a trace does not depend on a sort's whim.
    """
    if k >= values.shape[1]:
        return values
    edge = np.partition(values, -k, axis=1)[:, -k, None]
    kept = np.where(values >= edge, values, np.float32(0))
    crowded = np.flatnonzero(np.count_nonzero(kept, axis=1) > k)
    for row in crowded:
        order = np.lexsort((np.arange(values.shape[1]), -values[row]))
        kept[row, order[k:]] = 0
    return kept
