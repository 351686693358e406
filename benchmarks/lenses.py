"""How well few neurons tell a category, beside a dense probe that reads all 384 dimensions.

    python benchmarks/lenses.py ../shared/data/isear/data.jsonl --category label
    python benchmarks/lenses.py memstore/samples/narratives.json --category category

AUC on memories left out, the mean of five parts, for each category against all others. A lens is
learned as `memstore lens learn` does; the probe is scikit-learn's logistic regression on vectors of
unit variance, C = 0.1 (0.01 and 1 did no better on either set). Needs the extra `train`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from memstore import MemoryStore
from memstore.files import read_rows
from memstore.options import Scoring

#: (by, neurons)
LENSES: tuple[tuple[Scoring, int], ...] = (("dense", 5), ("dense", 10), ("trace", 5), ("trace", 20))
PENALTY, FOLDS = 0.1, 5


def probe(vectors: np.ndarray, inside: np.ndarray) -> float:
    """Return the AUC of a dense logistic probe on the folds it was not fitted to."""
    found = []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(vectors, inside):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1_000))
        model.fit(vectors[train], inside[train])
        found.append(roc_auc_score(inside[test], model.decision_function(vectors[test])))
    return float(np.mean(found))


def main() -> None:
    """Print a line a category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--category", default="category")
    arguments = parser.parse_args()
    rows = [
        {"text": row["text"], "category": row[arguments.category]}
        for row in read_rows(str(arguments.file), None, "text")
    ]
    names = [f"{size} neurons by {by}" for by, size in LENSES]
    print("| category | " + " | ".join([*names, "dense probe"]) + " |")
    print("|---" * (len(names) + 2) + "|")
    with MemoryStore.open(":memory:") as store:
        store.insert_many(rows, progress=True)
        vectors = np.concatenate([found for _, found in store.iter_vectors()])
        own = np.array([memory.category for memory in store])
        for category in sorted(set(own)):
            aucs = [
                store.lenses.learn(category, name=f"{by} {size}", by=by, neurons=size).grade
                for by, size in LENSES
            ]
            cells = [f"{auc:.3f}" for auc in [*aucs, probe(vectors, own == category)]]
            print(f"| {category} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
