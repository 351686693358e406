"""Arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from memstore.cli.names import complete_expression
from memstore.errors import InvalidFilter
from memstore.hits import Hits
from memstore.options import MAX_K
from memstore.store import MemoryStore


class Finite(click.FloatRange):
    """A number in a range; click lets "nan" pass through any."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no number.", param, ctx)
        return found


#: What an embedder may be named by.
EMBEDDERS = "Name or folder of a sentence-transformers model, or a folder with model.onnx."
#: Hits among which diverse ones are chosen, a hit asked for.
DIVERSE = 10

store_argument = click.argument("store", type=click.Path(dir_okay=False))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
diverse_option = click.option(
    "--diverse", is_flag=True, help="Of ten times as many, the hits that between them say most."
)
k_option = click.option("-k", default=10, show_default=True, help="How many hits.")
why_option = click.option("--why", is_flag=True, help="Say why each hit was found.")
half_life_option = click.option("--half-life", help="Halve scores with every such span: 90d, 12h.")


def encoder_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--sae`` and ``--embedder``."""
    command = click.option(
        "--sae",
        type=click.Path(path_type=Path),
        help="Weights folder of another SAE, or the name of a shipped one: sae-3072-k64.",
    )(command)
    return click.option("--embedder", help=EMBEDDERS)(command)


def where_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--where``, ``--holds`` and ``--category``; the command gets one filter, ``where``."""

    @wraps(command)
    def collected(where: str | None, holds: str | None, category: str | None, **others: Any) -> Any:
        return command(where=read_where(where, holds, category), **others)

    for option in (
        click.option("--where", metavar="JSON", help="""Filter, e.g. '{"mood": {"$gte": 3}}'."""),
        click.option(
            "--holds",
            metavar="EXPR",
            shell_complete=complete_expression,
            help="Only what this neuron expression or lens finds.",
        ),
        click.option("--category", help="Only this category."),
    ):
        collected = option(collected)
    return collected


def varied(store: MemoryStore, ask: Callable[[int], Hits], k: int, diverse: bool) -> Hits:
    """Return the k hits that ``ask`` gives, or the most diverse among ten times as many."""
    return store.diverse(ask(min(DIVERSE * k, max(k, MAX_K))), k) if diverse else ask(k)


def read_neuron(text: str) -> int | str:
    """Return the neuron meant by ``15``, ``N15`` or a label."""
    match = re.fullmatch(r"[Nn]?([0-9]{1,9})", text)
    return int(match[1]) if match else text


def read_where(where: str | None, holds: str | None, category: str | None) -> dict[str, Any] | None:
    """Return the filter that ``--where``, ``--holds`` and ``--category`` ask for together."""
    parts: list[dict[str, Any]] = []
    if where is not None:
        try:
            parts.append(json.loads(where))
        except (ValueError, RecursionError) as error:
            raise InvalidFilter(
                f"--where is not JSON ({error}): write it like --where '{{\"mood\": 3}}'"
            ) from error
    if holds is not None:
        parts.append({"$holds": holds})
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
