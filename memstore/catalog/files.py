"""The store's file before SQLite's first transaction: what lies there, how to open it.

The file is only ever opened through SQLite. Opening and closing it with Python's own ``open``
would drop every lock that this process holds on it (https://sqlite.org/howtocorrupt.html, 2.2), and
another process could then delete the WAL under a store that is open here.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from memstore import durable
from memstore.catalog.failures import translated
from memstore.errors import NotAStore, StoreError, StoreNotFound, StoreReadOnly

Mode = Literal["rw", "r"]

#: File systems whose locks are another machine's business, or that map files in their own way.
NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4",
    "smb3", "smbfs", "vboxsf",
    "fuse.ceph", "fuse.davfs2", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
}  # fmt: skip
log = logging.getLogger(__name__)

#: Written into the SQLite header ("mems"), so that a file says what it is.
APPLICATION_ID = 0x6D656D73


def file_uri(path: Path, mode: Mode) -> str:
    """Return SQLite's URI for a file.

    On read-only media a reader cannot make the WAL's shared memory, and nobody can write; there
    SQLite is told that the file does not change (``immutable``).
    """
    where = quote(str(path.resolve()))
    if mode == "rw":
        return f"file:{where}?mode=rwc"
    frozen = is_read_only_media(path.parent) and not path.with_name(path.name + "-wal").exists()
    return f"file:{where}?mode=ro" + ("&immutable=1" if frozen else "")


def is_read_only_media(folder: Path) -> bool:
    """Return whether the file system is mounted read-only, which ``os.access`` hides from root."""
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def network_file_system(path: Path, mounts: str) -> str | None:
    """Return the kind of network file system that a path lies on, None for any other.

    ``mounts`` is what /proc/self/mountinfo says (proc_pid_mountinfo(5)).
    """
    found, longest = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if len(before.split()) < 5 or not after:
            continue
        # Blanks in names are written as octal escapes.
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
        # Of two at one place the later one is on top.
        if path.is_relative_to(point) and len(point) >= longest:
            found, longest = after.split()[0], len(point)
    return found if found in NETWORK else None


def warn_of_network(path: Path) -> None:
    """Log a warning where SQLite's locks cannot be relied on."""
    with suppress(OSError):
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace")
        kind = network_file_system(path.resolve(), mounts)
        if kind is not None:
            log.warning(
                "%s lies on a network file system (%s), where locks are not reliable and writes "
                "can be lost: keep the store on a disk of this machine",
                path,
                kind,
            )


def inspect_file(path: Path) -> Literal["missing", "empty", "store"]:
    """Return what lies at ``path``. Raises ``NotAStore`` for anything else."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{str(path)!r:.200} is no usable path ({error}): choose another"
        ) from error
    if path.is_dir():
        raise NotAStore(f"{path} is a folder: name the store's file inside it")
    if not os.access(path, os.R_OK):
        raise StoreReadOnly(f"no permission to read {path}: change it or choose another path")
    if size == 0:
        return "empty"
    # What a process that was killed left in a journal is rolled back by whoever opens next, and
    # that takes writing.
    journal = path.with_name(path.name + "-journal")
    uri = file_uri(path, "rw" if journal.exists() and os.access(path, os.W_OK) else "r")
    with translated(str(path)), closing(sqlite3.connect(uri, uri=True)) as connection:
        found = connection.execute("PRAGMA application_id").fetchone()[0]
    if path.stat().st_size == 0:
        return "empty"  # its making was cut short, and has just been rolled back
    if found != APPLICATION_ID:
        raise NotAStore(
            f"{path} is a SQLite database of another program, not a memstore store: choose another "
            "path"
        )
    return "store"


def require_folder(path: Path) -> None:
    """Raise unless a file could be written at ``path``."""
    with usable(path):
        found = path.parent.is_dir()
    if not found:
        raise StoreNotFound(f"the folder {path.parent} does not exist: create it first")
    if not os.access(path.parent, os.W_OK) or is_read_only_media(path.parent):
        raise StoreReadOnly(
            f"cannot write in {path.parent}: choose another folder, or open an existing store "
            'with mode="r"'
        )


def require_new(path: Path, what: str) -> None:
    """Raise unless ``path`` is free: writing over something could be writing over a store."""
    require_folder(path)
    beside = [path.with_name(path.name + end) for end in durable.BESIDE]
    with usable(path):
        found = [name for name in (path, *beside) if name.exists() or name.is_symlink()]
    if path in found:
        raise StoreError(f"{path} exists: name a new file for {what}")
    if found:
        # SQLite would play it back into the new file.
        raise StoreError(f"{found[0]} is left of a store that is gone: move it away first")
    if path.name.endswith(durable.BESIDE):
        raise StoreError(f"{path} is how SQLite calls what it has beside a store: choose another")


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn what is said of a path that no file can have into ``StoreError``."""
    if "\0" in str(path):
        raise StoreError(f"{str(path)!r:.200} is no usable path: it has a NUL byte")
    with durable.medium(path):
        yield


class Held:
    """Which files this process has open through SQLite, by device and inode.

    Opening and closing one of them beside SQLite would drop its locks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: Counter[tuple[int, int]] = Counter()

    def take(self, path: Path) -> tuple[int, int]:
        """Count a file in; returns what ``release`` takes."""
        found = path.stat()
        own = (found.st_dev, found.st_ino)
        with self._lock:
            self._count[own] += 1
        return own

    def release(self, own: tuple[int, int]) -> None:
        """Count a file out."""
        with self._lock:
            self._count[own] -= 1

    def refuse(self, path: Path) -> None:
        """Raise ``StoreError`` for a file that this process has open."""
        with durable.medium(path, "read"):
            found = path.stat()
        with self._lock:
            count = self._count[(found.st_dev, found.st_ino)]
        if count > 0:
            raise StoreError(f"{path} is open as a store in this process: close it first")


HELD = Held()


def create_private(path: Path) -> None:
    """Make an empty file that only its owner may read; one that is there stays as it is.

    SQLite gives the WAL the same permissions.
    """
    with durable.medium(path), suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, durable.PRIVATE))
