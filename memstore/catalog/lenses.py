"""Statements about lenses: neuron expressions saved under a name."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from memstore.catalog.memories import to_time
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


def save(connection: Connection, encoder_id: int, saved: Lens, moment: int) -> None:
    """Save a lens in place of one of its name."""
    values = {name.name: getattr(saved, name.name) for name in COLUMNS if name is not lens.c.name}
    connection.execute(
        upsert(lens)
        .values(encoder_id=encoder_id, name=saved.name, created_at=moment, **values)
        .on_conflict_do_update(
            index_elements=["encoder_id", "name"], set_={**values, "created_at": moment}
        )
    )


def remove(connection: Connection, encoder_id: int, name: str) -> bool:
    """Take a lens away; returns whether it was there."""
    gone = delete(lens).where(lens.c.encoder_id == encoder_id, lens.c.name == name)
    return connection.execute(gone).rowcount > 0
