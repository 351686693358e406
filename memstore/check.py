"""Is a store well, and making it so: the catalog against itself, the index against the catalog."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memstore.catalog import neurons, traces, words
from memstore.catalog.engine import Database
from memstore.core.traces import concatenate, empty
from memstore.errors import StoreDamaged
from memstore.indices import Indices


def problems(database: Database, indices: Indices) -> list[str]:
    """Return everything that is wrong with a store, a sentence each; empty is well.

    Looks at SQLite's own integrity, foreign keys, memories without vector or trace, the word lists,
    and whether the neuron index holds exactly the traces of the catalog.
    """
    with database.read() as connection:
        found = neurons.integrity(connection)
        found += neurons.orphans(connection)
    if database.mode == "rw":
        found += word_problems(database)
    return found + index_problems(database, indices)


def word_problems(database: Database) -> list[str]:
    """Return a complaint where the full-text word lists differ from the texts."""
    try:
        # FTS5 checks itself through an INSERT, so this takes the write lock and changes nothing.
        with database.exclusive() as connection:
            words.check(connection)
    except StoreDamaged:
        return ["the word lists differ from the texts: run `memstore check --repair`"]
    return []


def index_problems(database: Database, indices: Indices) -> list[str]:
    """Return a complaint where the neuron index differs from the stored traces."""
    with indices.turn, database.read() as connection:
        record = neurons.require_encoder(connection)
        state = neurons.state(connection)
        index = indices.neurons(connection, state, record)
        held = index.compacted().traces
        pages = list(traces.changed_traces(connection, record.id, 0, record.neurons))
        stored = concatenate(pages) if pages else empty(record.neurons)
    names = ("ids", "indptr", "neurons", "activations")
    same = all(np.array_equal(getattr(held, n), getattr(stored, n)) for n in names)
    return [] if same else ["the index differs from the catalog: run `memstore check --repair`"]


def repair(database: Database, indices: Indices) -> Sequence[str]:
    """Rebuild everything derived from the texts and traces; returns what is still wrong."""
    with database.exclusive() as connection:
        words.compact(connection)
    indices.forget()
    return problems(database, indices)
