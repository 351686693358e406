"""Measures of an SAE on vectors, each defined once, in numpy: no torch needed to check a claim."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.sae.encode import BATCH, SAE
from memstore.types import Float32


@dataclass(frozen=True)
class Measures:
    """How an SAE does on some vectors it was not trained on.

    ``dead`` counts neurons that never fired on them; ``dead_share`` is that over all neurons.
    """

    rows: int
    fvu: float
    """sum ||x - x_hat||^2 / sum ||x - mean||^2, the mean per dimension over these rows."""
    l0: float
    """Mean number of neurons that fire for a vector."""
    dead: int
    dead_share: float
    max_fire_rate: float
    """Share of the vectors that the busiest neuron fires for."""
    over_10_percent: int
    """How many neurons fire for more than a tenth of the vectors."""

    def to_dict(self) -> dict[str, float]:
        """Return plain numbers for JSON."""
        return asdict(self)


def measure(sae: SAE, vectors: Float32) -> Measures:
    """Return the measures of ``sae`` on (n, d) vectors, activations rounded as stored."""
    error, fires = 0.0, np.zeros(sae.config.neurons, dtype=np.int64)
    for start in range(0, len(vectors), BATCH):
        batch = vectors[start : start + BATCH]
        activations = sae.activations(batch).astype(np.float16).astype(np.float32)
        fires += np.count_nonzero(activations, axis=0)
        error += float(np.sum((batch - sae.decode(activations)).astype(np.float64) ** 2))
    spread = float(np.sum((vectors - vectors.mean(axis=0)).astype(np.float64) ** 2))
    rates = fires / len(vectors)
    dead = int(np.count_nonzero(fires == 0))
    return Measures(
        rows=len(vectors),
        fvu=error / spread,
        l0=float(fires.sum() / len(vectors)),
        dead=dead,
        dead_share=dead / sae.config.neurons,
        max_fire_rate=float(rates.max()),
        over_10_percent=int(np.count_nonzero(rates > 0.1)),
    )


def held_out_rows(vectors: Float32, share: float, near: float, seed: int) -> NDArray[np.bool_]:
    """Return a boolean mask of rows to hold out: a random ``share`` without near-duplicates.

    A row whose cosine to any training row is ``near`` or more goes to training too, and so do the
    rows near to that one: a copy of a training text would measure memory, not generalisation.
    """
    chosen = np.random.default_rng(seed).random(len(vectors)) < share
    joined = np.flatnonzero(~chosen)
    while len(joined):
        rows = np.flatnonzero(chosen)
        joined = rows[nearest(vectors[rows], vectors[joined]) >= near]
        chosen[joined] = False
    return chosen


def nearest(vectors: Float32, others: Float32) -> Float32:
    """Return the cosine of each unit vector to the nearest of the others."""
    found = np.full(len(vectors), -1.0, dtype=np.float32)
    for start in range(0, len(others), 16 * BATCH):
        products = vectors @ others[start : start + 16 * BATCH].T
        np.maximum(found, products.max(axis=1, initial=-1.0), out=found)
    return found
