"""Mongo-style filters compiled to SQL: ``{"category": "Routine", "mood": {"$gte": 3}}``.

Fields: ``id``, ``key``, ``category``, ``text``, ``occurred_at``, ``created_at``, ``updated_at``;
any other name, with dots for nesting, is a path into the metadata (``metadata.NAME`` where a name
clashes). Values travel as parameters, never as SQL.

``{"$holds": "+15 -5"}`` asks for the memories that a neuron expression finds, or a lens holds for.

Meaning follows MongoDB: comparisons hold between values of one type only (a number is never less
than a text), a missing value matches none of them, and ``$ne``, ``$nin`` and ``$not`` match exactly
where their opposite does not, missing values included.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, select, true

from memstore.catalog.memories import to_microseconds
from memstore.catalog.schema import category, memory
from memstore.errors import InvalidFilter, brief

MAX_DEPTH = 32
MAX_CONDITIONS = 500

Compiled = ColumnElement[bool]

COLUMNS: dict[str, tuple[ColumnElement[Any], type]] = {
    "id": (memory.c.id, int),
    "key": (memory.c.key, str),
    "category": (category.c.name, str),
    "text": (memory.c.text, str),
    "occurred_at": (memory.c.occurred_at, datetime),
    "created_at": (memory.c.created_at, datetime),
    "updated_at": (memory.c.updated_at, datetime),
}
ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
OPERATORS = ("$eq", "$ne", *ORDER, "$in", "$nin", "$exists", "$contains", "$not")
LOGIC = ("$and", "$or", "$nor")
HOLDS = "$holds"
#: Returns the ids of the memories that a neuron expression finds.
Holding = Callable[[Any], Sequence[int]]


class Compiler:
    """Turns one filter into one SQL condition, counting what it has taken in."""

    def __init__(self, holding: Holding) -> None:
        self.holding, self.conditions = holding, 0

    def filter(self, where: object, depth: int = 0) -> Compiled:
        """Return the condition of a whole filter: all of its entries hold."""
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"nested deeper than {MAX_DEPTH}: flatten the filter")
        if not isinstance(where, Mapping):
            raise InvalidFilter(
                f"a filter is a dict such as {{'category': 'Routine'}}, not {brief(where)}"
            )
        if depth and not where:
            raise InvalidFilter("an empty filter inside another matches everything: leave it out")
        parts = []
        for name, value in where.items():
            self.conditions += 1
            if self.conditions > MAX_CONDITIONS:
                raise InvalidFilter(f"more than {MAX_CONDITIONS} conditions: use $in for lists")
            if not isinstance(name, str):
                raise InvalidFilter(f"field names are text, not {brief(name)}")
            if name.startswith("$"):
                parts.append(self.logic(name, value, depth))
            else:
                parts.append(self.field(Field.named(name), value, depth))
        return and_(true(), *parts)

    def logic(self, name: str, value: object, depth: int) -> Compiled:
        """Return the condition of ``$and``, ``$or``, ``$nor``, ``$not`` or ``$holds``."""
        if name == "$not":
            return not_(self.filter(value, depth + 1))
        if name == HOLDS:
            listed = func.json_each(json.dumps(list(self.holding(value)))).table_valued("value")
            return memory.c.id.in_(select(listed.c.value))
        if name not in LOGIC:
            raise InvalidFilter(
                f"unknown operator {brief(name)}: use {', '.join((*LOGIC, HOLDS))} or a field name"
            )
        if not isinstance(value, list | tuple) or not value:
            raise InvalidFilter(f"{name} takes a list of filters, not {brief(value)}")
        parts = [self.filter(part, depth + 1) for part in value]
        if name == "$and":
            return and_(*parts)
        return or_(*parts) if name == "$or" else not_(or_(*parts))

    def field(self, field: Field, value: object, depth: int) -> Compiled:
        """Return the condition of one field: a value to equal, or a dict of operators."""
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"nested deeper than {MAX_DEPTH}: flatten the filter")
        if not isinstance(value, Mapping):
            return field.equals(value)
        if not value:
            raise InvalidFilter(f"{field.name}: an empty dict asks nothing: use an operator")
        parts = []
        for name, operand in value.items():
            if name == "$not":
                parts.append(not_(self.field(field, operand, depth + 1)))
            else:
                parts.append(apply(field, name, operand))
        return and_(*parts)


class Field:
    """A column or a metadata path, and how to compare it with values of each type."""

    def __init__(self, name: str, value: ColumnElement[Any], kind: type | None) -> None:
        self.name, self.value, self.kind = name, value, kind
        self.json_type: ColumnElement[str] | None = None

    @classmethod
    def named(cls, name: str) -> Field:
        """Return the field that a filter calls ``name``."""
        if name in COLUMNS:
            return cls(name, *COLUMNS[name])
        keys = name.removeprefix("metadata.").split(".")
        if any(not key or '"' in key or "\x00" in key for key in keys):
            raise InvalidFilter(f"{brief(name)} is not a field: use names joined by dots")
        # SQLite compares names as they are written in the JSON text, escapes and all.
        written = [json.dumps(key, ensure_ascii=False) for key in keys]
        path = "$" + "".join(f".{key}" for key in written)
        field = cls(name, func.json_extract(memory.c.metadata, path), None)
        field.json_type = func.json_type(memory.c.metadata, path)
        return field

    def exists(self) -> Compiled:
        """Return whether the field has a value at all; a JSON null is one."""
        return (self.value if self.json_type is None else self.json_type).is_not(None)

    def typed(self, value: object) -> tuple[object, Compiled]:
        """Return the value as SQLite compares it, and the condition that types agree.

        Raises ``InvalidFilter`` for a value that this field can never hold.
        """
        if self.json_type is None:
            return self._column_value(value), self.value.is_not(None)
        if isinstance(value, bool):
            return int(value), self.json_type.in_(["true", "false"])
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return sqlite_number(self.name, value), self.json_type.in_(["integer", "real"])
        if isinstance(value, str):
            return value, self.json_type == "text"
        raise InvalidFilter(
            f"{self.name}: cannot compare with {brief(value)}: use text, a finite number, true, "
            "false or null"
        )

    def _column_value(self, value: object) -> object:
        if self.kind is datetime and isinstance(value, datetime):
            return to_microseconds(value)
        if self.kind is datetime and isinstance(value, str):
            try:
                return to_microseconds(datetime.fromisoformat(value))
            except ValueError:
                pass
        elif self.kind is not datetime and type(value) is self.kind:
            return sqlite_number(self.name, value) if isinstance(value, int) else value
        wanted = {int: "a whole number", str: "text", datetime: "a datetime or ISO 8601 text"}
        kind = wanted[self.kind or str]
        raise InvalidFilter(f"{self.name} is compared with {kind}, not {brief(value)}")

    def equals(self, value: object) -> Compiled:
        """Return the condition of equality; None matches null and missing alike."""
        if value is None:
            return self.value.is_(None)
        operand, types_agree = self.typed(value)
        return definitely(and_(types_agree, self.value == operand))

    def ordered(self, name: str, value: object) -> Compiled:
        """Return the condition of ``$gt``, ``$gte``, ``$lt`` or ``$lte``."""
        operand, types_agree = self.typed(value)
        return definitely(and_(types_agree, ORDER[name](self.value, operand)))

    def any_of(self, values: object) -> Compiled:
        """Return the condition of ``$in``; a list of any length is one parameter a type."""
        if not isinstance(values, list | tuple | set | frozenset):
            raise InvalidFilter(f"{self.name}: $in and $nin take a list, not {brief(values)}")
        plain = [v for v in values if v is not None and not isinstance(v, bool)]
        parts = [self.equals(v) for v in {v for v in values if v is None or isinstance(v, bool)}]
        operands: list[object] = [self.typed(value)[0] for value in plain]
        for kind in (str, (int, float)):
            same = [v for v in operands if isinstance(v, kind)]
            if same:
                listed = func.json_each(json.dumps(same)).table_valued("value")
                agree = self.typed(plain[operands.index(same[0])])[1]
                parts.append(definitely(and_(agree, self.value.in_(select(listed.c.value)))))
        return or_(false(), *parts)

    def contains(self, value: object) -> Compiled:
        """Return the condition that text holds ``value`` somewhere, case mattering."""
        if not isinstance(value, str) or not value:
            raise InvalidFilter(f"{self.name}: $contains takes text, not {brief(value)}")
        operand, types_agree = self.typed(value)
        return definitely(and_(types_agree, func.instr(self.value, operand) > 0))


def apply(field: Field, name: object, operand: object) -> Compiled:
    """Return the condition of one operator on one field."""
    if name in ORDER:
        return field.ordered(str(name), operand)
    if name == "$eq":
        return field.equals(operand)
    if name == "$ne":
        return not_(field.equals(operand))
    if name == "$in":
        return field.any_of(operand)
    if name == "$nin":
        return not_(field.any_of(operand))
    if name == "$contains":
        return field.contains(operand)
    if name == "$exists" and isinstance(operand, bool):
        return field.exists() if operand else not_(field.exists())
    if name == "$exists":
        raise InvalidFilter(f"{field.name}: $exists takes true or false, not {brief(operand)}")
    raise InvalidFilter(f"{field.name}: unknown operator {brief(name)}: use {', '.join(OPERATORS)}")


def asks_neurons(where: object) -> bool:
    """Return whether ``$holds`` stands somewhere in a filter, in the place of one."""
    seen: set[int] = set()  # a list may stand in many places, or in itself
    layer: list[object] = [where]
    while layer:
        inner: list[object] = []
        for value in layer:
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            seen.add(id(value))
            if HOLDS in value:
                return True
            inner.append(value.get("$not"))
            for name in LOGIC:
                several = value.get(name)
                if isinstance(several, list | tuple) and id(several) not in seen:
                    seen.add(id(several))
                    inner.extend(several)
        layer = inner
    return False


def definitely(condition: Compiled) -> Compiled:
    """Return the condition with SQL's third truth value folded into false, so NOT inverts it."""
    return func.coalesce(condition, false())


def sqlite_number(name: str, value: float) -> float:
    """Return a number SQLite can hold."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidFilter(f"{name}: {brief(value)} is beyond 64 bits: use a float")
    return value


def compile_filter(where: Mapping[str, Any], holding: Holding) -> Compiled:
    """Return the SQL condition of a filter over ``memories.JOINED``; ``holding`` answers $holds.

    Raises ``InvalidFilter`` naming the field and what would do.
    """
    return Compiler(holding).filter(where)
