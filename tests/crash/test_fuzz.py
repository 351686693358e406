"""Hostile input: whatever is handed in ends in an answer or in an error of memstore's own.

Each surface is tried in a process of its own, so that a crash of the interpreter, a hang or a
runaway of memory is a failed test that names the input. An input is made of its seed and number
alone: ``Surface.make(Random(seed << 32 | number))`` makes it again.
"""

from __future__ import annotations

import ast
import faulthandler
import json
import mmap
import os
import re
import reprlib
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from index_surfaces import IndexOfStore
from limits import LIMITS
from results import record
from surfaces import SURFACES

from memstore.errors import MemstoreError
from memstore.index import files, storing
from memstore.indices import Indices

ROOT = Path(__file__).parents[2]
SEED = 1
#: An input may take a second; for one that takes a minute nobody waits.
SLOW, HANG = 1.0, 60
#: In MiB, what a process may grow by: over a million small inputs, and for one that is huge.
SMALL, LARGE = 100, 300
#: Address space beyond what is mapped at first: a runaway ends in MemoryError, and not elsewhere.
LEASH = 3 << 29

# --- the process that tries --------------------------------------------------------------------


def memory(field: str) -> int:
    """Return a figure in bytes: VmHWM is the most this process ever had, VmSize what it maps."""
    # Not ru_maxrss, which begins at what the process that started this one had.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def leashed() -> int:
    """Bound what this process may still map; return the most memory that it had so far."""
    leash = memory("VmSize") + LEASH
    resource.setrlimit(resource.RLIMIT_AS, (leash, leash))
    return memory("VmHWM")


def grown(before: int) -> int:
    """Return by how many MiB the most memory has grown."""
    return (memory("VmHWM") - before) >> 20


def outcome(attempt: Any, made: Any) -> tuple[str, str]:
    """Try one input: ("", "accepted") or ("", "refused"), or (where it failed, how)."""
    try:
        attempt(made)
    except MemstoreError:
        return "", "refused"
    except Exception as error:  # noqa: BLE001 - whatever else it is, it is reported
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/memstore/" in f.filename] or frames
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}, {own[-1].name}()"
        return f"{type(error).__name__} in {place}", f"{reprlib.repr(str(error))}: {shown(made)}"
    return "", "accepted"


def timed(attempt: Any, made: Any) -> tuple[str, str, float]:
    """Try one input; one that takes over a second is tried again, as machines pause."""
    took = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        where, what = outcome(attempt, made)
        took = min(took, time.perf_counter() - began)
        if took <= SLOW:
            return where, what, took
    return where or "slow", f"{took:.1f} s: {shown(made)}", took


def shown(made: Any) -> str:
    try:
        return repr(made)[:400]
    except (ValueError, RecursionError):  # numbers too long, or nested too deep, to be printed
        return f"a {type(made).__name__} that has no repr"


def fuzz(name: str, seed: int, count: int, folder: str) -> None:
    """Try so many inputs on a surface and print what came of them."""
    with open(os.path.join(folder, "number"), "r+b") as file:
        number = mmap.mmap(file.fileno(), 8)
    surface = SURFACES[name](Path(folder))
    timed(surface.attempt, surface.make(Random(seed << 32)))  # what is loaded once is no growth
    before = leashed()
    problems, outcomes, slowest = {}, {"accepted": 0, "refused": 0}, 0.0
    for n in range(count):
        if n % 50 == 0:
            faulthandler.dump_traceback_later(HANG, exit=True)
        number[:] = n.to_bytes(8, "little")
        where, what, took = timed(surface.attempt, surface.make(Random(seed << 32 | n)))
        slowest = max(slowest, took)
        if where:
            problems.setdefault(where, []).append((n, what))
        else:
            outcomes[what] += 1
    figures = {"inputs": count, **outcomes, "slowest_ms": round(1e3 * slowest, 1)}
    sys.stdout.write(json.dumps({"problems": problems, **figures, "grown_mib": grown(before)}))


def limit(name: str, folder: str, size: int) -> None:
    """Hand in one thing that is far too large, and print what came of it."""
    faulthandler.dump_traceback_later(HANG if size < 10**5 else 20 * HANG, exit=True)
    attempt = LIMITS[name](Path(folder), size)
    before = leashed()
    began = time.perf_counter()
    where, what = outcome(lambda call: call(), attempt)
    took = time.perf_counter() - began
    sys.stdout.write(json.dumps([where and f"{where}: {what}", grown(before), took]))


