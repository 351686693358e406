"""memstore beside its peers: the same rows, the same queries, one process, every round in turn.

    python benchmarks/index.py --n 1000000 --data real --vectors VECTORS.npy --texts TEXTS.json
    python benchmarks/index.py --data zipf --sizes 100000,1000000 --peers qdrant-edge,scipy

VECTORS: (n0, 384) float32 unit vectors of the shipped embedder; the last 1,000 are only asked for.
TEXTS: a JSON list of their texts. Needs the extra `bench`; a peer that is missing is named.
A query's time is its median over the rounds; p50 and p99 are over the queries of a kind. Recall is
the share of the exact 10 found (traces: of queries whose scores are the exact ones). Files are
warm in the page cache. Peak memory is the whole process's until then, so it only ever grows.
Wants a machine of its own: threads that wait for each other (FAISS, BLAS) suffer most from company.
"""
# ruff: noqa: D102 - what the methods of an engine do is said once, in the contract

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import BOUNDS, DENSE, PEERS, SPARSE, Batch, Engine, Float32, Found, MissingPeer

from memstore import MemoryStore, layout
from memstore.core.expression import NeuronQuery
from memstore.core.traces import concatenate
from memstore.hits import Hits
from memstore.index import storing
from memstore.index.postings import NeuronIndex
from memstore.sae.encode import SAE
from memstore.types import Float64, Traces

K, HELD_OUT, PAGE = 10, 1000, 10_000
ZIPF_WIDTH, ZIPF_FIRES = 4096, 32
Postings = list[tuple[NDArray[np.int32], NDArray[np.float16]]]
#: Jobs that ran when we began; other people's, therefore.
LOAD = os.getloadavg()[0]
FIGURES = ("insert_per_s", "bytes_per_row", "reopen_ms", "peak_rss_mb")
PACKAGES = (
    *("memstore-sae", "numpy", "qdrant-edge-py", "scipy", "faiss-cpu"),
    *("sqlite-vec", "lancedb", "chromadb"),
)


# --- engines ---------------------------------------------------------------------------------


class MemstoreEngine(Engine):
    """The product through its public door; a query here also fetches texts and reasons."""

    name, kinds, holds = "memstore", SPARSE, "texts, vectors, traces"

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        self.store = MemoryStore.open(folder / "store.db")
        self.near = getattr(self.store, "search_vector", None)
        if self.near is not None:
            self.kinds = SPARSE | DENSE

    def insert(self, batch: Batch) -> None:
        rows = [
            {"text": text, "metadata": {"shade": shade}}
            for text, shade in zip(batch.texts, batch.shade.tolist(), strict=True)
        ]
        self.store.insert_many(rows, vectors=batch.vectors)

    def finish(self) -> None:
        self.store.optimize()

    def close(self) -> None:
        self.store.close()

    def sparse(self, weights: Mapping[int, float], k: int) -> Found:
        query: Any = dict(weights)
        return pairs(self.store.composite(query, k))

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        if self.near is None:
            raise NotImplementedError("search_vector")
        where = None if below is None else {"shade": {"$lt": below}}
        return pairs(self.near(vector, k, where=where))


def pairs(hits: Hits) -> Found:
    """Return (row, score), which is all that peers answer with; texts and shares are read too."""
    return [(i - 1, score) for i, score in zip(hits.ids, hits.scores, strict=True)]


class MemstoreIndexEngine(Engine):
    """The neuron index by itself, for data that no encoder made (--data zipf)."""

    name, kinds, holds = "memstore-index", SPARSE, "traces"

    def __init__(self, folder: Path, width: int, dimension: int) -> None:
        self.folder, self.token = folder, folder / "token"
        self.pages: list[Traces] = []
        self.index = NeuronIndex(width)
        if self.token.exists():
            stamp = storing.Stamp(self.token.read_text(), "zipf", 1)
            self.index = storing.load_neurons(folder, storing.read_manifest(folder, stamp))

    def insert(self, batch: Batch) -> None:
        ids = batch.first + 1 + np.arange(len(batch.indptr) - 1, dtype=np.int64)
        width = self.index.width
        self.pages.append(Traces(ids, batch.indptr, batch.neurons, batch.activations, width))

    def finish(self) -> None:
        index = self.index.apply([], self.pages, 1).compacted(everything=True)
        self.pages = []
        self.index = storing.save_blocks(self.folder, index)
        stamp = storing.Stamp("zipf", "zipf", 1)
        storing.save_manifest(self.folder, self.index, stamp, {"vectors": None})
        self.token.write_text(stamp.token)

    def close(self) -> None:
        self.index = NeuronIndex(self.index.width)

    def sparse(self, weights: Mapping[int, float], k: int) -> Found:
        query = NeuronQuery(tuple(sorted(weights.items())))
        ranked = self.index.composite(query, k).ranked
        return [(i - 1, score) for i, score in ranked.pairs()]

    def dense(self, vector: Float32, k: int, below: int | None) -> Found:
        raise NotImplementedError("traces alone have no vectors")


