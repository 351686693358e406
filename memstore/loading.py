"""An encoded export read back into a new store: nothing that it held is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from memstore.catalog import lenses, links, memories, neurons, traces, words
from memstore.catalog.engine import Database, Write
from memstore.catalog.links import Link
from memstore.catalog.memories import KeptRow, from_microseconds
from memstore.catalog.neurons import EncoderRecord, Label
from memstore.core.traces import MAX_ACTIVATION, neuron_dtype
from memstore.core.vectors import as_matrix, refuse_rows
from memstore.duplicates import refuse_known_keys
from memstore.errors import EncoderMismatch, InvalidFile, InvalidInput, StoreError, brief
from memstore.exports import FORMAT, HEADING, PAGE, Row
from memstore.files import Format, jsonl_rows, lines, parquet_file, parquet_rows
from memstore.lenses import checked
from memstore.rows import FIELDS, check_id, check_label, check_name, check_row, check_time
from memstore.types import Float32, Lens, Traces

#: The formats that an encoded export may have.
KINDS: tuple[Format, ...] = ("jsonl", "parquet")
#: Stored vectors are of unit length to within the steps that they are stored in.
OFF_UNIT = 0.02
#: Ids end at 2^63; a store goes on from the highest that it was given.
HIGHEST = 2**62


def heading_of(file: str, kind: Format) -> Row | None:
    """Return what an encoded export says of itself, None for any other file."""
    if kind == "parquet":
        with parquet_file(file) as (table, _):
            found = (table.schema_arrow.metadata or {}).get(HEADING.encode(), b"null")
        text = found.decode("utf-8", "replace")
    else:
        text = next((line for _, line in lines(file)), "null")
    try:
        heading = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return heading if isinstance(heading, dict) and HEADING in heading else None


def load(database: Database, file: str, kind: Format, heading: Row) -> int:
    """Fill a new store, in one transaction; returns how many memories there are now.

    Raises ``StoreError`` unless the store is as new, ``EncoderMismatch`` where the export is of
    another encoder, ``InvalidFile`` for a row that cannot be; then the store is as it was.
    """
    if heading[HEADING] != FORMAT:
        raise InvalidFile(
            f"{file} is an export of format {brief(heading[HEADING])}: update the package"
        )
    total = 0
    with database.write() as tx:
        record = neurons.require_encoder(tx.connection)
        require_fit(tx, record, file, heading)
        source, last = numbered(file, kind), 0
        linked: list[Link] = []
        while page := list(islice(source, PAGE)):
            last = store_page(tx, record, file, page, last, linked)
            total += len(page)
        if total != heading.get("memories"):
            raise InvalidFile(
                f"{file} has {total} memories, not the {heading.get('memories')} that it says: it "
                "was cut short, export again"
            )
        set_labels(tx, record, file, heading.get("labels"))
        set_lenses(tx, record, file, heading.get("lenses", []))
        links.add(tx.connection, linked)
        memories.use_ids_up_to(tx.connection, last_id_of(file, heading))
    return total


def require_fit(tx: Write, record: EncoderRecord, file: str, heading: Row) -> None:
    """Raise unless the store is new and of the same encoder."""
    own = heading.get("encoder")
    if not isinstance(own, dict) or not isinstance(own.get("fingerprint"), str):
        raise InvalidFile(f"{file} does not say which encoder it is of: export again")
    if own["fingerprint"] != record.fingerprint:
        raise EncoderMismatch(record.fingerprint, own["fingerprint"], record.name)
    # Not merely empty: an id that was used once is never used again.
    used = neurons.all_labels(tx.connection, record.id) or lenses.all_lenses(
        tx.connection, record.id
    )
    if memories.last_id(tx.connection) or used:
        raise StoreError(
            f"{file} holds ids, vectors and traces, which only a new store can take as they are: "
            "name another, or export without --encoded"
        )


def last_id_of(file: str, heading: Row) -> int:
    """Return the highest id that the exported store had given."""
    try:
        return highest(heading.get("last_id", 0))
    except InvalidInput as error:
        raise InvalidFile(f"{file}: last_id is no id ({error}): export again") from error


def highest(value: object) -> int:
    """Return an id that leaves room for more."""
    memory_id = check_id(value)
    if memory_id > HIGHEST:
        raise InvalidInput(f"the id {memory_id} leaves no room for more")
    return memory_id


def numbered(file: str, kind: Format) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of the memories in an encoded export."""
    if kind == "parquet":
        yield from parquet_rows(file, "text")
    else:
        yield from islice(jsonl_rows(file, "text"), 1, None)


def store_page(
    tx: Write,
    record: EncoderRecord,
    file: str,
    page: list[tuple[int, Row]],
    last: int,
    linked: list[Link],
) -> int:
    """Store some memories as they were, of ids above ``last``; returns the highest.

    ``linked`` gets their links, to be stored once all memories are there.
    """
    kept: list[KeptRow] = []
    codes = []
    for number, row in page:
        try:
            kept.append(kept_row(row, kept[-1].id if kept else last))
            codes.append((row["vector"], row["neurons"], row["activations"]))
            if (to := link_of(row)) is not None:
                linked.append((kept[-1].id, *to))
        except (InvalidInput, KeyError, TypeError, AttributeError) as error:
            raise InvalidFile(f"{file} row {number} cannot be loaded: {error}") from error
    first, final = page[0][0], page[-1][0]
    try:
        vectors = vectors_of([vector for vector, _, _ in codes], record.dimension)
        found = traces_of([(n, a) for _, n, a in codes], record.neurons)
    except (InvalidInput, TypeError, ValueError, OverflowError) as error:
        raise InvalidFile(f"{file} rows {first} to {final} cannot be loaded: {error}") from error
    refuse_known_keys(tx.connection, [row.new for row in kept], [number for number, _ in page])
    ids = memories.add_kept(tx.connection, kept, tx.change)
    words.add(tx.connection, ids[0], ids[-1])
    traces.add(tx.connection, record.id, ids, vectors, found)
    return ids[-1]


