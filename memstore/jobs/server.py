"""The server: the one place that knows the network.

Everything goes through the openai client. The key comes from ``OPENAI_API_KEY`` alone; nothing here
keeps it, and what the server says is cleared of it before anybody reads it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from memstore.errors import InvalidInput, MissingExtra, ServerRefused, ServerUnreachable, brief

KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
OPENAI = "https://api.openai.com/v1"
#: How often the client asks again after a cut connection, a 429 or a 5xx: over two minutes of
#: growing pauses, or as long as Retry-After says each time.
RETRIES = 8
#: Seconds until a call counts as lost.
TIMEOUT = 120.0
#: What may stand in place of a key in a message.
HIDDEN = "[key]"
#: A batch in one of these will not change any more.
ENDED = ("completed", "failed", "expired", "cancelled")
#: Codes of a 429 that waiting does not help.
BROKE = ("insufficient_quota", "billing_hard_limit_reached")
#: Seconds by which the server's clock may be behind ours.
SLACK = 86_400.0
#: Messages are for one line of a terminal.
LONGEST = 400


@dataclass(frozen=True)
class Batch:
    """A batch as the server tells it."""

    id: str
    status: str
    total: int
    completed: int
    failed: int
    output: str | None
    """Id of the file with answers."""
    errors: str | None
    """Id of the file with what went wrong."""
    why: str
    """What the server says of a batch that it did not take."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED


class Server:
    """An OpenAI-compatible server. Raises ``ServerRefused`` and ``ServerUnreachable``."""

    def __init__(self, base_url: str | None = None) -> None:
        self.base_url = checked_url(base_url or os.environ.get(BASE_URL) or OPENAI)

    def ready(self) -> Server:
        """Return itself if there is a key and a client: before anybody is asked to pay."""
        load_openai()
        if not os.environ.get(KEY):
            raise ServerRefused(
                f"no key: set {KEY} in the environment (to anything, if {self.base_url} asks for "
                "none)"
            )
        return self

    @cached_property
    def _client(self) -> Any:
        openai = load_openai()
        self.ready()
        return openai.OpenAI(base_url=self.base_url, max_retries=RETRIES, timeout=TIMEOUT)

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "_client" in vars(self):
            self._client.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def upload(self, path: Path) -> str:
        """Upload a file of requests, streamed; returns its id."""
        with talking(self.base_url), path.open("rb") as file:
            return str(self._client.files.create(file=(path.name, file), purpose="batch").id)

    def create_batch(self, file: str, endpoint: str, marks: Mapping[str, str]) -> str:
        """Start a batch; returns its id.

        Asked once: where no answer comes, whether there is a batch now must be looked up by its
        ``marks`` (``find_batch``), for two would be paid twice.
        """
        with talking(self.base_url):
            once = self._client.with_options(max_retries=0)
            created = once.batches.create(
                input_file_id=file,
                endpoint=endpoint,
                completion_window="24h",
                metadata=dict(marks),
            )
            return str(created.id)

    def find_batch(self, marks: Mapping[str, str], since: float) -> str | None:
        """Return the id of the batch created with these marks, if there is one.

        Batches are listed from the newest back to ``since``, seconds since 1970.
        """
        with talking(self.base_url):
            for batch in self._client.batches.list(limit=100):
                if batch.created_at < since - SLACK:
                    break
                own = batch.metadata or {}
                if all(own.get(name) == value for name, value in marks.items()):
                    return str(batch.id)
        return None

    def batch(self, id: str) -> Batch:
        """Return how far a batch is."""
        with talking(self.base_url):
            found = self._client.batches.retrieve(id)
        counts = found.request_counts
        errors = (found.errors.data if found.errors else None) or []
        return Batch(
            id=id,
            status=found.status,
            total=counts.total if counts else 0,
            completed=counts.completed if counts else 0,
            failed=counts.failed if counts else 0,
            output=found.output_file_id,
            errors=found.error_file_id,
            why="; ".join(clean(f"{e.message or e.code}") for e in errors[:3]),
        )

    def download(self, file: str, path: Path) -> None:
        """Write the content of a file to ``path``, streamed."""
        streaming = self._client.files.with_streaming_response
        with talking(self.base_url), streaming.content(file) as answer:
            answer.stream_to_file(path)

    def post(self, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask one request now; returns the body of the answer.

        The client repeats it after a cut connection, a 429 or a 5xx, as Retry-After says.
        """
        with talking(self.base_url):
            path = endpoint.removeprefix("/v1")
            answer = self._client.post(path, body=dict(body), cast_to=object)
        if not isinstance(answer, dict):
            raise ServerUnreachable(f"{self.base_url} answers {brief(answer)} instead of an object")
        return answer


def load_openai() -> Any:
    """Return the openai library. Raises ``MissingExtra``."""
    try:
        import openai
    except ImportError as error:
        raise MissingExtra("openai", "openai", "asking a server") from error
    return openai


@contextmanager
def talking(server: str) -> Iterator[None]:
    """Turn what the client raises into our errors, without the key, which a server may echo.

    The client's own exception is left out of the chain: it holds the request and its headers.
    """
    openai = load_openai()
    found: ServerRefused | ServerUnreachable
    try:
        yield
        return
    except openai.APIStatusError as error:
        message, code = clean(error.message), error.code or ""
        at = f"{server} answers {error.status_code}"
        if error.status_code == 401:
            remedy = f"set {KEY} to a key of this server"
            found = ServerRefused(f"{at}: {message}: {remedy}", error.status_code)
        elif error.status_code == 429 and code in BROKE:
            remedy = "add credit, then run the same again"
            found = ServerRefused(f"{at}: {message}: {remedy}", error.status_code)
        elif error.status_code in (408, 409, 429) or error.status_code >= 500:
            wait = error.response.headers.get("retry-after")
            when = f" in {wait} s" if wait and re.fullmatch(r"[0-9]{1,9}", wait) else " later"
            found = ServerUnreachable(f"{at}: {message}: run the same again{when}")
        else:
            found = ServerRefused(f"{at}: {message}", error.status_code)
    except openai.APIConnectionError as error:
        reason = clean(str(error.__cause__ or error))
        found = ServerUnreachable(f"{server} gives no answer ({reason}): run the same again")
    except transport_errors() as error:
        reason = clean(str(error) or type(error).__name__)
        found = ServerUnreachable(f"{server} broke off ({reason}): run the same again")
    except (openai.OpenAIError, json.JSONDecodeError) as error:
        found = ServerUnreachable(f"{server} answers what cannot be read ({clean(str(error))})")
    raise found from None


def transport_errors() -> tuple[type[Exception], ...]:
    """Return what the HTTP library under the client raises while it reads: httpx, httpx2 by now."""
    return tuple(sys.modules[n].HTTPError for n in ("httpx2", "httpx") if n in sys.modules)


def clean(message: str) -> str:
    """Return a message on one line, of bounded length, without the key."""
    key = os.environ.get(KEY)
    message = message.replace(key, HIDDEN) if key else message
    message = " ".join(message.split())
    return message if len(message) <= LONGEST else message[:LONGEST] + "..."


def checked_url(url: str) -> str:
    """Return the address of a server, without a slash at its end.

    Raises ``InvalidInput`` for what is none, and for one with a password in it: it is written down.
    """
    if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@?#]*)?", url):
        raise InvalidInput(
            f"{BASE_URL} or --base-url is no address of a server, or holds a password: write it "
            f"like {OPENAI}, the key goes into {KEY}"
        )
    return url.rstrip("/")
