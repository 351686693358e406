"""A whole store at 100 thousand, one and ten million memories: how each figure grows.

    python benchmarks/scale.py --vectors VECTORS.npy --texts TEXTS.json --folder BIG

Real vectors and texts (index.py says which files); past their end they go round again, the vectors
with noise of 0.001. A store is filled in this process and asked in another that opens it anew, with
warm files. Neurons are drawn from traces, as often as they fire. Medians of three rounds a query,
then percentiles over 100 queries; exponents are log(f2 / f1) / log(n2 / n1). Ten million memories
take 18 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memstore import layout
from memstore.store import MemoryStore  # by its own name: imports are not what opening takes
from memstore.types import Float32, Int64

PAGE, HELD_OUT, ASKED, ROUNDS, K = 100_000, 1_000, 100, 3, 10


def pages(given: Float32, n: int) -> Iterator[tuple[int, Float32]]:
    """Yield (number of the first row, unit vectors) by the page, the same every time."""
    own = len(given) - HELD_OUT
    for first in range(0, n, PAGE):
        rows = np.arange(first, min(first + PAGE, n))
        page = np.array(given[rows % own])
        if rows[-1] >= own:
            noise = np.random.default_rng(first).standard_normal(page.shape, dtype=np.float32)
            page += np.where(rows >= own, np.float32(1e-3), np.float32(0))[:, None] * noise
            page /= np.linalg.norm(page, axis=1, keepdims=True)
        yield first, page


def fill(path: Path, given: Float32, texts: Sequence[str], n: int) -> dict[str, float]:
    """Fill a store; returns rows a second until both indexes are saved, and bytes a row."""
    store, seconds = MemoryStore.open(path), 0.0
    for first, vectors in pages(given, n):
        rows = [{"text": texts[i % (len(given) - HELD_OUT)]} for i in range(first, first + PAGE)]
        rows = rows[: len(vectors)]
        began = time.perf_counter()
        store.insert_many(rows, vectors=vectors)
        seconds += time.perf_counter() - began
        print(f"{first + len(rows):,} rows in {seconds:,.0f} s", end="\r", file=sys.stderr)
    began = time.perf_counter()
    store.close()
    seconds += time.perf_counter() - began
    index = sum(file.stat().st_size for file in layout.index_folder(path).iterdir())
    return {
        "insert rows/s": n / seconds,
        "SQLite bytes/row": path.stat().st_size / n,
        "index bytes/row": index / n,
        "peak MB, writing": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def exact(given: Float32, n: int, asked: Float32) -> Int64:
    """Return the (queries, K) nearest rows by brute force."""
    rows = np.empty((len(asked), 0), dtype=np.int64)
    scores = np.empty((len(asked), 0), dtype=np.float32)
    for first, vectors in pages(given, n):
        own = asked @ vectors.T
        best = np.argpartition(-own, K, axis=1)[:, :K]
        rows = np.hstack([rows, best + first])
        scores = np.hstack([scores, np.take_along_axis(own, best, axis=1)])
        kept = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        rows = np.take_along_axis(rows, kept, axis=1)
        scores = np.take_along_axis(scores, kept, axis=1)
    return rows


def measured(queries: Sequence[Callable[[], Any]]) -> tuple[float, float]:
    """Return the 50th and 99th percentile, ms, of what queries take."""
    taken = np.empty((ROUNDS, len(queries)))
    for round_ in range(ROUNDS):
        for number, query in enumerate(queries):
            began = time.perf_counter()
            query()
            taken[round_, number] = 1e3 * (time.perf_counter() - began)
    own = np.median(taken, axis=0)
    return float(np.percentile(own, 50)), float(np.percentile(own, 99))


def ask(path: Path, asked: Float32) -> dict[str, Any]:
    """Return the figures of a reader that opens a store and asks it everything."""
    began = time.perf_counter()
    store = MemoryStore.open(path, mode="r")
    store.top(1)
    figures: dict[str, Any] = {"open, first query ms": 1e3 * (time.perf_counter() - began)}
    dice, n = np.random.default_rng(5), len(store)
    drawn = dice.integers(1, n + 1, ASKED)
    whole: list[dict[int | str, float]] = [
        {n: a for n, a in store.trace(int(i)).to_dict().items()}  # noqa: C416 - for its type
        for i in drawn
    ]

    def composite(positive: int, negative: int) -> dict[int | str, float]:
        drawn: dict[int | str, float] = {}
        while len(drawn) < positive + negative:
            neurons = list(store.trace(int(dice.integers(1, n + 1))).to_dict())
            drawn.setdefault(int(dice.choice(neurons)), 1.0 if len(drawn) < positive else -1.0)
        return drawn

    kinds = {
        "one neuron": [composite(1, 0) for _ in range(ASKED)],
        "+a -b": [composite(1, 1) for _ in range(ASKED)],
        "3 positive, 1 negative": [composite(3, 1) for _ in range(ASKED)],
        "whole trace": whole,
    }
    for name, each in kinds.items():
        for query in each:
            store.composite(query, K)
        for fetch, more in ((True, ""), (False, ", ids and scores")):
            asking = [lambda q=query, f=fetch: store.composite(q, K, fetch=f) for query in each]
            figures[f"{name}{more} p50 ms"], figures[f"{name}{more} p99 ms"] = measured(asking)
    figures["found"] = [store.search_vector(vector, K).ids for vector in asked]
    searching = [lambda vector=vector: store.search_vector(vector, K) for vector in asked]
    figures["dense p50 ms"], figures["dense p99 ms"] = measured(searching)
    status = Path("/proc/self/status").read_text()
    anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    figures["MB beyond mapped pages, reading"] = int(anonymous.split()[1]) / 1024
    store.close()
    return figures


def measure(given: Float32, texts: Sequence[str], n: int, folder: Path) -> dict[str, float]:
    """Return all figures at one size."""
    path, vectors = folder / "store.db", folder / "asked.npy"
    asked = np.array(given[-HELD_OUT:][:ASKED])
    np.save(vectors, asked)
    figures = fill(path, given, texts, n)
    right = exact(given, n, asked)
    command = [sys.executable, __file__, "--ask", str(path), "--vectors", str(vectors)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    found = answer.pop("found")
    both = zip(right.tolist(), found, strict=True)
    shares = [len(set(rows) & {i - 1 for i in ids}) / K for rows, ids in both]
    figures |= answer
    figures["dense recall@10"] = float(np.mean(shares))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--sizes", default="0.1,1,10", help="millions of memories")
    parser.add_argument("--folder", type=Path, help="where stores are made")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    given = np.load(arguments.vectors, mmap_mode="r")
    if arguments.ask:
        print(json.dumps(ask(arguments.ask, np.array(given))))
        return
    texts = json.loads(arguments.texts.read_text("utf-8"))
    sizes = [round(float(size) * 1e6) for size in arguments.sizes.split(",")]
    columns: list[dict[str, float]] = []
    for n in sizes:
        if arguments.folder:
            arguments.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            columns.append(measure(given, texts, n, Path(folder)))
        print(f"{n:,} memories: {columns[-1]}", file=sys.stderr, flush=True)
    print("| |", " | ".join(f"{n:,}" for n in sizes), "| exponents |")
    print("|---|" + "---|" * (len(sizes) + 1))
    for name in columns[0]:
        row = [column[name] for column in columns]
        spans = zip(sizes, row, sizes[1:], row[1:], strict=False)
        grown = [f"{math.log(f / e) / math.log(n / m):.2f}" for m, e, n, f in spans]
        cells = " | ".join(f"{value:,.3f}" for value in row)
        print(f"| {name} | {cells} | {', '.join(grown)} |")


if __name__ == "__main__":
    main()
