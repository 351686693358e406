"""Files that appear whole or not at all, and stay: written aside, fsynced, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memstore.errors import StoreError, StoreFull, StoreLocked, StoreReadOnly

#: They tell what the store tells: nobody else may read them.
PRIVATE = 0o600
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Lend the path of an empty private file, which becomes ``target`` when the block ends well.

    Raises ``StoreFull``, ``StoreReadOnly`` or ``StoreError`` for what the medium does, and
    ``StoreLocked`` where another process is writing the same target. Then nothing is left behind;
    what a killed process left is written over by the next.
    """
    part = target.with_name(target.name + ".part")
    with medium(target):
        handle = _claimed(part)
        try:
            yield part
            sync(part)
            part.replace(target)
            sync(target.parent)
        finally:
            part.unlink(missing_ok=True)
            _remove_beside(part)
            os.close(handle)


@contextmanager
def medium(target: Path) -> Iterator[None]:
    """Turn what the operating system says of a file into memstore's errors."""
    try:
        yield
    except OSError as error:
        kind: type[StoreError]
        if error.errno in FULL:
            kind, remedy = StoreFull, "free some space and repeat the call"
        elif error.errno in FORBIDDEN:
            kind, remedy = StoreReadOnly, "choose another folder, or change the permissions"
        else:
            kind, remedy = StoreError, "check the path and the disk"
        raise kind(f"{target} cannot be written ({error.strerror or error}): {remedy}") from error


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk before returning."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _claimed(part: Path) -> int:
    """Return a handle of the empty file at ``part``, which this process alone may now write."""
    while True:
        handle = os.open(part, os.O_CREAT | os.O_RDWR, PRIVATE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, part):  # else it was finished and renamed between the two
                os.ftruncate(handle, 0)
                _remove_beside(part)
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise StoreLocked(f"{part} is being written by another process: wait for it") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _remove_beside(part: Path) -> None:
    """Remove what SQLite leaves beside a copy that was cut short, or that filled the disk.

    It would be played back into the next.
    """
    for end in ("-journal", "-wal", "-shm"):
        part.with_name(part.name + end).unlink(missing_ok=True)


def _is_at(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
