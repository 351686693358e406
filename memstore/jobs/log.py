"""Files of JSON lines that are only ever added to, each line on the disk before it counts."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memstore.durable import PRIVATE, medium
from memstore.errors import JobDamaged

#: How much of a line that was cut short is looked at in one go, from the end.
BLOCK = 1 << 16


class Log:
    """Appends lines. What a killed process left of one is cut off at ``open``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with medium(path):
            # Unbuffered: what a full disk did not take must not be tried again by close().
            self.file: Any = os.fdopen(
                os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE), "r+b", buffering=0
            )

    def mend(self) -> None:
        """Cut off a last line without an end: its writer did not live to see it written."""
        with medium(self.path):
            end = self.file.seek(0, os.SEEK_END)
            place = end
            while place:
                start = max(0, place - BLOCK)
                self.file.seek(start)
                found = self.file.read(place - start).rfind(b"\n")
                if found >= 0:
                    place = start + found + 1
                    break
                place = start
            if place < end:
                self.file.truncate(place)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line; it is on the disk when this returns."""
        raw = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with medium(self.path):
            self.file.seek(0, os.SEEK_END)
            if self.file.write(raw) != len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log, without one that is not finished. Raises ``JobDamaged``."""
    if not path.exists():
        return
    with medium(path, "read"), path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise JobDamaged(
                    f"{path} line {number} is damaged: take the folder back from a copy"
                ) from error
            if not isinstance(line, dict):
                raise JobDamaged(f"{path} line {number} is damaged: no object")
            yield line
