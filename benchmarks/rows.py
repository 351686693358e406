"""What the benchmarks store and ask: rows real or made, queries, and their exact answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from engine import BOUNDS, Batch, Engine, Float32, Found
from numpy.typing import NDArray

from memstore import layout
from memstore.core.traces import concatenate
from memstore.sae.encode import SAE
from memstore.types import Float64, Traces

K, HELD_OUT, PAGE = 10, 1000, 50_000
ZIPF_WIDTH, ZIPF_FIRES = 4096, 32
Postings = list[tuple[NDArray[np.int32], NDArray[np.float16]]]


@dataclass(frozen=True)
class Data:
    """All rows, and the vectors that only ask. ``texts`` go round where there are fewer."""

    traces: Traces
    shade: NDArray[np.uint8]
    texts: Sequence[str]
    vectors: Float32 | None
    asking: Float32
    note: str

    @property
    def dimension(self) -> int:
        """Length of a vector, 0 where there is none."""
        return int(self.asking.shape[1])

    def batches(self) -> Iterator[Batch]:
        """Yield the rows as engines are fed."""
        n = len(self.shade)
        for a, b in pairwise([*range(0, n, PAGE), n]):
            vectors = None if self.vectors is None else np.array(self.vectors[a:b])
            indptr = self.traces.indptr[a : b + 1]
            span = slice(int(indptr[0]), int(indptr[-1]))
            yield Batch(
                a,
                [self.texts[row % len(self.texts)] for row in range(a, b)],
                vectors,
                indptr - indptr[0],
                self.traces.neurons[span].astype(np.uint16),
                self.traces.activations[span],
                self.shade[a:b],
            )


def shades(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 100, n, dtype=np.uint8)


def real(n: int, given: Float32, texts: Sequence[str], folder: Path) -> Data:
    """Return n rows of given vectors; past their end they go round again, with a little noise."""
    own, asking = given[:-HELD_OUT], np.array(given[-HELD_OUT:])
    vectors, note = own[:n], f"{n:,} real vectors"
    rng, encode, pages = np.random.default_rng(1), SAE.load(layout.SAE_FOLDER).encode, []
    if n > len(own):
        note = f"{n:,} vectors: {len(own):,} real ones, then those again with noise of 0.001"
        file = folder / "vectors.npy"
        vectors = np.lib.format.open_memmap(file, "w+", np.float32, (n, own.shape[1]))
    for start in range(0, n, PAGE):
        rows = np.arange(start, min(start + PAGE, n))
        page = np.array(own[rows % len(own)])
        again = rows >= len(own)
        if again.any():
            page[again] += rng.normal(0.0, 1e-3, page[again].shape).astype(np.float32)
            page[again] /= np.linalg.norm(page[again], axis=1, keepdims=True)
        if n > len(own):
            vectors[rows] = page
        pages.append(encode(page))
        say(f"traces of {rows[-1] + 1:,} rows", end="\r")
    return Data(concatenate(pages), shades(n), texts[: len(own)], vectors, asking, note)


def zipf(n: int) -> Data:
    """Return n traces of independent neurons, the r-th drawn as often as 1 / (r + 10)."""
    rng, parts = np.random.default_rng(1), []
    totals = np.cumsum(1.0 / (np.arange(ZIPF_WIDTH) + 10))
    for start in range(0, n, PAGE):
        # The first 32 different ones of many draws are a weighted draw without replacement.
        draws = np.searchsorted(totals, totals[-1] * rng.random((min(PAGE, n - start), 128)))
        order = np.argsort(draws, axis=1, kind="stable")
        ascending = np.take_along_axis(draws, order, axis=1)
        fresh = np.ones(draws.shape, dtype=bool)
        fresh[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
        first = np.zeros(draws.shape, dtype=bool)
        np.put_along_axis(first, order, fresh, axis=1)
        kept = first & (np.cumsum(first, axis=1) <= ZIPF_FIRES)
        parts.append(np.sort(draws[kept].reshape(-1, ZIPF_FIRES), axis=1).astype(np.uint16))
    neurons = np.concatenate(parts).reshape(-1)
    # Far down an exponential, float16 rounds to 0; a neuron that fires has fired.
    activations = np.maximum(rng.exponential(0.1, len(neurons)), 1e-4).astype(np.float16)
    indptr = np.arange(n + 1, dtype=np.int64) * ZIPF_FIRES
    traces = Traces(np.arange(n), indptr, neurons, activations, ZIPF_WIDTH)
    nothing, note = np.empty((0, 0), dtype=np.float32), f"{n:,} traces of independent neurons"
    return Data(traces, shades(n), ["a memory"], None, nothing, note)


# --- questions and their exact answers ---------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One query and the scores of its exact answer, best first."""

    kind: str
    asked: dict[int, float] | Float32
    scores: NDArray[np.floating]

    def ask(self, engine: Engine) -> Found:
        """Return the engine's answer."""
        if isinstance(self.asked, dict):
            return engine.sparse(self.asked, K)
        return engine.dense(self.asked, K, BOUNDS[self.kind])

    def recall(self, found: Found, data: Data) -> float:
        """Return how right an answer is, from 0 to 1. Rows of equal score serve alike."""
        if isinstance(self.asked, dict):
            scores = np.array([score for _, score in found])
            same = len(scores) == len(self.scores)
            return float(same and np.allclose(scores, self.scores, rtol=1e-3, atol=0))
        rows = np.unique(np.array([row for row, _ in found], dtype=np.int64))
        if not len(self.scores) or not len(rows) or data.vectors is None:
            return float(not len(self.scores))
        bound = BOUNDS[self.kind]
        passing = rows if bound is None else rows[data.shade[rows] < bound]
        near = data.vectors[passing] @ self.asked >= self.scores[-1] - 1e-6
        return float(np.count_nonzero(near) / len(self.scores))


