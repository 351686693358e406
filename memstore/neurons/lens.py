"""Learning a lens: the few neurons that tell a category, and how much each weighs.

Orthogonal matching pursuit for the logistic loss (Lozano, Swirszcz and Abe, AISTATS 2011): the
neuron along which the loss falls steepest comes in, all weights are fitted anew, until there are
enough; then each is taken out once, in case another does better by now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from memstore.core.expression import Expression
from memstore.errors import InvalidFile
from memstore.layout import LENSES
from memstore.neurons.statistics import category_auc
from memstore.types import Float64, Lens

Mask = NDArray[np.bool_]

#: L2 penalty on the weights of neurons brought to unit variance: 0.003 to 0.03 did alike.
PENALTY = 0.03
#: Neurons tried in full before one comes in, those of steepest loss.
TRIED = 15
#: Rounds in which neurons may be exchanged.
EXCHANGES = 2
#: A neuron must fire for so many of the memories learned from.
FEWEST_FIRED = 10
#: Newton's steps, and when they are too small to go on.
STEPS, STILL = 25, 1e-7
#: Parts that a grade is the mean of.
FOLDS = 5
#: Significant digits of a weight: an expression is there to be read.
DIGITS = 3


@dataclass(frozen=True)
class Fitted:
    """Neurons and what they weigh; the largest weight is 1."""

    neurons: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def expression(self) -> Expression:
        """The weighted sum, heaviest first."""
        pairs = sorted(
            zip(self.neurons, self.weights, strict=True), key=lambda pair: (-abs(pair[1]), pair[0])
        )
        return Expression(tuple(pairs))

    def scores(self, values: Float64) -> Float64:
        """Return the weighted sums of (n, neurons) values."""
        return np.asarray(values[:, list(self.neurons)] @ np.array(self.weights), dtype=np.float64)


def learn(values: Float64, inside: Mask, size: int, positive: bool = False) -> Fitted:
    """Return at most ``size`` neurons that tell the memories ``inside`` from the others.

    ``values`` are (n, neurons): activations, or cosines to the neurons' directions. Both sides
    count alike, however many they are. ``positive`` takes only neurons that speak for ``inside``.
    """
    task = _Task.of(values, inside, positive)
    chosen: list[int] = []
    for _ in range(size):
        chosen = task.grown(chosen)
    for _ in range(EXCHANGES):
        before = list(chosen)
        for neuron in before:
            chosen = task.grown([other for other in chosen if other != neuron])
        if set(chosen) == set(before):
            break
    weights = task.fit(chosen)[:-1] / task.spread[chosen]
    largest = float(np.abs(weights).max(initial=0.0)) or 1.0
    rounded = [float(f"{weight / largest:.{DIGITS}g}") for weight in weights]
    kept = [(n, w) for n, w in zip(chosen, rounded, strict=True) if (w > 0 if positive else w != 0)]
    return Fitted(tuple(n for n, _ in kept), tuple(w for _, w in kept))


@dataclass(frozen=True)
class _Task:
    """Columns of zero mean and unit variance, and which rows are to be told apart."""

    columns: Float64
    spread: Float64
    usable: Mask
    inside: Float64
    share: Float64
    positive: bool

    @classmethod
    def of(cls, values: Float64, inside: Mask, positive: bool) -> _Task:
        spread = values.std(axis=0)
        # Equal values spread by what a mean loses to rounding.
        varies = spread > 1e-9 * np.abs(values).max(axis=0)
        usable = ((values != 0).sum(axis=0) >= FEWEST_FIRED) & varies
        safe = np.where(varies, spread, 1.0)
        share = np.where(inside, 0.5 / inside.sum(), 0.5 / (~inside).sum())
        columns = (values - values.mean(axis=0)) / safe
        return cls(columns, safe, usable, inside.astype(np.float64), share, positive)

    def grown(self, chosen: list[int]) -> list[int]:
        """Return these neurons and the one that does best beside them, if any does."""
        gains = -(self.columns.T @ (self.share * self._residual(chosen)))
        gains = gains if self.positive else np.abs(gains)
        gains[~self.usable] = 0.0
        gains[chosen] = 0.0
        order = np.lexsort((np.arange(len(gains)), -gains))[:TRIED]
        tried = [int(neuron) for neuron in order if gains[neuron] > 0]
        if not tried:
            return chosen
        return [*chosen, min(tried, key=lambda neuron: (self.loss([*chosen, neuron]), neuron))]

    def _residual(self, chosen: Sequence[int]) -> Float64:
        return logistic(self._with_constant(chosen) @ self.fit(chosen)) - self.inside

    def _with_constant(self, chosen: Sequence[int]) -> Float64:
        return np.column_stack([self.columns[:, list(chosen)], np.ones(len(self.columns))])

    def fit(self, chosen: Sequence[int]) -> Float64:
        """Return the weights of these columns, and the constant, by Newton's method."""
        x = self._with_constant(chosen)
        weights = np.zeros(x.shape[1])
        penalty = np.diag([PENALTY] * len(chosen) + [0.0])
        for _ in range(STEPS):
            chance = logistic(x @ weights)
            slope = x.T @ (self.share * (chance - self.inside)) + penalty @ weights
            curve = (x * (self.share * chance * (1 - chance))[:, None]).T @ x + penalty
            step = np.linalg.solve(curve + 1e-12 * np.eye(len(curve)), slope)
            weights = weights - step
            if float(np.abs(step).max()) < STILL:
                break
        return weights

    def loss(self, chosen: Sequence[int]) -> float:
        """Return the penalised logistic loss of these columns, fitted."""
        weights = self.fit(chosen)
        logits = self._with_constant(chosen) @ weights
        losses = np.logaddexp(0.0, logits) - self.inside * logits
        return float(self.share @ losses + 0.5 * PENALTY * (weights[:-1] ** 2).sum())


