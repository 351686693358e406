"""Files that appear whole or not at all, and stay: written aside, fsynced, given their name."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memstore.errors import StoreError, StoreFull, StoreLocked, StoreReadOnly

#: They tell what the store tells: nobody else may read them.
PRIVATE = 0o600
#: What is being written ends so.
PART = ".memstore-part"
#: What SQLite has beside a file. It plays them back into whatever has the file's name then.
BESIDE = ("-journal", "-wal", "-shm")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK)


@contextmanager
def appearing(target: Path, *, over: bool = False) -> Iterator[Path]:
    """Lend the path of an empty private file, which becomes ``target`` when the block ends well.

    Nothing is written over, even if it came meanwhile, unless ``over``. Raises ``StoreError`` where
    something is at ``target`` by then, ``StoreFull``, ``StoreReadOnly`` or ``StoreError`` for what
    the medium does, and ``StoreLocked`` where another process is writing the same target. Then
    nothing is left behind; what a killed process left is taken over by the next.
    """
    part = target.with_name(target.name + PART)
    with medium(target):
        handle = _claimed(part)
        try:
            yield part
            os.fsync(handle)
            if over:
                part.replace(target)
            else:
                _name(part, target)
            sync(target.parent)
        finally:
            # By its name it may be another's by now.
            if _is_at(handle, part):
                part.unlink()
                _remove_beside(part)
            os.close(handle)


@contextmanager
def medium(target: Path, verb: str = "written") -> Iterator[None]:
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
        raise kind(f"{target} cannot be {verb} ({error.strerror or error}): {remedy}") from error


def sync(path: Path) -> None:
    """Have the names in a folder, or a file's content, on the disk before returning."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _name(part: Path, target: Path) -> None:
    """Give a file its name unless something has it: ``rename`` would not ask."""
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise StoreError(f"{target} exists by now: name a new file") from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # A file system without hard links; between the look and the renaming there is no time to
        # speak of, but some.
        if target.exists():
            raise StoreError(f"{target} exists by now: name a new file") from error
        part.replace(target)


def _claimed(part: Path) -> int:
    """Return a handle of the empty file at ``part``, which this process alone may now write."""
    while True:
        handle = os.open(part, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, PRIVATE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise StoreError(f"{part} is in the way: move it away first")
            if _is_at(handle, part):  # else it was finished and named between the two
                os.fchmod(handle, PRIVATE)
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
    """Remove what SQLite leaves beside a copy that was cut short, or that filled the disk."""
    for end in BESIDE:
        part.with_name(part.name + end).unlink(missing_ok=True)


def _is_at(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.lstat())
    return False
