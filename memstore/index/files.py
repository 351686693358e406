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
import mmap
import os
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.errors import IndexDamaged

MAGIC = b"MEMSTIDX"
FORMAT = 4
ALIGNMENT = 64

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class IndexFile:
    """A mapped file: its kind, its fields, its arrays (read-only)."""

    kind: str
    fields: Mapping[str, Any]
    arrays: Arrays


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
    header, start = read_header(path.name, view)
    try:
        if header["format"] != FORMAT or header["kind"] != kind:
            raise IndexDamaged(f"{path.name} is a {header['kind']} of format {header['format']}")
        if header["name"] != path.name:
            raise IndexDamaged(f"{path.name} is {header['name']} under another's name")
        if start + header["size"] != size:
            raise IndexDamaged(f"{path.name} is torn")
        arrays = {e["name"]: array_of(path.name, view[start:], e) for e in header["arrays"]}
        return IndexFile(kind, header["fields"], arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise IndexDamaged(f"{path.name} has an impossible header: {error}") from error


def read_header(name: str, view: memoryview) -> tuple[dict[str, Any], int]:
    """Return (header, where the body begins). Raises ``IndexDamaged``."""
    begin = len(MAGIC) + 8
    length, crc = struct.unpack("<II", view[len(MAGIC) : begin])
    header = view[begin : begin + length]
    if view[: len(MAGIC)] != MAGIC or len(header) != length or zlib.crc32(header) != crc:
        raise IndexDamaged(f"{name} has no sound header")
    return json.loads(bytes(header)), aligned(begin + length)


def array_of(name: str, body: memoryview, entry: Mapping[str, Any]) -> NDArray[Any]:
    """Return one array of a body. Raises ``IndexDamaged`` where it does not fit or match."""
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    count = int(np.prod(shape, dtype=np.int64))
    offset, nbytes = entry["offset"], count * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or not 0 <= offset <= len(body) - nbytes:
        raise IndexDamaged(f"array {entry['name']} does not fit {name}")
    data = body[offset : offset + nbytes]
    if entry["crc32"] is not None and zlib.crc32(data) != entry["crc32"]:
        raise IndexDamaged(f"array {entry['name']} of {name} does not match its checksum")
    return np.frombuffer(data, dtype=dtype).reshape(shape)
