"""Index files damaged at random, and a store opened on them.

    python damage.py PLAN.json

PLAN: seed, count, folder, lists (whether the dense index is one of product codes). Prints what
happened as JSON. Each batch runs in a forked child, so that a crash of the interpreter is seen.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from kills import ENCODER, forked

from memstore import MemoryStore, layout
from memstore.index import blocks, dense, lists, postings

MEMORIES, A_BATCH = 1_200, 100
COMPOSITES = ["+1 -5", "2*3 + 4 - 0.5*7", "-2", "1 & 3>0.5", "1 + 2 + 3 + 4 & !9"]
TEXTS = ["memory 7", "entry 11 of the log", "nothing like it"]

Files = dict[str, bytes]


def flip(files: Files, name: str, dice: np.random.Generator) -> None:
    """Change up to eight bytes."""
    content = bytearray(files[name])
    for place in dice.integers(len(content), size=int(dice.integers(1, 9))):
        content[place] ^= int(dice.integers(1, 256))
    files[name] = bytes(content)


def flip_in_front(files: Files, name: str, dice: np.random.Generator) -> None:
    """Change a byte where header and small arrays are."""
    content = bytearray(files[name])
    content[dice.integers(min(len(content), 2_000))] ^= 1 << int(dice.integers(8))
    files[name] = bytes(content)


def cut(files: Files, name: str, dice: np.random.Generator) -> None:
    """Lose the end, as a disk does that was full or lost its power."""
    files[name] = files[name][: dice.integers(len(files[name]))]


def grow(files: Files, name: str, dice: np.random.Generator) -> None:
    """Have something behind the end."""
    files[name] += dice.bytes(int(dice.integers(1, 5_000)))


def blank(files: Files, name: str, dice: np.random.Generator) -> None:
    """Lose a stretch of pages to zeros."""
    content = bytearray(files[name])
    start = int(dice.integers(len(content)))
    stretch = min(len(content) - start, int(dice.integers(1, 8_192)))
    content[start : start + stretch] = bytes(stretch)
    files[name] = bytes(content)


def swap(files: Files, name: str, dice: np.random.Generator) -> None:
    """Have two files under each other's names."""
    other = str(dice.choice(list(files)))
    files[name], files[other] = files[other], files[name]


def lose(files: Files, name: str, dice: np.random.Generator) -> None:
    """Lose some files."""
    for gone in {name, *dice.choice(list(files), int(dice.integers(0, 3))).tolist()}:
        files.pop(gone, None)


def move_within(files: Files, name: str, dice: np.random.Generator) -> None:
    """Have one stretch of a file overwritten by another, as by a stray write."""
    content = bytearray(files[name])
    size = int(dice.integers(1, 2_000))
    source, target = dice.integers(max(1, len(content) - size), size=2).tolist()
    content[target : target + size] = content[source : source + size]
    files[name] = bytes(content)


WAYS: list[Callable[[Files, str, np.random.Generator], None]] = [
    flip, flip, flip_in_front, cut, grow, blank, swap, lose, move_within
]  # fmt: skip


def answers(store: MemoryStore) -> list:
    """Return what every kind of query that reads an index says, scores to the last bit."""
    asked = [store.top(neuron, 40) for neuron in range(10)]
    asked += [store.composite(text, 40, min_score=None) for text in COMPOSITES]
    asked += [store.search(text, 10) for text in TEXTS]
    asked += [store.search(text, 10, by="trace") for text in TEXTS]
    asked += [store.search(TEXTS[0], 10, where={"category": "b"}), store.similar(9, 10)]
    held = store.traces().to_dense()
    return [*([(hit.id, hit.score.hex()) for hit in hits] for hits in asked), held.tobytes().hex()]


class Heard(logging.Handler):
    """Counts warnings: each says that something was rebuilt."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.count += 1


def small_parts(use_lists: bool) -> None:
    """Have many blocks, runs and a summary in little data; product codes if asked for."""
    for module in (blocks, postings):
        module.BLOCK_ROWS, module.FEW_ROWS = 300, 8
    if use_lists:
        dense.EXACT, dense.FEW, lists.ONE_LIST = 500, 20, 2_000


def make(path: Path) -> None:
    """Fill a store, delete a few, save the index, add some that are in no file."""
    with MemoryStore.open(path, encoder=ENCODER) as store:
        rows = [{"text": f"memory {i}", "category": "ab"[i % 2]} for i in range(MEMORIES)]
        store.insert_many(rows)
        store.optimize()
        store.delete(list(range(20, 400, 7)))
        store._upkeep.save()
        store.insert_many([f"entry {i} of the log" for i in range(30)])


def batch(path: Path, pristine: Files, expected: list, seed: int, pipe: int) -> None:
    """Damage the index a hundred times; report what happened each time."""
    dice, folder, outcomes = np.random.default_rng(seed), layout.index_folder(path), Counter()
    heard = Heard()
    logging.getLogger("memstore").addHandler(heard)
    logging.getLogger("memstore").propagate = False
    for number in range(A_BATCH):
        files, heard.count = dict(pristine), 0
        way = WAYS[dice.integers(len(WAYS))]
        name = str(dice.choice(sorted(files)))
        way(files, name, dice)
        shutil.rmtree(folder)
        folder.mkdir()
        for each, content in files.items():
            (folder / each).write_bytes(content)
        mode = "r" if dice.random() < 0.5 else "rw"
        with MemoryStore.open(path, mode=mode, encoder=ENCODER) as store:
            if answers(store) != expected:
                raise AssertionError(f"seed {seed} number {number}: {way.__name__} of {name}")
        outcomes["rebuilt" if heard.count else "answered"] += 1
    os.write(pipe, json.dumps(["outcomes", outcomes]).encode() + b"\n")


def main() -> None:
    """Run the plan and print what happened."""
    plan = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    small_parts(plan["lists"])
    folder = Path(plan["folder"])
    folder.mkdir(parents=True)
    path = folder / "store.db"
    make(path)
    index = layout.index_folder(path)
    pristine = {file.name: file.read_bytes() for file in index.glob("*.idx")}
    with MemoryStore.open(path, mode="r", encoder=ENCODER) as store:
        expected = answers(store)
    outcomes, problems = Counter(), []
    for number in range(plan["count"] // A_BATCH):
        seed = plan["seed"] * 1_000_000 + number
        child, report = forked(lambda pipe, seed=seed: batch(path, pristine, expected, seed, pipe))
        with os.fdopen(report, "rb") as pipe:
            said = [json.loads(line) for line in pipe]
        _, status = os.waitpid(child, 0)
        if status == 0 and said[-1][0] == "outcomes":
            outcomes.update(said[-1][1])
        else:
            problems.append(said[-1][1] if said else f"seed {seed}: ended with status {status}")
    facts = {"files": len(pristine), "outcomes": outcomes, "problems": problems}
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main()
