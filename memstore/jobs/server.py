"""The server: the one place that knows the network.

Everything goes through the openai client. The key comes from ``OPENAI_API_KEY`` alone; nothing here
keeps it, and what the server says is cleared of it before anybody reads it.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from memstore.errors import InvalidInput, MissingExtra, ServerRefused, ServerUnreachable, brief

KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
OPENAI = "https://api.openai.com/v1"
#: How often the client asks again after a cut connection, a 429 or a 5xx: over two minutes of
#: growing pauses, or as long as Retry-After says each time.
RETRIES = 8
#: Seconds until a call counts as lost.
TIMEOUT = 120.0
#: What an answer of another form than the API's makes its client, or us, raise.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
#: What may stand in place of a key in a message.
HIDDEN = "[key]"
#: Of a batch that the server does not know any more.
GONE = "gone"
#: A batch in one of these will not change any more.
ENDED = ("completed", "failed", "expired", "cancelled", GONE)
#: Seconds between two attempts of ``ask``: growing from the first to the last, or what Retry-After
#: says, up to the longest.
FIRST_PAUSE, LAST_PAUSE, LONGEST_PAUSE = 0.5, 30.0, 120.0
#: Codes of a 429 that waiting does not help.
BROKE = ("insufficient_quota", "billing_hard_limit_reached")
#: Seconds for one answer of a model, which may be slow and is paid for however late it comes.
PATIENCE = 600.0
#: A key shorter than this is a word, and stands in messages by chance.
SECRET = 8
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
        """Whether nothing more will happen to it; answers without their file are still to come."""
        return self.status in ENDED and (self.output is not None or not self.completed)


class Server:
    """An OpenAI-compatible server. Raises ``ServerRefused`` and ``ServerUnreachable``."""

    def __init__(self, base_url: str | None = None) -> None:
        self.base_url = checked_url(base_url or os.environ.get(BASE_URL) or OPENAI)

    def ready(self) -> Server:
        """Return itself if there is a key and a client: before anybody is asked to pay."""
        load_openai()
        if not key():
            raise ServerRefused(
                f"no key: set {KEY} in the environment (to anything, if {self.base_url} asks for "
                "none)"
            )
        if not re.fullmatch(r"[!-~]+", key()):
            raise ServerRefused(f"{KEY} has characters that no key has: set it anew")
        return self

    @cached_property
    def _client(self) -> Any:
        self.ready()
        openai = load_openai()
        return openai.OpenAI(
            api_key=key(), base_url=self.base_url, max_retries=RETRIES, timeout=TIMEOUT
        )

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
            return named(self._client.files.create(file=(path.name, file), purpose="batch").id)

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
            return named(created.id)

    def find_batch(self, marks: Mapping[str, str], file: str) -> str | None:
        """Return the id of the batch created with these marks, or of this file, if there is one.

        Looks through every batch the server lists: in what order, and with which of its facts, a
        server lists them is its own affair.
        """
        with talking(self.base_url):
            for batch in self._client.batches.list(limit=100):
                own = batch.metadata or {}
                marked = all(own.get(name) == value for name, value in marks.items())
                if marked or batch.input_file_id == file:
                    return named(batch.id)
        return None

    def batch(self, id: str) -> Batch:
        """Return how far a batch is."""
        with talking(self.base_url):
            found = self._client.batches.retrieve(id)
            counts = found.request_counts
            errors = (found.errors.data if found.errors else None) or []
            return Batch(
                id=id,
                status=named(found.status),
                total=int(counts.total or 0) if counts else 0,
                completed=int(counts.completed or 0) if counts else 0,
                failed=int(counts.failed or 0) if counts else 0,
                output=found.output_file_id or None,
                errors=found.error_file_id or None,
                why="; ".join(clean(f"{e.message or e.code}") for e in errors[:3]),
            )

    def download(self, file: str, path: Path) -> None:
        """Write the content of a file to ``path``, streamed; a key in it is hidden."""
        with (
            talking(self.base_url),
            self._client.files.with_streaming_response.content(file) as answer,
        ):
            answer.stream_to_file(path)
        hide(path)

    def ask(
        self, endpoint: str, body: Mapping[str, Any], stopping: threading.Event | None = None
    ) -> dict[str, Any]:
        """Ask one request now; returns the body of the answer.

        Asked again after a cut connection, a 429 or a 5xx, in growing pauses, or as long as the
        server says; not on after ``stopping``, which the client's own pauses would not hear.
        """
        stopping = stopping or threading.Event()
        for attempt in count():
            try:
                return self._ask_once(endpoint, body)
            except ServerUnreachable as error:
                pause = error.wait
                if pause is None:
                    pause = min(FIRST_PAUSE * 2**attempt, LAST_PAUSE)
                if attempt == RETRIES or pause > LONGEST_PAUSE or stopping.wait(pause):
                    raise
        raise AssertionError("count() does not end")

    def _ask_once(self, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
        with talking(self.base_url):
            once = self._client.with_options(max_retries=0, timeout=PATIENCE)
            path = endpoint.removeprefix("/v1")
            answer = once.post(path, body=dict(body), cast_to=object)
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
            wait = error.response.headers.get("retry-after") or ""
            seconds = float(wait) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", wait) else None
            when = " later" if seconds is None else f" in {wait} s"
            found = ServerUnreachable(f"{at}: {message}: run the same again{when}", seconds)
        else:
            found = ServerRefused(f"{at}: {message}", error.status_code)
    except openai.APIConnectionError as error:
        reason = clean(str(error.__cause__ or error))
        found = ServerUnreachable(f"{server} gives no answer ({reason}): run the same again")
    except transport_errors() as error:
        reason = clean(str(error) or type(error).__name__)
        found = ServerUnreachable(f"{server} broke off ({reason}): run the same again")
    except (openai.OpenAIError, *UNREADABLE) as error:
        reason = clean(str(error) or type(error).__name__)
        found = ServerUnreachable(f"{server} answers what cannot be read ({reason})")
    raise found from None


def transport_errors() -> tuple[type[Exception], ...]:
    """Return what the HTTP library under the client raises while it reads: httpx, httpx2 by now."""
    return tuple(sys.modules[n].HTTPError for n in ("httpx2", "httpx") if n in sys.modules)


def key() -> str:
    """Return the key in the environment; what a file put around it is no part of it."""
    return os.environ.get(KEY, "").strip()


def clean(message: str) -> str:
    """Return what a server said on one line, of bounded length, printable, without the key."""
    message = " ".join(hidden(message[: 50 * LONGEST]).split())
    message = "".join(letter if letter.isprintable() else "\ufffd" for letter in message)
    return message if len(message) <= LONGEST else message[:LONGEST] + "..."


def hidden(text: str) -> str:
    """Return a text without the key, however it was escaped."""
    secret = key()
    if len(secret) < SECRET:
        return text
    for form in {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]}:
        text = text.replace(form, HIDDEN)
    return text


def hide(path: Path) -> None:
    """Take the key out of a file that a server sent, should it be in there."""
    secret = json.dumps(key())[1:-1].encode()
    if len(secret) < SECRET or not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        if whole.find(secret) < 0:
            return
        content = whole[:]
    path.write_bytes(content.replace(secret, HIDDEN.encode()))


def named(id: object) -> str:
    """Return an id, or a word, that a server must have given. Raises ``ValueError``."""
    if not isinstance(id, str) or not id:
        raise ValueError(f"no id in the answer but {brief(id)}")
    return id


def checked_url(url: str) -> str:
    """Return the address of a server, without a slash at its end.

    Raises ``InvalidInput`` for what is none, and for one with a password in it: it is written down.
    """
    try:
        urlsplit(url).port  # noqa: B018 - raises for what is no port
        sound = re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[!-~]*)?", url) and not re.search(
            r"[@?#]|\.\.", url
        )
    except ValueError:
        sound = None
    if not sound:
        raise InvalidInput(
            f"{BASE_URL} or --base-url is no address of a server, or holds a password: write it "
            f"like {OPENAI}, the key goes into {KEY}"
        )
    return url.rstrip("/")
