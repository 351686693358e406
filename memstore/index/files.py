"""The container of all index files: named arrays behind a JSON header, mapped, checksummed.

Layout, little-endian: 8 bytes ``MEMSTIDX``; u32 length of the header and u32 CRC-32 of it; the
header, JSON; padding to 64, where the body begins; then each array at its 64-aligned offset from
there. The header says format, kind, the file's own name (no two files ever have the same), size of
the body, its own fields, and of each array name, type, shape, offset and CRC-32 (null for those
whose parts carry checksums of their own).

A file is written aside, fsynced and renamed: it is there whole or not at all, and never changed.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from memstore.errors import IndexDamaged, brief

MAGIC = b"MEMSTIDX"
FORMAT = 4
ALIGNMENT = 64

#: Of all arrays there are. Numpy knows more, objects among them, and parses their names.
TYPES = frozenset({"|u1", "<u2", "<u4", "<u8", "<i8", "<f2", "<f4"})

T = TypeVar("T")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class IndexFile:
    """A mapped file: its name, its kind, its fields, its arrays (read-only)."""

    name: str
    kind: str
    fields: Mapping[str, Any]
    arrays: Arrays

    def field(self, name: str, kind: type[T]) -> T:
        """Return a field. Raises ``IndexDamaged`` unless it is there and of this very type."""
        found = self.fields.get(name)
        if type(found) is not kind:
            raise IndexDamaged(f"{self.name}: {name} is {brief(found)}, no {kind.__name__}")
        return found

    def array(self, name: str, types: str, *shape: int | None) -> NDArray[Any]:
        """Return an array. Raises ``IndexDamaged`` unless it is there and what C takes it for.

        ``types`` are those allowed, with blanks between them; None in ``shape`` is any length.
        """
        found = self.arrays.get(name)
        if (
            found is None
            or found.dtype.str not in types.split()
            or found.ndim != len(shape)
            or any(n is not None and n != m for n, m in zip(shape, found.shape, strict=True))
        ):
            raise IndexDamaged(f"{self.name} has no array {name} of type {types}, shape {shape}")
        return found


def aligned(offset: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def little(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as it lies in a file: contiguous and little-endian."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def write(
    path: Path,
    kind: str,
    fields: Mapping[str, Any],
    arrays: Arrays,
    unchecked: Collection[str] = (),
) -> None:
    """Write a file; it appears whole or not at all, durably. Raises ``OSError``.

    ``unchecked`` names arrays that get no CRC-32, since their parts carry checksums.
    """
    entries: list[dict[str, Any]] = []
    offset = 0
    stored = {name: little(array) for name, array in arrays.items()}
    for name, array in stored.items():
        offset = aligned(offset)
        crc = None if name in unchecked else zlib.crc32(raw(array))
        entries.append(
            {
                "name": name,
                "dtype": array.dtype.str,
                "shape": list(array.shape),
                "offset": offset,
                "crc32": crc,
            }
        )
        offset += array.nbytes
    head = {
        "format": FORMAT,
        "kind": kind,
        "name": path.name,
        "size": offset,
        "fields": fields,
        "arrays": entries,
    }
    header = json.dumps(head).encode()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # Traces tell of the texts they were made from: as private as the store itself.
        handle = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + struct.pack("<II", len(header), zlib.crc32(header)) + header)
            start = aligned(file.tell())
            file.write(bytes(start - file.tell()))
            for entry, array in zip(entries, stored.values(), strict=True):
                place = start + entry["offset"]
                file.write(bytes(place - file.tell()))
                file.write(raw(array))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def raw(array: NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous array, uncopied."""
    return array.reshape(-1).view(np.uint8).data


def read(path: Path, kind: str) -> IndexFile:
    """Return a mapped file. Raises ``IndexDamaged`` unless header, name, size and CRCs are right.

    And ``FileNotFoundError``.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < len(MAGIC) + 8:
            raise IndexDamaged(f"{path.name} is torn")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        header, start = read_header(path.name, view)
        told = {name: header[name] for name in ("format", "kind", "name")}
        if told != {"format": FORMAT, "kind": kind, "name": path.name}:
            raise IndexDamaged(f"{path.name} is no {kind} of format {FORMAT} but {brief(told)}")
        if start + header["size"] != size:
            raise IndexDamaged(f"{path.name} is torn")
        arrays = {e["name"]: array_of(path.name, view[start:], e) for e in header["arrays"]}
        return IndexFile(path.name, kind, dict(header["fields"]), arrays)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise IndexDamaged(f"{path.name} has an impossible header: {brief(error)}") from error


def read_header(name: str, view: memoryview) -> tuple[Any, int]:
    """Return (header, where the body begins). Raises ``IndexDamaged``."""
    begin = len(MAGIC) + 8
    length, crc = struct.unpack("<II", view[len(MAGIC) : begin])
    header = view[begin : begin + length]
    if view[: len(MAGIC)] != MAGIC or len(header) != length or zlib.crc32(header) != crc:
        raise IndexDamaged(f"{name} has no sound header")
    return json.loads(bytes(header)), aligned(begin + length)


def array_of(name: str, body: memoryview, entry: Mapping[str, Any]) -> NDArray[Any]:
    """Return one array of a body. Raises ``IndexDamaged`` where it does not fit or match."""
    shape, offset = tuple(entry["shape"]), entry["offset"]
    whole = all(type(n) is int and n >= 0 for n in (*shape, offset))
    if not whole or len(shape) > 2 or offset % ALIGNMENT or entry["dtype"] not in TYPES:
        raise IndexDamaged(f"{name} has an array as no index has: {brief(entry)}")
    dtype = np.dtype(entry["dtype"])
    nbytes = math.prod(shape) * dtype.itemsize
    if offset + nbytes > len(body):
        raise IndexDamaged(f"array {brief(entry['name'])} does not fit {name}")
    data = body[offset : offset + nbytes]
    if entry["crc32"] is not None and zlib.crc32(data) != entry["crc32"]:
        raise IndexDamaged(f"array {brief(entry['name'])} of {name} does not match its checksum")
    return np.frombuffer(data, dtype=dtype).reshape(shape)
