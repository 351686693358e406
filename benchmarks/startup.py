"""Whole processes: what a question from the shell costs, beside importing sentence-transformers.

    memstore demo build/demo.db
    python benchmarks/startup.py build/demo.db [--rounds 7]

Each round runs every command once, in turn; medians, and the ratio to the import.
"""

import argparse
import statistics
import subprocess
import sys
import time

PEER = [sys.executable, "-c", "import sentence_transformers"]


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    memstore = [sys.executable, "-m", "memstore"]
    commands = {
        "import memstore": [sys.executable, "-c", "import memstore"],
        "memstore top": [*memstore, "top", arguments.store, "15"],
        "memstore composite": [*memstore, "composite", arguments.store, "+15 -5"],
        "memstore search": [*memstore, "search", arguments.store, "a quarrel that ended well"],
        "import sentence_transformers": PEER,
    }
    for command in commands.values():
        seconds(command)
    rounds = [
        {name: seconds(command) for name, command in commands.items()}
        for _ in range(arguments.rounds)
    ]
    for name in commands:
        median = statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r["import sentence_transformers"] / r[name] for r in rounds)
        print(f"{name:<30}{median:7.2f} s   {ratio:6.1f} times faster than the import")


if __name__ == "__main__":
    main()
