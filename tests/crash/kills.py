"""A worker that is killed over and over, and a fresh process that looks at what it left.

    python kills.py PLAN.json

runs a campaign in a process of its own (it forks, so no test's threads may be in it) and prints
what it found as JSON. PLAN: seed, rounds, folder, layer (the library built of layer.c, preloaded),
and optionally points (of ``points.POINTS``, one round each) and broken (of ``points.BROKEN``).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import faiss  # noqa: E402, F401 - before any fork, as everything below
from diary import BATCH, Diary, perform, stored_in  # noqa: E402
from oracle import (  # noqa: E402
    Asked,
    assert_ranking,
    composite_scores,
    dense_scores,
    read_truth,
    trace_scores,
    word_scores,
)
from points import BROKEN, arm  # noqa: E402

import memstore.writer  # noqa: E402
from memstore import MemoryStore, backups, upkeep  # noqa: E402
from tests.conftest import NEURONS, grid_vectors, make_encoder  # noqa: E402

ENCODER = make_encoder()
#: A store is begun anew after so many rounds, so that young ones are killed too.
ROUNDS_A_STORE = 40
PATIENCE = 60.0


def load_layer(library: str) -> ctypes.CDLL:
    """Return the file layer that was preloaded into this process."""
    layer = ctypes.CDLL(library)
    layer.arm.argtypes = [ctypes.c_long, ctypes.c_int]
    layer.calls_left.restype = ctypes.c_long
    return layer


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Run ``work(pipe)`` in a child that never returns; returns (its id, the pipe to read)."""
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(inlet)
            work(outlet)
            status = 0
        except BaseException:  # noqa: BLE001 - a child reports, it does not return
            os.write(outlet, json.dumps(["failed", traceback.format_exc()]).encode() + b"\n")
        finally:
            os._exit(status)
    os.close(outlet)
    return child, inlet


# --- the worker ----------------------------------------------------------------------------------


def work(path: Path, diary: Diary, seed: int, broken: str | None, log: int) -> None:
    """Go on with the diary until killed; each thing is logged when begun and when acknowledged."""
    memstore.writer.BATCH = BATCH
    upkeep.CHECKPOINT = 60
    dice = np.random.default_rng(seed)

    def say(what: str, *facts: object) -> None:
        os.write(log, json.dumps([what, *facts]).encode() + b"\n")

    store = MemoryStore.open(path, encoder=ENCODER)
    say("open")
    while True:
        op, number = diary.choose(dice), int(dice.integers(2**60))
        say("begin", op)
        if broken == "acknowledge early":
            say("done", op, diary.apply(op))
            perform(store, op, path.parent, number)
            continue
        expected = diary.apply(op)
        if op[0] == "reopen":
            store.close()
            store = MemoryStore.open(path, encoder=ENCODER)
            found = None
        else:
            found = perform(store, op, path.parent, number)
        if found != expected:
            raise AssertionError(f"{op} returned {found}, not {expected}")
        say("done", op, found)


# --- the one who looks ---------------------------------------------------------------------------


def look(path: Path, states: list[Diary], seed: int, answer: int) -> None:
    """Report which of the states a fresh process finds, after every kind of query was right."""
    dice = np.random.default_rng(seed)
    # A store whose making was cut short is finished by the next who may write.
    made = any(state.next_id > 1 for state in states)
    mode = "r" if made and dice.random() < 0.5 else "rw"
    with MemoryStore.open(path, mode=mode, encoder=ENCODER) as store:
        found = stored_in(store)
        number = next((n for n, state in enumerate(states) if state.stored() == found), None)
        if number is None:
            wanted, got = set(map(repr, states[0].stored())), set(map(repr, found))
            raise AssertionError(f"lost {wanted - got}; unasked for {got - wanted}")
        queries_are_right(store, path, states[number], dice)
        # The last: it reads every index file, and what was damaged would be rebuilt by now.
        assert store.check() == [], store.check()
        assert store.count() == len(found)
    for copy in path.parent.glob("backup-*.db"):
        assert backups.verify(copy) == [], backups.verify(copy)
    for export in path.parent.glob("export-*.jsonl"):
        lines = export.read_text("utf-8").splitlines()
        heading, rows = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        assert heading["memories"] == len(rows)
    os.write(answer, json.dumps(["state", number]).encode() + b"\n")


def queries_are_right(
    store: MemoryStore, path: Path, diary: Diary, dice: np.random.Generator
) -> None:
    """Compare every kind of query with plain loops over the tables."""
    rows = dict(diary.rows)
    with closing(sqlite3.connect(path)) as connection:
        read_truth(connection, rows)
    live = list(rows.values())
    traces = ENCODER.traces(ENCODER.vectors([row.text for row in live])) if live else []
    for row, trace in zip(live, traces, strict=True):
        assert row.activations == {
            int(n): float(a) for n, a in zip(trace.neurons, trace.activations, strict=True)
        }, f"the trace of {row.id} is not that of its text"
    k = int(dice.choice([1, 10, 1_000]))
    for neuron in range(NEURONS):
        assert_ranking(store.top(neuron, k), composite_scores(live, Asked([(neuron, 1)])), k)
    weights = dict(zip(dice.permutation(NEURONS)[:4].tolist(), [1.0, 2.0, -0.5, -1.0], strict=True))
    marks = composite_scores(live, Asked(list(weights.items())))
    assert_ranking(store.composite(weights, k), marks, k)
    text = "rain, entry 7 part 1"
    assert_ranking(
        store.search(text, k), dense_scores(live, grid_vectors([text])[0].tolist()), k, 1e-6
    )
    assert_ranking(store.search(text, k, by="words"), word_scores(live, live, text), k, 1e-12)
    if live:
        one = live[int(dice.integers(len(live)))]
        found = store.similar(one.id, k, by="trace", idf=False)
        others = [row for row in live if row.id != one.id]
        assert_ranking(found, trace_scores(others, one.activations), k, 1e-9)


