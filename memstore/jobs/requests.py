"""What is asked of a server: requests in files of JSON lines, as the Batch API takes them.

A file holds at most 50,000 requests and 200 MB, and embeds at most 50,000 texts: limits of the
Batch API (platform.openai.com/docs/guides/batch).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memstore.durable import appearing, medium
from memstore.errors import InvalidInput, JobDamaged

MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
MOST_INPUTS = 50_000


@dataclass(frozen=True)
class Limits:
    """What one file may hold."""

    requests: int = MOST_REQUESTS
    bytes: int = MOST_BYTES
    inputs: int = MOST_INPUTS


@dataclass(frozen=True)
class Request:
    """One request: a name of its own, and the body of the call."""

    id: str
    body: dict[str, Any]

    def line(self, endpoint: str) -> bytes:
        """Return it as a line of a file."""
        line = {"custom_id": self.id, "method": "POST", "url": endpoint, "body": self.body}
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    @property
    def inputs(self) -> int:
        """Texts it embeds; 0 for a request of another kind."""
        given = self.body.get("input")
        return len(given) if isinstance(given, list) else 0


def write_parts(
    folder: Path, first: int, endpoint: str, requests: Iterable[Request], limits: Limits
) -> Iterator[tuple[int, int]]:
    """Write requests into files of at most ``limits``; yields (number, requests) of each when done.

    Streamed: no more than one request is in memory. A file of the same number is written over.
    """
    stream = ((request, request.line(endpoint)) for request in requests)
    number = first
    waiting = next(stream, None)
    while waiting is not None:
        count = size = inputs = 0
        with appearing(part_path(folder, number), over=True) as path, path.open("wb") as file:
            while waiting is not None:
                request, line = waiting
                if len(line) > limits.bytes or request.inputs > limits.inputs:
                    raise InvalidInput(
                        f"request {request.id} alone is {len(line):,} bytes, more than a file may "
                        f"hold ({limits.bytes:,}): make its prompt shorter"
                    )
                count, size, inputs = count + 1, size + len(line), inputs + request.inputs
                if count > limits.requests or size > limits.bytes or inputs > limits.inputs:
                    count -= 1
                    break
                file.write(line)
                waiting = next(stream, None)
        yield number, count
        number += 1


def part_path(folder: Path, number: int) -> Path:
    """Return where the requests of a part are."""
    return folder / f"requests-{number:04d}.jsonl"


def read_part(folder: Path, number: int) -> Iterator[Request]:
    """Yield the requests of a part. Raises ``JobDamaged``."""
    path = part_path(folder, number)
    with medium(path, "read"), path.open("rb") as file:
        for at, raw in enumerate(file, 1):
            try:
                line = json.loads(raw)
                id, body = line["custom_id"], line["body"]
                if not isinstance(id, str) or not isinstance(body, dict):
                    raise TypeError("no request")
            except (ValueError, RecursionError, KeyError, TypeError) as error:
                raise JobDamaged(
                    f"{path} line {at} is no request: take the folder back from a copy"
                ) from error
            yield Request(id, body)
