"""``memstore demo``: the sample narratives in a store, and what one can ask of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from memstore import layout
from memstore.cli.output import print_hits
from memstore.neurons.statistics import category_auc
from memstore.store import MemoryStore
from memstore.types import Hits

#: A neuron that fires for fewer narratives than this is an anecdote.
FEWEST = 15


@click.command("demo")
@click.argument("store", required=False, type=click.Path(dir_okay=False))
def demo_command(store: str | None) -> None:
    """Fill STORE (default: one that is thrown away) with 450 narratives and ask it things."""
    with demo_path(store) as path, MemoryStore.open(path) as opened:
        narratives = json.loads(layout.NARRATIVES.read_text("utf-8"))
        opened.insert_many(narratives, on_duplicate="skip", progress=True)
        emotional = telling(opened, "Strong Emotional")
        chaotic = telling(opened, "Complex/Chaotic")
        for title, ask in questions(opened, emotional, chaotic):
            click.echo(click.style(f"$ {title}", bold=True))
            print_hits(ask(), as_json=False, why=True)
        if store is not None:
            click.echo(
                f"The store is {store}: try `memstore search {store} 'a death in the family'`"
            )


@contextmanager
def demo_path(store: str | None) -> Iterator[str]:
    """Yield the path to use: the one given, or one in a folder that goes away."""
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "demo.db")


def telling(store: MemoryStore, category: str) -> int:
    """Return the neuron whose activation tells a category best (AUC), among those that fire."""
    traces = store.traces()
    dense = traces.to_dense()
    inside = {memory.id for memory in store.iter({"category": category})}
    member = {category: [memory_id in inside for memory_id in traces.ids.tolist()]}
    import numpy as np

    masks = {name: np.array(mask) for name, mask in member.items()}
    busy = np.flatnonzero((dense > 0).sum(axis=0) >= FEWEST)
    return int(max(busy, key=lambda neuron: category_auc(dense[:, neuron], masks)[category]))


def questions(
    store: MemoryStore, emotional: int, chaotic: int
) -> list[tuple[str, Callable[[], Hits]]]:
    """Return what to ask: a command line each, and the call that answers it."""
    plus_minus, weighted = f"+{emotional} -{chaotic}", f"{chaotic} - 0.5*{emotional}"
    text = "an argument that ended in laughter"
    return [
        (f"memstore top STORE {emotional} -k 3 --why", lambda: store.top(emotional, 3)),
        (
            f'memstore composite STORE "{plus_minus}" -k 3 --why',
            lambda: store.composite(plus_minus, 3),
        ),
        (
            f'memstore composite STORE "{weighted}" -k 2 --category Routine --why',
            lambda: store.composite(weighted, 2, where={"category": "Routine"}),
        ),
        (f'memstore search STORE "{text}" -k 3 --why', lambda: store.search(text, 3)),
        (
            f'memstore search STORE "{text}" --by hybrid -k 2 --why',
            lambda: store.search(text, 2, by="hybrid"),
        ),
    ]
