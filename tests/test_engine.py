"""The neuron engine against brute force in float64: C and numpy, every sign, tie and layout."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memstore import MemoryStore, layout
from memstore.core import traces as packed
from memstore.core.expression import Condition, NeuronQuery
from memstore.core.traces import norm_of
from memstore.index import blocks, native, postings, storing
from memstore.index.postings import NeuronIndex
from memstore.index.selection import Selection
from memstore.types import Trace

ROOT = Path(__file__).parent.parent
WIDTH = 40
#: The last three make one term hopelessly small beside another.
WEIGHTS = [1.0, -1.0, 2.0, -0.5, 0.1, 1 / 3, 1e-6, 1e6, 1e9, 1e-40, 1e-99]
#: Whole numbers tie often, halves sometimes, the rest hardly ever.
VALUES = {
    "ties": lambda dice, n: dice.integers(1, 4, n).astype(float),
    "few ties": lambda dice, n: dice.integers(1, 200, n) / 64,
    "no ties": lambda dice, n: dice.exponential(0.1, n) + 1e-4,
    "wide": lambda dice, n: 10.0 ** dice.uniform(-7, 4.8, n),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 300 rows, runs from 8 on: many borders in little data."""
    monkeypatch.setattr(postings, "BLOCK_ROWS", 300)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 300)
    for module in (blocks, postings):
        monkeypatch.setattr(module, "FEW_ROWS", 8)
    for name in ("FEW", "FEW_OF_TRACE", "FEW_OF_COMPOSITE"):
        monkeypatch.setattr(postings, name, 0)
    monkeypatch.setattr(postings, "QUICK_ROWS", 64)


