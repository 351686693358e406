"""A diary as it should be: what was asked of the store so far, and what must be there now.

The plan of the worker that gets killed and the memory of the parent that knows what it had
acknowledged. Ids are foretold: they count up, and a transaction that was rolled back uses none.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from oracle import Row

from memstore import MemoryStore
from tests.conftest import grid_vectors

#: Texts a transaction in the worker (``memstore.writer.BATCH`` there).
BATCH = 8
CATEGORIES = ["Routine", "Strong Emotional", "Complex/Chaotic", None]
MOODS = ["rain", "quiet", "a letter", "the tram", "laughter", "an old song"]
#: How often each kind of work is chosen.
KINDS = {
    "insert": 8, "insert_many": 5, "insert_given": 3, "update": 6, "annotate": 4, "upsert": 4,
    "delete": 5, "delete_where": 1, "optimize": 2, "save": 3, "repair": 1, "backup": 1,
    "export": 1, "reopen": 1,
}  # fmt: skip
SOME = 400


class Diary:
    """The memories that must be there, by id."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.next_id = 1
        self.done = 0

    def choose(self, dice: np.random.Generator) -> list:
        """Return the next thing to do, as plain JSON."""
        weights = np.array(list(KINDS.values()), dtype=float)
        kind = str(dice.choice(list(KINDS), p=weights / weights.sum()))
        ids = list(self.rows)
        if not ids and kind in ("update", "annotate", "delete"):
            kind = "insert"
        if kind == "insert_many" or (kind == "insert_given" and len(ids) < SOME):
            return [kind, [self._row(dice, n) for n in range(int(dice.integers(2, 40)))]]
        if kind in ("insert", "insert_given"):
            return ["insert", self._row(dice, 0)]
        if kind == "upsert":
            return [kind, f"note {dice.integers(20)}", self._row(dice, 0)["text"]]
        if kind == "update":
            return [kind, int(dice.choice(ids)), self._row(dice, 0)["text"]]
        if kind == "annotate":
            return [kind, int(dice.choice(ids)), {"mood": int(dice.integers(5))}]
        if kind == "delete":
            count = min(len(ids), int(dice.integers(1, 30 if len(ids) > SOME else 6)))
            return [kind, sorted(dice.choice(ids, count, replace=False).tolist())]
        if kind == "delete_where":
            return [kind, int(dice.integers(5))]
        return [kind]

    def _row(self, dice: np.random.Generator, number: int) -> dict:
        category = CATEGORIES[dice.integers(len(CATEGORIES))]
        mood = MOODS[dice.integers(len(MOODS))]
        return {"text": f"{mood}, entry {self.done} part {number}", "category": category}

    def apply(self, op: list) -> object:
        """Do in the model what the store was asked to do; returns what the store must return."""
        self.done += 1
        kind, *rest = op
        # What changes no memory has no method here and returns nothing.
        change = getattr(self, f"_{kind}", None)
        return None if change is None else change(*rest)

    def _insert(self, row: dict) -> int:
        return self._add(row)

    def _insert_many(self, rows: list[dict]) -> list[int]:
        return [self._add(row) for row in rows]

    _insert_given = _insert_many

    def _upsert(self, key: str, text: str) -> int:
        found = next((i for i, row in self.rows.items() if row.key == key), None)
        if found is None:
            return self._add({"text": text, "key": key})
        self.rows[found].text = text
        return found

    def _update(self, memory_id: int, text: str) -> None:
        self.rows[memory_id].text = text

    def _annotate(self, memory_id: int, metadata: dict) -> None:
        self.rows[memory_id].metadata = metadata

    def _delete(self, ids: list[int]) -> int:
        return sum(self.rows.pop(i, None) is not None for i in ids)

    def _delete_where(self, mood: int) -> int:
        return self._delete([i for i, row in self.rows.items() if row.metadata.get("mood") == mood])

    def _export(self) -> int:
        return len(self.rows)

    def _add(self, row: dict) -> int:
        memory_id, self.next_id = self.next_id, self.next_id + 1
        self.rows[memory_id] = Row(memory_id, row["text"], row.get("category"), row.get("key"))
        return memory_id

    def may_be(self, op: list | None) -> list[Diary]:
        """Return every state that a kill during ``op`` may leave: before, after, whole batches."""
        states = [self]
        if op is not None:
            parts = [op]
            if op[0] == "insert_many":
                edges = range(BATCH, len(op[1]) + BATCH, BATCH)
                parts = [["insert_many", op[1][:edge]] for edge in edges]
            for part in parts:
                states.append(copy.deepcopy(self))
                states[-1].apply(part)
        return states

    def stored(self) -> list[tuple]:
        """Return what of each memory the user handed in, by id."""
        return [
            (row.id, row.text, row.category, row.key, row.metadata)
            for _, row in sorted(self.rows.items())
        ]


def stored_in(store: MemoryStore) -> list[tuple]:
    """Return the same of a real store."""
    return [(m.id, m.text, m.category, m.key, dict(m.metadata)) for m in store.iter()]


def perform(store: MemoryStore, op: list, folder: Path, number: int) -> object:
    """Ask the real store; returns what it returned."""
    kind, *rest = op
    target = folder / f"{kind}-{number}.{'db' if kind == 'backup' else 'jsonl'}"
    asked = {
        "insert": lambda row: store.insert(**row),
        "insert_many": lambda rows: store.insert_many(iter(rows)),
        "insert_given": lambda rows: store.insert_many(rows, vectors=vectors_of(rows)),
        "upsert": lambda key, text: store.upsert(key=key, text=text),
        "update": lambda memory_id, text: store.update(memory_id, text=text),
        "annotate": lambda memory_id, metadata: store.update(memory_id, metadata=metadata),
        "delete": store.delete,
        "delete_where": lambda mood: store.delete_where({"mood": mood}),
        "save": lambda: store._upkeep.save(),
        "optimize": store.optimize,
        "repair": lambda: store.repair() or None,
        "backup": lambda: store.backup(target),
        "export": lambda: store.export(target, encoded=True),
    }
    return asked[kind](*rest)


def vectors_of(rows: list[dict]) -> np.ndarray:
    """Return the vectors that the encoder would make of the texts."""
    return grid_vectors([row["text"] for row in rows])
