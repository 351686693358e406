"""Care of a store: is it well, making it so, leaving nothing behind, writing it out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from memstore import layout
from memstore.catalog import categories, memories, migrate, neurons, reencoding, traces, words
from memstore.catalog.engine import Database
from memstore.core.traces import concatenate, empty
from memstore.errors import RESCUE, IndexDamaged, StoreDamaged, StoreLocked
from memstore.indices import Indices, Moment, Vectors


def problems(database: Database, indices: Indices) -> list[str]:
    """Return everything that is wrong with a store, a sentence each; empty is well.

    Looks at SQLite's own integrity, foreign keys, memories without vector or trace, texts and their
    checksums, metadata, the word lists, and whether the neuron index holds exactly the traces of
    the catalog.
    """
    with database.read() as connection:
        found = neurons.integrity(connection)
        if found:
            # What lies on broken pages would end every look at it in an error of its own.
            return [*found, RESCUE]
        if broken := neurons.broken(connection):
            found.append(
                f"{len(broken)} memories have a missing or broken vector or trace, the first is "
                f"{broken[0]}: run `memstore check --repair`"
            )
        if untrue := sorted(set(memories.untrue(connection))):
            found.append(
                f"{len(untrue)} memories have a text that differs from its checksum, or metadata "
                f"that is no JSON, the first is {untrue[0]}: {RESCUE}"
            )
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
    """Return a complaint for an index that differs from what the catalog holds."""
    with indices.dense_turn, database.read() as connection:
        record = neurons.require_encoder(connection)
        now = Moment(connection, neurons.state(connection), record, None)
        if neurons.broken(connection):
            return []  # said already; what cannot be read cannot be compared
        try:
            held = indices.neurons(now).checked().traces()
        except IndexDamaged:
            return ["the index does not match its checksums: run `memstore check --repair`"]
        pages = list(traces.changed_traces(connection, record.id, 0, record.neurons))
        stored = concatenate(pages) if pages else empty(record.neurons)
        dense = indices.dense(now, Vectors(now))
        vectors = traces.changed_vectors(connection, record.id, 0, record.dimension)
        same = dense.agrees(vectors)
    names = ("ids", "indptr", "neurons", "activations")
    same &= all(np.array_equal(getattr(held, n), getattr(stored, n)) for n in names)
    return [] if same else ["the index differs from the catalog: run `memstore check --repair`"]


def broken_ids(database: Database) -> list[int]:
    """Return the memories whose vector or trace is missing or of impossible size."""
    with database.read() as connection:
        return neurons.broken(connection)


def rebuild(database: Database, indices: Indices) -> None:
    """Drop the indices and rebuild the word lists from the texts."""
    with database.exclusive() as connection:
        words.compact(connection)
        neurons.set_index_token(connection, None)
    indices.forget()


def stats(database: Database) -> dict[str, Any]:
    """Return counts, categories, encoder, change number and sizes in bytes."""
    with database.read() as connection:
        record = neurons.require_encoder(connection)
        facts = {
            "path": database.name,
            "memories": memories.count(connection),
            "categories": categories.counts(connection),
            "labels": len(neurons.all_labels(connection, record.id)),
            "encoder": record.name,
            "fingerprint": record.fingerprint,
            "dimension": record.dimension,
            "neurons": record.neurons,
            "change": neurons.state(connection).change,
            "schema": migrate.revision(connection),
            "aside": reencoding.aside(connection, None),
        }
    return facts | file_sizes(database.path)


def file_sizes(path: Path | None) -> dict[str, int]:
    """Return bytes of the store's file, its WAL and its index."""
    if path is None:
        return {"bytes": 0, "index_bytes": 0}
    files = (path, path.with_name(path.name + "-wal"))
    inside: list[Path] = []
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        inside = list(layout.index_folder(path).iterdir())
    return {"bytes": sum(map(size_of, files)), "index_bytes": sum(map(size_of, inside))}


def size_of(file: Path) -> int:
    """Return the bytes of a file, 0 where another process has just taken it away."""
    with suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def forget_deleted(database: Database) -> None:
    """Rebuild the word lists, which keep deleted words, and clear the log of deletions."""
    with database.write() as tx:
        words.compact(tx.connection)
        categories.prune(tx.connection)
        memories.forget_deletions(tx.connection, tx.change)


def write_statistics(database: Database, indices: Indices) -> None:
    """Write each neuron's fire count, mean and maximum, for people who read the tables."""
    with database.read() as connection:
        record = neurons.require_encoder(connection)
        index = indices.neurons(Moment(connection, neurons.state(connection), record, None))
    fires, means, maxima = index.statistics()
    with database.exclusive() as connection:
        neurons.set_statistics(connection, record.id, fires, means, maxima)


def vacuum(database: Database) -> None:
    """Rewrite the file without free pages and empty the WAL."""
    with database.driver() as raw:
        raw.execute("VACUUM")
        busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise StoreLocked(
            f"{database.name} is compact, but a reader keeps deleted text in its WAL: optimize "
            "again when the reader is done"
        )
