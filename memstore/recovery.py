"""What can be read of a damaged store, in a file that ``memstore import`` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from memstore import durable
from memstore.catalog import salvage
from memstore.catalog.files import require_new, usable
from memstore.catalog.memories import to_memory
from memstore.errors import InvalidInput, StoreDamaged, StoreNotFound
from memstore.rows import MAX_TEXT, check_row

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
    number. Vectors, traces, labels, lenses and links stay behind: importing encodes anew. Close the
    store elsewhere first.

    Raises ``StoreNotFound``, ``StoreDamaged`` where there is nothing to read, ``StoreError`` where
    something is at ``target``.
    """
    with usable(store):
        is_there = store.is_file()
    if not is_there:
        raise StoreNotFound(f"no store at {store}: check the path")
    require_new(target, "what is recovered")
    with durable.medium(store, "read"):
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
    """Return a memory as an export has it, fit to be imported."""
    number = found.category_id
    name = None if number is None else categories.get(number, f"lost category {number}")
    row, broken = found.row._replace(category=name), not found.sound
    try:
        result = to_memory(row).to_dict()
    except (StoreDamaged, OverflowError):
        plain = row._replace(metadata="{}", occurred_at=None, created_at=0, updated_at=0)
        result, broken = to_memory(plain).to_dict(), True
    # Half a page of zeros in a text, a key of blanks: what no store would take is let go.
    for field, instead in INSTEAD.items():
        try:
            check_row({"text": "a text", field: result[field]})
        except InvalidInput:
            result[field], broken = instead(result[field]), True
    if broken:
        result["metadata"] = {**result["metadata"], MARK: DAMAGED}
    return result


def storable(text: str) -> str:
    """Return what can be stored of a text."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").strip()[:MAX_TEXT] or "(nothing left)"


#: What takes the place of a field that no store would take.
INSTEAD: dict[str, Callable[[Any], Any]] = {
    "text": storable,
    "category": lambda _: None,
    "key": lambda _: None,
    "metadata": lambda _: {},
}
