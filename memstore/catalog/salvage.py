"""Reading what can be read of a damaged file: page by page, without asking SQLite.

A SQLite file is pages of one size. A leaf page of a table holds whole rows; long ones go on in a
chain of overflow pages (https://sqlite.org/fileformat2.html, sections 1.5 and 1.6, and 2 for the
records). So the rows of ``memory`` and ``category`` can be told by their shape wherever the pages
lie, even where the pages that lead to them are gone, and the first page, too.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from memstore.catalog.files import HELD
from memstore.catalog.memories import StoredRow, content_hash

LEAF = 0x0D
SQLITE, WAL = b"SQLite format 3\0", (0x377F0682, 0x377F0683)
#: Page sizes that SQLite writes, memstore's own first.
PAGE_SIZES = (4_096, 1_024, 2_048, 8_192, 16_384, 32_768, 65_536, 512)
#: Columns of ``memory`` (id, which the row's number stands for, text, category, key, metadata,
#: occurred_at, created_at, updated_at, changed, content_hash) and of ``category``.
MEMORY, CATEGORY = 10, 2
#: Text and metadata at their longest, in UTF-8.
LONGEST = 8_000_000

Value = int | float | str | bytes | None
Record = tuple[Value, ...]


@dataclass(frozen=True)
class Pages:
    """A file as so many pages of one size; ``newer`` are those that a WAL has in their place."""

    view: memoryview
    size: int
    count: int
    newer: Mapping[int, memoryview]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> memoryview:
        """Return a page by its number, from 1."""
        own = self.newer.get(number)
        return self.view[(number - 1) * self.size : number * self.size] if own is None else own


@dataclass(frozen=True)
class Log:
    """What a WAL adds: pages, their size, and of how many the file consists after it."""

    size: int
    count: int
    newer: Mapping[int, memoryview]


NO_LOG = Log(0, 0, {})


@dataclass(frozen=True)
class Found:
    """A memory that could be read. ``sound``: its text matches the checksum stored with it."""

    row: StoredRow
    category_id: int | None
    changed: int
    sound: bool


def read(file: Path) -> tuple[list[Found], dict[int, str]]:
    """Return the memories of a file, by id, and the names of categories by theirs."""
    memories: dict[int, Found] = {}
    categories: dict[int, str] = {}
    for number, found in rows(read_pages(file)):
        if is_memory(found):
            memory = to_found(number, found)
            known = memories.get(number)
            # A stray copy of a page may hold an older state of it.
            if known is None or (memory.sound, memory.changed) > (known.sound, known.changed):
                memories[number] = memory
        elif is_category(found):
            categories[number] = str(found[1])
    return [memories[number] for number in sorted(memories)], categories


def is_memory(found: Record) -> bool:
    """Return whether a record has the shape of a memory."""
    if len(found) != MEMORY:
        return False
    own, text, category, key, metadata, occurred_at, *times, changed, known = found
    if isinstance(changed, bytes):  # schema 0001: the other way round, and all of the SHA-256
        changed, known = known, 0
    return (
        own is None
        and isinstance(text, str)
        and isinstance(category, int | None)
        and isinstance(key, str | None)
        and isinstance(metadata, str)
        and isinstance(occurred_at, int | None)
        and all(isinstance(number, int) for number in (*times, changed, known))
    )


def is_category(found: Record) -> bool:
    """Return whether a record has the shape of a category, as no other table's has."""
    return len(found) == CATEGORY and found[0] is None and isinstance(found[1], str)


def to_found(number: int, found: Record) -> Found:
    """Return the memory of a record."""
    _, text, category, key, metadata, occurred_at, created_at, updated_at, changed, known = found
    row = StoredRow(number, text, None, key, metadata, occurred_at, created_at, updated_at)  # type: ignore[arg-type]  # is_memory has looked
    if isinstance(changed, bytes):
        return Found(row, category, known, sha256(row.text.encode()).digest() == changed)  # type: ignore[arg-type]
    return Found(row, category, changed, content_hash(row.text) == known)  # type: ignore[arg-type]


# --- pages ---------------------------------------------------------------------------------------