class World:
    """An index with a history, and the dense matrix of what it should hold."""

    def __init__(self, seed: int, kind: str, rows: int, saved: Path | None = None) -> None:
        dice = np.random.default_rng(seed)
        self.dice = dice
        fires = dice.random((rows, WIDTH)) < dice.beta(0.4, 2, WIDTH)
        exact = np.where(fires, VALUES[kind](dice, rows * WIDTH).reshape(rows, WIDTH), 0)
        self.matrix = np.minimum(exact, 65504).astype(np.float16).astype(np.float64)
        self.alive = np.ones(rows, dtype=bool)
        self.index = NeuronIndex(WIDTH)
        edges = [0, *sorted(dice.integers(0, rows, 6).tolist()), rows]
        for change, (a, b) in enumerate(itertools.pairwise(edges), 1):
            gone = dice.integers(0, max(a, 1), a // 20)
            self.alive[gone] = False
            ids = np.arange(a, b, dtype=np.int64) + 1
            page = packed.from_dense(self.matrix[a:b], ids)
            self.index = self.index.apply((gone + 1).tolist(), [page] if b > a else [], change)
            if dice.random() < 0.4:
                self.index = self.index.compacted(everything=dice.random() < 0.5)
        again = np.unique(dice.integers(0, rows, rows // 30))
        self.matrix[again] = np.roll(self.matrix[again], 1, axis=1)
        self.alive[again] = True
        page = packed.from_dense(self.matrix[again], again.astype(np.int64) + 1)
        self.index = self.index.apply([], [page], 99)
        if saved is not None:
            self.index = storing.save_blocks(saved, self.index)

    def sums(self, query: NeuronQuery) -> np.ndarray:
        total = np.zeros(len(self.matrix))
        for neuron, weight in query.terms:  # ascending, one after the other, as the contract says
            total += weight * self.matrix[:, neuron]
        return total

    def candidates(self, query, where, min_score):
        passing = self.alive & where
        for condition in query.conditions:
            passing &= condition.holds(self.matrix[:, condition.neuron])
        scores = self.sums(query)
        if query.has_positive:
            positive = [neuron for neuron, weight in query.terms if weight > 0]
            passing &= (self.matrix[:, positive] > 0).any(axis=1)
            if min_score is not None:
                passing &= scores > min_score
        return np.flatnonzero(passing), scores

    def composite(self, query, k, where, min_score):
        rows, scores = self.candidates(query, where, min_score)
        order = rows[np.lexsort((rows, -scores[rows]))][:k]
        return [(int(row) + 1, float(scores[row])) for row in order]

    def affinity(self, trace, k, where, factors):
        total, sums = np.zeros(len(self.matrix)), np.zeros(len(self.matrix))
        asked = trace.activations * (1.0 if factors is None else factors[trace.neurons])
        weights = dict(zip(trace.neurons.tolist(), asked.tolist(), strict=True))
        for neuron in range(WIDTH):
            total += weights.get(neuron, 0.0) * np.sqrt(self.matrix[:, neuron])
            sums += self.matrix[:, neuron]
        shared = (self.matrix[:, trace.neurons] > 0).any(axis=1) & self.alive & where
        norms = np.sqrt(sums) * norm_of(asked)
        scores = np.divide(total, norms, out=np.zeros(len(total)), where=norms > 0)
        rows = np.flatnonzero(shared)
        order = rows[np.lexsort((rows, -scores[rows]))][:k]
        return [(int(row) + 1, float(scores[row])) for row in order]

    def random_query(self):
        dice = self.dice
        count = int(dice.integers(1, 9))
        neurons = np.sort(dice.choice(WIDTH, count, replace=False))
        weights = dice.choice(WEIGHTS, count)
        conditions = []
        for _ in range(int(dice.integers(0, 3)) if dice.random() < 0.4 else 0):
            neuron, op = int(dice.integers(WIDTH)), str(dice.choice([">", ">=", "<", "<="]))
            bound = float(dice.choice([0.0, dice.choice(self.matrix[:, neuron])]))
            conditions.append(Condition(neuron, op, bound))
        terms = tuple(zip(neurons.tolist(), weights.tolist(), strict=True))
        return NeuronQuery(terms, tuple(conditions))

    def random_filter(self):
        share = float(self.dice.choice([1.0, 1.0, 0.5, 0.1, 0.01]))
        where = self.dice.random(len(self.matrix)) < share
        if share == 1.0:
            return np.ones(len(self.matrix), dtype=bool), None
        return where, Selection(np.flatnonzero(where).astype(np.int64) + 1)

    def compare(self, queries: int) -> int:
        """Return in how many of so many random queries the engine is wrong."""
        wrong = 0
        for _ in range(queries):
            where, selected = self.random_filter()
            k = int(self.dice.choice([1, 3, 10, 10, 10, 100, 5_000]))
            if self.dice.random() < 0.25:
                row = self.matrix[self.dice.integers(len(self.matrix))]
                neurons = np.flatnonzero(row)
                trace = Trace(neurons, row[neurons])
                factors = None if self.dice.random() < 0.5 else 1 + self.dice.random(WIDTH)
                found = self.index.nearest(trace, k, factors, selected).ranked.pairs()
                wrong += found != (self.affinity(trace, k, where, factors) if len(neurons) else [])
                continue
            query = self.random_query()
            least = self.dice.choice([0.0, 0.0, 0.5, -1.0, np.nan])
            min_score = None if np.isnan(least) else float(least)
            found = self.index.composite(query, k, selected, min_score)
            expected = self.composite(query, k, where, min_score)
            wrong += found.ranked.pairs() != expected
            if found.shares is not None:
                for (memory_id, _), own in zip(expected, found.shares, strict=True):
                    exact = [w * self.matrix[memory_id - 1, n] for n, w in query.terms]
                    wrong += own.tolist() != exact
        return wrong


@pytest.mark.parametrize("kind", VALUES)
@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 2_000))
def test_every_query_equals_brute_force(path_taken, small_blocks, kind, seed, rows):
    """Ids, order and scores, to the last tie: signs, conditions, filters, borders, dead rows."""
    assert World(seed, kind, rows).compare(20) == 0


@pytest.mark.parametrize("kind", VALUES)
def test_mapped_files_answer_the_same(path_taken, small_blocks, tmp_path, kind):
    """Blocks read from files, part by part checked on first use."""
    assert World(3, kind, 1_500, tmp_path).compare(150) == 0


def test_blocks_of_full_size(path_taken):
    """Over the real border of 65,536 rows, with a summary and pruning."""
    world = World(7, "no ties", 150_000)
    world.index = world.index.compacted(everything=True)
    assert world.index.covered >= 2
    assert world.compare(40) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", VALUES)
def test_a_hundred_thousand_queries(small_blocks, kind):
    """No mismatch in 25,000 random queries of each kind of data, C path."""
    if native.load() is None:
        pytest.skip("no C kernel was built here")
    wrong = 0
    for seed in range(50):
        world = World(seed, kind, 1_000 + 40 * seed)
        wrong += world.compare(250)
        world.index = world.index.compacted(everything=True)
        wrong += world.compare(250)
    assert wrong == 0


# --- hostile files -------------------------------------------------------------------------------

FUZZ = """
import sys
from pathlib import Path
import numpy as np
from memstore.core.expression import NeuronQuery
from memstore.errors import IndexDamaged
from memstore.index import native, storing
from memstore.index.postings import NeuronIndex
assert native.load() is not None
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
dice = np.random.default_rng(seed)
name = next(folder.glob("traces-*.idx")).name
query = NeuronQuery(tuple((n, float(dice.normal())) for n in range(0, 40, 3)))
for round in range(200):
    block = storing.load_block(folder, name)
    # The kernel must stay within bounds whatever it reads.
    for array in ("starts", "neurons", "activations", "norm_codes"):
        if dice.random() < 0.4:
            own = getattr(block, array).copy()
            own.view(np.uint8)[dice.integers(own.nbytes, size=3)] = dice.integers(256, size=3)
            object.__setattr__(block, array, own)
    runs = block.runs
    rows = runs.rows.copy()
    rows.view(np.uint8)[dice.integers(rows.nbytes, size=3)] = dice.integers(256, size=3)
    object.__setattr__(runs, "rows", rows)
    if round % 2:  # past the checksums, too
        object.__setattr__(block, "sums", None)
    try:
        NeuronIndex(block.width, 1, (block,)).composite(query, 50)
    except IndexDamaged:
        pass
print("done")
"""


def test_the_kernel_stays_within_bounds_under_sanitizers(tmp_path, small_blocks):
    """Built with AddressSanitizer and UBSan, fed damage: an error or an answer, no fault."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc here")
    library = tmp_path / "kernel-asan.so"
    source = ROOT / "memstore" / "index" / "kernel.c"
    flags = ["-std=c11", "-g", "-O1", "-fPIC", "-shared", "-ffp-contract=off"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Werror"]
    built = subprocess.run(
        [compiler, *flags, "-o", library, source, "-lm"], capture_output=True, text=True
    )
    if "cannot find" in built.stderr:
        pytest.skip("this gcc has no sanitizers")
    assert built.returncode == 0, built.stderr
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    World(1, "few ties", 1_200, tmp_path / "index")
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "MEMSTORE_KERNEL": str(library),
    }
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path / "index"), "5"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr[-3000:]


def test_without_a_kernel_the_store_answers_the_same(tmp_path, narrative_store):
    """MEMSTORE_KERNEL=off: numpy alone, in a process of its own."""
    code = (
        "import sys; from memstore import MemoryStore\n"
        "with MemoryStore.open(sys.argv[1], mode='r') as store:\n"
        "    for q in ('+450 -207', '2*15 + 450 & 7<0.2', '-5'):\n"
        "        print([(h.id, h.score.hex(), dict(h.parts)) for h in store.composite(q, 20)])\n"
        "    print([(h.id, h.score.hex()) for h in store.similar(3, 20, by='trace')])\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, str(narrative_store)], cwd=ROOT, check=True,
            capture_output=True, text=True, env={**os.environ, **more},
        ).stdout
        for more in ({}, {"MEMSTORE_KERNEL": "off"})
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 4


# --- kill points ---------------------------------------------------------------------------------

WORK = """
import sys
from memstore import MemoryStore
from memstore import upkeep
from tests.conftest import make_encoder
upkeep.CHECKPOINT = 300
with MemoryStore.open(sys.argv[1], encoder=make_encoder()) as store:
    print("open", flush=True)
    while True:
        ids = store.insert_many([f"memory {i}" for i in range(200)])
        print(ids[-1], flush=True)
        store.delete(ids[::3])
        store.optimize()
"""


def killed_at(path: Path, delay: float) -> None:
    """Run a process that inserts, deletes, saves and optimizes, and kill it after a while."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "open\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


@pytest.mark.parametrize("rounds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_while_saving_the_next_open_answers_correctly(path, encoder, rounds):
    """SIGKILL while sealing, merging, saving, optimizing: answers equal those without files."""
    dice = np.random.default_rng(rounds)
    for _ in range(rounds):
        killed_at(path, float(dice.uniform(0.02, 0.5)))
        with MemoryStore.open(path, mode="r", encoder=encoder) as store:
            with_files = [store.top(n, 50) for n in range(10)] + [store.search("memory 7", 20)]
            assert store.check() == []
            held = store.traces().to_dense()
            assert [len(hits) for hits in with_files[:10]] == np.minimum(
                50, (held > 0).sum(axis=0)
            ).tolist()
        kept = path.with_name("kept-index")
        shutil.move(layout.index_folder(path), kept) if layout.index_folder(path).exists() else None
        with MemoryStore.open(path, mode="r", encoder=encoder) as store:
            without = [store.top(n, 50) for n in range(10)] + [store.search("memory 7", 20)]
        assert with_files == without
        if kept.exists():
            shutil.move(kept, layout.index_folder(path))


def test_a_day_of_churn_leaves_few_files(path, encoder):
    """Insert and delete over and over: the index folder holds what is alive, not what was."""
    with MemoryStore.open(path, encoder=encoder) as store:
        for _ in range(12):
            ids = store.insert_many([f"memory {i}" for i in range(5_000)], on_duplicate="add")
            store.delete(ids)
            store.top(3)
        store._upkeep.close()
    folder = layout.index_folder(path)
    assert sum(file.stat().st_size for file in folder.glob("*.idx")) < 5_000 * 400
    assert len(list(folder.glob("*.idx"))) < 20
