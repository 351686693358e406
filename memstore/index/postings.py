"""``NeuronIndex``: all traces of one store under one encoder, and exact queries over them.

An index is a value: ``apply`` and ``compacted`` return another one that shares its blocks, so a
query that holds one is never disturbed, and maintenance may run beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.core import traces as packed
from memstore.core.expression import NeuronQuery
from memstore.core.ranking import NOTHING, Ranked, best, join
from memstore.index import native, scan
from memstore.index.blocks import BLOCK_ROWS, FEW_ROWS, Block, cut_up, merged
from memstore.index.question import Found, Question, Work
from memstore.index.selection import Selection
from memstore.index.summary import Summary
from memstore.types import Float64, Int64, Trace, Traces

#: Small blocks are merged at once up to this size; what takes longer is left to maintenance.
QUICK_ROWS = 4_096
#: Uncovered blocks beyond which maintenance is worth its while.
MANY_BLOCKS = 12
#: Scoring rows one by one, 0.1 us each, beats a search where no more than this share pass.
FEW_OF_TRACE, FEW_OF_COMPOSITE = 0.02, 0.003
#: And always below this many.
FEW = 2_000


@dataclass(frozen=True)
class NeuronIndex:
    """Blocks of traces; the first ``summary.blocks`` of them are covered by the summary."""

    width: int
    change: int = 0
    blocks: tuple[Block, ...] = ()
    summary: Summary | None = None
    origin: object = field(default_factory=object, repr=False, compare=False)
    """Shared by all that was made from one load or build: only those have blocks in common."""

    def __len__(self) -> int:
        return sum(block.live for block in self.blocks)

    @property
    def covered(self) -> int:
        """How many blocks the summary covers."""
        return 0 if self.summary is None else self.summary.blocks

    # --- following the catalog -------------------------------------------------------------

    def apply(self, deleted: Sequence[int], written: Iterable[Traces], change: int) -> NeuronIndex:
        """Return the index at ``change``: without deleted ids, with traces of written memories."""
        pages = [page for page in written if len(page)]
        fresh = packed.concatenate(pages) if pages else packed.empty(self.width)
        gone = np.concatenate([np.array(deleted, dtype=np.int64), fresh.ids])
        blocks = list(self.blocks)
        if len(gone):
            gone.sort()
            blocks = [block.without(gone) for block in blocks]
        if len(fresh):
            order = np.argsort(fresh.ids, kind="stable")
            ascending = np.all(fresh.ids[1:] > fresh.ids[:-1])
            fresh = fresh if ascending else packed.select(fresh, order)
            blocks = grown(blocks, self.covered, fresh)
        return replace(self, change=change, blocks=tuple(blocks))

    @property
    def wants_compaction(self) -> bool:
        """Whether small or half-dead blocks have piled up."""
        loose = [len(block) for block in self.blocks[self.covered :] if len(block) > FEW_ROWS]
        dead = any(2 * block.live < len(block) for block in self.blocks[: self.covered])
        return dead or sum(loose) >= 2 * BLOCK_ROWS or len(loose) > MANY_BLOCKS

    def compacted(self, everything: bool = False) -> NeuronIndex:
        """Return the index with loose and half-dead blocks merged to full, covered ones.

        What is left over stays loose. With ``everything`` each dead row is dropped and all but a
        remainder too small for runs is covered. About a second of work a million rows merged.
        """
        settled = [
            block
            for number, block in enumerate(self.blocks)
            if (
                block.live == len(block) == BLOCK_ROWS
                if everything
                else number < self.covered and 2 * block.live >= len(block)
            )
        ]
        rest = [block for block in self.blocks if block.live and not among(block, settled)]
        fresh = list(cut_up(merged(rest))) if rest else []
        loose = [block for block in fresh if block.runs is None]
        if not everything:
            loose = [block for block in fresh if len(block) < BLOCK_ROWS]
        settled += [block for block in fresh if not among(block, loose)]
        return replace(self, blocks=(*settled, *loose), summary=self._summary_of(settled))

    def _summary_of(self, blocks: Sequence[Block]) -> Summary:
        known = self.blocks[: self.covered]
        same = len(known) <= len(blocks) and all(
            a.starts is b.starts for a, b in zip(known, blocks, strict=False)
        )
        if self.summary is not None and same:
            return self.summary.extended(blocks[len(known) :])
        return Summary.of(blocks, self.width)

    def caught_up(self, before: NeuronIndex, after: NeuronIndex) -> NeuronIndex:
        """Return ``after``, which was compacted from ``before``, with what came to self since.

        Blocks that self has beyond those of ``before`` are new; rows that died since die again.
        """
        old = {id(block.starts): block for block in before.blocks}
        fresh = [block for block in self.blocks if id(block.starts) not in old]
        dead = []
        for block in self.blocks:
            was = old.get(id(block.starts))
            if was is not None and block.alive is not was.alive:
                dead.append(np.setdiff1d(was.ids[was.living_rows], block.ids[block.living_rows]))
        still = {id(block.starts) for block in self.blocks}
        for key, block in old.items():
            if key not in still:  # merged with newer ones meanwhile: what is left of it is there
                dead.append(block.ids[block.living_rows])
        blocks = list(after.blocks)
        if dead:
            gone = np.sort(np.concatenate(dead))
            blocks = [block.without(gone) for block in blocks]
        return replace(after, change=self.change, blocks=(*blocks, *fresh))

    # --- queries ---------------------------------------------------------------------------

    def composite(
        self,
        query: NeuronQuery,
        k: int,
        selected: Selection | None = None,
        min_score: float | None = 0.0,
    ) -> Found:
        """Return the k best candidates of a composite, in order, and how they were found."""
        question = Question.composite(query, min_score)
        if not question.needs_positive:
            return self._in_order(question, k, selected)
        return self._best(question, k, selected, FEW_OF_COMPOSITE)

    def nearest(
        self,
        trace: Trace,
        k: int,
        factors: Float64 | None = None,
        selected: Selection | None = None,
    ) -> Found:
        """Return the k memories of highest affinity to a trace among those that share a neuron."""
        if not len(trace):
            return Found(NOTHING, Work("nothing fires"))
        return self._best(Question.affinity(trace, factors), k, selected, FEW_OF_TRACE)

    def candidates(
        self, query: NeuronQuery, selected: Selection | None = None, min_score: float | None = 0.0
    ) -> Ranked:
        """Return every candidate of a composite with its score, unordered."""
        return self._all(Question.composite(query, min_score), selected)

    def weighted(self, query: NeuronQuery, selected: Selection | None = None) -> Ranked:
        """Return the weighted sum of every live memory that meets the conditions, unordered."""
        return self._all(Question.weighted(query), selected)

    def affinities(
        self, trace: Trace, factors: Float64 | None = None, selected: Selection | None = None
    ) -> Ranked:
        """Return every memory that shares a neuron with a trace and its affinity, unordered."""
        return self._all(Question.affinity(trace, factors), selected) if len(trace) else NOTHING

    def activations(self, neuron: int) -> Ranked:
        """Return (ids, activations) of the live memories for which a neuron fires, unordered."""
        return self.candidates(NeuronQuery(((neuron, 1.0),)))

    # --- plans -----------------------------------------------------------------------------

    def _best(self, question: Question, k: int, selected: Selection | None, share: float) -> Found:
        """Search all blocks, or score rows one by one where a filter or a bound leaves few."""
        few = max(FEW, int(share * self._rows_held))
        if selected is not None and len(selected) <= few:
            found = self._rows(question, [selected.rows(block) for block in self.blocks])
            work = Work("filter first: score its rows", rows=len(selected))
            return Found(best(found, k), work)
        driver = self._driver(question, few)
        if driver is not None:
            rows = [scan.reached(block, *driver) for block in self.blocks]
            found = self._rows(question, rows, selected)
            total = sum(map(len, rows))
            return Found(best(found, k), Work(f"bound first: rows of N{driver[0]}", rows=total))
        bitmaps = None if selected is None else [selected.bitmap(b) for b in self.blocks]
        kernel = native.load()
        if kernel is None:
            shares = None
            ranked, read = scan.search(
                self.blocks, question, k, bitmaps or [None] * len(self.blocks)
            )
        else:
            pointers = None
            if bitmaps is not None:
                pointers = np.array([native.address(b) for b in bitmaps], dtype=np.uint64)
            ranked, shares, read = kernel.search(
                self._addresses, self._held_summary, question, self.width, k, pointers
            )
        plan = "search" if selected is None else "search, filter as a bitmap"
        return Found(ranked, Work(plan, *read), shares)

    def _driver(self, question: Question, few: int) -> tuple[int, float] | None:
        """Return (neuron, bound) of a condition that few rows can meet, if there is one."""
        if self.summary is None:
            return None
        for condition in question.conditions:
            if condition.op not in (">", ">=") or condition.threshold < 0:
                continue
            if condition.op == ">=" and condition.threshold == 0:
                continue
            neuron = int(condition.neuron)
            if self.summary.count_above(neuron, condition.threshold) <= few:
                return neuron, condition.threshold
        return None

    def _in_order(self, question: Question, k: int, selected: Selection | None) -> Found:
        """Answer a question whose highest score is 0: rows by id until k have reached it."""
        found, read = NOTHING, 0
        blocks = sorted((b for b in self.blocks if len(b)), key=lambda block: block.first_id)
        for number, block in enumerate(blocks):
            rows = None if selected is None else selected.rows(block)
            found = best(join([found, self._scored(block, question, rows)]), k)
            read += len(block) if rows is None else len(rows)
            rest = blocks[number + 1 :]
            full = len(found) == k and found.scores[-1] == 0
            if full and rest and int(found.ids[-1]) < rest[0].first_id:
                break
        return Found(found, Work("by id, until k have nothing against them", rows=read))

    def _all(self, question: Question, selected: Selection | None) -> Ranked:
        if selected is not None:
            return self._rows(question, [selected.rows(block) for block in self.blocks])
        if not question.needs_positive:
            return join([self._scored(block, question, None) for block in self.blocks])
        return self._rows(question, [scan.touched(block, question) for block in self.blocks])

    def _rows(
        self,
        question: Question,
        rows: Sequence[NDArray[np.uint32]],
        selected: Selection | None = None,
    ) -> Ranked:
        parts = [
            self._scored(block, question, own)
            for block, own in zip(self.blocks, rows, strict=True)
            if len(own)
        ]
        found = join(parts)
        return found if selected is None else selected.among(found)

    def _scored(self, block: Block, question: Question, rows: NDArray[np.uint32] | None) -> Ranked:
        kernel = native.load()
        if kernel is None:
            chosen = np.arange(len(block)) if rows is None else rows
            scores, passing = scan.score(block, question, chosen)
        else:
            n = len(block) if rows is None else len(rows)
            held = block.held
            scores, passing = kernel.score(held, question, self.width, rows, n)
        ids = block.ids if rows is None else block.ids[rows]
        return Ranked(ids[passing], scores[passing])

    @cached_property
    def _rows_held(self) -> int:
        return sum(len(block) for block in self.blocks)

    @cached_property
    def _addresses(self) -> Any:
        return native.pointers([block.held for block in self.blocks])

    @cached_property
    def _held_summary(self) -> native.Held | None:
        return None if self.summary is None else native.held_summary(self.summary)

    def checked(self) -> NeuronIndex:
        """Return self once every part of every block was compared with its checksum."""
        for block in self.blocks:
            scan.check_rows(block, np.arange(len(block)))
            if block.runs is not None:
                for neuron in range(self.width):
                    scan.check_run(block, block.runs, neuron)
        return self

    # --- statistics ------------------------------------------------------------------------

    @cached_property
    def fires(self) -> Int64:
        """How many live memories each neuron fires for."""
        total = np.zeros(self.width, dtype=np.int64)
        for block in self.blocks:
            total += block.fires
        return total

    def statistics(self) -> tuple[Int64, Float64, Float64]:
        """Return (fires, mean activation where it fires, largest activation), one a neuron."""
        fires, maxima = self.fires, np.zeros(self.width)
        sums = np.zeros(self.width)
        for block in self.blocks:
            living = block.living()
            values = living.activations.astype(np.float64)
            sums += np.bincount(living.neurons, values, minlength=self.width)
            np.maximum.at(maxima, living.neurons, values)
        return fires, sums / np.maximum(fires, 1), maxima

    def together(self, neuron: int) -> Int64:
        """Return for how many live memories each neuron fires together with one."""
        counts = [scan.together(block, neuron) for block in self.blocks]
        return np.sum(counts, axis=0, dtype=np.int64) if counts else np.zeros(self.width, np.int64)

    def traces(self) -> Traces:
        """Return all live traces, ids ascending."""
        blocks = [block for block in self.blocks if block.live]
        return merged(blocks) if blocks else packed.empty(self.width)


def among(block: Block, blocks: Sequence[Block]) -> bool:
    """Return whether a block is one of these, the very same."""
    return any(block is other for other in blocks)


def grown(blocks: list[Block], covered: int, fresh: Traces) -> list[Block]:
    """Return the blocks with fresh traces added behind those that are covered.

    Small neighbours merge until sizes fall by half, so their number stays logarithmic and each row
    is copied a logarithmic number of times; never beyond ``QUICK_ROWS`` at once.
    """
    stack = blocks[:covered] + [b for b in blocks[covered:] if b.live]
    while len(stack) > covered and len(fresh) < QUICK_ROWS:
        last = stack[-1]
        if last.runs is not None and (last.live >= 2 * len(fresh) or len(fresh) <= FEW_ROWS):
            break
        if last.live + len(fresh) > QUICK_ROWS:
            break
        stack.pop()
        fresh = merged([last, Block.build(fresh, with_runs=False)])
    return stack + list(cut_up(fresh))
