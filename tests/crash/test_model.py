"""Every handle shows one store, whoever writes: two in this process, one elsewhere, one to read."""

from __future__ import annotations

import functools
import multiprocessing
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oracle
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from oracle import Asked, Row, assert_ranking, composite_scores, dense_scores, trace_scores
from results import record
from soak import hurry, outcome

from memstore import MemoryStore, layout
from memstore.errors import DuplicateKey, MemoryNotFound, MemstoreError
from memstore.hits import Hits
from tests.conftest import NEURONS, make_encoder

ENCODER = make_encoder()
TEXTS = ["rain", "rain walk", "walk", "joy", "quiet rain", "letter", "letter walk", "tram", "café"]
KEYS = ["one", "two", "three", "four", "five"]
CATEGORIES = ["work", "home", "Ärger"]
#: Names of the handles; the last one only reads.
WRITERS, READER = ("first", "second", "elsewhere"), "reader"


@functools.cache
def trace_of(text: str) -> dict[int, float]:
    """Return the trace a text should have, made afresh."""
    trace = ENCODER.traces(ENCODER.vectors([text]))[0]
    return dict(zip(trace.neurons.tolist(), trace.activations.tolist(), strict=True))


@functools.cache
def question_of(text: str) -> dict[int, float]:
    """Return what a text that asks is heard with, more than is stored of it."""
    trace = ENCODER.question(ENCODER.vectors([text])[0])
    return dict(zip(trace.neurons.tolist(), trace.activations.tolist(), strict=True))


# --- handles -------------------------------------------------------------------------------------


