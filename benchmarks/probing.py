"""How far a probing figure is the split's: k-sparse probing over several random splits.

    python benchmarks/probing.py ../shared/data/isear/data.jsonl:label --splits 6
    python benchmarks/probing.py ../shared/data/banking77/data.jsonl:label --splits 6

Mean accuracy on one, two and five columns, of each SAE and of raw dimensions, and by how much five
columns differ from five raw dimensions, split by split, with the standard error of that difference.
Needs the extra `train`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from memstore import layout
from memstore.cli.evaluation import read_labelled
from memstore.cli.lab import embed
from memstore.evaluation import RAW
from memstore.sae import probing
from memstore.sae.encode import SAE
from memstore.sae.measure import stored


def main() -> None:
    """Print a line a code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labelled", metavar="FILE:FIELD")
    parser.add_argument("--splits", type=int, default=probing.SPLITS)
    parser.add_argument("--sae", type=Path, action="append")
    parser.add_argument("--cache", type=Path, default=Path("build/vectors"))
    arguments = parser.parse_args()
    models = layout.PACKAGE / "models"
    folders = arguments.sae or [models / "sae-3072-k32", models / "sae-3072-k64"]
    _, given = read_labelled(
        arguments.labelled, "text", lambda texts: embed(texts, None, arguments.cache)
    )
    codes = {RAW: given.vectors}
    codes |= {folder.name: stored(SAE.load(folder), given.vectors) for folder in folders}
    splits = [list(probing.tasks(given.labels, seed)) for seed in range(arguments.splits)]
    print("| code | 1 column | 2 columns | 5 columns | 5, less raw |")
    print("|---|---|---|---|---|")
    raw = np.zeros((len(splits), len(probing.SIZES)))
    for name, values in codes.items():
        found = np.array([list(probing.probing(values, tasks).values()) for tasks in splits])
        raw = found if name == RAW else raw
        less = (found - raw)[:, -1]
        error = less.std(ddof=1) / np.sqrt(len(less))
        cells = [
            *(f"{mean:.3f}" for mean in found.mean(axis=0)),
            f"{less.mean():+.4f} ({error:.4f})",
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
