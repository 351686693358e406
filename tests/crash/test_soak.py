"""Many processes on one store, every answer checked: a writer with readers, and openers at once."""

from __future__ import annotations

import logging
import multiprocessing
import random
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import record
from soak import ENCODER, Follower, Journal, Question, hurry, questions, text_of

from memstore import MemoryStore, layout
from memstore.catalog.files import Mode
from memstore.errors import StoreLocked, StoreNotFound

SHORT, LONG = 6, 600
READERS = 4
#: About so many memories are kept: more than ``iter`` reads at once.
ROOM = 1_000
#: Seconds after which a child is taken to hang.
HANGS = 180
FRESH, FORKED = (multiprocessing.get_context(method) for method in ("spawn", "forkserver"))
FORKED.set_forkserver_preload(["memstore.store"])


@pytest.fixture
def one_thread(monkeypatch):
    """Many processes share few cores: BLAS in each must not wait for its own threads, spinning."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


# --- children ------------------------------------------------------------------------------------


def serve(pipe, work: Callable, *arguments: Any) -> None:
    """Work when told to, and report; a failure is a report, too."""
    pipe.send("ready")
    pipe.recv()
    try:
        pipe.send(work(*arguments))
    except BaseException:  # noqa: BLE001 - the parent shows it
        pipe.send({"problems": [traceback.format_exc()]})


def all_at_once(works: list[tuple], patience: float = HANGS) -> list:
    """Start (context, work, arguments...) as processes; return their reports once all are done."""
    pipes, processes = [], []
    for context, *work in works:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, *work), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        assert [pipe.recv() for pipe in pipes] == ["ready"] * len(pipes)
        for pipe in pipes:
            pipe.send("go")
        assert all(pipe.poll(patience) for pipe in pipes), "a child hangs"
        return [pipe.recv() for pipe in pipes]
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.join(5)
            process.kill()
            process.join()
            process.close()
            pipe.close()


# --- the writer ----------------------------------------------------------------------------------


class Writer:
    """Writes by a seeded plan, noting each operation before it begins and once it has ended."""

    def __init__(self, path: Path, journal: Journal, seed: int) -> None:
        self.path, self.journal, self.dice = path, journal, random.Random(seed)
        self.versions: dict[int, int] = {}
        self.number = self.last = 0
        self.done: Counter[str] = Counter()
        self.store = self.open()

    def open(self) -> MemoryStore:
        return MemoryStore.open(self.path, encoder=ENCODER, busy_timeout=30)

    def perform(self, name: str, texts: dict[int, str], gone: list[int], work: Callable) -> bool:
        """Note, work, note; returns whether it was done."""
        self.number += 1
        self.journal.note("begin", self.number, texts, gone)
        try:
            work()
        except StoreLocked:
            self.done["locked"] += 1
            self.journal.note("failed", self.number)
            return False
        self.journal.note("done", self.number)
        self.done[name] += 1
        self.done["memories"] += len(texts)
        return True

    def insert(self, many: int) -> None:
        new = {self.last + i: text_of(self.last + i, 1) for i in range(1, many + 1)}
        rows = [{"text": text, "key": f"m{memory_id}"} for memory_id, text in new.items()]

        def work() -> None:
            assert self.store.insert_many(rows) == list(new)

        if self.perform("insert", new, [], work):
            self.last += many
            self.versions |= dict.fromkeys(new, 1)

    def update(self) -> None:
        memory_id = self.dice.choice(list(self.versions))
        text = text_of(memory_id, self.versions[memory_id] + 1)
        if self.perform(
            "update", {memory_id: text}, [], lambda: self.store.update(memory_id, text=text)
        ):
            self.versions[memory_id] += 1

    def delete(self) -> None:
        many = self.dice.randint(1, min(40, len(self.versions)))
        gone = self.dice.sample(list(self.versions), many)

        def work() -> None:
            assert self.store.delete(gone) == many

        if self.perform("delete", {}, gone, work):
            for memory_id in gone:
                del self.versions[memory_id]

    def step(self) -> None:
        """Do one operation; past ``ROOM`` no more batches, so that deletions catch up."""
        draw = self.dice.random()
        if draw < 0.45 or len(self.versions) < 50:
            self.insert(1)
        elif draw < 0.6:
            self.insert(self.dice.randint(2, 200) if len(self.versions) < ROOM else 1)
        elif draw < 0.85:
            self.update()
        elif draw < 0.98:
            self.delete()
        elif draw < 0.99:
            self.perform("optimize", {}, [], self.store.optimize)
        else:
            self.store.close()
            self.store = self.open()


def write(path: Path, journal: Path, seed: int, seconds: float) -> dict:
    """Write for so many seconds."""
    hurry(setattr)
    writer = Writer(path, Journal(journal), seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        writer.step()
    writer.store.close()
    writer.journal.close()
    return {"problems": [], **writer.done}


# --- the readers ---------------------------------------------------------------------------------


class Reader:
    """Asks one question after the other and checks each answer by the journal."""

    def __init__(self, path: Path, journal: Journal, seed: int) -> None:
        self.path, self.dice, self.follower = path, random.Random(seed), Follower(journal)
        self.change = self.locked = 0
        self.times: dict[str, list[float]] = defaultdict(list)
        self.problems: list[str] = []
        self.store = self.open()

    def open(self) -> MemoryStore:
        return MemoryStore.open(self.path, mode="r", encoder=ENCODER)

    def step(self) -> None:
        """Ask one question, or open the store anew first."""
        if self.dice.random() < 0.01:
            self.store.close()
            self.store = self.open()
        self.follower.settle()
        before = self.follower.state.number
        kind, question = self.dice.choice(list(questions(self.dice, self.follower.state).items()))
        began = time.perf_counter()
        try:
            answer = question.ask(self.store)
        except StoreLocked:
            self.locked += 1
            return
        self.times[kind].append(1e3 * (time.perf_counter() - began))
        if not all(self.agrees(question, piece) for piece in question.cut(answer)):
            self.problems.append(f"{kind}: no state {before} to {self.follower.state.number}")
        if kind == "stats":
            before, self.change = self.change, answer["change"]
            if self.change < before:
                self.problems.append(f"the change number fell from {before} to {self.change}")

    def agrees(self, question: Question, piece: Any) -> bool:
        return self.follower.agrees(lambda state: question.holds(state, piece))


def read(path: Path, journal: Path, seed: int, seconds: float) -> dict:
    """Ask for so many seconds, or until an answer is wrong."""
    hurry(setattr)
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda entry: warnings.append(entry.getMessage())
    logging.getLogger("memstore").addHandler(handler)
    asking = Reader(path, Journal(journal), seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not asking.problems:
        asking.step()
    asking.store.close()
    asking.follower.journal.close()
    return {
        "problems": asking.problems,
        "locked": asking.locked,
        "warnings": len(warnings),
        "times": dict(asking.times),
    }


def figures_of(reports: list[dict], seconds: float) -> dict:
    """Return what a soak measured."""
    written, *read = reports
    times = {
        kind: np.concatenate([each["times"][kind] for each in read]) for kind in read[0]["times"]
    }
    return {
        "seconds": seconds,
        "readers": len(read),
        "writes_per_s": round(sum(written.get(n, 0) for n in WRITES) / seconds, 1),
        "memories_per_s": round(written["memories"] / seconds, 1),
        "writes": {name: written.get(name, 0) for name in WRITES},
        "reads_per_s": round(sum(map(len, times.values())) / seconds, 1),
        "read_ms": {
            kind: {"p50": round(p50, 3), "p99": round(p99, 3)}
            for kind, (p50, p99) in sorted(
                (k, np.percentile(t, [50, 99])) for k, t in times.items()
            )
        },
        "store_locked": {
            "writer": written.get("locked", 0),
            "readers": sum(r["locked"] for r in read),
        },
        "index_rebuilt": sum(each["warnings"] for each in read),
        "errors": sum(len(each["problems"]) for each in reports),
    }


WRITES = ("insert", "update", "delete", "optimize")


@pytest.mark.parametrize("seconds", [SHORT, pytest.param(LONG, marks=pytest.mark.crash)])
def test_every_answer_beside_a_writer_is_of_one_state(path, seconds, one_thread):
    """Nothing lost, doubled, foreign or stale, whatever is asked while another process writes."""
    MemoryStore.open(path, encoder=ENCODER).close()
    noted = path.with_name("journal")
    works = [(FRESH, write, path, noted, 1, seconds)]
    works += [(FRESH, read, path, noted, 2 + n, seconds) for n in range(READERS)]
    reports = all_at_once(works, seconds + HANGS)
    assert [problem for report in reports for problem in report["problems"]] == []
    journal = Journal(noted)
    follower = Follower(journal)
    follower.settle()
    journal.close()
    with MemoryStore.open(path, encoder=ENCODER) as store:
        assert [(each.id, each.text) for each in store.iter()] == list(follower.state.texts.items())
        assert store.check() == []
    figures = figures_of(reports, seconds)
    assert all(figures["writes"].values())
    assert len(figures["read_ms"]) == 13
    assert list(layout.index_folder(path).glob("manifest-*"))
    if seconds == LONG:
        record("soak", figures)


# --- many openers --------------------------------------------------------------------------------


def visit(path: Path, name: str, mode: Mode) -> dict:
    """Open, insert, ask, close; again where it was locked, or is not there to be read yet."""
    report = {"problems": [], "kept": {}, "locked": 0}
    for attempt in count():
        key = f"{name}-{attempt}"
        try:
            with MemoryStore.open(path, mode=mode, encoder=ENCODER, busy_timeout=1) as store:
                if mode == "rw":
                    report["kept"][store.insert(f"memory of {key}", key=key)] = key
                seen = {hit.id: hit.key for hit in store.search("memory", 1_000)}
                assert len(seen) == len(set(seen.values()))
                assert report["kept"].items() <= seen.items()
                return report
        except StoreLocked:
            report["locked"] += 1
        except StoreNotFound:
            if mode == "rw":
                raise
            time.sleep(0.01)


def assert_kept(path: Path, reports: list[dict]) -> None:
    """Insist that the store holds what was acknowledged, and nothing else."""
    assert [problem for report in reports for problem in report["problems"]] == []
    kept = [pair for report in reports for pair in report["kept"].items()]
    with MemoryStore.open(path, encoder=ENCODER) as store:
        assert [(memory.id, memory.key) for memory in store.iter()] == sorted(kept)
        assert store.check() == []


def roles(many: int) -> list[tuple[str, str]]:
    """Return a name and a mode each: every fifth only reads."""
    return [(f"opener {n}", "r" if n % 5 == 4 else "rw") for n in range(many)]


def make(path: Path) -> dict:
    """Make a store with a memory, and with index files."""
    with MemoryStore.open(path, encoder=ENCODER) as store:
        kept = {store.insert("memory of the first", key="first"): "first"}
        store.optimize()
    return {"problems": [], "kept": kept}


MANY = pytest.mark.parametrize("many", [12, pytest.param(50, marks=pytest.mark.crash)])
MADE = pytest.mark.parametrize("made", [False, True], ids=["new", "made"])


@MANY
@MADE
def test_processes_that_open_at_once_all_succeed(path, many, made, one_thread):
    """Half of them fresh, half forked; where there is no store yet, some make it at once."""
    reports = [make(path)] if made else []
    contexts = cycle([FRESH, FORKED])
    works = [
        (context, visit, path, *role) for context, role in zip(contexts, roles(many), strict=False)
    ]
    reports += all_at_once(works)
    assert_kept(path, reports)
    if many > 12:
        locked = sum(report.get("locked", 0) for report in reports)
        record(f"openers-{'made' if made else 'new'}", {"processes": many, "locked": locked})


@MANY
@MADE
def test_threads_that_open_at_once_all_succeed(path, many, made):
    """Each with a store object of its own, in one process."""
    reports = [make(path)] if made else []
    start = threading.Barrier(many)

    def visit_together(name: str, mode: Mode) -> dict:
        start.wait()
        return visit(path, name, mode)

    with ThreadPoolExecutor(many) as pool:
        visits = [pool.submit(visit_together, *role) for role in roles(many)]
        reports += [each.result(HANGS) for each in visits]
    assert_kept(path, reports)
