"""What a query may be given beside what it asks for: its kind, its options, how many hits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

import numpy as np

from memstore import reasons
from memstore.core.expression import MAX_WEIGHT
from memstore.errors import InvalidQuery, brief
from memstore.view import Query

By = Literal["dense", "trace", "hybrid", "words"]
#: What a neuron expression may be asked of: activations stored, or vectors.
Scoring = Literal["trace", "dense"]

MAX_K = 1_000_000


@dataclass(frozen=True)
class Options:
    """What a text search may be given beside text, k, kind and filter."""

    steer: Query | None = None
    """An expression whose weighted activations are added to the score (hybrid: one more side)."""
    half_life: str | timedelta | None = None
    """Scores halve with every such span of age."""
    idf: bool | None = None
    """Weight neurons by IDF, so that rare ones count more (by="trace" and "hybrid", where nobody
    says otherwise)."""
    weights: Mapping[str, float] | None = None
    """Hybrid only: a weighted sum of the sides named, instead of reciprocal rank fusion."""
    fetch: bool = True
    """By vector only: read the memories of the hits at once, in the query's own transaction."""

    def check(self, by: object) -> None:
        """Raise ``InvalidQuery`` for an unknown kind, or an option that says nothing to it."""
        if by not in get_args(By):
            raise InvalidQuery(f"by={brief(by)}: use one of {', '.join(get_args(By))}")
        if self.steer is not None and by == "words":
            raise InvalidQuery("steer goes with by='dense', 'trace' or 'hybrid', not 'words'")
        if self.idf and by not in ("trace", "hybrid"):
            raise InvalidQuery(
                f"idf weighs neurons: use it with 'trace' or 'hybrid', not {brief(by)}"
            )
        if self.weights is None:
            return
        if by != "hybrid":
            raise InvalidQuery(f"weights mix the sides of by='hybrid', not of {brief(by)}")
        if not isinstance(self.weights, Mapping) or not self.weights:
            raise InvalidQuery("weights is a dict of sides: {'dense': 1, 'words': 0.5}")
        for side, weight in self.weights.items():
            if side not in reasons.SIDES:
                known = ", ".join(reasons.SIDES)
                raise InvalidQuery(
                    f"weights for {brief(side)}: a hybrid search has the sides {known}"
                )
            if not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
                raise InvalidQuery(
                    f"the weight of {side} is {brief(weight)}: use 0 to {MAX_WEIGHT:g}"
                )


def check_k(k: object) -> None:
    """Raise ``InvalidQuery`` unless ``k`` is a whole number from 1 to a million."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise InvalidQuery(f"k is {brief(k)}: ask for 1 to {MAX_K:,} hits")