def read_pages(file: Path) -> Pages:
    """Return a file as pages, with those of the WAL beside it."""
    HELD.refuse(file)
    with file.open("rb") as source:
        size = source.seek(0, 2)
        view = memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    wal = file.with_name(file.name + "-wal")
    log = read_wal(memoryview(wal.read_bytes())) if wal.is_file() else NO_LOG
    own = log.size or page_size(view)
    return Pages(view, own, log.count or len(view) // own, log.newer)


def read_wal(view: memoryview) -> Log:
    """Return what a WAL has whole: it ends where a checksum does not hold.

    https://sqlite.org/fileformat2.html, section 4.
    """
    if len(view) < 32 or struct.unpack_from(">I", view, 0)[0] not in WAL:
        return NO_LOG
    order = ">" if struct.unpack_from(">I", view, 0)[0] == WAL[1] else "<"
    size, salts = struct.unpack_from(">I", view, 8)[0], bytes(view[16:24])
    sums = checksum(view[:24], order, (0, 0))
    if size not in PAGE_SIZES or sums != struct.unpack_from(">II", view, 24):
        return NO_LOG
    newer: dict[int, memoryview] = {}
    begun: dict[int, memoryview] = {}
    count = 0
    for start in range(32, len(view) - size - 23, size + 24):
        number, committed = struct.unpack_from(">II", view, start)
        page = view[start + 24 : start + 24 + size]
        sums = checksum(page, order, checksum(view[start : start + 8], order, sums))
        whole = sums == struct.unpack_from(">II", view, start + 16)
        if bytes(view[start + 8 : start + 16]) != salts or not whole:
            break
        begun[number] = page
        if committed:
            newer.update(begun)
            begun.clear()
            count = committed
    return Log(size, count, newer) if count else NO_LOG


def checksum(data: memoryview, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """Return the running checksum of a WAL (section 4.2) after more data."""
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def page_size(view: memoryview) -> int:
    """Return the size of the pages: as the header says, else the first that yields memories."""
    if bytes(view[:16]) == SQLITE:
        said = struct.unpack_from(">H", view, 16)[0]
        said = 65_536 if said == 1 else said
        if said in PAGE_SIZES:
            return int(said)
    for size in PAGE_SIZES:
        if any(is_memory(found) for _, found in rows(Pages(view, size, len(view) // size, {}))):
            return size
    return PAGE_SIZES[0]


# --- rows ----------------------------------------------------------------------------------------


def rows(pages: Pages) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of every row that could be a memory or a category."""
    for number in range(1, len(pages) + 1):
        page = pages[number]
        start = 100 if number == 1 and bytes(page[:16]) == SQLITE else 0
        if len(page) != pages.size or page[start] != LEAF:
            continue
        count = struct.unpack_from(">H", page, start + 3)[0]
        for cell in range(min(count, pages.size // 4)):
            try:
                place = struct.unpack_from(">H", page, start + 8 + 2 * cell)[0]
                found = row_at(pages, page, place)
            except (IndexError, ValueError, struct.error):
                continue  # this one is what cannot be read
            if found is not None:
                yield found


def row_at(pages: Pages, page: memoryview, place: int) -> tuple[int, Record] | None:
    """Return a row by its place on a leaf page, None where it has other numbers of columns.

    Raises ``ValueError``, ``IndexError`` or ``struct.error`` for what is no row.
    """
    size, at = varint(page, place)
    number, at = varint(page, at)
    local = local_size(size, pages.size)
    types, head = types_of(page[at : at + local])
    if len(types) not in (MEMORY, CATEGORY):
        return None
    data = bytes(page[at : at + local])
    if size > local:
        data += overflow(pages, struct.unpack_from(">I", page, at + local)[0], size - local)
    values: list[Value] = []
    for kind in types:
        value, head = value_of(data, kind, head)
        values.append(value)
    if head != size or len(data) != size:
        raise ValueError("the record does not end where it should")
    return number, tuple(values)


def local_size(size: int, page: int) -> int:
    """Return how many bytes of a row lie on its leaf page."""
    most = page - 35
    if size <= most:
        return size
    least = (page - 12) * 32 // 255 - 23
    spare = least + (size - least) % (page - 4)
    return spare if spare <= most else least


def types_of(data: memoryview) -> tuple[list[int], int]:
    """Return the serial types of a record, and where its values begin."""
    head, at = varint(data, 0)
    types: list[int] = []
    while at < head and len(types) <= MEMORY:
        kind, at = varint(data, at)
        types.append(kind)
    return types, head


def overflow(pages: Pages, number: int, size: int) -> bytes:
    """Return so many bytes from a chain of overflow pages."""
    if size > LONGEST:
        raise ValueError("no row of ours is so long")
    parts, left = [], size
    while left > 0:
        if not 0 < number <= len(pages):
            raise ValueError("the chain leads out of the file")
        page = pages[number]
        number = struct.unpack_from(">I", page, 0)[0]
        parts.append(bytes(page[4 : 4 + min(left, pages.size - 4)]))
        left -= min(left, pages.size - 4)
    return b"".join(parts)


def value_of(data: bytes, kind: int, at: int) -> tuple[Value, int]:
    """Return (value of a serial type, where the next begins)."""
    if kind in (0, 8, 9):
        return {0: None, 8: 0, 9: 1}[kind], at
    if kind == 7:
        return struct.unpack_from(">d", data, at)[0], at + 8
    if kind in (10, 11):
        raise ValueError("no such type of value")
    size = (0, 1, 2, 3, 4, 6, 8)[kind] if kind < 7 else (kind - 12) // 2
    raw = data[at : at + size]
    if len(raw) != size:
        raise ValueError("a value is cut short")
    if kind < 7:
        return int.from_bytes(raw, "big", signed=True), at + size
    return (raw.decode("utf-8") if kind % 2 else raw), at + size


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return (value, where the next byte is) of a variable-length integer. Or ``IndexError``."""
    value = 0
    for place in range(8):
        byte = data[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    return value << 8 | data[at + 8], at + 9
