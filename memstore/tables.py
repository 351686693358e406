"""Figures as people read them, and tables of them in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, float | int | str | None]
#: A table of more columns than a page is wide is turned.
WIDEST = 8


def shown(value: Any) -> Any:
    """Return a figure as text, one by one in a mapping of them; "-" where there is none."""
    if isinstance(value, Mapping):
        return {name: shown(own) for name, own in value.items()}
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table of every column that any of them has."""
    if not rows:
        return ""
    heads = list(dict.fromkeys(name for row in rows for name in row))
    table = [heads, *([shown(row.get(name)) for name in heads] for row in rows)]
    if len(heads) > WIDEST:
        table = [list(column) for column in zip(*table, strict=True)]
    first, *others = ("| " + " | ".join(map(cell, line)) + " |" for line in table)
    return "\n".join([first, "|" + "---|" * len(table[0]), *others])


def cell(value: str) -> str:
    """Return text as one cell: names people give may hold what ends one."""
    return " ".join(value.split()).replace("|", "\\|")
