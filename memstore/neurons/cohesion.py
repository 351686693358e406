"""Whether a neuron fires for one thing: how alike its texts are, without anybody reading them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.types import Float32, Float64

#: How many of a neuron's strongest texts are compared.
TEXTS = 20
#: Pairs of random texts that say what is no likeness at all.
PAIRS = 100_000


@dataclass(frozen=True)
class Cohesion:
    """Likeness of each neuron's strongest texts, and of random pairs of texts.

    The vectors are those the SAE encodes, so this flatters it; columns of another code, measured on
    the same vectors, say by how much.
    """

    means: Float64
    """(neurons,) mean cosine over the pairs of a neuron's strongest texts; NaN below two."""
    random: float
    """Mean cosine of two random texts."""
    bar: float
    """What one random pair in a hundred exceeds."""

    @property
    def mean(self) -> float:
        """Mean over the neurons with two texts or more, 0 where there are none."""
        measured = self.means[~np.isnan(self.means)]
        return float(np.mean(measured)) if len(measured) else 0.0

    @property
    def share(self) -> float:
        """Share of the neurons whose texts are more alike, on average, than ``bar``."""
        measured = self.means[~np.isnan(self.means)]
        return float(np.mean(measured > self.bar)) if len(measured) else 0.0


def cohesion(activations: Float32, vectors: Float32, seed: int = 0) -> Cohesion:
    """Return the cohesion of (n, neurons) activations over the unit vectors, (n, d), of the texts.

    The mean pairwise cosine of m unit vectors is (|sum|^2 - m) / (m (m - 1)).
    """
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, len(vectors), (2, PAIRS))
    apart = one != other
    cosines = np.einsum("ij,ij->i", vectors[one[apart]], vectors[other[apart]])
    means = np.full(activations.shape[1], np.nan)
    for neuron in range(activations.shape[1]):
        column = activations[:, neuron]
        fired = np.flatnonzero(column > 0)
        strongest = fired[np.lexsort((fired, -column[fired]))[:TEXTS]]
        count = len(strongest)
        if count > 1:
            total = vectors[strongest].sum(axis=0, dtype=np.float64)
            means[neuron] = (float(total @ total) - count) / (count * (count - 1))
    return Cohesion(means, float(cosines.mean()), float(np.quantile(cosines, 0.99)))
