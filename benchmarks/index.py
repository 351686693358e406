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

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from engine import Engine, Found, MissingPeer
from ours import OURS
from peers import PEERS
from report import LOAD, growth, machine, print_run
from rows import Data, Question, questions, real, say, zipf


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
        built, known = folder / make.name, folder / f"{make.name}.json"
        try:
            if known.exists():
                figure = json.loads(known.read_text())
                engine = make(built, data.traces.width, data.dimension)
                say(f"{engine.name}: as it was built before, with the figures of then")
            else:
                shutil.rmtree(built, ignore_errors=True)  # of a run that was cut short
                engine, figure = build(make, built, data, first)
                known.write_text(json.dumps(figure))
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
    with ExitStack() as stack:
        if arguments.keep:
            folder = arguments.keep / f"{arguments.data}-{n}"
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder)))
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
    parser.add_argument("--keep", type=Path, help="where engines stay; those found there are asked")
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
