"""Statements about lenses: neuron expressions saved under a name."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from memstore.catalog.memories import to_microseconds, to_time
from memstore.catalog.schema import lens
from memstore.types import Lens

COLUMNS = [lens.c[name] for name in ("name", "expression", "by", "threshold", "grade", "category")]


def all_lenses(connection: Connection, encoder_id: int) -> list[Lens]:
    """Return the lenses over an encoder's neurons, by name."""
    rows = connection.execute(
        select(*COLUMNS, lens.c.created_at)
        .where(lens.c.encoder_id == encoder_id)
        .order_by(lens.c.name)
    )
    return [
        Lens(r.name, r.expression, r.by, r.threshold, r.grade, r.category, to_time(r.created_at))
        for r in rows
    ]


def add(connection: Connection, encoder_id: int, saved: Lens) -> None:
    """Save a lens whose name no other has."""
    made = 0 if saved.created_at is None else to_microseconds(saved.created_at)
    values = {column.name: getattr(saved, column.name) for column in COLUMNS}
    connection.execute(insert(lens).values(encoder_id=encoder_id, created_at=made, **values))


def remove(connection: Connection, encoder_id: int, name: str) -> bool:
    """Take a lens away; returns whether it was there."""
    gone = delete(lens).where(lens.c.encoder_id == encoder_id, lens.c.name == name)
    return connection.execute(gone).rowcount > 0
