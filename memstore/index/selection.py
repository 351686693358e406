"""A filter's memories as the engine wants them: rows or a bitmap of each block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memstore.core.ranking import Ranked
from memstore.index.blocks import Block
from memstore.types import Int64


class Selection:
    """The ids (ascending) that pass a filter at one state of the store.

    Bitmaps are kept, so that a filter asked again costs nothing: blocks are told apart by their
    arrays, which deletions do not replace. ``kept`` says that whoever asks again brings this same
    selection, so that indices may remember it too.
    """

    def __init__(self, ids: Int64, kept: bool = False) -> None:
        self.ids, self.kept = ids, kept
        self._bitmaps: dict[int, tuple[NDArray[np.generic], NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, block: Block) -> NDArray[np.uint32]:
        """Return the rows of a block that are selected, ascending."""
        return block.positions(self.ids).astype(np.uint32)

    def bitmap(self, block: Block) -> NDArray[np.uint8]:
        """Return one bit a row of a block."""
        known = self._bitmaps.get(id(block.starts))
        if known is not None and known[0] is block.starts:
            return known[1]
        mask = np.zeros(len(block), dtype=bool)
        mask[block.positions(self.ids)] = True
        bits = np.packbits(mask, bitorder="little")
        self._bitmaps[id(block.starts)] = (block.starts, bits)
        return bits

    def holds(self, ids: Int64) -> NDArray[np.bool_]:
        """Return which of some ids are selected."""
        if not len(self.ids):
            return np.zeros(len(ids), dtype=bool)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.asarray(self.ids[at] == ids, dtype=bool)

    def mask(self, ids: Int64) -> NDArray[np.bool_]:
        """Return which of some ids are selected, for many ids."""
        highest = int(max(ids.max(initial=0), self.ids.max(initial=0)))
        if highest > 8 * (len(ids) + len(self.ids)) + 1_000_000:
            return self.holds(ids)
        table = np.zeros(highest + 1, dtype=bool)
        table[self.ids] = True
        return np.asarray(table[ids], dtype=bool)

    def among(self, found: Ranked) -> Ranked:
        """Return those of some results that are selected."""
        kept = self.holds(found.ids)
        return Ranked(found.ids[kept], found.scores[kept])
