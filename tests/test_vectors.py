"""How vectors are stored: decoded as docs/storage.md says, and never far from what came in."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memstore import layout
from memstore.core.vectors import TOLERANCE, pack_vectors, unpack_vectors
from memstore.errors import StoreDamaged


def decoded(blob: bytes, dimension: int) -> list[float]:
    """Read one stored vector with nothing but whole numbers."""
    if len(blob) == 2 * dimension:
        return np.frombuffer(blob, "<f2").astype(float).tolist()
    exponent, low, upper = blob[0], blob[1 : 1 + dimension], blob[1 + dimension :]
    codes = [low[i] + 256 * (upper[i // 4] >> 2 * (i % 4) & 3) for i in range(dimension)]
    return [(code - 512) * 2.0**-exponent for code in codes]


@st.composite
def units(draw):
    """Unit vectors of any dimension, some with one component that dwarfs the others."""
    dimension = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 9, 16, 61, 384, 1536]))
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = dice.normal(size=(draw(st.integers(0, 5)), dimension))
    vectors[:, 0] *= draw(st.sampled_from([0.0, 1.0, 30.0]))
    vectors[:, -1] += 1e-9  # never all zero
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(units())
def test_stored_vectors_are_what_the_docs_say_and_close_to_what_came_in(vectors):
    blobs = pack_vectors(vectors)
    dimension = vectors.shape[1]
    read = unpack_vectors(blobs, dimension)
    assert read.dtype == np.float32
    assert read.shape == vectors.shape
    for row, blob in enumerate(blobs):
        assert read[row].tolist() == decoded(blob, dimension)
        moved = np.linalg.norm(read[row].astype(np.float64) - vectors[row])
        # Rounding errors of one vector scatter around their mean.
        assert moved <= (1e-3 if len(blob) == 2 * dimension else 1.6 * TOLERANCE)


def test_every_stored_number_is_a_float16(encoder):
    """So an exact index in float16 holds exactly what is stored."""
    vectors = encoder.vectors([f"memory {i}" for i in range(300)])
    read = unpack_vectors(pack_vectors(vectors), vectors.shape[1])
    assert np.array_equal(read.astype(np.float16).astype(np.float32), read)


def test_short_and_lopsided_vectors_stay_float16():
    lopsided = np.full((1, 384), 0.001, np.float32)
    lopsided[0, 5] = 1
    assert len(pack_vectors(lopsided)[0]) == 768
    assert len(pack_vectors(np.ones((1, 3), np.float32))[0]) == 6
    even = np.full((1, 384), 384**-0.5, np.float32)
    assert len(pack_vectors(even)[0]) == 481


def test_a_blob_of_another_size_is_damage():
    with pytest.raises(StoreDamaged, match="check --repair"):
        unpack_vectors([bytes(480)], 384)


def test_migrated_vectors_are_those_that_would_be_stored_now():
    """Migration 0003 has code of its own, since what is stored may change again."""
    file = layout.migrations_folder() / "versions" / "0003_shorter_vectors.py"
    spec = importlib.util.spec_from_file_location("shorter_vectors", file)
    migration = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(migration)
    dice = np.random.default_rng(3)
    for dimension in (3, 9, 384, 1536):
        vectors = dice.normal(size=(20, dimension)) * dice.choice([1, 40], size=(20, dimension))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        halves = vectors.astype("<f2")
        migrated = [migration.packed(half.tobytes()) for half in halves]
        assert migrated == pack_vectors(halves.astype(np.float32))


def test_what_is_read_is_stored_again_as_it_was():
    """Also where the largest component lies between the last step and what rounds down to it."""
    dice = np.random.default_rng(6)
    vectors = dice.normal(size=(4_000, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    edges = 511 * 2.0 ** -np.arange(9, 13)
    for row, edge in enumerate(np.repeat(edges, 50)):
        # Just above, at, and just below the largest that 511 steps of some size reach.
        scaled = np.clip(vectors[row], -0.9 * edge, 0.9 * edge)
        scaled[int(dice.integers(384))] = edge * (1 + (row % 50 - 25) * 1e-5)
        vectors[row] = scaled
    blobs = pack_vectors(vectors.astype(np.float32))
    assert len({len(blob) for blob in blobs}) <= 2
    assert pack_vectors(unpack_vectors(blobs, 384)) == blobs
