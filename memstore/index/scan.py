"""The kernel's two functions in numpy: the same files, the same answers, no compiler.

Bounds decide what is completed and completion decides the answer, as in kernel.c. Scores are sums
in float64 in ascending order of neurons (``bincount`` adds in order), so they equal the kernel's
bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memstore.core.ranking import NOTHING, Ranked, best, join
from memstore.core.traces import select
from memstore.errors import IndexDamaged
from memstore.index.blocks import BLOCK_ROWS, CHUNK_ROWS, Block, Runs, Sums
from memstore.index.question import Question
from memstore.types import Float64, Int64, Traces

Mask = NDArray[np.bool_]
#: More than float64 can lose by adding up the bounds of one row.
SLACK = 1e-9
FACTOR = 0x9E3779B97F4A7C15


def search(
    blocks: Sequence[Block], question: Question, k: int, bitmaps: Sequence[NDArray[np.uint8] | None]
) -> tuple[Ranked, tuple[int, int, int]]:
    """Return the k best in order, and (postings, rows, blocks) read."""
    found, postings, completed = NOTHING, 0, 0
    for block, bitmap in zip(blocks, bitmaps, strict=True):
        least = -np.inf if question.floor is None else question.floor
        if len(found) == k:
            least = max(least, float(found.scores[-1]))
        rows, read = candidates(block, question, least)
        if bitmap is not None:
            rows = rows[np.unpackbits(bitmap, count=len(block), bitorder="little")[rows] > 0]
        scores, passing = score(block, question, rows)
        part = Ranked(block.ids[rows[passing]], scores[passing])
        found = best(join([found, part]), k)
        postings, completed = postings + read, completed + len(rows)
    return found, (postings, completed, len(blocks))


def candidates(block: Block, question: Question, least: float) -> tuple[NDArray[np.int64], int]:
    """Return the rows that could score at least ``least``, and how many postings that took."""
    if block.runs is None:
        return np.arange(len(block)), 0
    runs, neurons = block.runs, question.positive
    weights = question.weights[question.weights > 0]
    cutoff = 0.0
    if len(neurons) == 1 and question.query_norm is None:
        cutoff = least / weights[0]
    parts = []
    for neuron, weight in zip(neurons.tolist(), weights.tolist(), strict=True):
        check_run(block, runs, neuron)
        rows, bounds = runs.run(neuron, cutoff)
        parts.append((rows, weight * lifted(question, bounds)))
    rows = np.concatenate([rows for rows, _ in parts])
    sums = np.bincount(rows, np.concatenate([b for _, b in parts]), minlength=len(block))
    if len(sums) > len(block):
        raise IndexDamaged("a run names a row past the end of its block")
    if least == -np.inf:
        near = np.ones(len(block), dtype=bool)
    elif question.query_norm is None:
        near = sums * (1 + SLACK) >= least
    else:
        norms = block.norm_codes * (block.norm_scale * question.query_norm)
        near = sums * (1 + SLACK) >= least * norms
    return np.flatnonzero((sums > 0) & near), len(rows)


def score(block: Block, question: Question, rows: NDArray[np.integer]) -> tuple[Float64, Mask]:
    """Return (scores, which are candidates) of these rows of a block."""
    check_rows(block, rows)
    chosen = select(block.traces, rows.astype(np.int64))
    if len(chosen.neurons) and int(chosen.neurons.max()) >= block.width:
        raise IndexDamaged("a row names a neuron that does not exist")
    place = np.repeat(np.arange(len(chosen)), np.diff(chosen.indptr))
    values = chosen.activations.astype(np.float64)
    passing = np.ones(len(chosen), dtype=bool)
    for condition in question.conditions:
        at = chosen.neurons == condition.neuron
        column = np.zeros(len(chosen))
        column[place[at]] = values[at]
        passing &= condition.holds(column)
    if block.alive is not None:
        alive = np.unpackbits(block.alive, count=len(block), bitorder="little")
        passing &= alive[rows] > 0
    scores = sums_of(question, chosen, place, values, passing)
    if question.floor is not None:
        passing &= scores > question.floor
    return scores, passing


def sums_of(
    question: Question, chosen: Traces, place: NDArray[np.int64], values: Float64, passing: Mask
) -> Float64:
    """Return the score of each row; takes rows that no positive weight reaches out of passing."""
    weights = np.zeros(chosen.width)
    weights[question.neurons] = question.weights
    own = weights[chosen.neurons]
    sums = np.bincount(place, own * lifted(question, values), minlength=len(chosen))
    if question.needs_positive:
        passing &= np.bincount(place, own > 0, minlength=len(chosen)) > 0
    if question.query_norm is None:
        return np.asarray(sums, dtype=np.float64)
    norms = np.sqrt(np.bincount(place, values, minlength=len(chosen)))
    norms *= question.query_norm
    return np.divide(sums, norms, out=np.zeros(len(chosen)), where=norms > 0)


def lifted(question: Question, values: Float64) -> Float64:
    """Return what the weights of a question are multiplied by."""
    return values if question.query_norm is None else np.sqrt(values)


def touched(block: Block, question: Question) -> NDArray[np.uint32]:
    """Return the rows in which a positively weighted neuron fires, or all where that is dear."""
    if block.runs is None:
        return np.arange(len(block), dtype=np.uint32)
    mask = np.zeros(BLOCK_ROWS, dtype=bool)
    for neuron in question.positive.tolist():
        check_run(block, block.runs, neuron)
        mask[block.runs.run(neuron)[0]] = True
    return np.flatnonzero(mask[: len(block)]).astype(np.uint32)


def reached(block: Block, neuron: int, bound: float) -> NDArray[np.uint32]:
    """Return the rows whose activation of a neuron may reach a bound."""
    if block.runs is None:
        return np.arange(len(block), dtype=np.uint32)
    check_run(block, block.runs, neuron)
    return np.sort(block.runs.run(neuron, bound)[0]).astype(np.uint32)


def together(block: Block, neuron: int) -> Int64:
    """Return for how many live rows each neuron fires together with one."""
    rows = reached(block, neuron, 0.0)
    if block.alive is not None:
        rows = np.intersect1d(rows, block.living_rows)
    own = block.read(rows.astype(np.int64))
    lengths = np.diff(own.indptr)
    fires = np.zeros(len(own), dtype=bool)
    fires[np.repeat(np.arange(len(own)), lengths)[own.neurons == neuron]] = True
    return np.bincount(own.neurons[np.repeat(fires, lengths)], minlength=block.width)


# --- checksums ---------------------------------------------------------------------------------


def sum_of(data: NDArray[np.generic]) -> int:
    """Return the sum over 8-byte words, zero-padded, of word x odd factor of its place, mod 2^64.

    Any change to one word changes it.
    """
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    words = np.zeros(-(-len(raw) // 8) * 8, dtype=np.uint8)
    words[: len(raw)] = raw
    places = 2 * np.arange(len(words) // 8, dtype=np.uint64) + np.uint64(1)
    with np.errstate(over="ignore"):
        return int(np.sum(words.view("<u8") * (places * np.uint64(FACTOR)), dtype=np.uint64))


def run_sum(runs: Runs, neuron: int) -> int:
    """Return the checksum of one run."""
    span = slice(int(runs.starts[neuron]), int(runs.starts[neuron + 1]))
    return (sum_of(runs.rows[span]) + 31 * sum_of(runs.codes[span])) % 2**64


def chunk_sum(block: Block, chunk: int) -> int:
    """Return the checksum of one chunk of rows."""
    first, last = chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, len(block))
    span = slice(int(block.starts[first]), int(block.starts[last]))
    return (
        sum_of(block.starts[first : last + 1])
        + 31 * sum_of(block.neurons[span])
        + 961 * sum_of(block.activations[span])
        + 29791 * sum_of(block.norm_codes[first:last])
    ) % 2**64


def sums(block: Block) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the checksums of all runs and of all chunks of rows, for a file."""
    chunks = range(-(-len(block) // CHUNK_ROWS))
    runs = block.runs
    of_runs = [] if runs is None else [run_sum(runs, n) for n in range(block.width)]
    of_rows = [chunk_sum(block, chunk) for chunk in chunks]
    return np.array(of_runs, dtype=np.uint64), np.array(of_rows, dtype=np.uint64)


def check_run(block: Block, runs: Runs, neuron: int) -> None:
    """Raise ``IndexDamaged`` where a run read for the first time is not what was written."""
    checks: Sums | None = block.sums
    if checks is None or checks.runs_checked[neuron]:
        return
    if run_sum(runs, neuron) != int(checks.runs[neuron]):
        raise IndexDamaged(f"the run of neuron {neuron} does not match its checksum")
    checks.runs_checked[neuron] = 1


def check_rows(block: Block, rows: NDArray[np.integer]) -> None:
    """Raise ``IndexDamaged`` where rows read for the first time are not what was written."""
    checks = block.sums
    if checks is None:
        return
    for chunk in np.unique(np.asarray(rows, dtype=np.int64) // CHUNK_ROWS).tolist():
        if checks.rows_checked[chunk]:
            continue
        first, last = chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, len(block))
        edges = block.starts[first : last + 1]
        sound = bool(np.all(edges[1:] >= edges[:-1])) and int(edges[-1]) <= len(block.neurons)
        if not sound or chunk_sum(block, chunk) != int(checks.rows[chunk]):
            raise IndexDamaged(f"rows from {first} do not match their checksum")
        checks.rows_checked[chunk] = 1