# --- the campaign --------------------------------------------------------------------------------


class Campaign:
    """Rounds of working, killing and looking on one store after another."""

    def __init__(self, plan: dict) -> None:
        self.plan, self.folder = plan, Path(plan["folder"])
        self.dice = np.random.default_rng(plan["seed"])
        self.layer = load_layer(plan["layer"])
        self.ways: dict[str, int] = {}
        self.acknowledged, self.problems, self.unreached = 0, [], []
        self.path, self.diary, self.age = self.folder / "none", Diary(), ROUNDS_A_STORE

    def run(self) -> dict:
        """Return what happened in all the rounds; stops at the first problem."""
        for point in self.plan.get("points", []):
            self.round(point, lambda point=point: arm(point, int(self.dice.integers(3))))
        for _ in range(self.plan["rounds"]):
            way, prepare = self.choose_way()
            self.round(way, prepare)
            if self.problems:
                break
        return {
            "kills": sum(self.ways.values()),
            "ways": self.ways,
            "acknowledged": self.acknowledged,
            "unreached": self.unreached,
            "problems": self.problems,
        }

    def choose_way(self) -> tuple[str, Callable[[], object]]:
        """Return how the next worker dies, and what arms it: by the clock, or at a file call."""
        if self.dice.random() < 0.4:
            return "the clock", lambda: None
        calls = int(np.exp(self.dice.uniform(0, np.log(1_500))))
        torn = self.dice.random() < 0.5
        way = "a torn write" if torn else "a file call"
        return way, lambda: self.layer.arm(calls, int(torn))

    def round(self, way: str, prepare: Callable[[], object]) -> None:
        """Start a worker, have it killed, look at what it left."""
        if self.age >= ROUNDS_A_STORE:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            self.path = self.folder / "diary.db"
            self.diary, self.age = Diary(), 0
        self.age += 1
        seed, broken = int(self.dice.integers(2**32)), self.plan.get("broken")

        def working(log: int) -> None:
            if broken is not None:
                BROKEN[broken]()
            prepare()
            work(self.path, self.diary, seed, broken, log)

        child, log = forked(working)
        delay = float(self.dice.uniform(0, 0.3)) if way == "the clock" else PATIENCE
        begun = self.follow(child, log, delay)
        _, status = os.waitpid(child, 0)
        if way != "the clock" and delay == PATIENCE and self.late:
            self.unreached.append(way)
        if os.WIFEXITED(status):
            return
        self.ways[way] = self.ways.get(way, 0) + 1
        self.see(begun, way)

    def follow(self, child: int, log: int, delay: float) -> list | None:
        """Read the log until the worker is dead, killing it after a while; returns what it began.

        What was acknowledged goes into the diary. None where nothing was under way.
        """
        deadline, self.late = time.monotonic() + delay, False
        begun, rest = None, b""
        while True:
            wait = max(0.0, deadline - time.monotonic()) if not self.late else PATIENCE
            if not select.select([log], [], [], wait)[0]:
                os.kill(child, signal.SIGKILL)
                self.late = True
                continue
            piece = os.read(log, 1 << 16)
            if not piece:
                break
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                begun = self.heard(json.loads(line), begun)
        os.close(log)
        return begun

    def heard(self, line: list, begun: list | None) -> list | None:
        """Take in a line of the log; returns what is under way after it."""
        what, *facts = line
        if what == "failed":
            self.problems.append(facts[0])
        elif what == "done":
            self.diary.apply(facts[0])
            self.acknowledged += 1
            return None
        elif what == "begin":
            return facts[0]
        return begun

    def see(self, begun: list | None, way: str) -> None:
        """Have a fresh process look, and go on from the state that it found."""
        if not self.path.exists() and not self.diary.rows:
            return
        states, seed = self.diary.may_be(begun), int(self.dice.integers(2**32))
        child, answer = forked(lambda pipe: look(self.path, states, seed, pipe))
        with os.fdopen(answer, "rb") as pipe:
            said = [json.loads(line) for line in pipe]
        _, status = os.waitpid(child, 0)
        if status == 0 and said and said[-1][0] == "state":
            self.diary = states[said[-1][1]]
        else:
            reason = said[-1][1] if said else f"the process that looked ended with {status}"
            self.problems.append(f"killed by {way} during {begun!r:.200}: {reason}")


def main() -> None:
    """Run the campaign of a plan and print what it found."""
    sys.stdout.write(json.dumps(Campaign(json.loads(Path(sys.argv[1]).read_text("utf-8"))).run()))


if __name__ == "__main__":
    main()