def kept_row(row: Row, last: int) -> KeptRow:
    """Return a memory with the id, which must be above ``last``, and the times that it had."""
    new = check_row({name: row[name] for name in FIELDS})
    created, updated = check_time(row["created_at"]), check_time(row["updated_at"])
    if created is None or updated is None:
        raise InvalidInput("created_at and updated_at must be times")
    memory_id = highest(row["id"])
    if memory_id <= last:
        raise InvalidInput(f"its id {memory_id} comes after {last}: ids must ascend")
    return KeptRow(memory_id, new, created, updated)


def vectors_of(values: list[Any], dimension: int) -> Float32:
    """Return the vectors of a page, unchanged."""
    vectors = np.asarray(as_matrix(values, len(values), dimension), dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    refuse_rows(~(np.abs(lengths - 1) <= OFF_UNIT), "is not of unit length: export again")
    return vectors


def traces_of(pairs: list[tuple[Any, Any]], width: int) -> Traces:
    """Return the traces of a page. Raises ``InvalidInput`` for what cannot be one."""
    edges = np.cumsum([0, *(len(own) for own, _ in pairs)])
    own_numbers = [n for own, _ in pairs for n in own]
    if not {*map(type, own_numbers)} <= {int}:
        raise InvalidInput("neurons are whole numbers: export again")
    fired = np.array(own_numbers, dtype=np.int64)
    values = np.array([a for _, own in pairs for a in own])
    if values.dtype.kind not in "fi":
        raise InvalidInput("activations are numbers: export again")
    with np.errstate(over="ignore"):
        activations = values.astype(np.float16)
    rising = np.diff(fired) > 0
    rising[edges[1:-1][(edges[1:-1] > 0) & (edges[1:-1] < len(fired))] - 1] = True
    sound = (
        [len(own) for own, _ in pairs] == [len(own) for _, own in pairs]
        and bool(np.all((fired >= 0) & (fired < width)))
        and bool(np.all(rising))
        and bool(np.all((activations > 0) & (activations <= MAX_ACTIVATION)))
        and bool(np.all(activations == values))
    )
    if not sound:
        raise InvalidInput("a trace is not as memstore writes it: export again")
    return Traces(
        ids=np.arange(len(pairs), dtype=np.int64),
        indptr=edges.astype(np.int64),
        neurons=fired.astype(neuron_dtype(width)),
        activations=activations,
        width=width,
    )


def set_labels(tx: Write, record: EncoderRecord, file: str, labels: object) -> None:
    """Give neurons the names that they had."""
    names: dict[str, int] = {}
    if not isinstance(labels, list):
        raise InvalidFile(f"{file}: its labels are {brief(labels)}, no list: export again")
    for label in labels:
        try:
            number, name, grade = label["neuron"], check_label(label["label"]), label["grade"]
            method = check_name("method", label.get("method", neurons.GIVEN))
            sentence = check_name("sentence", label.get("sentence"))
            model = check_name("model", label.get("model"))
            sound = 0 <= check_id(number) < record.neurons and (grade is None or 0 <= grade <= 1)
        except (InvalidInput, KeyError, TypeError, AttributeError) as error:
            raise InvalidFile(f"{file}: {brief(label)} is no label: {error}") from error
        if not sound or name is None or names.setdefault(name, number) != number:
            raise InvalidFile(f"{file}: {brief(label)} is no label of a neuron: export again")
        named = Label(number, name, grade, method, sentence, model)
        neurons.set_label(tx.connection, record.id, named)


def set_lenses(tx: Write, record: EncoderRecord, file: str, saved: object) -> None:
    """Save the lenses that the store had."""
    if not isinstance(saved, list):
        raise InvalidFile(f"{file}: its lenses are {brief(saved)}, no list: export again")
    names: set[str] = set()
    for row in saved:
        try:
            made = check_time(row["created_at"])
            lens = checked(Lens(**{**row, "created_at": None}), record.neurons)
        except (InvalidInput, KeyError, TypeError) as error:
            raise InvalidFile(f"{file}: {brief(row)} is no lens: {error}") from error
        name = neurons.alike(lens.name)
        taken = neurons.number_of_label(tx.connection, record.id, lens.name) is not None
        if made is None or taken or name in names:
            raise InvalidFile(f"{file}: {brief(row)} is no lens of its own name: export again")
        names.add(name)
        lenses.add(tx.connection, record.id, replace(lens, created_at=from_microseconds(made)))


def link_of(row: Row) -> tuple[int, float] | None:
    """Return (other memory, cosine) of a memory that was linked to another."""
    other, cosine = row.get("link_id"), row.get("link_cosine")
    if other is None:
        return None
    found = highest(other)
    if found == row["id"] or not isinstance(cosine, float) or not 0 < cosine <= 1:
        raise InvalidInput(f"it is linked to {brief(other)} by {brief(cosine)}, which is no link")
    return found, cosine
