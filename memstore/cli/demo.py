"""``memstore demo``: the sample narratives in a store, and what one can ask of it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from memstore import layout
from memstore.cli.output import print_hits
from memstore.errors import StoreError
from memstore.hits import Hits
from memstore.neurons.statistics import category_auc
from memstore.store import MemoryStore

#: Neurons worth showing fire for more narratives than an anecdote and fewer than a habit.
FEWEST, MOST = 15, 110
#: How many of a neuron's strongest memories say what it usually fires together with.
COMPANY = 10


@click.command("demo")
@click.argument("store", required=False, type=click.Path(dir_okay=False))
def demo_command(store: str | None) -> None:
    """Fill STORE (default: one that is thrown away) with 450 narratives and ask it things."""
    with demo_path(store) as path, MemoryStore.open(path) as opened:
        narratives = json.loads(layout.NARRATIVES.read_text("utf-8"))
        texts = {row["text"] for row in narratives}
        if any(memory.text not in texts for memory in opened):
            raise StoreError(f"{store} holds memories of your own: name a new store for the demo")
        opened.insert_many(narratives, on_duplicate="skip", progress=True)
        neuron = telling(opened, "Strong Emotional")
        for title, ask in questions(opened, neuron, companion(opened, neuron)):
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
    """Return the neuron whose activation tells a category best (AUC), among those worth showing."""
    traces = store.traces()
    dense = traces.to_dense()
    inside = np.array([memory.id for memory in store.iter({"category": category})])
    members = {category: np.isin(traces.ids, inside)}
    fires = np.count_nonzero(dense, axis=0)
    shown = np.flatnonzero((fires >= FEWEST) & (fires <= MOST))
    return int(max(shown, key=lambda n: category_auc(dense[:, n], members)[category]))


def companion(store: MemoryStore, neuron: int) -> int:
    """Return the neuron that fires most in the strongest memories of another."""
    total: Counter[int] = Counter()
    for hit in store.top(neuron, COMPANY):
        total.update(store.trace(hit.id).to_dict())
    del total[neuron]
    return total.most_common(1)[0][0]


def questions(store: MemoryStore, neuron: int, other: int) -> list[tuple[str, Callable[[], Hits]]]:
    """Return what to ask: a command line each, and the call that answers it."""
    less, more = f"+{neuron} -{other}", f"{neuron} + 0.5*{other}"
    text = "an argument that ended in laughter"
    return [
        (f"memstore top STORE {neuron} -k 3 --why", lambda: store.top(neuron, 3)),
        (f'memstore composite STORE "{less}" -k 3 --why', lambda: store.composite(less, 3)),
        (
            f'memstore composite STORE "{more}" -k 2 --category Routine --why',
            lambda: store.composite(more, 2, where={"category": "Routine"}),
        ),
        (f'memstore search STORE "{text}" -k 3 --why', lambda: store.search(text, 3)),
        (
            f'memstore search STORE "{text}" --by trace -k 2 --why',
            lambda: store.search(text, 2, by="trace"),
        ),
    ]