OURS: dict[str, type[Engine]] = {"real": MemstoreEngine, "zipf": MemstoreIndexEngine}


# --- data ------------------------------------------------------------------------------------


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


# --- measuring ---------------------------------------------------------------------------------


def build(make: type[Engine], folder: Path, data: Data, first: Question) -> tuple[Engine, Any]:
    """Return an engine that holds the data, opened anew, and what that took."""
    folder.mkdir()
    engine, seconds = make(folder, data.traces.width, data.dimension), 0.0
    for batch in data.batches():
        began = time.perf_counter()
        engine.insert(batch)
        seconds += time.perf_counter() - began
        say(f"{engine.name}: {batch.numbers[-1] + 1:,} rows in {seconds:,.0f} s", end="\r")
    began = time.perf_counter()
    engine.finish()
    seconds += time.perf_counter() - began
    engine.close()
    # Blocks, not lengths: some engines reserve files that stay empty.
    size = sum(512 * file.stat().st_blocks for file in folder.rglob("*") if file.is_file())
    began = time.perf_counter()
    engine = make(folder, data.traces.width, data.dimension)
    first.ask(engine)
    reopened = time.perf_counter() - began
    n, peak = len(data.shade), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"{engine.name}: {n:,} rows in {seconds:,.1f} s, finished" + " " * 20)
    return engine, {
        "engine": engine.name,
        "insert_per_s": n / seconds,
        "bytes_per_row": size / n,
        "reopen_ms": 1e3 * reopened,
        "peak_rss_mb": peak,
        "holds": engine.holds if data.dimension else engine.holds.replace("vectors, ", ""),
    }


def build_all(
    makes: Sequence[type[Engine]], folder: Path, data: Data, asked: Mapping[str, list[Question]]
) -> tuple[list[Engine], list[Any]]:
    """Return the engines that can run here and their figures; the others are named."""
    engines, figures = [], []
    for make in makes:
        first = asked["1+1-" if "1+1-" in make.kinds else "dense"][0]
        try:
            engine, figure = build(make, folder / make.name, data, first)
        except (MissingPeer, NotImplementedError) as error:
            say(f"{make.name}: left out: {error}")
            continue
        engines.append(engine)
        figures.append(figure)
    return engines, figures


def measure(
    engines: Sequence[Engine], asked: Mapping[str, list[Question]], data: Data, rounds: int
) -> list[dict[str, Any]]:
    """Return the figures of each engine and kind; engines take turns within every round."""
    pairs = [(kind, e) for kind in asked for e in engines if kind in e.kinds]
    times: dict[tuple[str, str], list[list[int]]] = {(kind, e.name): [] for kind, e in pairs}
    answers: dict[tuple[str, str], list[Found]] = {}
    for turn in range(rounds):
        for kind, engine in pairs:
            say(f"round {turn + 1} of {rounds}: {kind}, {engine.name}" + " " * 20, end="\r")
            taken, found = [], []
            for question in asked[kind]:
                began = time.perf_counter_ns()
                answer = question.ask(engine)
                taken.append(time.perf_counter_ns() - began)
                found.append(answer)
            times[kind, engine.name].append(taken)
            answers.setdefault((kind, engine.name), found)
    say(" " * 60)
    result = []
    for kind, engine in pairs:
        medians = np.median(np.array(times[kind, engine.name]), axis=0) / 1e6
        both = list(zip(asked[kind], answers[kind, engine.name], strict=True))
        result.append(
            {
                "engine": engine.name,
                "query": kind,
                "p50_ms": float(np.percentile(medians, 50)),
                "p99_ms": float(np.percentile(medians, 99)),
                "recall": float(np.mean([q.recall(found, data) for q, found in both])),
                "missing": sum(max(len(q.scores) - len(found), 0) for q, found in both),
            }
        )
    return result


