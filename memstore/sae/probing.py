"""k-sparse probing: how much of a label one, two or five neurons hold.

The protocol of SAEBench (Karvonen et al., arXiv 2503.09532), after Gurnee et al. (arXiv
2305.01610): for each label against the rest, on as many texts with it as without, the k columns of
largest difference of means on the training part, a logistic regression on them, accuracy on the
other part. Chance is one half. One random split moves a mean over labels by as much as codes
differ, so that several are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.types import Float32, Float64, Int64

#: How many columns a probe may look at; None for all of them.
SIZES: tuple[int | None, ...] = (1, 2, 5)
#: Texts with the label, and as many without, at most: 4,000 to train on, 1,000 to test, as there.
MOST = 2_500
#: A label of fewer texts than this tells nothing.
FEWEST = 60
TEST_SHARE = 0.2
#: Random splits that an evaluation takes the mean of.
SPLITS = 6
#: Columns looked at in turn by one fit; a probe of all columns is stopped there.
ITERATIONS = 300
#: Columns whose AUC is looked at.
CANDIDATES = 20


@dataclass(frozen=True)
class Task:
    """One label against the rest: rows to train on, rows to test on, and who has it."""

    label: str
    train: Int64
    test: Int64
    has: NDArray[np.bool_]


def tasks(labels: Sequence[frozenset[str]], seed: int = 0) -> Iterator[Task]:
    """Yield the tasks of texts with any number of labels, those of too few texts left out."""
    rng = np.random.default_rng(seed)
    for name in sorted(set().union(*labels)):
        has = np.array([name in own for own in labels], dtype=np.bool_)
        count = min(int(has.sum()), int((~has).sum()), MOST)
        if count < FEWEST:
            continue
        chosen = [rng.permutation(np.flatnonzero(side))[:count] for side in (has, ~has)]
        cut = round(count * TEST_SHARE)
        test = np.concatenate([rows[:cut] for rows in chosen])
        yield Task(name, np.concatenate([rows[cut:] for rows in chosen]), test, has)


def probe(values: Float32 | Float64, task: Task, size: int | None) -> float:
    """Return the accuracy of a probe of ``size`` columns of (n, columns) values on the test rows.

    Columns are brought to unit variance, so that the penalty of the regression weighs alike.
    """
    from sklearn.linear_model import LogisticRegression

    own = values[task.train].astype(np.float64)
    has = task.has[task.train]
    chosen = strongest(own, has, size)
    own = own[:, chosen]
    mean, spread = own.mean(axis=0), own.std(axis=0)
    spread[spread == 0] = 1.0
    model = LogisticRegression(max_iter=ITERATIONS)
    model.fit((own - mean) / spread, has)
    other = (values[task.test][:, chosen].astype(np.float64) - mean) / spread
    return float(np.mean(model.predict(other) == task.has[task.test]))


def strongest(values: Float64, has: NDArray[np.bool_], size: int | None) -> Int64:
    """Return the columns whose mean differs most between rows that have the label and rows not."""
    difference = np.abs(values[has].mean(axis=0) - values[~has].mean(axis=0))
    order = np.lexsort((np.arange(len(difference)), -difference))
    return np.asarray(order[:size], dtype=np.int64)


def probing(
    values: Float32 | Float64, asked: Sequence[Task], sizes: Sequence[int | None] = SIZES
) -> dict[str, float]:
    """Return ``{size: mean accuracy over the tasks}`` of a code, (n, columns)."""
    return {
        str(size or "all"): float(np.mean([probe(values, task, size) for task in asked]))
        for size in sizes
    }


@dataclass(frozen=True)
class Separation:
    """How well the best single column tells a label from the rest."""

    label: str
    column: int
    auc: float


def separation(values: Float32 | Float64, task: Task) -> Separation:
    """Return the column of best AUC on the training rows, with its AUC on the test rows.

    A column may tell a label by being low: the AUC is then that of its negative. Only the
    ``CANDIDATES`` columns of largest difference of means are tried.
    """
    own, has = values[task.train].astype(np.float64), task.has[task.train]
    columns = strongest(own, has, CANDIDATES)
    aucs = np.array([auc(own[:, column], has) for column in columns])
    best = int(np.argmax(np.abs(aucs - 0.5)))
    column = int(columns[best])
    tested = auc(values[task.test, column].astype(np.float64), task.has[task.test])
    return Separation(task.label, column, tested if aucs[best] >= 0.5 else 1 - tested)


def auc(values: Float64, has: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve of one column for having a label."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(has, values))
