"""The C kernel through ctypes: structs that mirror kernel.c, and its two functions.

``load()`` gives None where no kernel was built (an installation from source without a compiler);
index/scan.py then answers the same in numpy. ``MEMSTORE_KERNEL`` names another build of it, or
``off``.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.core.ranking import Ranked
from memstore.errors import IndexDamaged
from memstore.index.blocks import BLOCK_ROWS, Block
from memstore.index.question import Question
from memstore.index.summary import HEADS, Summary
from memstore.types import Float64

VERSION = 5
NO_MEMORY, DAMAGED = -1, -2
OPERATORS = {">": 0, ">=": 1, "<": 2, "<=": 3}
#: Share of the threshold that unread postings may use up: more are left unread, but more rows must
#: be completed. At a million, of 0.1 to 0.7, 0.25 to 0.3 did best on real and independent traces.
SHARE = 0.3
RECORD = np.dtype([("id", np.int64), ("score", np.float64), ("place", np.int64)])
#: Shares are handed out with an answer up to so many numbers.
MANY_SHARES = 100_000

log = logging.getLogger(__name__)


def structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    """Return a ctypes structure; its fields are 64-bit numbers or addresses."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


INTEGER, ADDRESS, REAL = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
#: A field that takes the bytes themselves and keeps them alive.
BYTES = ctypes.c_char_p
BLOCK = structure(
    "Block", rows=INTEGER, postings=INTEGER, width=INTEGER, first_id=INTEGER, id_offsets=ADDRESS,
    wide_ids=INTEGER, row_starts=ADDRESS, row_neurons=ADDRESS, row_values=ADDRESS,
    row_norms=ADDRESS, norm_scale=REAL, smallest_norm=REAL, mean_norm=REAL, run_starts=ADDRESS,
    run_rows=ADDRESS, run_codes=ADDRESS, scales=ADDRESS, alive=ADDRESS, run_sums=ADDRESS,
    row_sums=ADDRESS, run_checked=ADDRESS, row_checked=ADDRESS,
)  # fmt: skip
SUMMARY = structure(
    "Summary", blocks=INTEGER, heads=INTEGER, places=ADDRESS, bounds=ADDRESS, counts=ADDRESS,
    maxima=ADDRESS, histogram=ADDRESS,
)  # fmt: skip
QUERY = structure(
    "Query", k=INTEGER, width=INTEGER, terms=INTEGER, neurons=BYTES, weights=BYTES,
    conditions=INTEGER, bound_neurons=BYTES, operators=BYTES, bounds=BYTES,
    needs_positive=INTEGER, has_floor=INTEGER, floor=REAL, cosine=INTEGER, query_norm=REAL,
    allowed=ADDRESS, share=REAL,
)  # fmt: skip
REPORT = structure("Report", postings=INTEGER, completed=INTEGER, blocks=INTEGER, damaged=INTEGER)
HIT = structure("Hit", id=INTEGER, score=REAL, place=INTEGER)
SCRATCH = structure("Scratch", sums=ADDRESS, weight_of=ADDRESS, noted=ADDRESS)


def address(array: NDArray[Any] | None) -> int | None:
    """Return where an array lies, None for none."""
    return None if array is None else array.__array_interface__["data"][0]


class Held:
    """A C structure together with the arrays it points into."""

    def __init__(self, kind: type[ctypes.Structure], keep: Sequence[Any], **fields: Any) -> None:
        self.structure, self.keep = kind(**fields), keep
        self.address = ctypes.addressof(self.structure)


def pointers(blocks: Sequence[Held]) -> ctypes.Array[ctypes.c_void_p]:
    """Return a C array of pointers to blocks, which must be kept alive elsewhere."""
    return (ctypes.c_void_p * len(blocks))(*(block.address for block in blocks))


def held_block(block: Block) -> Held:
    """Return a block as the kernel sees it."""
    runs, sums = block.runs, block.sums
    scales = None if runs is None else runs.scales
    return Held(
        BLOCK,
        (block, scales),
        rows=len(block),
        postings=len(block.neurons),
        width=block.width,
        first_id=block.first_id,
        id_offsets=address(block.offsets),
        wide_ids=block.offsets.dtype.itemsize == 8,
        row_starts=address(block.starts),
        row_neurons=address(block.neurons),
        row_values=address(block.activations),
        row_norms=address(block.norm_codes),
        norm_scale=block.norm_scale,
        smallest_norm=block.smallest_norm,
        mean_norm=block.mean_norm,
        run_starts=address(runs.starts if runs else None),
        run_rows=address(runs.rows if runs else None),
        run_codes=address(runs.codes if runs else None),
        scales=address(scales),
        alive=address(block.alive),
        run_sums=address(sums.runs if sums else None),
        row_sums=address(sums.rows if sums else None),
        run_checked=address(sums.runs_checked if sums else None),
        row_checked=address(sums.rows_checked if sums else None),
    )


def held_summary(summary: Summary) -> Held:
    """Return a summary as the kernel sees it."""
    return Held(
        SUMMARY,
        (summary,),
        blocks=summary.blocks,
        heads=HEADS,
        places=address(summary.places),
        bounds=address(summary.bounds),
        counts=address(summary.counts),
        maxima=address(summary.maxima),
        histogram=address(summary.histogram),
    )


