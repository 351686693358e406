"""Upgrades of an old store that are killed, each at another of the things done to files.

    python upgrades.py PLAN.json

PLAN: store (a frozen one), folder, layer, moments (how many). Prints what it found as JSON.
"""

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from kills import ENCODER, forked, load_layer

from memstore import MemoryStore
from memstore.catalog import migrate
from memstore.errors import StoreOutOfDate

ENDLESS = 1 << 40


def contents(store: MemoryStore) -> list:
    """Return every memory, its trace, and every label."""
    memories = [(m.to_dict(), store.trace(m.id).to_dict()) for m in store.iter()]
    labels = [(n.id, n.label, n.grade) for n in store.neurons if n.label]
    return [memories, labels, [(hit.id, hit.score) for hit in store.top(3, 50)]]


def tables(path: Path) -> list:
    """Return every row of every table of an old store, as SQLite gives them."""
    with closing(sqlite3.connect(path)) as connection:
        names = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%VIRTUAL%'"
            )
        ]
        return [(name, connection.execute(f"SELECT * FROM {name}").fetchall()) for name in names]


class Upgrade:
    """One frozen store, upgraded again and again."""

    def __init__(self, plan: dict) -> None:
        self.plan, self.layer = plan, load_layer(plan["layer"])
        self.frozen, self.folder = Path(plan["store"]), Path(plan["folder"])
        self.old, self.problems, self.left_old = tables(self.frozen), [], 0

    def fresh(self) -> Path:
        """Return a new copy of the frozen store, alone in the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return Path(shutil.copy(self.frozen, self.folder / "old.db"))

    def run(self) -> dict:
        """Return how many of the moments left the old store, and what was wrong."""
        path = self.fresh()
        calls = self.in_child(lambda: self.whole(path))
        if calls is None:
            raise SystemExit("the upgrade failed even when nobody killed it")
        self.wanted = self.in_child(lambda: self.read(path))
        moments = np.unique(np.linspace(0, calls - 1, self.plan["moments"]).astype(int))
        for number, moment in enumerate(moments.tolist()):
            self.kill_at(moment, torn=number % 2 == 0)
        return {
            "file_calls": calls,
            "moments": len(moments),
            "left_old": self.left_old,
            "problems": self.problems,
        }

    def in_child(self, work: Callable[[], object]) -> object:
        """Return what a forked child made of it, None where it was killed or failed."""
        child, answer = forked(lambda pipe: os.write(pipe, json.dumps(work()).encode() + b"\n"))
        with os.fdopen(answer, "rb") as pipe:
            said = [json.loads(line) for line in pipe]
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and status:
            self.problems.append(said[-1][1])
        return said[-1] if said and status == 0 else None

    def whole(self, path: Path) -> int:
        """Upgrade; return how many things were done to files meanwhile."""
        self.layer.arm(ENDLESS, 0)
        migrate.upgrade(path, 5.0)
        return ENDLESS - self.layer.calls_left()

    def read(self, path: Path) -> list:
        """Return what an upgraded store holds."""
        with MemoryStore.open(path, encoder=ENCODER) as store:
            assert store.check() == [], store.check()
            return contents(store)

    def kill_at(self, moment: int, torn: bool) -> None:
        """Have an upgrade killed, then look at what it left, and upgrade again."""
        path = self.fresh()

        def upgrade() -> None:
            self.layer.arm(moment, int(torn))
            migrate.upgrade(path, 5.0)

        self.in_child(upgrade)
        found = self.in_child(lambda: self.after(path))
        if found is not None:
            self.left_old += found[0]
            if found[1] != self.wanted:
                self.problems.append(f"killed at {moment}: the upgraded store differs")

    def after(self, path: Path) -> list:
        """Return whether the old store is still there, and what it holds once upgraded."""
        is_old = False
        try:
            MemoryStore.open(path, mode="r", encoder=ENCODER).close()
        except StoreOutOfDate:
            is_old = True
            assert tables(path) == self.old, "the old store was changed"
        for copy in path.parent.glob("*.backup"):
            assert tables(copy) == self.old, "the backup is not the old store"
        assert is_old or list(path.parent.glob("*.backup")), "upgraded without a backup"
        migrate.upgrade(path, 5.0)
        return [is_old, self.read(path)]


def main() -> None:
    """Run the plan and print what it found."""
    sys.stdout.write(json.dumps(Upgrade(json.loads(Path(sys.argv[1]).read_text("utf-8"))).run()))


if __name__ == "__main__":
    main()
