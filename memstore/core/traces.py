"""Traces: their packed form, their assembly into CSR arrays, affinity and IDF.

What is stored is what scores: activations are float16 on disk, every sum runs in float64 over
those stored values, in ascending order of neurons.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from memstore.errors import StoreDamaged
from memstore.types import Float64, Int64, Trace, Traces

#: The largest finite float16; an SAE that goes beyond is clipped rather than stored as infinity.
MAX_ACTIVATION = 65504.0
REMEDY = "run `memstore check --repair`, or restore a backup"


def neuron_dtype(width: int) -> np.dtype[np.unsignedinteger]:
    """Return the stored type of neuron ids: uint16 while it is wide enough."""
    return np.dtype("<u2") if width <= 1 << 16 else np.dtype("<u4")


def from_dense(activations: NDArray[np.floating], ids: Int64 | None = None) -> Traces:
    """Return the traces of an (n, width) matrix: values that are > 0 once rounded to float16."""
    rows, neurons = np.nonzero(activations > 0)
    return from_entries(rows, neurons, activations[rows, neurons], activations.shape, ids)


def from_entries(
    rows: NDArray[np.integer],
    neurons: NDArray[np.integer],
    activations: NDArray[np.floating],
    shape: tuple[int, ...],
    ids: Int64 | None = None,
) -> Traces:
    """Return the traces of single activations > 0, by row and then neuron, of an (n, width) matrix.

    Those that are 0 once rounded to float16 are left out.
    """
    count, width = shape
    rounded = np.minimum(activations, MAX_ACTIVATION).astype(np.float16)
    if not rounded.all():
        kept = rounded > 0
        rows, neurons, rounded = rows[kept], neurons[kept], rounded[kept]
    return Traces(
        ids=np.arange(count, dtype=np.int64) if ids is None else ids,
        indptr=np.searchsorted(rows, np.arange(count + 1)).astype(np.int64),
        neurons=neurons.astype(neuron_dtype(width)),
        activations=rounded,
        width=width,
    )


def empty(width: int) -> Traces:
    """Return no traces."""
    return from_dense(np.zeros((0, width)))


def pack(traces: Traces) -> tuple[list[bytes], list[bytes]]:
    """Return the blobs of neurons and of activations, one a row, little-endian."""
    neurons = traces.neurons.astype(neuron_dtype(traces.width), copy=False)
    return (
        pieces(neurons.tobytes(), traces.indptr * neurons.itemsize),
        pieces(traces.activations.astype("<f2", copy=False).tobytes(), traces.indptr * 2),
    )


def pieces(data: bytes, edges: Int64) -> list[bytes]:
    """Return ``data`` cut at its edges."""
    return [data[a:b] for a, b in pairwise(edges.tolist())]


def unpack(rows: Sequence[tuple[int, bytes, bytes]], width: int) -> Traces:
    """Return the traces of stored rows (memory id, neurons blob, activations blob).

    Raises ``StoreDamaged`` for blobs that cannot be a trace.
    """
    dtype = neuron_dtype(width)
    sizes = np.fromiter((len(row[1]) for row in rows), np.int64, len(rows))
    values = np.fromiter((len(row[2]) for row in rows), np.int64, len(rows))
    lengths = sizes // dtype.itemsize
    for place in np.flatnonzero((sizes % dtype.itemsize != 0) | (values != 2 * lengths)):
        raise StoreDamaged(f"the trace of memory {rows[int(place)][0]} is broken: {REMEDY}")
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    neurons = np.frombuffer(b"".join(row[1] for row in rows), dtype=dtype)
    if len(neurons) and int(neurons.max()) >= width:
        raise StoreDamaged(f"a trace names neurons past {width - 1}: {REMEDY}")
    return Traces(
        ids=np.fromiter((row[0] for row in rows), np.int64, len(rows)),
        indptr=indptr,
        neurons=neurons,
        activations=np.frombuffer(b"".join(row[2] for row in rows), dtype="<f2"),
        width=width,
    )


def concatenate(parts: Sequence[Traces]) -> Traces:
    """Return the rows of several traces of one width, one after another."""
    offsets = np.cumsum([0, *(int(part.indptr[-1]) for part in parts)])
    pointers = [part.indptr[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
    return Traces(
        ids=np.concatenate([part.ids for part in parts]),
        indptr=np.concatenate([*pointers, offsets[-1:]]),
        neurons=np.concatenate([part.neurons for part in parts]),
        activations=np.concatenate([part.activations for part in parts]),
        width=parts[0].width,
    )


def select(traces: Traces, rows: Int64) -> Traces:
    """Return the given rows, in the order given."""
    lengths = np.diff(traces.indptr)[rows]
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    # Element e of the result lies at: start of its row in the source + offset within the row.
    shift = np.repeat(traces.indptr[:-1][rows] - indptr[:-1], lengths)
    source = np.arange(indptr[-1], dtype=np.int64) + shift
    return Traces(
        traces.ids[rows], indptr, traces.neurons[source], traces.activations[source], traces.width
    )


def idf(fires: Int64, memories: int) -> Float64:
    """Return ln((1 + N) / (1 + df)) + 1 a neuron: the smoothed IDF of scikit-learn's TF-IDF.

    It stays above zero for a neuron that fires everywhere, so no weight ever turns a match into a
    mismatch.
    """
    return np.asarray(np.log((1 + memories) / (1 + fires)) + 1.0, dtype=np.float64)


def affinity_parts(a: Trace, b: Trace, weights: Float64 | None = None) -> dict[int, float]:
    """Return each shared neuron's share of the affinity of trace b to trace a; they sum to it.

    ::

        sum_j w_j sqrt(b_j) / sqrt(sum_j w_j^2 x sum_j b_j),    w_j = a_j, times ``weights`` if any

    the cosine of a's activations, weighted, and the square roots of b's. The root keeps the one or
    two strongest neurons of a memory from deciding alone (docs/why.md has the figures).
    """
    x, y = asked(a, weights), np.sqrt(b.activations)
    norm = norm_of(x) * float(np.sqrt(np.sum(b.activations)))
    if norm == 0:
        return {}
    shared, left, right = np.intersect1d(
        a.neurons, b.neurons, assume_unique=True, return_indices=True
    )
    products = (x[left] * y[right] / norm).tolist()
    return dict(zip(shared.tolist(), products, strict=True))


def asked(trace: Trace, weights: Float64 | None) -> Float64:
    """Return the weights of a question: its activations, times those of their neurons if any."""
    return trace.activations if weights is None else trace.activations * weights[trace.neurons]


def norm_of(values: Float64) -> float:
    """Return the L2 norm."""
    return float(np.sqrt(np.sum(values * values)))
