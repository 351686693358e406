"""Named moments at which the worker dies, and stores that are broken on purpose.

Both wrap functions of memstore in the worker's process alone; nothing in memstore knows of them.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from typing import Any

from memstore.catalog.engine import driver_of

#: (module, function): the worker dies before it, or after it, at the n-th call.
PLACES = [
    ("memstore.catalog.memories", "add"),
    ("memstore.catalog.words", "add"),
    ("memstore.catalog.traces", "add"),
    ("memstore.catalog.traces", "remove"),
    ("memstore.catalog.memories", "change"),
    ("memstore.catalog.memories", "remove"),
    ("memstore.catalog.memories", "forget_deletions"),
    ("memstore.catalog.categories", "prune"),
    ("memstore.catalog.words", "compact"),
    ("memstore.catalog.neurons", "set_statistics"),
    ("memstore.catalog.neurons", "set_index_token"),
    ("memstore.catalog.migrate", "copy_into"),
    ("memstore.backups", "contents"),
    ("memstore.backups", "seal"),
    ("memstore.care", "forget_deleted"),
    ("memstore.care", "write_statistics"),
    ("memstore.care", "vacuum"),
    ("memstore.care", "rebuild"),
    ("memstore.exports", "write_lines"),
    ("memstore.exports", "add_codes"),
    ("memstore.index.files", "write"),
    ("memstore.durable", "sync"),
    ("memstore.index.storing", "save_block"),
    ("memstore.index.storing", "save_blocks"),
    ("memstore.index.storing", "save_summary"),
    ("memstore.index.storing", "save_manifest"),
    ("memstore.index.storing", "sweep"),
    ("memstore.catalog.engine:Database", "close"),
    ("memstore.index.postings:NeuronIndex", "apply"),
    ("memstore.index.postings:NeuronIndex", "compacted"),
]
POINTS = [f"{where}.{name} {when}" for where, name in PLACES for when in ("before", "after")]


def die(*_: object) -> None:
    """End this process as the parent would: at once, nothing flushed, nothing closed."""
    os.kill(os.getpid(), signal.SIGKILL)


def owner_of(where: str) -> Any:
    """Return the module, or the class in it, that holds a function."""
    module, _, name = where.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def wrap(where: str, name: str, around: Callable[..., Any]) -> None:
    """Put ``around(real, *arguments)`` in the place of a function."""
    owner = owner_of(where)
    real = getattr(owner, name)
    setattr(owner, name, lambda *a, **more: around(real, *a, **more))


def arm(point: str, calls: int) -> None:
    """Have this process die at the n-th call (from 0) of a point."""
    path, when = point.split(" ")
    where, name = path.rsplit(".", 1)
    left = [calls]

    def around(real: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if when == "before" and left[0] < 0:
            die()
        result = real(*arguments, **more)
        if when == "after" and left[0] < 0:
            die()
        return result

    wrap(where, name, around)


# --- broken on purpose ---------------------------------------------------------------------------


def commit_in_the_middle() -> None:
    """Make a memory visible before its vector and trace are there."""

    def around(real: Callable[..., Any], connection: Any, *arguments: Any) -> Any:
        result = real(connection, *arguments)
        driver_of(connection).execute("COMMIT")
        driver_of(connection).execute("BEGIN IMMEDIATE")
        return result

    wrap("memstore.catalog.memories", "add", around)


def stamp_the_index_too_new() -> None:
    """Save an index that claims to show a change more than it does."""

    def around(real: Callable[..., Any], token: str, fingerprint: str, change: int) -> Any:
        return real(token, fingerprint, change + 1)

    wrap("memstore.index.storing", "Stamp", around)


def forget_the_words() -> None:
    """Leave new texts out of the word lists."""
    wrap("memstore.catalog.words", "add", lambda real, *arguments: None)


#: Each must be caught; "acknowledge early" is the worker's own doing.
BROKEN = {
    "acknowledge early": lambda: None,
    "commit in the middle": commit_in_the_middle,
    "stamp the index too new": stamp_the_index_too_new,
    "forget the words": forget_the_words,
}
