"""Killed at any moment: nothing acknowledged is lost, nothing half done is seen, answers are right.

The work is done by ``kills.py`` and ``upgrades.py``, in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from points import BROKEN, POINTS
from results import record

HERE = Path(__file__).parent
FROZEN = sorted((HERE.parent / "fixtures").glob("store-*.db"))


def run(script: str, folder: Path, layer: Path, **plan) -> dict:
    """Run a plan in a process with the layer preloaded; returns what it found."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    plan |= {"folder": str(folder / "work"), "layer": str(layer)}
    file.write_text(json.dumps(plan), "utf-8")
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(file)],
        env={**os.environ, "LD_PRELOAD": str(layer)}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def campaigns(tmp_path: Path, layer: Path, plans: list[dict]) -> list[dict]:
    """Run campaigns side by side, one a core."""

    def one(number: int) -> dict:
        return run("kills.py", tmp_path / str(number), layer, **plans[number])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, range(len(plans))))


@pytest.mark.parametrize("kills", [60, pytest.param(2_000, marks=pytest.mark.crash)])
def test_killed_at_random_nothing_is_lost(tmp_path, layer, kills):
    """By the clock, at the n-th file call, in the middle of a write: the model knows what must be.

    Every kind of query of a fresh process is compared with plain loops over the tables.
    """
    rounds = kills // 2 * 21 // 20  # a few workers are killed before they open the store
    found = campaigns(tmp_path, layer, [{"seed": seed, "rounds": rounds} for seed in (1, 2)])
    assert [each["problems"] for each in found] == [[], []]
    assert sum(each["kills"] for each in found) >= kills
    assert all(each["ways"]["a torn write"] and each["ways"]["a file call"] for each in found)
    if kills > 100:
        record("kills", {
            "kills": sum(each["kills"] for each in found),
            "ways": [each["ways"] for each in found],
            "acknowledged": sum(each["acknowledged"] for each in found),
            "lost or wrong": 0,
        })  # fmt: skip


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.crash)],
)
def test_killed_at_every_named_point_nothing_is_lost(tmp_path, layer, rounds):
    """Before and after each step of insert, delete, save, optimize, repair, backup and export."""
    plans = [{"seed": 7, "rounds": 0, "points": POINTS[half::2] * rounds} for half in (0, 1)]
    found = campaigns(tmp_path, layer, plans)
    assert [(each["problems"], each["unreached"]) for each in found] == [([], []), ([], [])]
    reached = {point for each in found for point in each["ways"]}
    assert reached == set(POINTS)
    if rounds > 1:
        record("points", {"points": len(POINTS), "kills": sum(each["kills"] for each in found)})


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_store_is_caught(tmp_path, layer, broken):
    """The harness itself: a store that breaks one promise does not get through."""
    found = run("kills.py", tmp_path, layer, seed=3, rounds=80, broken=broken)
    assert found["problems"], f"{broken} went unnoticed in {found['kills']} kills"


@pytest.mark.parametrize("file", FROZEN[:-1], ids=lambda file: file.stem)
@pytest.mark.parametrize("moments", [8, pytest.param(50, marks=pytest.mark.crash)])
def test_an_upgrade_killed_half_way_leaves_a_store(tmp_path, layer, file, moments):
    """The old one untouched, or the new one whole with the old one beside it; then upgradable."""
    found = run("upgrades.py", tmp_path, layer, store=str(file), moments=moments)
    assert found["problems"] == []
    assert found["moments"] == moments
    assert 0 < found["left_old"] < moments
    if moments > 8:
        record(f"upgrade-{file.stem}", found)
