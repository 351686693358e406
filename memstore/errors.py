"""Every error memstore raises on purpose, in one tree. Each message ends in the remedy.

::

    MemstoreError
    ├── InvalidInput (ValueError)      what was handed in cannot be stored or asked
    │   ├── InvalidText                empty, too long, NUL bytes, not a string
    │   ├── InvalidVector              wrong shape, NaN or infinity, zero length
    │   ├── InvalidMetadata            not JSON
    │   ├── InvalidTime                not a time
    │   ├── InvalidFilter              a ``where`` that cannot be compiled
    │   ├── InvalidExpression          a neuron expression that cannot be read; knows the position
    │   ├── InvalidQuery               an argument of a query
    │   ├── UnknownNeuron              a number past the last neuron, or a name nobody gave
    │   ├── InvalidPlan                a plan for generating; names the entry
    │   └── InvalidFile                an import file; knows the line
    ├── MemoryNotFound (KeyError)      an id or key that is not in the store
    ├── DuplicateKey                   a key that another memory already has
    ├── StoreError                     the file or folder
    │   ├── StoreNotFound              nothing at that path
    │   ├── NotAStore                  a file, but not one of ours
    │   ├── StoreOutOfDate             older schema: upgrade it
    │   ├── StoreTooNew                newer schema: update the package
    │   ├── StoreLocked                another process is writing
    │   ├── StoreReadOnly              opened for reading, or no permission
    │   ├── StoreFull                  no space left
    │   ├── StoreDamaged               SQLite says the file is corrupt
    │   ├── IndexDamaged               a copy does not match its checksums; rebuilt, never fatal
    │   └── StoreClosed                used after close()
    ├── EncoderError                   text -> vector -> trace
    │   ├── EncoderMismatch            the store's memories were encoded by another encoder
    │   ├── InvalidWeights             a weights folder that cannot be used
    │   └── EmbeddingFailed            the embedder answered something unusable
    ├── JobError                       work handed to an OpenAI-compatible server
    │   ├── JobNotFound                no job in that folder
    │   ├── JobBusy                    another process is at work on it
    │   ├── JobDamaged                 its files are not what its journal says
    │   ├── ServerRefused              the server said no: key, quota, model, request
    │   └── ServerUnreachable          no answer, or none for now: the same call goes on
    └── MissingExtra (ImportError)     an optional dependency; names the extra to install
"""

import reprlib

#: How a store gets another encoder.
RENEW = "move the store to another encoder (memstore reencode STORE)"


class _Brief(reprlib.Repr):
    """``reprlib``, which looks at the beginnings of things only, for numbers of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        # repr() refuses numbers of more than 4,300 digits, and takes its time over shorter ones.
        if x.bit_length() > 1_000:
            return f"a whole number of {x.bit_length()} bits"
        return super().repr_int(x, level)


_BRIEF = _Brief()


def brief(value: object) -> str:
    """Return what a message says of a value that was handed in: short, however large it is."""
    return _BRIEF.repr(value)[:60]


#: What is left where SQLite's file is damaged.
RESCUE = "restore a backup, or read what can be read with `memstore recover`"


class MemstoreError(Exception):
    """Root of the tree: ``except MemstoreError`` catches everything memstore raises on purpose."""

    def __str__(self) -> str:
        # KeyError, a base of MemoryNotFound, would print the message in quotes.
        return str(self.args[0]) if self.args else ""


class InvalidInput(MemstoreError, ValueError):
    """Something handed in cannot be stored or asked; nothing was changed."""


class InvalidText(InvalidInput):
    """A narrative that cannot be stored."""


class InvalidVector(InvalidInput):
    """A vector of the wrong shape, with NaN or infinity, or of length zero."""


class InvalidMetadata(InvalidInput):
    """Metadata that is not a JSON object."""


class InvalidTime(InvalidInput):
    """A time, or a half-life, that cannot be read."""


class InvalidFilter(InvalidInput):
    """A ``where`` that cannot be compiled."""


class InvalidQuery(InvalidInput):
    """An argument of a query."""


class InvalidExpression(InvalidInput):
    """A neuron expression that cannot be read.

    ``position`` counts characters from 0 in ``source``; the message points at it.
    """

    def __init__(self, reason: str, source: str = "", position: int | None = None) -> None:
        self.reason, self.source, self.position = reason, source, position
        pointer = "" if position is None else f" at position {position}: {_point(source, position)}"
        super().__init__(f"{reason}{pointer}")


def _point(source: str, position: int) -> str:
    """Mark the place: ``+15 >>>%<<< 5``. Of a long expression only the neighbourhood is shown."""
    before = ("..." if position > 40 else "") + source[max(0, position - 40) : position]
    here, after = source[position : position + 1] or "end", source[position + 1 : position + 20]
    return f"{before}>>>{here}<<<{after}"


class UnknownNeuron(InvalidInput):
    """A neuron number the encoder does not have, or a name nobody gave to one."""


class InvalidPlan(InvalidInput):
    """A plan for generating narratives that cannot be followed; the message names the entry."""


class InvalidFile(InvalidInput):
    """A file to import that cannot be read; the message names file and line."""


class MemoryNotFound(MemstoreError, KeyError):
    """An id or key that is not in the store."""


class DuplicateKey(MemstoreError):
    """A key that another memory already has."""


class StoreError(MemstoreError):
    """The store's file or folder."""