def questions(data: Data, count: int) -> dict[str, list[Question]]:
    """Return seeded queries of every kind the data allows."""
    rng = np.random.default_rng(3)
    counts = np.bincount(data.traces.neurons, minlength=data.traces.width)
    frequency = counts / counts.sum()
    asked: dict[str, list[dict[int, float]]] = {"one": [], "1+1-": [], "3+1-": [], "trace": []}
    for _ in range(count):
        for kind, signs in (("one", [1.0]), ("1+1-", [1.0, -1.0]), ("3+1-", [1.0] * 3 + [-1.0])):
            drawn = rng.choice(len(frequency), len(signs), replace=False, p=frequency)
            asked[kind].append(dict(zip(drawn.tolist(), signs, strict=True)))
        asked["trace"].append(data.traces[int(rng.integers(len(data.shade)))].to_dict())
    index = inverted(data.traces)
    result = {
        kind: [Question(kind, weights, exact_sparse(index, weights)) for weights in each]
        for kind, each in asked.items()
    }
    if data.vectors is not None:
        vectors = data.asking[rng.choice(len(data.asking), count, replace=False)]
        for kind, bound in BOUNDS.items():
            scores = exact_dense(data.vectors, data.shade, vectors, bound)
            result[kind] = [
                Question(kind, vector, best) for vector, best in zip(vectors, scores, strict=True)
            ]
    return result


def inverted(traces: Traces) -> Postings:
    """Return (rows, activations) of each neuron."""
    order = np.argsort(traces.neurons, kind="stable")
    rows = np.repeat(np.arange(len(traces), dtype=np.int32), np.diff(traces.indptr))[order]
    ends = np.cumsum(np.bincount(traces.neurons, minlength=traces.width))[:-1]
    values = np.split(traces.activations[order], ends)
    return list(zip(np.split(rows, ends), values, strict=True))


def exact_sparse(index: Postings, weights: Mapping[int, float]) -> Float64:
    """Return the best sums of weight x activation above 0, in float64, all rows counted."""
    rows = np.concatenate([index[neuron][0] for neuron in weights])
    parts = [weight * index[n][1].astype(np.float64) for n, weight in weights.items()]
    sums = np.bincount(rows, np.concatenate(parts))
    return np.asarray(-np.sort(-sums[sums > 0])[:K], dtype=np.float64)


def exact_dense(
    vectors: Float32, shade: NDArray[np.uint8], asking: Float32, bound: int | None
) -> Float32:
    """Return the (queries, K) best products by brute force, fewer where fewer rows pass."""
    best = np.empty((len(asking), 0), dtype=np.float32)
    for start in range(0, len(shade), PAGE):
        page = np.asarray(vectors[start : start + PAGE])
        if bound is not None:
            page = page[shade[start : start + PAGE] < bound]
        best = np.hstack([best, asking @ page.T])
        if best.shape[1] > K:
            best = np.partition(best, -K, axis=1)[:, -K:]
    return -np.sort(-best, axis=1)


def say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)
