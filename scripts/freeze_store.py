"""Freeze a store of the current schema into ``tests/fixtures``, once, when a schema is released.

Later versions of memstore must open every file that lies there; none is ever written again.

    python scripts/freeze_store.py
"""

from pathlib import Path

from memstore import MemoryStore
from memstore.catalog import migrate
from tests.conftest import make_encoder

FROZEN = {
    "text": "The lake froze over in one night, and we walked across to school.",
    "category": "Routine",
    "key": "frozen",
    "metadata": {"mood": 4, "tags": ["ice"]},
    "occurred_at": "1962-12-13T06:00:00+00:00",
}
OTHERS = [
    {"text": f"Page {i} of the log: wind from the north, {i * 3} knots.", "category": "Log"}
    for i in range(1, 12)
]


def main() -> None:
    target = Path("tests/fixtures") / f"store-{migrate.HEAD}.db"
    if target.exists():
        raise SystemExit(f"{target} is frozen already: it is never written again")
    target.parent.mkdir(exist_ok=True)
    with MemoryStore.open(target, encoder=make_encoder()) as store:
        store.insert_many([FROZEN, *OTHERS])
        store.neurons.label(int(store.trace(1).neurons[0]), "ice", grade=0.5)
        store.delete(store.insert("deleted before it was frozen"))


if __name__ == "__main__":
    main()