def packed_query(
    question: Question, width: int, k: int, bitmaps: NDArray[Any] | None = None
) -> ctypes.Structure:
    """Return a question as the kernel sees it; ``bitmaps`` holds one address a block.

    Positional and as bytes: a query of microseconds has none to spare for array interfaces.
    """
    conditions, n = question.conditions, len(question.neurons)
    return QUERY(
        k,
        width,
        n,
        question.neurons.tobytes(),
        question.weights.tobytes(),
        len(conditions),
        struct.pack(f"{len(conditions)}I", *(int(c.neuron) for c in conditions)),
        bytes(OPERATORS[c.op] for c in conditions),
        struct.pack(f"{len(conditions)}d", *(c.threshold for c in conditions)),
        question.needs_positive,
        question.floor is not None,
        question.floor or 0.0,
        question.query_norm is not None,
        question.query_norm or 1.0,
        address(bitmaps),
        SHARE,
    )


class Kernel:
    """The functions of one shared library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._search, self._score = library.memstore_search, library.memstore_score
        for function in (self._search, self._score):
            function.restype = ctypes.c_int64
        pointer = ctypes.POINTER
        self._search.argtypes = [
            ADDRESS, INTEGER, pointer(SUMMARY), pointer(QUERY), pointer(SCRATCH), pointer(HIT),
            ADDRESS, pointer(REPORT),
        ]  # fmt: skip
        self._score.argtypes = [
            pointer(BLOCK), pointer(QUERY), pointer(SCRATCH), ADDRESS, INTEGER, ADDRESS, ADDRESS,
        ]  # fmt: skip
        self._lent = threading.local()

    def _scratch(self, width: int) -> Held:
        """Return this thread's scratch arrays, all zero between calls."""
        found: Held | None = getattr(self._lent, str(width), None)
        if found is None:
            sums, weights = np.zeros(BLOCK_ROWS, np.float32), np.zeros(width)
            noted = np.empty(BLOCK_ROWS + 1, np.uint16)
            found = Held(
                SCRATCH,
                (sums, weights, noted),
                sums=address(sums),
                weight_of=address(weights),
                noted=address(noted),
            )
            setattr(self._lent, str(width), found)
        return found

    def search(
        self,
        addresses: ctypes.Array[ctypes.c_void_p],
        summary: Held | None,
        question: Question,
        width: int,
        k: int,
        bitmaps: NDArray[np.uint64] | None,
    ) -> tuple[Ranked, Float64 | None, tuple[int, int, int]]:
        """Return the k best in order, the share of each term, and (postings, rows, blocks) read.

        ``addresses`` and ``bitmaps`` hold one pointer a block. Shares, (hits, terms), are weight x
        activation; None where they would be too many, or for a cosine.
        """
        query, report = packed_query(question, width, k, bitmaps), REPORT()
        hits, terms, shares = (HIT * k)(), len(question.neurons), None
        if question.query_norm is None and k * terms <= MANY_SHARES:
            shares = (ctypes.c_double * (k * terms))()
        found = self._search(
            addresses,
            len(addresses),
            None if summary is None else summary.structure,
            query,
            self._scratch(width).structure,
            hits,
            shares,
            report,
        )
        require(found, report.damaged)
        records = (
            np.frombuffer(memoryview(hits).cast("B"), RECORD, found)
            if found
            else np.empty(0, RECORD)
        )
        ranked = Ranked(records["id"], records["score"])
        parts = (
            None
            if shares is None
            else np.frombuffer(memoryview(shares).cast("B")).reshape(k, terms)[:found]
        )
        return ranked, parts, (report.postings, report.completed, report.blocks)

    def score(
        self, block: Held, question: Question, width: int, rows: NDArray[np.uint32] | None, n: int
    ) -> tuple[Float64, NDArray[np.bool_]]:
        """Return (scores, which are candidates) of these rows of a block, or of its first n."""
        query = packed_query(question, width, 0)
        scores, passing = np.zeros(n), np.zeros(n, dtype=bool)
        status = self._score(
            block.structure,
            query,
            self._scratch(width).structure,
            address(rows),
            n,
            address(scores),
            address(passing),
        )
        require(status, 0)
        return scores, passing


def require(status: int, block: int) -> None:
    """Raise what a negative status means."""
    if status == DAMAGED:
        raise IndexDamaged(f"block {block} of the neuron index does not match its checksums")
    if status == NO_MEMORY:
        raise MemoryError("the neuron search ran out of memory")


@cache
def load() -> Kernel | None:
    """Return the kernel, or None where there is none to load."""
    chosen = os.environ.get("MEMSTORE_KERNEL")
    if chosen == "off":
        return None
    path = Path(chosen) if chosen else Path(__file__).with_name("_kernel.so")
    if not path.exists():
        log.info("no kernel at %s: neuron queries run in numpy", path)
        return None
    try:
        library = ctypes.CDLL(str(path))
        version = library.memstore_kernel_version
        version.restype = ctypes.c_int64
        if version() != VERSION:
            raise OSError(f"it is of version {version()}, not {VERSION}")
    except (OSError, AttributeError) as error:
        log.warning("%s cannot be used (%s): neuron queries run in numpy", path, error)
        return None
    return Kernel(library)
