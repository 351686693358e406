"""Index files: arrays in one file, stamped, checksummed, mapped into memory.

Layout, little-endian: 8 bytes ``MEMSTIDX``; u32 length of the header and u32 CRC-32 of it; the
header, JSON; padding to 64, where the body begins; then each array at its 64-aligned offset from
there. The header says format, kind, token, encoder fingerprint, change number, CRC-32 of all
that follows it, and name, type, shape and offset of each array.

A file is written aside, fsynced and renamed. One that is missing, torn, stale, of another store or
another encoder is ignored: the catalog holds everything, and the index is built from it again.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAGIC = b"MEMSTIDX"
FORMAT = 1
ALIGNMENT = 64
CHUNK = 1 << 22

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stamp:
    """What a file must match to be believed.

    ``token`` is the one the catalog renews before each save, so a file of another store, or of a
    future that a restored backup has undone, has another. ``change`` is the state it shows.
    """

    kind: str
    token: str
    fingerprint: str
    change: int


@dataclass(frozen=True)
class Loaded:
    """The arrays of a believed file, mapped read-only, and the change they show."""

    change: int
    arrays: Mapping[str, NDArray[Any]]


def aligned(offset: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def save(folder: Path, stamp: Stamp, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write one index file; it appears whole or not at all. Raises ``OSError``."""
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{stamp.kind}.seg"
    part = folder / f"{stamp.kind}.{os.getpid()}.part"
    try:
        # Traces tell of the texts they were made from: as private as the store itself.
        handle = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            write(file, stamp, arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        sync_folder(folder)
    finally:
        part.unlink(missing_ok=True)


def write(file: BinaryIO, stamp: Stamp, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write header and arrays."""
    entries, offset = [], 0
    for name, array in arrays.items():
        offset = aligned(offset)
        shape, dtype = list(array.shape), array.dtype.newbyteorder("<").str
        entries.append({"name": name, "dtype": dtype, "shape": shape, "offset": offset})
        offset += array.nbytes
    body_crc = 0
    for block in body(entries, arrays):
        body_crc = zlib.crc32(block, body_crc)
    header = json.dumps(
        {
            "format": FORMAT,
            "kind": stamp.kind,
            "token": stamp.token,
            "fingerprint": stamp.fingerprint,
            "change": stamp.change,
            "crc32": body_crc,
            "arrays": entries,
        }
    ).encode()
    file.write(MAGIC + struct.pack("<II", len(header), zlib.crc32(header)) + header)
    file.write(b"\0" * (aligned(file.tell()) - file.tell()))
    for block in body(entries, arrays):
        file.write(block)


def body(entries: list[dict[str, Any]], arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Yield the bytes after the header, piece by piece."""
    at = 0
    for entry in entries:
        yield b"\0" * (entry["offset"] - at)
        data = np.ascontiguousarray(arrays[entry["name"]], dtype=entry["dtype"]).reshape(-1)
        view = data.view(np.uint8)
        for start in range(0, len(view), CHUNK):
            yield view[start : start + CHUNK].tobytes()
        at = entry["offset"] + data.nbytes


def sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(folder: Path, kind: str, token: str, fingerprint: str, newest: int) -> Loaded | None:
    """Return the arrays of the file of this kind, or None where it cannot be believed.

    ``token`` and ``newest``, the change number, are the catalog's.
    """
    path = folder / f"{kind}.seg"
    try:
        header, start, size = read_header(path)
        if not matches(header, kind, token, fingerprint, newest):
            return None
        with path.open("rb") as file:
            file.seek(start)
            crc = 0
            while block := file.read(CHUNK):
                crc = zlib.crc32(block, crc)
        if crc != header["crc32"]:
            raise ValueError("checksum")
        return Loaded(header["change"], mapped(path, header["arrays"], start, size))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        log.warning("%s is not usable (%s): building the index from the catalog", path, error)
        return None


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return (header, where the body starts, size of the file). Raises ``ValueError``."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not an index file")
        length, crc = struct.unpack("<II", file.read(8))
        if length > size:
            raise ValueError("torn header")
        raw = file.read(length)
    if len(raw) != length or zlib.crc32(raw) != crc:
        raise ValueError("torn header")
    return json.loads(raw), aligned(len(MAGIC) + 8 + length), size


def matches(
    header: Mapping[str, Any], kind: str, token: str, fingerprint: str, newest: int
) -> bool:
    """Return whether a file shows this store under this encoder."""
    return bool(
        header["format"] == FORMAT
        and header["kind"] == kind
        and header["token"] == token
        and header["fingerprint"] == fingerprint
        and 0 <= header["change"] <= newest
    )


def mapped(
    path: Path, entries: list[dict[str, Any]], start: int, size: int
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file, mapped read-only. Raises ``ValueError`` for a bad layout."""
    arrays: dict[str, NDArray[Any]] = {}
    for entry in entries:
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        count = int(np.prod(shape, dtype=np.int64))
        offset = start + entry["offset"]
        if dtype.hasobject or min(shape, default=0) < 0 or offset + count * dtype.itemsize > size:
            raise ValueError(f"array {entry['name']} does not fit the file")
        if count == 0:
            arrays[entry["name"]] = np.empty(shape, dtype)
        else:
            arrays[entry["name"]] = np.memmap(path, dtype, "r", offset, shape)
    return arrays