class Here:
    """A store that is open in this process."""

    def __init__(self, mode: str = "rw") -> None:
        self.mode = mode
        self.store: MemoryStore | None = None

    def do(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Open, save the index, or call a method; the answer can go through a pipe."""
        if name == "open":
            self.store = MemoryStore.open(
                *arguments, mode=self.mode, encoder=ENCODER, busy_timeout=30
            )
        elif name == "save":
            self.store._upkeep.save()
        else:
            answer = getattr(self.store, name)(*arguments, **options)
            if isinstance(answer, Hits):
                return [SimpleNamespace(**hit.to_dict()) for hit in answer]
            return list(answer) if isinstance(answer, Iterator) else answer


class Elsewhere:
    """A store that is open in another process, at the other end of a pipe."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def do(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Have it done there; an error there is an error here."""
        self.pipe.send((name, arguments, options))
        assert self.pipe.poll(60), f"{name} hangs"
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Have the process end."""
        self.pipe.send(None)
        self.process.join(30)
        self.process.close()
        self.pipe.close()


def serve(pipe) -> None:
    """Do what comes through the pipe until that is None."""
    hurry(setattr, 8)
    here = Here()
    while (asked := pipe.recv()) is not None:
        name, arguments, options = asked
        try:
            pipe.send(here.do(name, *arguments, **options))
        except (MemstoreError, OSError) as error:
            pipe.send(error)


@pytest.fixture(scope="module")
def elsewhere():
    """One process for all examples: starting one takes a second."""
    handle = Elsewhere()
    yield handle
    handle.end()


# --- the machine ---------------------------------------------------------------------------------

WRITER = st.sampled_from(WRITERS)
CATEGORY = st.none() | st.sampled_from(CATEGORIES)
TEXT, KEY = st.sampled_from(TEXTS), st.sampled_from(KEYS)
CHANGES = st.fixed_dictionaries(
    {}, optional={"text": TEXT, "category": CATEGORY, "key": st.none() | KEY}
)
ROW = st.fixed_dictionaries({"text": TEXT}, optional={"category": CATEGORY, "key": KEY})
NUMBER = st.integers(0, 99)


class Handles(RuleBasedStateMachine):
    """Each step is done through one handle and to the rows; then any handle must show the rows."""

    elsewhere: Elsewhere

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store.db"
        self.handles = {name: Here() for name in WRITERS} | {
            "elsewhere": self.elsewhere,
            READER: Here("r"),
        }
        for handle in self.handles.values():
            handle.do("open", self.path)
        self.rows: dict[int, Row] = {}
        self.last = self.change = 0

    def teardown(self) -> None:
        for handle in self.handles.values():
            handle.do("close")
        with MemoryStore.open(self.path, encoder=ENCODER) as store:
            assert store.check() == []
        self.folder.cleanup()

    @initialize(seed=st.integers(0, 2**32 - 1))
    def seed(self, seed):
        self.dice = random.Random(seed)

    def do(self, handle: str, name: str, *arguments: Any, **options: Any) -> Any:
        return self.handles[handle].do(name, *arguments, **options)

    def id_at(self, number: int) -> int:
        """Return the id of a memory, or, rarely, one that no memory has."""
        return [*self.rows, self.last + 7][number % (len(self.rows) + 1)]

    def owner(self, key: str | None) -> int | None:
        return next((i for i, row in self.rows.items() if key is not None and row.key == key), None)

    def add(self, row: dict) -> int:
        """Take in a row under the next id; none is ever used again."""
        self.last += 1
        self.rows[self.last] = Row(self.last, **row)
        return self.last

    @rule(handle=WRITER, row=ROW)
    def insert(self, handle, row):
        if self.owner(row.get("key")) is not None:
            with pytest.raises(DuplicateKey):
                self.do(handle, "insert", **row)
        else:
            assert self.do(handle, "insert", **row) == self.add(row)

    @rule(handle=WRITER, rows=st.lists(ROW, max_size=6), copies=st.sampled_from([1, 1, 12]))
    def insert_many(self, handle, rows, copies):
        """Without keys: with them, all after the first copy would be refused."""
        rows = [{**row, "key": None} for row in rows] * copies
        assert self.do(handle, "insert_many", rows) == [self.add(row) for row in rows]

    @rule(handle=WRITER, rows=st.lists(ROW, max_size=6))
    def insert_new(self, handle, rows):
        """A row is known by its key, or by its text where it has none."""
        ids = self.do(handle, "insert_many", rows, on_duplicate="skip")
        for memory_id, row in zip(ids, rows, strict=True):
            same = (i for i, other in self.rows.items() if other.text == row["text"])
            known = self.owner(row["key"]) if "key" in row else next(same, None)
            assert memory_id == (self.add(row) if known is None else known)

    @rule(handle=WRITER, number=NUMBER, changes=CHANGES.filter(bool))
    def update(self, handle, number, changes):
        memory_id = self.id_at(number)
        taken = self.owner(changes.get("key")) not in (None, memory_id)
        if taken or memory_id not in self.rows:
            with pytest.raises(DuplicateKey if memory_id in self.rows else MemoryNotFound):
                self.do(handle, "update", memory_id, **changes)
        else:
            self.do(handle, "update", memory_id, **changes)
            self.rows[memory_id] = replace(self.rows[memory_id], **changes)

    @rule(handle=WRITER, row=ROW, key=KEY)
    def upsert(self, handle, row, key):
        row, known = {**row, "key": key}, self.owner(key)
        memory_id = self.do(handle, "upsert", **row)
        if known is None:
            assert memory_id == self.add(row)
        else:
            assert memory_id == known
            self.rows[known] = replace(self.rows[known], **row)

    @rule(handle=WRITER, numbers=st.lists(NUMBER, max_size=5))
    def delete(self, handle, numbers):
        chosen = {self.id_at(number) for number in numbers}
        assert self.do(handle, "delete", sorted(chosen)) == len(chosen & self.rows.keys())
        self.rows = {i: row for i, row in self.rows.items() if i not in chosen}

    @rule(handle=WRITER, category=st.sampled_from(CATEGORIES))
    def delete_where(self, handle, category):
        kept = {i: row for i, row in self.rows.items() if row.category != category}
        deleted = self.do(handle, "delete_where", {"category": category})
        assert deleted == len(self.rows) - len(kept)
        self.rows = kept

    @rule(handle=WRITER)
    def optimize(self, handle):
        self.do(handle, "optimize")

    @rule(handle=st.sampled_from([*WRITERS, READER]))
    def reopen(self, handle):
        self.do(handle, "close")
        self.do(handle, "open", self.path)

    @rule(handle=WRITER)
    def save(self, handle):
        """Where the folder was taken from under another that saves, its files may vanish."""
        with suppress(OSError):
            self.do(handle, "save")

    @rule()
    def drop_index(self):
        shutil.rmtree(layout.index_folder(self.path), ignore_errors=True)

    @rule(handle=st.sampled_from(["first", "second", READER]))
    def fork(self, handle):
        store = self.handles[handle].store
        assert outcome(lambda: store.search("rain")) == "StoreClosed"

    @invariant()
    def any_handle_shows_the_rows(self):
        handle = self.dice.choice(list(self.handles))
        stats = self.do(handle, "stats")
        assert stats["change"] >= self.change
        self.change = stats["change"]
        held = [(each.id, each.text, each.category, each.key) for each in self.do(handle, "iter")]
        assert held == [(i, row.text, row.category, row.key) for i, row in self.rows.items()]
        names = Counter(row.category for row in self.rows.values() if row.category is not None)
        ordered = sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))
        assert list(stats["categories"].items()) == ordered
        for where in ({"category": self.dice.choice(CATEGORIES)}, {"text": {"$contains": "rain"}}):
            passing = [row for row in self.rows.values() if oracle.passes(where, row)]
            assert self.do(handle, "count", where) == len(passing)
        self.answers_equal_brute_force(handle)

    def answers_equal_brute_force(self, handle):
        with closing(sqlite3.connect(self.path)) as connection:
            oracle.read_truth(connection, self.rows)
        rows = list(self.rows.values())
        assert [row.activations for row in rows] == [trace_of(row.text) for row in rows]
        k, text = self.dice.choice([1, 3, 10, 100]), self.dice.choice(TEXTS)
        where = self.dice.choice([None, {"category": self.dice.choice(CATEGORIES)}])
        some = [row for row in rows if where is None or oracle.passes(where, row)]
        one, other = self.dice.sample(range(NEURONS), 2)
        terms = {one: 1, other: -0.5}
        rare = oracle.neuron_idf(rows, NEURONS)
        near = dense_scores(some, ENCODER.vectors([text])[0].tolist())
        asked = [
            (("top", one), {}, composite_scores(some, Asked([(one, 1)])), 0.0),
            (("composite", terms), {}, composite_scores(some, Asked([*terms.items()])), 0.0),
            (("search", text), {"by": "trace"}, trace_scores(some, question_of(text), rare), 1e-9),
            (("search", text), {}, near, 1e-6),
        ]
        for question, options, marks, tolerance in asked:
            hits = self.do(handle, *question, k, where=where, **options)
            assert_ranking(hits, marks, k, tolerance)
            for hit in hits:
                row = self.rows[hit.id]
                assert (hit.text, hit.category, hit.key) == (row.text, row.category, row.key)


@pytest.mark.parametrize(
    ("examples", "steps"), [(12, 15), pytest.param(200, 40, marks=pytest.mark.crash)]
)
def test_every_handle_shows_one_store(monkeypatch, elsewhere, examples, steps):
    """Whatever is done through whichever, all answer as brute force over the same rows."""
    hurry(monkeypatch.setattr, 8)
    monkeypatch.setattr(Handles, "elsewhere", elsewhere, raising=False)
    run_state_machine_as_test(
        Handles,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    if examples > 15:
        record("model", {"histories": examples, "steps": steps, "disagreements": 0})
