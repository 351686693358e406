"""Arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from memstore.errors import InvalidFilter
from memstore.store import MemoryStore

F = TypeVar("F", bound=Callable[..., Any])


class Finite(click.FloatRange):
    """A number in a range; click lets "nan" pass through any."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no number.", param, ctx)
        return found


store_argument = click.argument("store", type=click.Path(dir_okay=False))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
k_option = click.option("-k", default=10, show_default=True, help="How many hits.")
why_option = click.option("--why", is_flag=True, help="Say why each hit was found.")
half_life_option = click.option("--half-life", help="Halve scores with every such span: 90d, 12h.")


def where_options(command: F) -> F:
    """Add ``--where`` and ``--category``."""
    command = click.option(
        "--where", metavar="JSON", help="""Filter, e.g. '{"mood": {"$gte": 3}}'."""
    )(command)
    return click.option("--category", help="Only this category.")(command)


def read_neuron(text: str) -> int | str:
    """Return the neuron meant by ``15``, ``N15`` or a label."""
    match = re.fullmatch(r"N?([0-9]{1,9})", text)
    return int(match[1]) if match else text


def read_where(where: str | None, category: str | None) -> dict[str, Any] | None:
    """Return the filter that ``--where`` and ``--category`` ask for together."""
    parts = []
    if where is not None:
        try:
            parts.append(json.loads(where))
        except (ValueError, RecursionError) as error:
            raise InvalidFilter(
                f"--where is not JSON ({error}): write it like --where '{{\"mood\": 3}}'"
            ) from error
    if category is not None:
        parts.append({"category": category})
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {"$and": parts}


def reader(path: str) -> MemoryStore:
    """Open a store that must exist, for reading."""
    return MemoryStore.open(path, mode="r")


def writer(path: str) -> MemoryStore:
    """Open a store for writing, making it if nothing is there."""
    return MemoryStore.open(path)


def changer(path: str) -> MemoryStore:
    """Open a store that must exist, for writing: a slip of the pen makes none."""
    if not Path(path).exists():
        reader(path).close()  # which says so
    return MemoryStore.open(path)