def logistic(values: Float64) -> Float64:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -500, 500))), dtype=np.float64)


def folds(inside: Mask, seed: int) -> Iterator[Mask]:
    """Yield which rows are kept apart, once each in ``FOLDS`` parts of like composition."""
    dice, part = np.random.default_rng(seed), np.empty(len(inside), dtype=np.int64)
    for side in (inside, ~inside):
        rows = dice.permutation(np.flatnonzero(side))
        part[rows] = np.arange(len(rows)) % FOLDS
    for number in range(FOLDS):
        yield part == number


def grade(values: Float64, inside: Mask, size: int, seed: int, positive: bool = False) -> float:
    """Return the AUC that lenses of so many neurons have on rows they were not learned from.

    The mean of ``FOLDS`` lenses, each learned from the other parts: what the one learned from all
    can be expected to do.
    """
    found = []
    for apart in folds(inside, seed):
        fitted = learn(values[~apart], inside[~apart], size, positive)
        scores = fitted.scores(values[apart])
        found.append(category_auc(scores, {"inside": inside[apart]})["inside"])
    return float(np.mean(found))


def threshold(scores: Float64, inside: Mask) -> float:
    """Return the score above which a lens holds: where hits and false alarms lie farthest apart.

    Of (n,) scores; Youden's index (Cancer 3:32, 1950), in the middle between two scores.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, own = scores[order], inside[order]
    gain = np.cumsum(own) / own.sum() - np.cumsum(~own) / (~own).sum()
    last = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))
    best = int(last[np.argmax(gain[last])])
    following = ordered[best + 1] if best + 1 < len(ordered) else ordered[best] - 1.0
    return float(f"{(ordered[best] + following) / 2:.6g}")


@lru_cache(maxsize=1)
def shipped() -> tuple[str, tuple[Lens, ...]]:
    """Return the fingerprint of the shipped encoder and the lenses that ship, read once."""
    try:
        heading, *lines = [json.loads(line) for line in LENSES.read_text("utf-8").splitlines()]
        return str(heading["encoder"]), tuple(Lens(**line) for line in lines)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidFile(f"{LENSES} cannot be read ({error}): reinstall memstore") from error


def lenses_of(fingerprint: str) -> tuple[Lens, ...]:
    """Return the lenses that ship with an encoder, none where it is another."""
    encoder, lenses = shipped()
    return lenses if encoder == fingerprint else ()
