"""Which rows of a batch are stored already, and which of them are each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from memstore.catalog import memories
from memstore.catalog.memories import NewMemory
from memstore.core.vectors import NEAR_COPY
from memstore.errors import DuplicateKey
from memstore.types import Float32


@dataclass(frozen=True)
class Plan:
    """Which rows of a batch are to be inserted, and whose id each row gets."""

    known: dict[int, int]
    """``{row: id}`` of rows that are stored already."""
    owners: list[int]
    """For each row the row whose memory it is: itself, or an earlier one that is the same."""

    @classmethod
    def of(cls, connection: Connection, rows: Sequence[NewMemory], skip: bool) -> Plan:
        """Return the plan, row by row, as if each had been inserted before the next was looked at.

        A row is the same as a memory with its key; without a key, as one with its text.
        """
        if not skip:
            return cls({}, list(range(len(rows))))
        known, owners = existing(connection, rows), []
        by_key: dict[str, int] = {}
        by_text: dict[str, int] = {}
        for number, row in enumerate(rows):
            owner = by_text.get(row.text) if row.key is None else by_key.get(row.key)
            if owner is None or number in known:
                owner = number
            owners.append(owner)
            if row.key is not None:
                by_key.setdefault(row.key, owner)
            if owner == number and number not in known:
                by_text.setdefault(row.text, number)
        return cls(known, owners)

    @property
    def missing(self) -> list[int]:
        """The rows to insert, ascending."""
        return [n for n, owner in enumerate(self.owners) if n == owner and n not in self.known]

    def ids(self, added: Mapping[int, int]) -> list[int]:
        """Return one id a row, ``added`` being those of the rows inserted just now."""
        found = {**self.known, **added}
        return [found[owner] for owner in self.owners]


def existing(connection: Connection, rows: Sequence[NewMemory]) -> dict[int, int]:
    """Return ``{row: id}`` of the rows that are stored already."""
    texts = {number: row.text for number, row in enumerate(rows) if row.key is None}
    keys = {number: row.key for number, row in enumerate(rows) if row.key is not None}
    by_text = memories.ids_of_texts(connection, texts.values())
    by_key = memories.ids_of_keys(connection, keys.values())
    found = {number: by_text[text] for number, text in texts.items() if text in by_text}
    return found | {number: by_key[value] for number, value in keys.items() if value in by_key}


def refuse_known_keys(
    connection: Connection, rows: Sequence[NewMemory], numbers: Sequence[int]
) -> None:
    """Raise ``DuplicateKey`` for a key that is taken, in the store or earlier in the batch."""
    keys = [row.key for row in rows if row.key is not None]
    if not keys:
        return
    taken = set(memories.ids_of_keys(connection, keys))
    for number, row in zip(numbers, rows, strict=True):
        if row.key in taken:
            raise DuplicateKey(
                f"row {number}: another memory has the key {row.key!r}: use upsert(), "
                "on_duplicate='skip' or another key"
            )
        if row.key is not None:
            taken.add(row.key)


def repeated_within(vectors: Float32) -> dict[int, tuple[int, float]]:
    """Return ``{row: (earlier row, cosine)}`` of vectors (n, d) that an earlier one is near to."""
    cosines = np.tril(vectors.astype(np.float64) @ vectors.T.astype(np.float64), -1)
    nearest = cosines.argmax(axis=1)
    return {
        row: (int(other), min(float(cosines[row, other]), 1.0))
        for row, other in enumerate(nearest.tolist())
        if cosines[row, other] >= NEAR_COPY
    }
