"""Vectors: checked and brought to unit length in one place, so that a cosine is a dot product."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memstore.errors import InvalidVector, StoreDamaged
from memstore.types import Float16, Float32

#: Rows checked at a time.
CHECKED = 8_192


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


def pack_vectors(vectors: Float32) -> list[bytes]:
    """Return the stored forms of (n, d) vectors: little-endian float16."""
    halves = np.ascontiguousarray(vectors, dtype="<f2")
    return [row.tobytes() for row in halves]


def unpack_vectors(blobs: Iterable[bytes], dimension: int) -> Float16:
    """Return (n, dimension) from stored blobs, float16 as they are."""
    rows = list(blobs)
    if any(len(row) != 2 * dimension for row in rows):
        raise StoreDamaged("a stored vector is broken: run `memstore check --repair`")
    return np.frombuffer(b"".join(rows), dtype="<f2").reshape(-1, dimension)
