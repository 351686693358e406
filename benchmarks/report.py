"""Tables of what was measured, how it grows, and on what machine."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from rows import K

#: Jobs that ran when we began; other people's, therefore.
LOAD = os.getloadavg()[0]
FIGURES = ("insert_per_s", "bytes_per_row", "reopen_ms", "peak_rss_mb")
PACKAGES = (
    *("memstore-sae", "numpy", "qdrant-edge-py", "scipy", "faiss-cpu"),
    *("sqlite-vec", "lancedb", "chromadb"),
)


def ratio(value: float, ours: float | None) -> str:
    """Return peer / memstore as a table shows it."""
    return f"{value / ours:>9.2f}x" if ours else f"{'-':>10}"


def print_run(result: Mapping[str, Any], ours: str) -> None:
    """Print both tables. A ratio is that figure of the engine divided by memstore's."""
    rows = result["queries"]
    base = {row["query"]: row for row in rows if row["engine"] == ours}
    asked = f"k = {K}, {result['asked']} queries a kind"
    print(f"\n{result['data']}; {asked}; ratios are engine / memstore\n")
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
