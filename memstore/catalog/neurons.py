"""Statements about encoders and neurons: which encoder a store has, what its neurons are called."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, text, update
from sqlalchemy.dialects.sqlite import insert as upsert

from memstore.catalog import lenses
from memstore.catalog.engine import driver_of
from memstore.catalog.lists import parameters, places
from memstore.catalog.schema import encoder, neuron, store
from memstore.core.vectors import stored_sizes
from memstore.errors import (
    RESCUE,
    EncoderMismatch,
    InvalidInput,
    StoreDamaged,
    StoreNotFound,
)
from memstore.types import Float64, Int64

#: How a label came about: by hand, or by ``MADE`` methods, which yield to every other.
GIVEN = "given"
MADE = ("words", "exemplar")


class Label(NamedTuple):
    """What a neuron is called, and how that came about."""

    neuron: int
    label: str | None
    grade: float | None = None
    method: str | None = GIVEN
    sentence: str | None = None
    """What it fires for, and what not."""
    model: str | None = None
    """The language model that wrote it, if one did."""


#: The columns of a ``Label``.
LABEL = tuple(neuron.c[name] for name in Label._fields)


@dataclass(frozen=True)
class EncoderRecord:
    """The encoder of a store as the catalog knows it.

    ``config`` holds what is needed to load it again: kinds and locations of embedder and SAE.
    """

    id: int
    fingerprint: str
    name: str
    dimension: int
    neurons: int
    config: Mapping[str, Any]


class StoreState(NamedTuple):
    """The one row of table ``store``.

    ``change`` counts write transactions. ``log_floor`` is the change up to which the log of
    deletions was cleared: an index older than it cannot be brought up to date. ``index_token`` is
    what a saved index must carry: a change number alone could belong to a future that a restored
    backup has undone.
    """

    store_id: str
    change: int
    log_floor: int
    index_token: str | None
    encoder_id: int | None


def state(connection: Connection) -> StoreState:
    """Return the store's identity, change number and encoder. Every query begins with it."""
    row = driver_of(connection).execute(
        "SELECT store_id, change, log_floor, index_token, encoder_id FROM store"
    )
    found = row.fetchone()
    if found is None:
        raise StoreDamaged(f"the row in table store is lost: {RESCUE}")
    return StoreState(*found)


def set_index_token(connection: Connection, token: str | None) -> None:
    """Put the index manifest with this token in force, and every other out of it."""
    connection.execute(update(store).values(index_token=token))


def active_encoder(connection: Connection) -> EncoderRecord | None:
    """Return the encoder whose traces are served, None for a store that never had one."""
    row = connection.execute(
        select(encoder).join(store, store.c.encoder_id == encoder.c.id)
    ).one_or_none()
    if row is None:
        return None
    try:
        config = json.loads(row.config)
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreDamaged(f"the row of the encoder is damaged ({error}): {RESCUE}") from error
    if not isinstance(row.dimension, int) or not isinstance(row.neurons, int):
        raise StoreDamaged(f"the row of the encoder is damaged: {RESCUE}")
    return EncoderRecord(row.id, row.fingerprint, row.name, row.dimension, row.neurons, config)


def require_encoder(connection: Connection) -> EncoderRecord:
    """Return the store's encoder. Raises ``StoreNotFound`` where setting up was cut short."""
    record = active_encoder(connection)
    if record is None:
        state(connection)
        raise StoreNotFound('this store was never set up to the end: open it with mode="rw" once')
    return record


def require_still(connection: Connection, record: EncoderRecord) -> None:
    """Raise ``EncoderMismatch`` where the store has moved to another encoder than this one."""
    now = require_encoder(connection)
    if now.id != record.id:
        raise EncoderMismatch(
            record.fingerprint,
            now.fingerprint,
            record.name,
            f"the store has moved to {now.name} meanwhile: do it again for its neurons",
        )


def register_encoder(connection: Connection, record: EncoderRecord) -> int:
    """Write an encoder down, make it the store's own and return its id."""
    encoder_id = note_encoder(connection, record)
    connection.execute(update(store).values(encoder_id=encoder_id))
    return encoder_id


def note_encoder(connection: Connection, record: EncoderRecord) -> int:
    """Write an encoder down, or where it lies now if it is known, and return its id."""
    place = {"name": record.name, "config": json.dumps(record.config)}
    encoder_id = connection.execute(
        upsert(encoder)
        .values(
            fingerprint=record.fingerprint,
            dimension=record.dimension,
            neurons=record.neurons,
            created_at=time.time_ns() // 1000,
            **place,
        )
        .on_conflict_do_update(index_elements=["fingerprint"], set_=place)
        .returning(encoder.c.id)
    ).scalar_one()
    return int(encoder_id)


def label(connection: Connection, encoder_id: int, number: int) -> Label:
    """Return what a neuron is called here, without a label where it has none."""
    found = select(*LABEL).where(neuron.c.encoder_id == encoder_id, neuron.c.neuron == number)
    row = connection.execute(found).one_or_none()
    return Label(number, None, method=None) if row is None else Label(*row)


