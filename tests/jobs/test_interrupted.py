"""Killed at every file operation of every step, and stopped by Ctrl-C: paid once, lost nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from local_api import plan_text

#: Starts the command line with the file layer armed.
ARMED = """
import ctypes, sys
calls, half, *sys.argv[1:] = sys.argv[1:]
from memstore.cli import main
from memstore.jobs import batches
batches.SETTLE = 1.0
layer = ctypes.CDLL({layer!r})
layer.arm.argtypes = [ctypes.c_long, ctypes.c_int]
layer.arm(int(calls), int(half))
main()
"""
STEPS = [
    ("plan", "job", "--plan", "plan.toml", "--most-requests", "100"),
    ("submit", "job", "--yes"),
    ("watch", "job", "--every", "0.1"),
    ("fetch", "job"),
    ("check", "job"),
    ("process", "job", "--store", "diary.db"),
]
#: Among how many file operations of a step dice choose: small where a kill is no step back.
REACH = {"plan": 16, "submit": 3, "watch": 3, "fetch": 12, "check": 12, "process": 60}


def killed(shell, layer, at, half, step):
    """Run a step that dies at its n-th file operation; returns whether it did."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ARMED.format(layer=str(layer)),
            str(at),
            str(half),
            "generate",
            *step,
        ],
        cwd=shell.folder,
        env=shell.environment(LD_PRELOAD=str(layer), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), (step, done.stdout, done.stderr)
    return done.returncode != 0


def judge_end(shell, api, count):
    """Every request was paid for once, and is one narrative in file and store."""
    assert len(api.paid) == len(set(api.paid)) == count
    rows = json.loads((shell.folder / "job" / "narratives.json").read_text())
    assert sorted(row["metadata"]["request"] for row in rows) == sorted(api.paid)
    stored = [memory["metadata"]["request"] for memory in shell.memories("diary.db")]
    assert sorted(stored) == sorted(api.paid)


def campaign(shell, api, layer, kills, seed):
    """Kill each step so often, at file operations that dice choose, then let it live."""
    (shell.folder / "plan.toml").write_text(plan_text(180, 120))
    dice = random.Random(seed)
    died = 0
    for step in STEPS:
        for _ in range(kills):
            if not killed(shell, layer, dice.randrange(REACH[step[0]]), dice.randrange(2), step):
                break
            died += 1
        shell.run("generate", *step)
    judge_end(shell, api, 300)
    return died


@pytest.mark.slow
def test_three_hundred_requests_killed_at_every_step(shell, api, layer):
    """Three batches; each step dies twice, before or in the middle of a write."""
    assert campaign(shell, api, layer, kills=2, seed=1) >= 9


@pytest.mark.slow
def test_three_hundred_requests_killed_over_and_over(shell, api, layer):
    """The same, thirty times a step."""
    assert campaign(shell, api, layer, kills=30, seed=2) >= 60


def test_the_direct_mode_killed_over_and_over(shell, api, layer):
    """Each answer written is never asked again; what a kill costs is what was in the air."""
    (shell.folder / "plan.toml").write_text(plan_text(18, 12))
    shell.run("generate", "plan", "job", "--plan", "plan.toml")
    kills = 0
    while killed(shell, layer, 9, kills % 2, ("direct", "job", "--yes", "--at-once", "2")):
        kills += 1
    assert kills >= 3
    assert len(set(api.prompts)) == 30
    assert len(api.paid) <= 30 + 2 * kills
    shell.run("generate", "process", "job")
    rows = json.loads((shell.folder / "job" / "narratives.json").read_text())
    assert len({row["metadata"]["request"] for row in rows}) == len(rows) == 30


def test_ctrl_c_keeps_what_is_in_the_air(shell, api, job):
    """The direct mode stops asking, and every answer that was paid for is kept."""
    api.fault(at="POST /chat/completions", kind="slow", seconds=1, times=99)
    process = subprocess.Popen(
        [sys.executable, "-m", "memstore", "generate", "direct", "job", "--yes", "--at-once", "2"],
        cwd=shell.folder,
        env=shell.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not api.paid:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    api.heal()
    kept = len((job / "direct.jsonl").read_text().splitlines())
    assert 2 <= kept == len(api.paid) < 10
    assert shell.json("generate", "direct", "job", "--yes") == {"answered": 10}
    assert len(api.paid) == len(set(api.prompts)) == 10


def test_ctrl_c_ends_the_watching_alone(shell, api, job):
    """The batch goes on at the server."""
    api.fault(at="GET /batches/", kind="slow", seconds=8)
    shell.run("generate", "submit", "job", "--yes")
    process = subprocess.Popen(
        [sys.executable, "-m", "memstore", "generate", "watch", "job", "--every", "5"],
        cwd=shell.folder,
        env=shell.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    api.heal()
    shell.run("generate", "watch", "job", "--every", "0.1")
    assert shell.json("generate", "fetch", "job") == {"answered": 10}
    assert len(api.paid) == 10


@pytest.mark.slow
def test_killed_by_the_clock(shell, api):
    """Sixty kills at random moments, in the middle of calls too."""
    dice = random.Random(11)
    (shell.folder / "plan.toml").write_text(plan_text(180, 120))
    kills = 0
    for step in STEPS:
        while True:
            process = subprocess.Popen(
                [sys.executable, "-m", "memstore", "generate", *step],
                cwd=shell.folder,
                env={**shell.environment(), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            patience = dice.uniform(0.3, 1.6) if kills < 60 and dice.random() < 0.9 else 120
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            assert process.returncode == 0
            break
    assert kills >= 10
    judge_end(shell, api, 300)
