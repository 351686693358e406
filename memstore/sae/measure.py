"""Measures of an SAE on vectors, each defined once, in numpy: no torch needed to check a claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.core.vectors import unit_rows
from memstore.errors import InvalidInput
from memstore.sae.encode import BATCH, SAE
from memstore.types import Float32, Float64

#: Rows that a read-out is fitted to and measured on.
READOUT_ROWS = 20_000
#: Of the mean variance of a neuron.
RIDGE = 1e-2


@dataclass(frozen=True)
class Measures:
    """How an SAE does on some vectors it was not trained on.

    ``dead`` counts neurons that never fired on them; ``dead_share`` is that over all neurons.
    """

    rows: int
    fvu: float | None
    """sum ||x - x_hat||^2 / sum ||x - mean||^2, the mean per dimension over these rows; None where
    something else than the vector is decoded."""
    readout_fvu: float | None
    """The same for a linear map from activations to vectors (ridge), fitted to every other one of
    ``READOUT_ROWS`` rows and measured on those between: one axis for architectures of any decoder,
    at the same rows and neurons. An upper bound: fitted to few rows a neuron, it is higher than
    that of the decoder that comes with an SAE. None below four rows."""
    l0: float
    """Mean number of neurons that fire for a vector."""
    dead: int
    dead_share: float
    max_fire_rate: float
    """Share of the vectors that the busiest neuron fires for."""
    over_10_percent: int
    """How many neurons fire for more than a tenth of the vectors."""
    fire_rates: Mapping[str, float]
    """Quantiles of the fire rates over neurons: ``{"p5": ..., "p50": ..., "p95": ...}``."""
    decoder_cosines: Mapping[str, float]
    """Quantiles over neurons of the largest cosine to another neuron's decoder column: near 1 are
    two neurons for one thing."""

    def to_dict(self) -> dict[str, float | Mapping[str, float] | None]:
        """Return plain numbers for JSON."""
        return asdict(self)


def measure(sae: SAE, vectors: Float32) -> Measures:
    """Return the measures of ``sae`` on (n, d) vectors, activations rounded as stored.

    Raises ``InvalidInput`` unless two vectors differ.
    """
    spread = float(np.sum((vectors - vectors.mean(axis=0)).astype(np.float64) ** 2))
    if len(vectors) < 2 or spread == 0:
        raise InvalidInput(f"{len(vectors)} vectors without spread: FVU needs two that differ")
    error, fires = 0.0, np.zeros(sae.config.neurons, dtype=np.int64)
    decodes = sae.config.event_size is None
    for start in range(0, len(vectors), BATCH):
        batch = vectors[start : start + BATCH]
        activations = stored(sae, batch)
        fires += np.count_nonzero(activations, axis=0)
        if decodes:
            error += float(np.sum((batch - sae.decode(activations)).astype(np.float64) ** 2))
    rates = fires / len(vectors)
    dead = int(np.count_nonzero(fires == 0))
    return Measures(
        rows=len(vectors),
        fvu=error / spread if decodes else None,
        readout_fvu=readout(sae, some_rows(vectors, READOUT_ROWS)),
        l0=float(fires.sum() / len(vectors)),
        dead=dead,
        dead_share=dead / sae.config.neurons,
        max_fire_rate=float(rates.max()),
        over_10_percent=int(np.count_nonzero(rates > 0.1)),
        fire_rates=quantiles(rates),
        decoder_cosines=quantiles(nearest_directions(sae.tensors["decoder.weight"].T)),
    )


def quantiles(values: Float32 | Float64) -> dict[str, float]:
    """Return the 5th, 50th and 95th percentile by name."""
    return {f"p{p}": float(np.percentile(values, p)) for p in (5, 50, 95)}


def nearest_directions(rows: Float32) -> Float32:
    """Return the largest cosine of each row, (n, d), to another row; 0 for a row of zeros."""
    units = unit_rows(rows)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -1.0)
    return np.asarray(cosines.max(axis=1), dtype=np.float32)


def stored(sae: SAE, vectors: Float32) -> Float32:
    """Return the (n, neurons) activations as a store would keep them."""
    largest = np.finfo(np.float16).max
    return np.minimum(sae.activations(vectors), largest).astype(np.float16).astype(np.float32)


def some_rows(vectors: Float32, most: int) -> Float32:
    """Return ``most`` rows drawn once and for all, or all where there are fewer."""
    if len(vectors) <= most:
        return vectors
    return vectors[np.sort(np.random.default_rng(0).choice(len(vectors), most, replace=False))]


def readout(sae: SAE, vectors: Float32) -> float | None:
    """Return the FVU of the ridge read-out: fitted to even rows, measured on odd ones."""
    fitted, measured = vectors[::2], vectors[1::2]
    spread = float(np.sum((measured - measured.mean(axis=0)).astype(np.float64) ** 2))
    if len(measured) < 2 or spread == 0:
        return None
    centre, mean = fitted.mean(axis=0), stored(sae, fitted).mean(axis=0)
    gram = np.zeros((sae.config.neurons, sae.config.neurons))
    product = np.zeros((sae.config.neurons, vectors.shape[1]))
    for start in range(0, len(fitted), BATCH):
        batch = fitted[start : start + BATCH]
        inputs = stored(sae, batch) - mean
        gram += inputs.T @ inputs
        product += inputs.T @ (batch - centre)
    # Enough to make silent and double neurons harmless, too little to be seen else.
    ridge = RIDGE * max(float(np.trace(gram)) / len(gram), 1e-12)
    weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), product)
    guess = (stored(sae, measured) - mean) @ weights + centre
    return float(np.sum((measured - guess) ** 2) / spread)


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
    for first in range(0, len(vectors), BATCH):
        part = slice(first, first + BATCH)
        for start in range(0, len(others), 16 * BATCH):
            products = vectors[part] @ others[start : start + 16 * BATCH].T
            np.maximum(found[part], products.max(axis=1, initial=-1.0), out=found[part])
    return found
