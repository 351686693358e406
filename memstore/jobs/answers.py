"""What a server answered, request by request: lines of the files a batch leaves.

::

    {"custom_id": ..., "response": {"status_code": 200, "body": {...}}, "error": null}

Answers of the direct mode are kept in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memstore.durable import medium
from memstore.jobs.server import clean


@dataclass(frozen=True)
class Answer:
    """What came back for one request: a body, or what went wrong."""

    id: str
    body: dict[str, Any] | None
    failure: str | None
    """What went wrong, for people."""

    @classmethod
    def of(cls, line: Any) -> Answer | None:
        """Return the answer of a line, None if it is of another form."""
        if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
            return None
        response, error = line.get("response"), line.get("error")
        if isinstance(error, dict) and error:
            return cls(line["custom_id"], None, said(error))
        if not isinstance(response, dict) or not isinstance(response.get("body"), dict):
            return None
        status, body = response.get("status_code"), response["body"]
        own = body.get("error")
        if status in (200, "200", None) and not own:
            return cls(line["custom_id"], body, None)
        return cls(
            line["custom_id"], None, f"{status}: {said(own if isinstance(own, dict) else body)}"
        )


def said(error: dict[str, Any]) -> str:
    """Return code and message of an error."""
    code, message = error.get("code"), error.get("message")
    return clean(": ".join(str(part) for part in (code, message) if part)) or "no reason given"


def line_of(
    id: str, body: dict[str, Any] | None, status: int | None = None, why: str = ""
) -> dict[str, Any]:
    """Return the line that keeps an answer; without a body, one that keeps what went wrong."""
    if body is not None:
        return {"custom_id": id, "response": {"status_code": 200, "body": body}, "error": None}
    return {"custom_id": id, "response": None, "error": {"code": status, "message": why}}


def read_answers(path: Path) -> Iterator[Answer | int]:
    """Yield the answers in a file; for a line that is none, its number from 1."""
    if not path.exists():
        return
    with medium(path, "read"), path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                answer = Answer.of(json.loads(raw))
            except (ValueError, RecursionError):
                answer = None
            yield number if answer is None else answer