class StoreNotFound(StoreError):
    """Nothing at that path."""


class NotAStore(StoreError):
    """A file, but not one of ours. It was not touched."""


class StoreOutOfDate(StoreError):
    """The store was written by an older memstore."""

    def __init__(self, path: str, revision: str, head: str) -> None:
        self.path, self.revision, self.head = path, revision, head
        super().__init__(
            f"{path} has schema {revision}, this memstore needs {head}: "
            f"run `memstore upgrade {path}` (it makes a backup first)"
        )


class StoreTooNew(StoreError):
    """The store was written by a newer memstore."""

    def __init__(self, path: str, revision: str, head: str) -> None:
        self.path, self.revision, self.head = path, revision, head
        super().__init__(
            f"{path} has schema {revision}, newer than this memstore's {head}: update the package "
            "(pip install --upgrade memstore-sae)"
        )


class StoreLocked(StoreError):
    """Another process is writing and did not finish within the busy timeout."""


class StoreReadOnly(StoreError):
    """A write to a store opened with ``mode="r"``, or without permission to write."""


class StoreFull(StoreError):
    """No space left; the transaction was rolled back."""


class StoreDamaged(StoreError):
    """SQLite reports a corrupt file."""


class IndexDamaged(StoreError):
    """An index file does not match its checksums; the index is then rebuilt from the catalog."""


class StoreClosed(StoreError):
    """The store was used after ``close()``."""


class EncoderError(MemstoreError):
    """Turning text into a vector, or a vector into a trace."""


class EncoderMismatch(EncoderError):
    """The store's memories were encoded by another encoder; mixing the two would be nonsense."""

    def __init__(
        self, stored: str, offered: str, stored_name: str, message: str | None = None
    ) -> None:
        self.stored, self.offered = stored, offered
        super().__init__(
            message
            or f"this store was encoded by {stored_name} (fingerprint {stored[:12]}), the encoder "
            f"at hand has fingerprint {offered[:12]}: open the store with the encoder it was made "
            f"with, or {RENEW}"
        )


class InvalidWeights(EncoderError):
    """A weights folder that is incomplete, damaged or of an unknown kind."""


class EmbeddingFailed(EncoderError):
    """The embedder answered something that is not one vector a text."""


class JobError(MemstoreError):
    """Work handed to an OpenAI-compatible server; what was done so far is kept."""


class JobNotFound(JobError):
    """No job in that folder."""


class JobBusy(JobError):
    """Another process is at work on the job."""


class JobDamaged(JobError):
    """The files of a job are not what its journal says."""


class ServerRefused(JobError):
    """The server said no, and would again: a wrong key, no money, no such model.

    ``status`` is that of its HTTP answer, if there was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class ServerUnreachable(JobError):
    """The server gave no answer, or none for now: the same call goes on from here.

    ``wait`` is how many seconds it asked for, if it did.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        self.wait = wait
        super().__init__(message)


class MissingExtra(MemstoreError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{purpose} needs {package}, which is not installed: "
            f"pip install 'memstore-sae[{extra}]'"
        )
