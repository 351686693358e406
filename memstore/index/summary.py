"""What is known of each neuron over many blocks: how often, how strongly, and where most.

Bounds and starting points for a search, not answers: a summary may lag behind deletions, never
behind the blocks that it covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.index.blocks import Block, Runs

#: Best places kept a neuron.
HEADS = 64
#: Levels of the histogram: a float16 without sign and lower mantissa, four an octave.
LEVELS = 128


@dataclass(frozen=True)
class Summary:
    """Shapes: ``places`` and ``bounds`` (width, HEADS), strongest first, 0 where there are fewer;
    ``counts`` (width,); ``maxima`` (width, blocks); ``histogram`` (width, LEVELS).

    A place is block << 16 | row; blocks are counted in the order they were added.
    """

    places: NDArray[np.uint32]
    bounds: NDArray[np.float32]
    counts: NDArray[np.uint32]
    maxima: NDArray[np.float16]
    histogram: NDArray[np.uint32]

    @classmethod
    def empty(cls, width: int) -> Summary:
        """Return the summary of no blocks."""
        return cls(
            np.zeros((width, HEADS), np.uint32),
            np.zeros((width, HEADS), np.float32),
            np.zeros(width, np.uint32),
            np.zeros((width, 0), np.float16),
            np.zeros((width, LEVELS), np.uint32),
        )

    @classmethod
    def of(cls, blocks: Sequence[Block], width: int) -> Summary:
        """Return the summary of blocks with runs."""
        return cls.empty(width).extended(blocks)

    @property
    def blocks(self) -> int:
        """How many blocks it covers."""
        return int(self.maxima.shape[1])

    def extended(self, blocks: Sequence[Block]) -> Summary:
        """Return the summary with these blocks after those it covers. Raises ``IndexDamaged``."""
        places, bounds, counts = self.places, self.bounds, self.counts.copy()
        histogram = self.histogram.reshape(-1).copy()
        for number, block in enumerate(blocks, self.blocks):
            counts += np.diff(runs_of(block).starts)
            places, bounds = better(places, bounds, *heads(block, number))
            histogram += levels(block)
        columns = [self.maxima, *(runs_of(block).maxima[:, None] for block in blocks)]
        return Summary(
            places,
            bounds,
            counts,
            np.ascontiguousarray(np.concatenate(columns, axis=1)),
            histogram.reshape(self.histogram.shape),
        )

    def count_above(self, neuron: int, threshold: float) -> int:
        """Return at most how many rows a neuron fires for at this activation or above."""
        level = int(np.float16(threshold).view(np.uint16)) >> 8 if threshold > 0 else 0
        return int(self.histogram[neuron, min(level, LEVELS - 1) :].sum())


def runs_of(block: Block) -> Runs:
    """Return the runs of a block that must have them."""
    if block.runs is None:
        raise ValueError("a block without runs cannot be summarised")
    return block.runs


def heads(block: Block, number: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return (places, bounds) of the strongest of each run."""
    runs = runs_of(block)
    at = runs.starts[:-1, None].astype(np.int64) + np.arange(HEADS)
    there = at < runs.starts[1:, None]
    at = np.where(there, at, 0)
    if not len(runs.rows):
        return np.zeros(at.shape, np.uint32), np.zeros(at.shape, np.float32)
    places = runs.rows[at].astype(np.uint32) | np.uint32(number << 16)
    bounds = runs.codes[at] * runs.scales[:, None]
    return np.where(there, places, 0).astype(np.uint32), np.where(there, bounds, np.float32(0))


def better(
    places: NDArray[np.uint32],
    bounds: NDArray[np.float32],
    more_places: NDArray[np.uint32],
    more_bounds: NDArray[np.float32],
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return the strongest HEADS of two lists a neuron, strongest first, earlier places first."""
    all_places = np.concatenate([places, more_places], axis=1)
    all_bounds = np.concatenate([bounds, more_bounds], axis=1)
    order = np.argsort(-all_bounds, axis=1, kind="stable")[:, :HEADS]
    return (
        np.take_along_axis(all_places, order, axis=1),
        np.take_along_axis(all_bounds, order, axis=1),
    )


def levels(block: Block) -> NDArray[np.uint32]:
    """Return how many activations of each neuron fall into each level, flat."""
    traces = block.read(np.arange(len(block)))
    level = traces.activations.view(np.uint16) >> 8
    cells = traces.neurons.astype(np.int64) * LEVELS + level
    return np.bincount(cells, minlength=block.width * LEVELS).astype(np.uint32)
