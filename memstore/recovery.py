"""What can be read of a damaged store, in a file that ``memstore import`` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from memstore import durable
from memstore.catalog import salvage
from memstore.catalog.files import require_new
from memstore.catalog.memories import to_memory
from memstore.errors import StoreDamaged, StoreNotFound

#: The name in a memory's metadata under which it says what is wrong with it.
MARK = "memstore_recovered"
DAMAGED = "damaged: the text differs from its checksum, or the rest could not be read"


class Recovered(NamedTuple):
    """How many memories were read, how many of them are marked as damaged, and are not."""

    memories: int
    damaged: int


def recover(store: Path, target: Path) -> Recovered:
    """Write every memory that can be read of a store's file, damaged or not, as JSON Lines.

    Reads the pages without SQLite, so neither the first page nor the way to a row is needed; the
    WAL counts where it is whole. A text that does not match its checksum is marked in the
    metadata; metadata, keys and times have none. A category whose name is gone is called by its
    number. Vectors, traces and labels stay behind: importing encodes anew. Close the store
    elsewhere first.

    Raises ``StoreNotFound``, ``StoreDamaged`` where there is nothing to read, ``StoreError`` where
    something is at ``target``.
    """
    if not store.is_file():
        raise StoreNotFound(f"no store at {store}: check the path")
    require_new(target, "what is recovered")
    found, categories = salvage.read(store)
    if not found:
        raise StoreDamaged(f"no memory can be read of {store}: restore a backup")
    damaged = 0
    with durable.appearing(target) as part, part.open("w", encoding="utf-8") as file:
        for each in found:
            row = to_row(each, categories)
            damaged += MARK in row["metadata"]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Recovered(len(found), damaged)


def to_row(found: salvage.Found, categories: dict[int, str]) -> dict[str, Any]:
    """Return a memory as an export has it."""
    number = found.category_id
    name = None if number is None else categories.get(number, f"lost category {number}")
    row, broken = found.row._replace(category=name), not found.sound
    try:
        result = to_memory(row).to_dict()
    except (ValueError, OverflowError, TypeError):
        # What is not text has no checksum: metadata or times beyond reading are let go.
        plain = row._replace(metadata="{}", occurred_at=None, created_at=0, updated_at=0)
        result, broken = to_memory(plain).to_dict(), True
    if broken:
        result["metadata"] = {**result["metadata"], MARK: DAMAGED}
    return result
