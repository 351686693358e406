"""Freeze a store of the current schema, and index files of the current format, into
``tests/fixtures``, each once, when it is released.

Later versions of memstore must open every file that lies there; none is ever written again.

    python scripts/freeze_store.py
"""

from pathlib import Path

from memstore import MemoryStore
from memstore.catalog import migrate
from memstore.index import files
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


def freeze_store(target: Path) -> None:
    with MemoryStore.open(target, encoder=make_encoder()) as store:
        store.insert_many([FROZEN, *OTHERS], on_duplicate="link")
        store.neurons.label(int(store.trace(1).neurons[0]), "ice", grade=0.5)
        store.lenses.save("cold", "ice - 0.5*3", threshold=0.1)
        store.delete(store.insert("deleted before it was frozen"))


def freeze_index(target: Path) -> None:
    """Two blocks, dead rows among them, a summary and vectors."""
    with MemoryStore.open(target, encoder=make_encoder()) as store:
        store.insert_many([f"entry {i}" for i in range(400)])
        store.optimize()
        store.delete([2, 30, 299])
        store.insert_many([f"later {i}" for i in range(300)])
        store._upkeep.save()


def main() -> None:
    folder = Path("tests/fixtures")
    folder.mkdir(exist_ok=True)
    wanted = {
        folder / f"store-{migrate.HEAD}.db": freeze_store,
        folder / f"index-{files.FORMAT}.db": freeze_index,
    }
    for target, freeze in wanted.items():
        if not target.exists():  # what is frozen already is never written again
            freeze(target)


if __name__ == "__main__":
    main()