def labels(
    connection: Connection, encoder_id: int, numbers: Sequence[int]
) -> tuple[dict[int, str], dict[int, str]]:
    """Return ``{neuron: label}`` of those that were given one, and of those one was made for."""
    if not numbers:
        return {}, {}
    rows = driver_of(connection).execute(
        "SELECT neuron, label, method FROM neuron WHERE encoder_id = ? AND label IS NOT NULL "
        f"AND neuron IN {places(len(numbers))}",
        (encoder_id, *parameters(numbers)),
    )
    given: dict[int, str] = {}
    made: dict[int, str] = {}
    for number, name, method in rows:
        (made if method in MADE else given)[number] = name
    return given, made


def number_of_label(
    connection: Connection, encoder_id: int, name: str, *, made: bool = False
) -> int | None:
    """Return the neuron that was given this label, capitals aside, or that it was ``made`` for."""
    wanted = alike(name)
    # SQLite's lower() knows the letters of ASCII only.
    same = "AND lower(label) = ?2" if wanted.isascii() else ""
    rows = driver_of(connection).execute(
        "SELECT neuron, label, method FROM neuron WHERE encoder_id = ?1 AND label IS NOT NULL "
        f"{same} ORDER BY neuron",
        (encoder_id, wanted) if same else (encoder_id,),
    )
    for number, label, method in rows:
        if alike(label) == wanted and (method in MADE) == made:
            return int(number)
    return None


def alike(name: str) -> str:
    """Return what two names have in common that are the same but for capitals and blanks."""
    return " ".join(name.split()).casefold()


def all_labels(connection: Connection, encoder_id: int) -> list[str]:
    """Return every label given so far, by name."""
    query = select(neuron.c.label).where(
        neuron.c.encoder_id == encoder_id, neuron.c.label.is_not(None)
    )
    return list(connection.execute(query.order_by(neuron.c.label)).scalars())


def label_rows(connection: Connection, encoder_id: int) -> list[Label]:
    """Return every label given or made here, by neuron."""
    query = select(*LABEL).where(neuron.c.encoder_id == encoder_id, neuron.c.label.is_not(None))
    return [Label(*row) for row in connection.execute(query.order_by(neuron.c.neuron))]


def set_label(connection: Connection, encoder_id: int, named: Label) -> None:
    """Name a neuron, or take its name away with None.

    A label that was made for another neuron gives way to it. Raises ``InvalidInput`` where a lens
    has that name: it would be open which is meant.
    """
    if named.label is not None and any(
        alike(lens.name) == alike(named.label) for lens in lenses.all_lenses(connection, encoder_id)
    ):
        raise InvalidInput(f"a lens is called {named.label!r} already: choose another name")
    if named.label is None:
        named = Label(named.neuron, None, method=None)
    else:
        connection.execute(
            update(neuron)
            .where(
                neuron.c.encoder_id == encoder_id,
                neuron.c.label == named.label,
                neuron.c.neuron != named.neuron,
                neuron.c.method.in_(MADE),
            )
            .values(label=None, grade=None, method=None)
        )
    values = {name: value for name, value in named._asdict().items() if name != "neuron"}
    connection.execute(
        upsert(neuron)
        .values(encoder_id=encoder_id, neuron=named.neuron, **values)
        .on_conflict_do_update(index_elements=["encoder_id", "neuron"], set_=values)
    )


def set_statistics(
    connection: Connection, encoder_id: int, fires: Int64, means: Float64, maxima: Float64
) -> None:
    """Write fire counts, means and maxima, one a neuron, for people who read the tables."""
    statement = upsert(neuron)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["encoder_id", "neuron"],
            set_={name: statement.excluded[name] for name in ("fires", "mean", "maximum")},
        ),
        [
            {"encoder_id": encoder_id, "neuron": i, "fires": f, "mean": m, "maximum": x}
            for i, (f, m, x) in enumerate(
                zip(fires.tolist(), means.tolist(), maxima.tolist(), strict=True)
            )
        ],
    )


def integrity(connection: Connection) -> list[str]:
    """Return what SQLite and the foreign keys complain of; empty is well."""
    found = [row[0] for row in connection.execute(text("PRAGMA integrity_check(20)"))]
    problems = [] if found == ["ok"] else [f"SQLite: {line}" for line in found]
    for row in connection.execute(text("PRAGMA foreign_key_check")):
        problems.append(f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}")
    return problems


def broken(connection: Connection) -> list[int]:
    """Return the memories whose vector or trace is missing, or of a size that cannot be."""
    record = active_encoder(connection)
    if record is None:
        return []
    rows = connection.execute(
        text(
            """
            SELECT memory.id FROM memory JOIN store JOIN encoder ON encoder.id = store.encoder_id
            LEFT JOIN vector ON vector.memory_id = memory.id AND vector.encoder_id = encoder.id
            LEFT JOIN trace ON trace.memory_id = memory.id AND trace.encoder_id = encoder.id
            WHERE coalesce(length(vector), -1) NOT IN (SELECT value FROM json_each(:sizes))
               OR coalesce(length(activations), -1) % 2 != 0
               OR coalesce(length(trace.neurons), -1) !=
                  length(activations) / 2 * CASE WHEN encoder.neurons <= 65536 THEN 2 ELSE 4 END
            ORDER BY memory.id
            """
        ),
        {"sizes": json.dumps(stored_sizes(record.dimension))},
    )
    return list(rows.scalars())
