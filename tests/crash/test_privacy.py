"""Nothing leaves the machine: the main flows run where asking for a socket ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = """
import sys
from pathlib import Path
from memstore import MemoryStore, backups
from memstore.recovery import recover
folder = Path(sys.argv[1])
with MemoryStore.open(folder / "diary.db") as store:
    store.insert_many(["It rained all day.", "We laughed on the way home."], progress=True)
    store.update(1, text="It rained all night.")
    for by in ("dense", "trace", "words", "hybrid"):
        assert len(store.search("it rained", by=by)) >= 1
    neuron = int(store.trace(1).neurons[0])
    assert store.top(neuron)[0].why()
    assert store.composite({neuron: 1}).to_dicts()
    store.similar(1), store.neurons[neuron], store.stats(), store.explain_query({neuron: 1})
    store.optimize(), store.check(), store.repair()
    store.export(folder / "all.jsonl", encoded=True)
    store.backup(folder / "copy.db")
backups.restore(folder / "copy.db", folder / "restored.db")
recover(folder / "restored.db", folder / "recovered.jsonl")
"""
COMMANDS = [
    ["demo", "demo.db"],
    ["insert", "new.db", "A letter came."],
    ["import", "new.db", "all.jsonl.txt", "--format", "text"],
    ["search", "new.db", "letter", "--by", "hybrid", "--why"],
    ["composite", "demo.db", "+450 -207"],
    ["neuron", "demo.db", "450"],
    ["stats", "demo.db", "--json"],
    ["check", "demo.db"],
]


def run(offline: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "LD_PRELOAD": str(offline)}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_ban_itself_holds(offline, tmp_path):
    """A process that does ask for a socket is ended; one that asks for none is not."""
    asking = run(offline, tmp_path, "-c", "import socket; socket.socket()")
    assert asking.returncode == -6
    assert "a socket was asked for" in asking.stderr
    assert run(offline, tmp_path, "-c", "import socket").returncode == 0


def test_the_library_asks_for_no_socket(offline, tmp_path):
    """Insert, every query, care, export, backup, restore, recover, with the shipped encoder."""
    done = run(offline, tmp_path, "-c", LIBRARY, str(tmp_path))
    assert done.returncode == 0, done.stderr[-2_000:]


@pytest.mark.slow
def test_the_commands_ask_for_no_socket(offline, tmp_path):
    """From the demo to check."""
    (tmp_path / "all.jsonl.txt").write_text("One day.\nAnother day.\n", "utf-8")
    for command in COMMANDS:
        done = run(offline, tmp_path, "-m", "memstore", *command)
        assert done.returncode == 0, (command, done.stderr[-2_000:])


def test_training_asks_for_no_socket(offline, tmp_path):
    """torch, too, stays at home."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"On day {i} the tram was late." for i in range(300)), "utf-8")
    command = ["train", "texts.txt", "--out", "sae", "--neurons", "16", "-k", "4"]
    done = run(offline, tmp_path, "-m", "memstore", *command, "--epochs", "1")
    assert done.returncode == 0, done.stderr[-2_000:]
