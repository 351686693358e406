"""Blocks: up to 65,536 traces twice over, by memory to complete a row, by neuron to find rows.

A block is immutable but for which of its rows still count, and replacing that makes a new block
over the same arrays. Everything the engine answers comes from blocks; where they lie (built in
this process, or mapped from a file) makes no difference to it. docs/index-format.md has the layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.core import traces as packed
from memstore.core.traces import neuron_dtype
from memstore.index.question import Question
from memstore.types import Float64, Int64, Traces

BLOCK_ROWS = 65_536
#: Rows that share one checksum.
CHUNK_ROWS = 128
#: Fewer traces than this are kept without runs: reading them all is faster than building those.
FEW_ROWS = 256

UInt8 = NDArray[np.uint8]
UInt32 = NDArray[np.uint32]


@dataclass(frozen=True)
class Runs:
    """The postings of each neuron, by descending activation, then ascending row.

    Run of neuron j: ``rows[starts[j]:starts[j + 1]]`` and ``codes`` beside them;
    ``code x scales[j]`` is at least the activation. ``maxima`` is the largest one, exactly.
    """

    starts: UInt32
    rows: NDArray[np.uint16]
    codes: UInt8
    maxima: NDArray[np.float16]

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """Float32 steps of the codes: 255 of them reach the largest activation."""
        exact = self.maxima.astype(np.float32) / np.float32(255)
        return np.where(exact > 0, np.nextafter(exact, np.float32(np.inf)), np.float32(0))

    def run(self, neuron: int, cutoff: float = 0.0) -> tuple[NDArray[np.uint16], Float64]:
        """Return (rows, bounds) of a run as far as bounds reach ``cutoff``."""
        span = slice(int(self.starts[neuron]), int(self.starts[neuron + 1]))
        bounds = self.codes[span] * np.float64(self.scales[neuron])
        if cutoff > 0:
            count = int(np.searchsorted(-bounds, -cutoff, side="right"))
            return self.rows[span][:count], bounds[:count]
        return self.rows[span], bounds


@dataclass(frozen=True)
class Sums:
    """Checksums of a mapped block and which of its parts have been compared with them."""

    runs: NDArray[np.uint64]
    rows: NDArray[np.uint64]
    runs_checked: UInt8
    rows_checked: UInt8


@dataclass(frozen=True)
class Block:
    """Traces of some memories, ids ascending.

    Row r has memory id ``first_id + offsets[r]`` and, ascending, the neurons
    ``neurons[starts[r]:starts[r + 1]]`` with their ``activations``. ``norm_codes[r] x norm_scale``
    is at most the norm of the row: the square root of its sum. ``alive`` has one bit a row, None
    where all count; ``runs`` is None for a few rows.
    """

    width: int
    first_id: int
    offsets: NDArray[np.unsignedinteger[Any]] | Int64
    starts: UInt32
    neurons: NDArray[np.unsignedinteger[Any]]
    activations: NDArray[np.float16]
    norm_codes: UInt8
    norm_scale: float
    smallest_norm: float
    mean_norm: float
    runs: Runs | None
    alive: UInt8 | None = None
    sums: Sums | None = None
    name: str | None = None
    """Of the file it is mapped from, None where there is none."""

    @classmethod
    def build(cls, traces: Traces, with_runs: bool = True) -> Block:
        """Return the block of at most ``BLOCK_ROWS`` traces whose ids ascend."""
        first = int(traces.ids[0]) if len(traces) else 0
        offsets = traces.ids - first
        narrow = not len(offsets) or int(offsets[-1]) < 1 << 32
        codes, scale, smallest, mean = norm_codes(traces)
        return cls(
            width=traces.width,
            first_id=first,
            offsets=offsets.astype(np.uint32) if narrow else offsets,
            starts=traces.indptr.astype(np.uint32),
            neurons=np.ascontiguousarray(traces.neurons, dtype=neuron_dtype(traces.width)),
            activations=np.ascontiguousarray(traces.activations, dtype=np.float16),
            norm_codes=codes,
            norm_scale=scale,
            smallest_norm=smallest,
            mean_norm=mean,
            runs=build_runs(traces) if with_runs else None,
        )

    def __len__(self) -> int:
        return len(self.offsets)

    @cached_property
    def ids(self) -> Int64:
        """Memory ids, ascending."""
        return self.offsets.astype(np.int64) + self.first_id

    @property
    def last_id(self) -> int:
        """The highest memory id; there must be rows."""
        return self.first_id + int(self.offsets[-1])

    @property
    def is_gapless(self) -> bool:
        """Whether the ids count up by one, as they do until something is deleted or updated."""
        return len(self) > 0 and self.last_id - self.first_id == len(self) - 1

    @cached_property
    def live(self) -> int:
        """How many rows still count."""
        return len(self) if self.alive is None else int(np.unpackbits(self.alive).sum())

    @property
    def living_rows(self) -> Int64:
        """The rows that still count, ascending."""
        if self.alive is None:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(np.unpackbits(self.alive, count=len(self), bitorder="little"))

    def positions(self, ids: Int64) -> Int64:
        """Return the rows of those of these ids (ascending) that are here, dead rows included."""
        if not len(self):
            return np.empty(0, dtype=np.int64)
        low, high = np.searchsorted(ids, [self.first_id, self.last_id + 1])
        inside = ids[low:high] - self.first_id
        if self.is_gapless:  # a row is its offset
            return np.asarray(inside, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.offsets, inside), len(self) - 1)
        return np.asarray(at[self.offsets[at] == inside], dtype=np.int64)

    def without(self, ids: Int64) -> Block:
        """Return the block with these ids (ascending) dead; itself where none of them counts."""
        gone = self.positions(ids)
        if not len(gone):
            return self
        mask = np.zeros(len(self), dtype=bool)
        mask[gone] = True
        dead = np.packbits(mask, bitorder="little")
        before = self.alive
        if before is None:
            before = np.packbits(np.ones(len(self), dtype=bool), bitorder="little")
        after = before & ~dead
        return self if np.array_equal(before, after) else replace(self, alive=after)

    @cached_property
    def traces(self) -> Traces:
        """All rows as CSR arrays, dead ones included."""
        return Traces(
            self.ids, self.starts.astype(np.int64), self.neurons, self.activations, self.width
        )

    @cached_property
    def held(self) -> Any:
        """The block as the kernel sees it."""
        from memstore.index.native import held_block  # which mirrors this class

        return held_block(self)

    def living(self) -> Traces:
        """Return the traces of the rows that still count. Raises ``IndexDamaged``."""
        return self.read(self.living_rows)

    def read(self, rows: Int64) -> Traces:
        """Return the traces of some rows (ascending), dead ones too. Raises ``IndexDamaged``."""
        if self.sums is not None:
            self._check(rows)
        return self.traces if len(rows) == len(self) else packed.select(self.traces, rows)

    def _check(self, rows: Int64) -> None:
        from memstore.index import native, scan  # which read this class

        # What scores a row checks it first, in C twenty times faster; dead ones are left out there.
        everyone = replace(self, alive=None)
        nothing = Question(np.empty(0, dtype=np.uint32), np.empty(0))
        kernel = native.load()
        if kernel is None:
            scan.score(everyone, nothing, rows)
        else:
            chosen = rows.astype(np.uint32)
            kernel.score(everyone.held, nothing, self.width, chosen, len(chosen))

    @cached_property
    def fires(self) -> Int64:
        """How many living rows each neuron fires for. Raises ``IndexDamaged``."""
        if self.runs is None:
            return np.bincount(self.living().neurons, minlength=self.width)
        total = np.diff(self.runs.starts).astype(np.int64)
        if self.alive is None:
            return total
        mask = np.unpackbits(self.alive, count=len(self), bitorder="little")
        dead = self.read(np.flatnonzero(mask == 0))
        return total - np.bincount(dead.neurons, minlength=self.width)


def build_runs(traces: Traces) -> Runs:
    """Return the postings of some traces."""
    rows = np.repeat(np.arange(len(traces), dtype=np.uint64), np.diff(traces.indptr))
    bits = traces.activations.view(np.uint16).astype(np.uint64)
    # One sort of one number: neuron, then descending activation (as its bits), then row.
    keys = traces.neurons.astype(np.uint64) << np.uint64(32)
    keys |= (np.uint64(0xFFFF) - bits) << np.uint64(16)
    keys |= rows
    keys.sort()
    fires = np.bincount(traces.neurons, minlength=traces.width)
    starts = np.zeros(traces.width + 1, dtype=np.uint32)
    np.cumsum(fires, out=starts[1:])
    values = (np.uint16(0xFFFF) - (keys >> np.uint64(16)).astype(np.uint16)).view(np.float16)
    maxima = np.zeros(traces.width, dtype=np.float16)
    fired = np.flatnonzero(fires)
    maxima[fired] = values[starts[:-1][fired]]
    scales = Runs(starts, np.empty(0, np.uint16), np.empty(0, np.uint8), maxima).scales
    steps = np.repeat(scales, fires)
    exact = values.astype(np.float32)
    codes = np.minimum(np.ceil(exact / steps), 255).astype(np.uint8)
    # Division may have rounded down by one step; a code is a bound from above, always.
    codes += codes.astype(np.float64) * steps < exact
    return Runs(starts, keys.astype(np.uint16), codes, maxima)


def norm_codes(traces: Traces) -> tuple[UInt8, float, float, float]:
    """Return each row's norm rounded down to 8 bits, the step, and the smallest and mean > 0.

    The norm of the square roots of activations: that of their sum.
    """
    values = traces.activations.astype(np.float64)
    rows = np.repeat(np.arange(len(traces)), np.diff(traces.indptr))
    norms = np.sqrt(np.bincount(rows, values, minlength=len(traces)))
    step = float(norms.max(initial=0.0)) / 255
    if step == 0:
        return np.zeros(len(traces), dtype=np.uint8), 0.0, 0.0, 0.0
    codes = np.floor(norms / step)
    codes -= codes * step > norms
    # A shade less than the smallest: its own sum may be added in another order.
    fired = norms[norms > 0]
    smallest, mean = float(fired.min()) * (1 - 2**-40), float(fired.mean())
    return np.maximum(codes, 0).astype(np.uint8), step * (1 - 2**-40), smallest, mean


def cut_up(traces: Traces) -> Iterator[Block]:
    """Yield blocks of traces whose ids ascend."""
    for first in range(0, len(traces), BLOCK_ROWS):
        rows = np.arange(first, min(first + BLOCK_ROWS, len(traces)))
        part = traces if len(rows) == len(traces) else packed.select(traces, rows)
        yield Block.build(part, with_runs=len(part) > FEW_ROWS)


def merged(blocks: list[Block]) -> Traces:
    """Return the living rows of several blocks, ids ascending."""
    joined = packed.concatenate([block.living() for block in blocks])
    if np.all(joined.ids[1:] > joined.ids[:-1]):
        return joined
    return packed.select(joined, np.argsort(joined.ids, kind="stable"))