def child(call: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a function of this module in a process of its own."""
    paths = os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0", **environment}
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "ignore", "-c", f"import test_fuzz; {call}"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- many inputs -------------------------------------------------------------------------------

#: Inputs, few and many: as many as each can try in its share of 20 seconds, of 10 minutes.
COUNTS = {
    "expressions": (3000, 340_000),
    "filters": (1000, 60_000),
    "files": (4000, 230_000),
    "rows": (1500, 90_000),
    "times": (3000, 220_000),
    "index": (1000, 30_000),
    "store": (50, 2000),
    "weights": (800, 28_000),
    "backups": (150, 3_000),
    "exports": (150, 6_000),
}
SIZES = [pytest.param(0, id="few"), pytest.param(1, id="many", marks=pytest.mark.crash)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", COUNTS)
def test_no_input_does_more_than_fail(name, size, tmp_path):
    """Answers or memstore's own errors, each within a second, in memory that does not grow."""
    fuzzed(name, COUNTS[name][size], tmp_path, record_as=f"fuzz-{name}" if size else "")


def test_no_index_file_does_more_than_fail_without_the_kernel(tmp_path):
    """The same files where numpy reads them."""
    fuzzed("index", COUNTS["index"][0], tmp_path, MEMSTORE_KERNEL="off")


@pytest.mark.parametrize("kind", ["traces", "vectors"])
def test_an_index_of_memories_that_are_not_there_is_built_anew(kind, tmp_path, monkeypatch):
    """A file sealed like any other whose ids the store does not have: the answers are the true."""
    monkeypatch.setattr(os, "fsync", os.fsync)  # which the surface replaces
    surface = IndexOfStore(tmp_path)
    for name in surface.names:
        if not name.startswith(kind):
            continue
        file = files.read(surface.folder / name, kind)
        fields, arrays = dict(file.fields), dict(file.arrays)
        if kind == "traces":
            fields["first_id"] += 10**6
        else:
            arrays["ids"] = arrays["ids"] + np.uint32(10**6)
        (surface.folder / name).unlink()
        files.write(surface.folder / name, kind, fields, arrays, storing.BY_PARTS)
    assert surface.answers(Indices(surface.folder)) == surface.truth
    surface.store.close()


def fuzzed(name, count, folder, record_as="", **environment):
    (folder / "number").write_bytes(bytes(8))
    done = child(
        f"test_fuzz.fuzz({name!r}, {SEED}, {count}, {str(folder)!r})", folder, **environment
    )
    number = int.from_bytes((folder / "number").read_bytes(), "little")
    assert done.returncode == 0, f"{name}, seed {SEED}, number {number}: {done.stderr[-3000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    problems = result.pop("problems")
    if record_as:
        record(record_as, result | {"problems": {w: len(found) for w, found in problems.items()}})
    lines = [
        f"{len(found)} x {where}; seed {SEED}, number {found[0][0]}: {found[0][1]}"
        for where, found in sorted(problems.items())
    ]
    assert not lines, "\n".join([f"{name}: {len(lines)} kinds of failure", *lines])
    assert result["grown_mib"] < SMALL
    # Neither of them rare: what is always refused, or never, tests little.
    assert min(result["accepted"], result["refused"] + count * (name == "store")) > count / 50


# --- one input that is far too large -----------------------------------------------------------

#: (few, many): MiB that a bomb unpacks to, rows of a store.
EXTENT = {"categories": (20_000, 1_000_000), "a CSV row of gigabytes in short lines": (64, 1024)}
IN_A_SECOND = re.compile("filter|metadata|expression|index")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LIMITS)
def test_nothing_is_too_large_to_be_refused(name, size, tmp_path):
    """One error of memstore's own, or an answer, in bounded memory."""
    if size and name not in EXTENT and "bomb" not in name:
        pytest.skip("as large as it gets in the short version")
    extent = EXTENT.get(name, (512, 4096))[size]
    done = child(f"test_fuzz.limit({name!r}, {str(tmp_path)!r}, {extent})", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    failure, growth, took = json.loads(done.stdout.splitlines()[-1])
    if size:
        record(
            f"limit-{name}".replace(" ", "-"), {"extent": extent, "grown_mib": growth, "s": took}
        )
    assert not failure
    # A million memories: their ids and names, and what SQLite maps of a store of that size.
    assert growth < (2 * LARGE if extent == 1_000_000 else LARGE)
    if IN_A_SECOND.search(name):
        assert took < SLOW


# --- files that could run code -----------------------------------------------------------------

UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "_pickle"}


def unsafe_calls(tree):
    """Yield what in a syntax tree could run code that came in a file, as (line, source)."""
    for node in ast.walk(tree):
        source = ast.unparse(node) if isinstance(node, ast.expr | ast.ImportFrom) else ""
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNSAFE:
            if source != "pickle.UnpicklingError":  # the name of an error of torch's runs nothing
                yield node.lineno, source
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE:
            yield node.lineno, source
        elif isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.split(".")[0] in UNSAFE]
            yield from (
                (node.lineno, n.name) for n in names if n.name != "pickle" or n.asname is not None
            )
        elif isinstance(node, ast.Call):
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            called = ast.unparse(node.func)
            if (
                options.get("allow_pickle", "False") != "False"
                or (called == "torch.load" and options.get("weights_only") != "True")
                or called in ("eval", "exec", "__import__", "compile")
            ):
                yield node.lineno, source


def test_no_module_reads_what_could_run_code():
    """No pickle under any name, torch only with weights_only, numpy never with allow_pickle."""
    for file in sorted((ROOT / "memstore").rglob("*.py")):
        assert [*unsafe_calls(ast.parse(file.read_text("utf-8")))] == [], file


@pytest.mark.parametrize(
    "line",
    [
        "import marshal",
        "import pickle as p",
        "from pickle import loads",
        "import dill.source",
        "import pickle; pickle.loads(x)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "eval(text)",
    ],
)
def test_what_could_run_code_is_seen(line):
    """The test above finds each of these."""
    assert [*unsafe_calls(ast.parse(line))]
