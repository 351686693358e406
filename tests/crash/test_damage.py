"""Index files damaged at random: every open answers correctly, from them or from the catalog."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from results import record

HERE = Path(__file__).parent


def damaged(folder: Path, **plan) -> dict:
    """Run a plan of ``damage.py``; returns what happened."""
    folder.mkdir()
    file = folder / "plan.json"
    file.write_text(json.dumps(plan | {"folder": str(folder / "work")}), "utf-8")
    done = subprocess.run(
        [sys.executable, str(HERE / "damage.py"), str(file)], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.crash)])
def test_a_damaged_index_answers_correctly_or_is_rebuilt(tmp_path, count):
    """Bytes flipped, ends cut, pages blanked, files swapped or lost; exact and coded vectors."""

    def one(lists: bool) -> dict:
        folder = tmp_path / ("lists" if lists else "exact")
        return damaged(folder, seed=1, count=count // 2, lists=lists)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(one, (False, True)))
    assert [each["problems"] for each in found] == [[], []]
    outcomes = sum((Counter(each["outcomes"]) for each in found), Counter())
    assert outcomes.total() == count
    # Damage that nobody notices would prove nothing: most of it must have been noticed.
    assert outcomes["rebuilt"] > count // 2
    assert all(each["files"] >= 6 for each in found)
    if count > 1_000:
        record("damage", {"corruptions": count, **outcomes, "wrong answers": 0, "crashes": 0})
