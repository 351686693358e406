"""Vectors: checked and brought to unit length in one place, so that a cosine is a dot product."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memstore.errors import InvalidVector, StoreDamaged
from memstore.types import Float32, Float64

#: Cosine from which one text nearly repeats another.
NEAR_COPY = 0.95
#: Rows checked at a time.
CHECKED = 8_192
#: Rows packed at a time: what is made of them stays in a core's cache, which halves the time.
PACKED = 512
#: Stored components are whole steps from -LEVELS to LEVELS, kept with OFFSET added, 10 bits each.
LEVELS, OFFSET = 511, 512
#: What the upper bits of four components, in one byte, add to each.
UPPER = (((np.arange(256)[:, None] >> [0, 2, 4, 6] & 3) << 8) - OFFSET).astype(np.float32)
#: How far storing may move a unit vector. At 384 dimensions of which none is above 0.25, 0.0028;
#: exact search then finds 996 of 1,000 of the hits that it finds over float32.
TOLERANCE = 0.004
#: In fewer dimensions the two forms could have the same size, and there is nothing to save.
SHORTEST = 8


def unit_vectors(values: ArrayLike, rows: int, dimension: int) -> Float32:
    """Return ``values`` as (rows, dimension) float32 of unit L2 norm.

    Raises ``InvalidVector`` for another shape, NaN or infinity, or a vector of length zero; the
    message names the first bad row.
    """
    matrix = as_matrix(values, rows, dimension)
    if matrix.dtype == np.float32:
        squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
        if np.all((squares > 1e-20) & (squares < 1e20)):
            return np.ascontiguousarray(matrix / np.sqrt(squares).astype(np.float32)[:, None])
    matrix = matrix.astype(np.float64)
    refuse_rows(np.asarray(~np.isfinite(matrix).all(axis=1)), "has NaN or infinity: remove it")
    # Scaled by the largest component first, so that huge or tiny vectors keep their direction.
    largest = np.abs(matrix).max(axis=1, initial=0.0)
    refuse_rows(largest == 0, "has length zero and no direction: remove it")
    scaled = matrix / largest[:, None]
    unit = scaled / np.linalg.norm(scaled, axis=1)[:, None]
    return np.ascontiguousarray(unit, dtype=np.float32)


def unit_rows(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return rows at unit length, rows of zeros as they are: for directions, not for input."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))


def as_matrix(values: ArrayLike, rows: int, dimension: int) -> NDArray[np.floating]:
    """Return ``values`` as a (rows, dimension) array, float32 where they are, else float64.

    Raises ``InvalidVector`` for another shape or what is no number.
    """
    try:
        matrix = np.asarray(values)
        if matrix.dtype != np.float32:
            matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidVector(
            f"vectors must be a rectangular array of numbers: {error}; "
            f"hand in shape ({rows}, {dimension})"
        ) from error
    if matrix.shape != (rows, dimension):
        raise InvalidVector(
            f"expected vectors of shape ({rows}, {dimension}), got {matrix.shape}: this store's "
            f"encoder has {dimension} dimensions, one vector a text"
        )
    return matrix


def check_vectors(values: ArrayLike, rows: int, dimension: int) -> NDArray[np.floating]:
    """Return ``values`` unchanged as an array, once every row can be brought to unit length.

    Raises ``InvalidVector`` like ``unit_vectors``, but takes no memory of that size.
    """
    matrix = as_matrix(values, rows, dimension)
    for first in range(0, rows, CHECKED):
        part = matrix[first : first + CHECKED]
        refuse_rows(
            np.asarray(~np.isfinite(part).all(axis=1)), "has NaN or infinity: remove it", first
        )
        refuse_rows(
            np.asarray(~part.any(axis=1)), "has length zero and no direction: remove it", first
        )
    return matrix


def refuse_rows(bad: NDArray[np.bool_], complaint: str, first: int = 0) -> None:
    """Raise ``InvalidVector`` naming the first row that is bad, counted from ``first``."""
    if bad.any():
        raise InvalidVector(f"vector {first + int(np.argmax(bad))} {complaint}")


def cosines(vectors: Float32, direction: Float32) -> Float64:
    """Return the cosine of each of (n, d) vectors and one of (d,).

    Each row is summed alone: a matrix product would round by the shape of its blocks, and two equal
    vectors could come out unequal. What is stored is of unit length to within its rounding only;
    dividing by the norms keeps a cosine within 1.
    """
    rows, one = vectors.astype(np.float64), direction.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows)) * np.sqrt((one * one).sum())
    return np.asarray(np.minimum(np.einsum("ij,j->i", rows, one) / norms, 1.0), dtype=np.float64)


# --- as they are stored --------------------------------------------------------------------------


def pack_vectors(vectors: Float32) -> list[bytes]:
    """Return the stored forms of (n, d) unit vectors.

    Block floating point where that is close enough: one byte e, then 10 bits a component c, which
    stands for (c - 512) x 2^-e; first the low bytes of all, then the upper two bits, four to a
    byte, the first lowest. Else, as in vectors of which one component dwarfs the others,
    little-endian float16.
    """
    parts = (vectors[first : first + PACKED] for first in range(0, len(vectors), PACKED))
    return [blob for part in parts for blob in _stored(part)]


def _stored(vectors: Float32) -> list[bytes]:
    dimension = vectors.shape[1]
    # As float16, so that what is stored, read and stored again takes the same form.
    largest = np.abs(vectors).max(axis=1, initial=0).astype(np.float16)
    largest = np.maximum(largest, np.float16(2**-24))
    # The finest steps, powers of two, of which LEVELS reach the largest component.
    exponents = np.frexp(LEVELS / largest.astype(np.float64))[1] - 1
    # Rounding moves a component by step / sqrt(12), root mean square.
    moved = np.ldexp(np.sqrt(dimension / 12), -exponents)
    close = (moved <= TOLERANCE) & (exponents < 256) & (dimension >= SHORTEST)
    blobs = [b""] * len(vectors)
    packed = _packed(vectors[close], exponents[close])
    for row, data in zip(np.flatnonzero(close).tolist(), packed, strict=True):
        blobs[row] = data.tobytes()
    for row in np.flatnonzero(~close).tolist():
        blobs[row] = vectors[row].astype("<f2").tobytes()
    return blobs


def _packed(vectors: Float32, exponents: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the (n, bytes) of vectors in block floating point."""
    n, dimension = vectors.shape
    steps = np.ldexp(np.float32(1), exponents)[:, None]
    codes = (np.rint(vectors * steps) + np.float32(OFFSET)).astype(np.uint16)
    upper = np.zeros((n, 4 * -(-dimension // 4)), dtype=np.uint8)
    upper[:, :dimension] = codes >> 8
    first, second, third, fourth = (upper[:, i::4] for i in range(4))
    quads = first | second << 2 | third << 4 | fourth << 6
    head = exponents[:, None].astype(np.uint8)
    return np.hstack([head, codes.astype(np.uint8), quads])


def unpack_vectors(blobs: Iterable[bytes], dimension: int) -> Float32:
    """Return (n, dimension) float32 from stored forms, exactly what they say."""
    rows = list(blobs)
    sizes = set(map(len, rows))
    if not sizes <= set(stored_sizes(dimension)):
        raise StoreDamaged("a stored vector is broken: run `memstore check --repair`")
    if len(sizes) == 1:
        return _unpacked(rows, dimension)
    vectors = np.empty((len(rows), dimension), dtype=np.float32)
    for size in sizes:
        own = [row for row, blob in enumerate(rows) if len(blob) == size]
        vectors[own] = _unpacked([rows[row] for row in own], dimension)
    return vectors


def stored_sizes(dimension: int) -> tuple[int, ...]:
    """Return how many bytes a stored vector may have."""
    packed = (1 + dimension + -(-dimension // 4),) if dimension >= SHORTEST else ()
    return (2 * dimension, *packed)


def _unpacked(blobs: list[bytes], dimension: int) -> Float32:
    """Return the vectors of stored forms of one size."""
    data = np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(len(blobs), -1)
    if data.shape[1] == 2 * dimension:
        return data.view("<f2").astype(np.float32)
    quads = np.take(UPPER, data[:, 1 + dimension :], axis=0)  # UPPER[...] takes ten times as long
    vectors: Float32 = quads.reshape(len(blobs), -1)[:, :dimension]
    vectors += data[:, 1 : 1 + dimension]
    vectors *= np.ldexp(np.float32(1), -data[:, :1].astype(np.int32))
    return vectors