def run(arguments: argparse.Namespace, n: int) -> dict[str, Any]:
    """Return all figures at one size, printed too."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        data = zipf(n) if arguments.data == "zipf" else load(arguments, n, folder)
        asked = questions(data, arguments.queries)
        makes = [make for make in arguments.peers if make.kinds & set(asked)]
        ours = OURS[arguments.data]
        engines, figures = build_all([ours, *makes], folder, data, asked)
        result = {
            "n": n,
            "data": data.note,
            "asked": arguments.queries,
            "queries": measure(engines, asked, data, arguments.rounds),
            "engines": figures,
        }
        print_run(result, ours.name)
        for engine in engines:
            engine.close()
    return result


def load(arguments: argparse.Namespace, n: int, folder: Path) -> Data:
    vectors = np.load(arguments.vectors, mmap_mode="r")
    texts = json.loads(arguments.texts.read_text("utf-8"))
    if len(texts) < len(vectors):
        raise SystemExit(f"{len(vectors)} vectors but {len(texts)} texts: give one a vector")
    return real(n, vectors, texts, folder)


# --- reporting ---------------------------------------------------------------------------------


def say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)


def ratio(value: float, ours: float | None) -> str:
    """Return peer / memstore as a table shows it."""
    return f"{value / ours:>9.2f}x" if ours else f"{'-':>10}"


def print_run(result: Mapping[str, Any], ours: str) -> None:
    """Print both tables. A ratio is that figure of the engine divided by memstore's."""
    rows = result["queries"]
    base = {row["query"]: row for row in rows if row["engine"] == ours}
    print(f"\n{result['data']}; k = {K}, {result['asked']} queries a kind; ratios are engine / memstore\n")
    columns = f"{'p50 ms':>10}{'ratio':>10}{'p99 ms':>10}{'ratio':>10}{'recall':>8}{'missing':>9}"
    print(f"{'query':<11}{'engine':<16}{columns}")
    for row in rows:
        own = base.get(row["query"], {})
        print(
            f"{row['query']:<11}{row['engine']:<16}"
            f"{row['p50_ms']:>10.3f}{ratio(row['p50_ms'], own.get('p50_ms'))}"
            f"{row['p99_ms']:>10.3f}{ratio(row['p99_ms'], own.get('p99_ms'))}"
            f"{row['recall']:>8.3f}{row['missing']:>9}"
        )
    columns = "".join(f"{name:>16}{'ratio':>10}" for name in FIGURES[:3])
    print(f"\n{'engine':<16}{columns}{FIGURES[3]:>13}  holds")
    own = dict(next((row for row in result["engines"] if row["engine"] == ours), {}))
    for row in result["engines"]:
        cells = "".join(f"{row[f]:>16,.1f}{ratio(row[f], own.get(f))}" for f in FIGURES[:3])
        print(f"{row['engine']:<16}{cells}{row[FIGURES[3]]:>13,.0f}  {row['holds']}")
    lacking = [kind for kind in dict.fromkeys(row["query"] for row in rows) if kind not in base]
    if lacking:
        print(f"unavailable in {ours}: {', '.join(lacking)}")


def growth(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return log(f2 / f1) / log(n2 / n1) of every figure between neighbouring sizes, printed."""
    result = []
    for small, large in pairwise(runs):
        span = math.log(large["n"] / small["n"])
        print(f"\ngrowth exponents from {small['n']:,} to {large['n']:,} rows")
        before, after = flat(small), flat(large)
        for (engine, figure), value in after.items():
            if not before.get((engine, figure)) or not value:
                continue
            exponent = math.log(value / before[engine, figure]) / span
            print(f"{engine:<16}{figure:<18}{exponent:>7.2f}")
            sizes = {"from": small["n"], "to": large["n"]}
            result.append({"engine": engine, "figure": figure, "exponent": exponent, **sizes})
    return result


def flat(result: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Return {(engine, figure): value} of one run."""
    queries = {
        (row["engine"], f"{row['query']} {figure}"): float(row[figure])
        for row in result["queries"]
        for figure in ("p50_ms", "p99_ms")
    }
    # Peak memory is left out: it is the process's, not the engine's.
    return queries | {(r["engine"], f): float(r[f]) for r in result["engines"] for f in FIGURES[:3]}


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    cpuinfo, versions = Path("/proc/cpuinfo"), {}
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "load_before": LOAD,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def chosen(names: str) -> list[type[Engine]]:
    """Return the peers named, separated by commas."""
    known = {peer.name: peer for peer in PEERS}
    wanted = list(known) if names == "all" else [name for name in names.split(",") if name]
    for name in wanted:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no peer {name!r}: use all, or {', '.join(known)}")
    return [known[name] for name in wanted]


def sizes(numbers: str) -> list[int]:
    """Return whole numbers separated by commas, ascending."""
    return sorted(int(number) for number in numbers.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--sizes", type=sizes, help="several --n; also prints how figures grow")
    parser.add_argument("--peers", type=chosen, default="all", help="comma separated, or all")
    parser.add_argument("--data", choices=list(OURS), default="real")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--folder", type=Path, help="where engines write; a temporary folder in it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.data == "real" and not (arguments.vectors and arguments.texts):
        parser.error("--data real needs --vectors and --texts")
    if LOAD > 0.5:
        say(f"other jobs run on this machine (load {LOAD:.1f}): take the times with salt")
    runs = [run(arguments, n) for n in arguments.sizes or [arguments.n]]
    result: dict[str, Any] = {"machine": machine(), **runs[-1]}
    if len(runs) > 1:
        result = {"machine": machine(), "runs": runs, "growth": growth(runs)}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
