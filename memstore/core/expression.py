"""Neuron expressions: weighted terms and conditions, and the algebra that builds them.

``N[15] - 0.5 * N["routine"] & (N[88] > 0.3) & ~N[7]`` and the text
``"15 - 0.5*'routine' & 88>0.3 & !7"`` build the same ``Expression``. A query runs on its resolved
form, ``NeuronQuery``, in which names have become numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memstore.errors import InvalidExpression, UnknownNeuron, brief
from memstore.types import Trace

NeuronRef = int | str
Operator = Literal[">", ">=", "<", "<="]

COMPARE: dict[str, Callable[[Any, float], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
MAX_TERMS = 100_000
#: Beyond this a weight could carry a sum out of float64's exact range for no purpose.
MAX_WEIGHT = 1e9
#: Below this, 0 aside, scores would round as float64 does near its end, where bounds do not hold.
MIN_WEIGHT = 1e-100


@dataclass(frozen=True)
class Condition:
    """A bound on one neuron's activation, which is 0 where the neuron is silent."""

    neuron: NeuronRef
    op: Operator
    threshold: float

    def __str__(self) -> str:
        if self.silent:
            return f"!{spell(self.neuron)}"
        return f"{spell(self.neuron)}{self.op}{self.threshold!r}"

    @property
    def silent(self) -> bool:
        """Whether the condition says that the neuron does not fire."""
        return self.op == "<=" and self.threshold == 0

    def holds(self, activations: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return which of the activations meet the bound."""
        return np.asarray(COMPARE[self.op](activations, self.threshold), dtype=bool)


@dataclass(frozen=True)
class NeuronQuery:
    """An expression with names resolved: (neuron, weight) ascending, none twice or zero."""

    terms: tuple[tuple[int, float], ...]
    conditions: tuple[Condition, ...] = ()

    @property
    def has_positive(self) -> bool:
        """Whether any term can raise a score, which decides the candidates."""
        return any(weight > 0 for _, weight in self.terms)

    def parts(self, trace: Trace) -> dict[int, float]:
        """Return each term's share of the score of one trace, silent neurons left out."""
        fired = dict(zip(trace.neurons.tolist(), trace.activations.tolist(), strict=True))
        return {n: weight * fired[n] for n, weight in self.terms if n in fired}


@dataclass(frozen=True, eq=False)
class Expression:
    """A sum of weight x neuron, under conditions. Immutable; operators return new ones."""

    terms: tuple[tuple[NeuronRef, float], ...] = ()
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        if len(self.terms) + len(self.conditions) > MAX_TERMS:
            raise InvalidExpression(f"more than {MAX_TERMS} terms: ask with fewer")
        for neuron, weight in self.terms:
            check_ref(neuron)
            check_number(weight, "the weight of", neuron)
        for condition in self.conditions:
            check_ref(condition.neuron)
            check_number(condition.threshold, "the bound on", condition.neuron)

    @classmethod
    def of(cls, value: Expression | str | int | Mapping[NeuronRef, float]) -> Expression:
        """Return the expression meant by text, a ``{neuron: weight}`` dict or a neuron number."""
        if isinstance(value, Expression):
            return value
        if isinstance(value, str):
            from memstore.core.parser import parse  # the parser builds Expressions

            return parse(value)
        if isinstance(value, Mapping):
            expression = cls(tuple(value.items()))
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            expression = cls(((int(value), 1.0),))
        else:
            raise InvalidExpression(
                f"{type(value).__name__} is not a neuron expression: use '+15 -5', "
                "{15: 1, 5: -1} or N[15] - N[5]"
            )
        if not expression.terms:
            raise InvalidExpression("an empty expression asks nothing: name at least one neuron")
        return expression

    def resolve(self, known: Callable[[str], int | Expression], width: int) -> NeuronQuery:
        """Return the query over neuron numbers.

        ``known`` is asked once a name: for the number of a neuron, or for the expression of a lens,
        which comes in with all its terms. Raises ``UnknownNeuron`` for a number outside
        0..width-1, ``InvalidExpression`` for a bound on a lens, or a weight next to nothing.
        """
        names = {ref for ref, _ in self.terms} | {condition.neuron for condition in self.conditions}
        meant = {ref: known(ref) for ref in names if isinstance(ref, str)}
        weights: dict[int, float] = {}
        conditions: list[Condition] = []
        for ref, weight in self.terms:
            found = meant[ref] if isinstance(ref, str) else ref
            if isinstance(found, Expression):
                conditions += found.conditions
                terms = [(own, weight * factor) for own, factor in found.terms]
            else:
                terms = [(found, weight)]
            for own, share in terms:
                neuron = numbered(own, width)
                weights[neuron] = weights.get(neuron, 0.0) + share
        for condition in self.conditions:
            ref = condition.neuron
            found = meant[ref] if isinstance(ref, str) else ref
            if isinstance(found, Expression):
                raise InvalidExpression(
                    f"{spell(ref)} is a lens, and a condition bounds one neuron: filter by a lens "
                    "with where={'$holds': name}"
                )
            number = numbered(found, width)
            conditions.append(Condition(number, condition.op, float(condition.threshold)))
        for neuron, weight in weights.items():
            if 0 < abs(weight) < MIN_WEIGHT:
                raise InvalidExpression(
                    f"the weight of {neuron} comes to {weight!r}: use 0, or {MIN_WEIGHT:g} and more"
                )
        return NeuronQuery(
            terms=tuple(sorted((n, float(w)) for n, w in weights.items() if w != 0)),
            conditions=tuple(conditions),
        )

    def __add__(self, other: Expression) -> Expression:
        if not isinstance(other, Expression):
            return NotImplemented
        return Expression(self.terms + other.terms, self.conditions + other.conditions)

    def __sub__(self, other: Expression) -> Expression:
        if not isinstance(other, Expression):
            return NotImplemented
        return self + -1.0 * other

    def __neg__(self) -> Expression:
        return -1.0 * self

    def __mul__(self, factor: float) -> Expression:
        check_number(factor, "a factor")
        return Expression(
            tuple((n, weight * float(factor)) for n, weight in self.terms), self.conditions
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Expression:
        check_number(divisor, "a divisor")
        if divisor == 0:
            raise InvalidExpression("division by zero: use a factor instead")
        return self * (1.0 / divisor)

    def __and__(self, other: Expression) -> Expression:
        return self + other

    def __gt__(self, threshold: float) -> Expression:
        return self._condition(">", threshold)

    def __ge__(self, threshold: float) -> Expression:
        return self._condition(">=", threshold)

    def __lt__(self, threshold: float) -> Expression:
        return self._condition("<", threshold)

    def __le__(self, threshold: float) -> Expression:
        return self._condition("<=", threshold)

    def __invert__(self) -> Expression:
        """Return the condition that the neuron is silent."""
        return self._condition("<=", 0.0)

    def _condition(self, op: Operator, threshold: float) -> Expression:
        if len(self.terms) != 1 or self.terms[0][1] != 1 or self.conditions:
            raise InvalidExpression(f"a condition bounds one neuron, not {self}: N[88] > 0.3")
        return Expression((), (Condition(self.terms[0][0], op, threshold),))

    def __bool__(self) -> bool:
        """Raise: ``and``, ``not`` and ``0.1 < N[5] < 0.3`` would drop half of what they say."""
        raise InvalidExpression("an expression is neither true nor false: use & and ~")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Expression):
            return NotImplemented
        return self.terms == other.terms and self.conditions == other.conditions

    def __hash__(self) -> int:
        return hash((self.terms, self.conditions))

    def __str__(self) -> str:
        """Return text that parses back to an equal expression."""
        terms = [
            f"{'-' if weight < 0 else '+'}"
            + (spell(n) if abs(weight) == 1 else f"{abs(weight)!r}*{spell(n)}")
            for n, weight in self.terms
        ]
        clauses = ([" ".join(terms)] if terms else []) + [str(c) for c in self.conditions]
        return " & ".join(clauses)


def spell(ref: NeuronRef) -> str:
    """Return a neuron as an expression spells it: a number, or a quoted name."""
    if isinstance(ref, str):
        return "'" + ref.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(ref)


def numbered(ref: NeuronRef, width: int) -> int:
    """Return the number of a neuron. Raises ``UnknownNeuron`` outside 0..width-1."""
    number = int(ref)
    if not 0 <= number < width:
        raise UnknownNeuron(
            f"neuron {ref} does not exist: this store's encoder has neurons 0 to {width - 1}"
        )
    return number


def check_ref(ref: object) -> None:
    """Raise ``InvalidExpression`` unless ``ref`` is a number that a neuron may have, or a name."""
    if type(ref) is int or (isinstance(ref, int | np.integer) and not isinstance(ref, bool)):
        sound = -(2**63) <= ref < 2**63
    else:
        sound = isinstance(ref, str) and ref != ""
    if not sound:
        raise InvalidExpression(f"{brief(ref)} is not a neuron: use its number or its name")


def check_number(value: object, what: str, ref: NeuronRef | None = None) -> None:
    """Raise ``InvalidExpression`` unless ``value`` is a finite number of sane size.

    ``what`` it is, and of which neuron, for the message.
    """
    if type(value) is float and -MAX_WEIGHT <= value <= MAX_WEIGHT:
        return
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    # Compared before anything else: a huge whole number has no float. NaN compares false.
    if not is_number or not -MAX_WEIGHT <= value <= MAX_WEIGHT:  # type: ignore[operator]  # narrowed by is_number
        whose = "" if ref is None else f" {spell(ref)}"
        raise InvalidExpression(
            f"{what}{whose} is {brief(value)}: use a number between -{MAX_WEIGHT:g} and "
            f"{MAX_WEIGHT:g}"
        )


class _Neurons:
    """``N[15]`` and ``N["grief"]``: one neuron as an expression."""

    def __getitem__(self, ref: NeuronRef) -> Expression:
        if isinstance(ref, np.integer):
            ref = int(ref)
        return Expression(((ref, 1.0),))

    def __repr__(self) -> str:
        return "N"


#: Builds expressions: ``N[15] - 0.5 * N["routine"]``.
N = _Neurons()
