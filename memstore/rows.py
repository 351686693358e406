"""What may be stored: rows as people hand them in, checked once, before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from memstore.catalog.memories import NewMemory, from_microseconds, to_microseconds
from memstore.errors import (
    InvalidInput,
    InvalidMetadata,
    InvalidQuery,
    InvalidText,
    InvalidTime,
    brief,
)

#: About 25 pages. Longer texts say too many things for one trace.
MAX_TEXT = 100_000
MAX_NAME = 1_000
MAX_METADATA = 1_000_000
TOO_LARGE = f"metadata may have {MAX_METADATA:,} characters of JSON, no NUL: keep files elsewhere"
#: Python parses JSON by recursion; deeper metadata could be stored and never read again.
MAX_DEPTH = 100
#: ``json.dumps`` with options makes an encoder at every call.
ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
FIELDS = ("text", "category", "key", "metadata", "occurred_at")
KNOWN = frozenset(FIELDS)
#: What metadata is mostly made of: nothing to look into.
PLAIN = frozenset({str, int, float, bool, type(None)})

UNITS = {"s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0, "y": 31_557_600.0}


def check_row(row: object) -> NewMemory:
    """Return a row (a dict with ``text`` and any other of FIELDS, or plain text) ready to store."""
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict | Mapping):  # dict first: asking an abstract class takes longer
        raise InvalidInput(f"a row is a dict with 'text', not {type(row).__name__}")
    if not KNOWN.issuperset(row):
        unknown = set(row) - KNOWN
        raise InvalidInput(
            f"unknown field {min(map(brief, unknown))}: use {', '.join(FIELDS)}; put "
            "anything else into metadata"
        )
    return NewMemory(
        text=check_text(row.get("text")),
        category=check_name("category", row.get("category")),
        key=check_name("key", row.get("key")),
        metadata=check_metadata(row.get("metadata")),
        occurred_at=check_time(row.get("occurred_at")),
    )


def check_text(text: object) -> str:
    """Return a narrative that can be stored. Raises ``InvalidText``."""
    if not isinstance(text, str):
        raise InvalidText(f"text must be a string, not {type(text).__name__}")
    if not text.strip():
        raise InvalidText("text is empty: a memory needs words")
    if len(text) > MAX_TEXT:
        raise InvalidText(
            f"text has {len(text):,} characters, at most {MAX_TEXT:,} are allowed: split it into "
            "several memories"
        )
    refuse_unstorable("text", text, InvalidText)
    return text


def check_name(field: str, value: object) -> str | None:
    """Return a category or key that can be stored."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_NAME:
        raise InvalidInput(
            f"{field} must be text of 1 to {MAX_NAME} characters or None, not {brief(value)}"
        )
    refuse_unstorable(field, value, InvalidInput)
    return value


def refuse_unstorable(field: str, value: str, error: type[InvalidInput]) -> None:
    """Raise for characters that SQLite or UTF-8 cannot carry."""
    if "\x00" in value:
        raise error(f"{field} has a NUL byte at position {value.index(chr(0))}: remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise error(
            f"{field} has half of a surrogate pair at position {problem.start}: decode it properly"
        ) from problem


def check_metadata(metadata: object) -> str:
    """Return metadata as JSON text. Raises ``InvalidMetadata`` unless it is a JSON object."""
    if metadata is None:
        return "{}"
    if not isinstance(metadata, dict | Mapping):
        raise InvalidMetadata(f"metadata must be a dict, not {type(metadata).__name__}")
    if not all(isinstance(name, str) for name in metadata):
        raise InvalidMetadata("metadata names must be text: JSON has no others")
    if not PLAIN.issuperset(map(type, metadata.values())):
        refuse_sprawling(metadata)
    try:
        packed = ENCODE(dict(metadata))
        packed.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMetadata(f"metadata must be JSON: {error}") from error
    if len(packed) > MAX_METADATA or "\\u0000" in packed:
        raise InvalidMetadata(TOO_LARGE)
    return packed


def refuse_sprawling(metadata: object) -> None:
    """Raise ``InvalidMetadata`` for what is nested too deep, or surely too long once written.

    A list or text that stands in many places is small in memory and without end as JSON.
    """
    level, size, layer = 0, 0, [metadata]
    while layer:
        if level == MAX_DEPTH:
            raise InvalidMetadata(f"metadata is nested deeper than {MAX_DEPTH}: flatten it")
        inner: list[object] = []
        for item in layer:
            if isinstance(item, Mapping):
                inner.extend(item.values())
            elif isinstance(item, list | tuple):
                inner.extend(item)
            elif isinstance(item, str):
                size += len(item)
            if size + len(inner) > MAX_METADATA:
                raise InvalidMetadata(TOO_LARGE)
        level, size, layer = level + 1, size + len(inner), inner


def check_time(value: object) -> int | None:
    """Return microseconds since 1970 of a datetime or ISO 8601 text. Without a zone: UTC."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidTime(
                f"{brief(value)} is not an ISO 8601 time: 2026-05-01T09:30"
            ) from error
    if not isinstance(value, datetime) or value != value:  # pandas' NaT is a datetime, not a time
        raise InvalidTime(f"a time is a datetime or ISO 8601 text, not {brief(value)}")
    moment = to_microseconds(value)
    try:
        from_microseconds(moment)
    except OverflowError as error:
        raise InvalidTime(
            f"{value} falls outside the years 1 to 9999 in UTC: correct it"
        ) from error
    return moment


def now() -> int:
    """Return the time in microseconds since 1970."""
    return to_microseconds(datetime.now(UTC))


def check_half_life(value: str | timedelta | None) -> float | None:
    """Return a half-life in seconds, from a timedelta or text such as "90d"."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    else:
        match = None
        if isinstance(value, str):
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", value)
        if match is None or match[2] not in UNITS:
            raise InvalidTime(
                f"half_life {brief(value)} cannot be read: a number and one of "
                f"{', '.join(UNITS)}, '90d'"
            )
        seconds = float(match[1]) * UNITS[match[2]]
    if not 0 < seconds < 1e12:
        raise InvalidTime(f"half_life must be longer than nothing, not {brief(value)}")
    return seconds


def pick(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a foreign row under memstore's names; the rest becomes metadata.

    ``names`` maps memstore's field to the foreign one, e.g. ``{"category": "label"}``.
    """
    taken = {
        field: row[name]
        for field, name in names.items()
        if field == "text" or row.get(name) not in (None, "")
    }
    rest = {n: v for n, v in row.items() if n not in names.values() and v not in (None, "")}
    for field in ("key", "category"):
        if isinstance(taken.get(field), int | float) and not isinstance(taken[field], bool):
            # Numbers serve as ids and classes in many files; here they are names.
            taken[field] = str(taken[field])
    given = taken.pop("metadata", None)
    if isinstance(given, Mapping):
        rest.update(given)
    elif given is not None:
        rest["metadata"] = given
    return {**taken, "metadata": rest} if rest else taken


def check_id(value: object) -> int:
    """Return a memory id. Raises ``InvalidQuery`` for anything that cannot be one."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InvalidQuery(f"{brief(value)} is not a memory id: ids are whole numbers")
    return int(value)


def check_label(name: str | None) -> str | None:
    """Return a label without blanks at its ends. Raises for one that reads as a number."""
    label = check_name("label", name)
    if label is None:
        return None
    label = " ".join(label.split())
    if re.fullmatch(r"[Nn]?[0-9]+", label):
        raise InvalidInput(f"{label!r} would be read as the number of a neuron: use a word")
    return label
