"""Results on stdout: tables that fit the terminal, or JSON."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Sequence
from typing import Any

import click

from memstore.hits import Hits
from memstore.types import Memory

#: Width where stdout is no terminal and COLUMNS says nothing.
WIDTH = 100
#: A cell of any column but the last is cut beyond this.
CELL = 32
GAP = "  "
NUMBERS = ("id", "score", "activation")


def width() -> int:
    """Return the columns at hand."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


def print_json(value: Any) -> None:
    """Print a value as JSON, readable and in UTF-8."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_result(line: str, facts: dict[str, Any], *, as_json: bool) -> None:
    """Print what a command did: a line for people, or its facts as JSON."""
    if as_json:
        print_json(facts)
    else:
        click.echo(line)


def print_hits(hits: Hits, *, as_json: bool, why: bool) -> None:
    """Print hits as a table, as JSON, or one after another with their reasons."""
    if as_json:
        print_json(hits.to_dicts())
    elif not hits:
        click.echo("no hits", err=True)
    elif why:
        for hit in hits:
            click.echo(click.style(f"{hit.id}  {one_line(hit.category or '-')}", bold=True))
            click.echo(click.wrap_text(printable(hit.text), width(), "  ", "  "))
            click.echo(hit.why() + "\n")
    else:
        rows = [
            [str(hit.id), f"{hit.score:.4f}", one_line(hit.category or "-"), one_line(hit.text)]
            for hit in hits
        ]
        print_table(["id", "score", "category", "text"], rows)


def print_memories(memories: Sequence[Memory]) -> None:
    """Print memories as a table."""
    rows = [
        [str(m.id), one_line(m.key or "-"), one_line(m.category or "-"), one_line(m.text)]
        for m in memories
    ]
    print_table(["id", "key", "category", "text"], rows)


def one_line(text: str) -> str:
    """Return text on one line."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Return text without characters that command a terminal; a stranger may have written it."""
    return "".join(
        letter if letter == "\n" or unicodedata.category(letter) not in ("Cc", "Cf") else "\ufffd"
        for letter in text.replace("\t", " ")
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as wide as the terminal: numbers to the right, the last column cut to fit."""
    from rich.cells import cell_len, set_cell_size  # knows how wide East Asian letters are

    cells = [list(columns), *(list(row) for row in rows)]
    widths = [min(max(cell_len(row[i]) for row in cells), CELL) for i in range(len(columns))]
    used = sum(widths[:-1]) + len(GAP) * (len(columns) - 1)
    widths[-1] = max(width() - used, 10)

    def fitted(cell: str, column: int) -> str:
        if cell_len(cell) > widths[column]:
            return set_cell_size(cell, widths[column] - 1) + "…"
        if column == len(columns) - 1:
            return cell
        padding = " " * (widths[column] - cell_len(cell))
        return padding + cell if columns[column] in NUMBERS else cell + padding

    for number, row in enumerate(cells):
        line = GAP.join(fitted(cell, column) for column, cell in enumerate(row))
        click.echo(click.style(line, bold=number == 0))


def print_facts(facts: dict[str, Any]) -> None:
    """Print names and values, one a line."""
    longest = max(len(name) for name in facts)
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "-"
        click.echo(f"{name:<{longest}}  {value}")
