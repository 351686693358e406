"""``MemoryStore``: the door of the house. Each method says what happens, in order; how is below."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike

from memstore import check, layout
from memstore.catalog import memories, migrate, neurons, traces, words
from memstore.catalog.engine import Database, Mode, inspect_file, require_folder
from memstore.catalog.filters import compile_filter
from memstore.catalog.neurons import EncoderRecord
from memstore.core.traces import concatenate, empty
from memstore.errors import (
    InvalidFilter,
    InvalidInput,
    InvalidQuery,
    MemoryNotFound,
    StoreClosed,
    StoreError,
    StoreNotFound,
)
from memstore.indices import Indices
from memstore.neuron_view import Neurons
from memstore.progress import Progress, Report
from memstore.rows import check_row
from memstore.search import By, Options, Query, Searcher, Where
from memstore.types import Float32, Hits, Memory, Trace, Traces
from memstore.writer import OnDuplicate, Writer

if TYPE_CHECKING:
    from datetime import datetime

    from memstore.encoder import Encoder

IN_MEMORY = ":memory:"
PAGE = 1_000
#: Closing writes index files once this many memories are new; fewer are replayed in no time.
WORTH_SAVING = 2_000
log = logging.getLogger(__name__)


class _Unset:
    """Marks an argument that was not given, where None means "take it away"."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset()


class MemoryStore:
    """A store of memories in one SQLite file. Open it with ``MemoryStore.open``.

    Safe to use from several threads and processes: one writer at a time, readers never wait, and
    each query sees all that was committed before it, whoever committed.
    """

    def __init__(self, database: Database, encoder: Encoder | None) -> None:
        self._database: Database | None = database
        self._encoder = encoder
        self._loading = threading.Lock()
        folder = None if database.path is None else layout.index_folder(database.path)
        self._indices = Indices(folder)
        self._searcher = Searcher(database, self._indices, self._load_encoder)
        self._writer = Writer(database, self._own_encoder)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mode: Mode = "rw",
        encoder: Encoder | None = None,
        busy_timeout: float = 5.0,
    ) -> Self:
        """Open a store, making it if nothing is there.

        ``path`` may be ":memory:". ``mode="r"`` never writes and works on read-only media.
        ``encoder`` is needed only for another than the shipped one at creation, or for one that
        the store cannot find again by itself. Another writer is waited for ``busy_timeout`` s.

        Raises ``StoreNotFound`` (mode "r"), ``NotAStore``, ``StoreOutOfDate``, ``StoreTooNew``,
        ``EncoderMismatch``, ``StoreReadOnly``.
        """
        if mode not in ("rw", "r"):
            raise InvalidQuery(f"mode={mode!r}: use 'rw' or 'r'")
        database = open_database(path, mode, busy_timeout)
        try:
            return cls(database, prepare(database, encoder))
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "closed" if self._database is None else repr(self._database.name)
        return f"<MemoryStore {name}>"

    def close(self) -> None:
        """Close every connection. Saves the index first where much is new; harmless twice."""
        database = self._database
        if database is None:
            return
        try:
            if self._writer.written >= WORTH_SAVING:
                self._save_index()
        except (OSError, StoreError) as error:
            log.warning("the index was not saved, the next open will rebuild it: %s", error)
        finally:
            self._database = None
            database.close()

    # --- writing ---------------------------------------------------------------------------

    def insert(
        self,
        text: str,
        *,
        category: str | None = None,
        key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | str | None = None,
        on_duplicate: OnDuplicate = "add",
    ) -> int:
        """Store one memory and return its id. Durable on return.

        Raises ``InvalidInput`` or ``DuplicateKey``.
        """
        row = {
            "text": text,
            "category": category,
            "key": key,
            "metadata": metadata,
            "occurred_at": occurred_at,
        }
        return self.insert_many([row], on_duplicate=on_duplicate)[0]

    def insert_many(
        self,
        rows: Iterable[Mapping[str, Any] | str],
        *,
        on_duplicate: OnDuplicate = "add",
        vectors: ArrayLike | None = None,
        progress: bool | Report = False,
    ) -> list[int]:
        """Store memories from any iterable, streamed; returns one id a row.

        A row is a dict with ``text`` and any of ``category``, ``key``, ``metadata``,
        ``occurred_at``, or plain text. One transaction a batch of 256: after an interruption whole
        batches are there, and repeating the call with ``on_duplicate="skip"`` goes on after them
        (a row is known by its key, or by its text where it has none). A list is checked whole
        before anything is stored; a stream up to each batch.

        ``vectors``, (n, d), skips embedding. ``progress`` prints to stderr, or is called with
        (done, total or None).
        """
        self._open_database()
        report = Progress("memories") if progress is True else progress or None
        return self._writer.insert_many(rows, on_duplicate, vectors, report)

    def update(
        self,
        id: int,
        *,
        text: str | _Unset = UNSET,
        category: str | _Unset | None = UNSET,
        key: str | _Unset | None = UNSET,
        metadata: Mapping[str, Any] | _Unset | None = UNSET,
        occurred_at: datetime | str | _Unset | None = UNSET,
    ) -> None:
        """Change the fields given; None takes a category, key or time away.

        Metadata is replaced whole. A new text is encoded anew. Raises ``MemoryNotFound``,
        ``InvalidInput`` or ``DuplicateKey``.
        """
        self._open_database()
        given = {
            name: value
            for name, value in {
                "text": text,
                "category": category,
                "key": key,
                "metadata": metadata,
                "occurred_at": occurred_at,
            }.items()
            if not isinstance(value, _Unset)
        }
        if not given:
            raise InvalidInput("nothing to update: give at least one field")
        row = check_row({"text": "unchanged", **given})
        self._writer.update(check_id(id), row, set(given))

    def upsert(self, *, key: str, text: str, **fields: Any) -> int:
        """Update the memory with this key, or insert it; returns its id.

        ``fields``: ``category``, ``metadata``, ``occurred_at``. Those left out stay as they are.
        """
        self._open_database()
        check_row({"text": text, "key": key, **fields})
        found = self._id_of_key(key)
        if found is None:
            inserted: int = self.insert(text, key=key, **fields)
            return inserted
        self.update(found, text=text, **fields)
        return found

    def delete(self, ids: int | Iterable[int]) -> int:
        """Delete memories by id; returns how many there were. Unknown ids are no error."""
        self._open_database()
        wanted = [ids] if isinstance(ids, int | np.integer) else list(ids)
        return self._writer.delete([check_id(i) for i in wanted])

    def delete_where(self, where: Where) -> int:
        """Delete the memories that pass a filter; returns how many. An empty filter is refused."""
        self._open_database()
        if not where:
            raise InvalidFilter("an empty filter would delete everything: name what to delete")
        return self._writer.delete_where(where)

    # --- reading ---------------------------------------------------------------------------

    def get(self, id: int | None = None, *, key: str | None = None) -> Memory:
        """Return one memory by id or by key. Raises ``MemoryNotFound``."""
        if (id is None) == (key is None):
            raise InvalidQuery("give either an id or a key")
        found = self._id_of_key(key) if key is not None else check_id(id)
        with self._open_database().read() as connection:
            rows = memories.by_ids(connection, [] if found is None else [found])
        if found not in rows:
            name = f"key {key!r}" if key is not None else f"id {id}"
            raise MemoryNotFound(f"no memory has {name}: `list` shows which there are")
        return rows[found]

    def iter(self, where: Where | None = None) -> Iterator[Memory]:
        """Yield memories by ascending id, a page at a time; holds no transaction between pages."""
        condition = None if where is None else compile_filter(where)
        last = 0
        while True:
            with self._open_database().read() as connection:
                page = memories.page(connection, last, PAGE, condition)
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1].id

    def __iter__(self) -> Iterator[Memory]:
        return self.iter()

    def count(self, where: Where | None = None) -> int:
        """Return how many memories there are, or how many pass a filter."""
        condition = None if where is None else compile_filter(where)
        with self._open_database().read() as connection:
            return memories.count(connection, condition)

    def __len__(self) -> int:
        return self.count()

    def trace(self, id: int) -> Trace:
        """Return the trace of one memory. Raises ``MemoryNotFound``."""
        with self._open_database().read() as connection:
            record = neurons.require_encoder(connection)
            found = traces.by_ids(connection, record.id, [check_id(id)], record.neurons)
        if not len(found):
            raise MemoryNotFound(f"no memory has id {id}: `list` shows which there are")
        return found[0]

    def traces(self, where: Where | None = None) -> Traces:
        """Return the traces of all memories, or of those that pass a filter, ids ascending."""
        condition = None if where is None else compile_filter(where)
        with self._open_database().read() as connection:
            record = neurons.require_encoder(connection)
            if condition is not None:
                ids = memories.ids(connection, condition)
                return traces.by_ids(connection, record.id, ids, record.neurons)
            pages = list(traces.changed_traces(connection, record.id, 0, record.neurons))
        return concatenate(pages) if pages else empty(record.neurons)

    def iter_vectors(self) -> Iterator[tuple[list[int], Float32]]:
        """Yield (ids, unit vectors) by the page, ids ascending: what an SAE is trained on."""
        with self._open_database().read() as connection:
            record = neurons.require_encoder(connection)
            yield from traces.changed_vectors(connection, record.id, 0, record.dimension)

    # --- queries ---------------------------------------------------------------------------

    def top(self, neuron: int | str, k: int = 10, *, where: Where | None = None) -> Hits:
        """Return the k memories for which one neuron (number or label) fires strongest."""
        self._open_database()
        reference = int(neuron) if isinstance(neuron, np.integer) else neuron
        return self._searcher.composite({reference: 1.0}, k, where, 0.0, None)

    def composite(
        self,
        expression: Query,
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = 0.0,
        half_life: str | timedelta | None = None,
    ) -> Hits:
        """Return the k best of a neuron expression: ``N[15] - N[5]``, "+15 -5" or {15: 1, 5: -1}.

        Score: sum of weight x activation, 0 where a neuron is silent. Candidates: memories that
        pass ``where`` and every condition of the expression, in which a positively weighted neuron
        fires, and whose score is above ``min_score`` (None for no bound); without any positive
        term, all that pass. Exact: equal to brute force, ties by id.

        Raises ``InvalidExpression`` with the position, ``UnknownNeuron``, ``InvalidFilter``.
        """
        self._open_database()
        return self._searcher.composite(expression, k, where, min_score, half_life)

    def search(  # noqa: PLR0913 - the words of a search; all but text and k by name only
        self,
        text: str,
        k: int = 10,
        *,
        by: By = "dense",
        where: Where | None = None,
        steer: Query | None = None,
        half_life: str | timedelta | None = None,
        idf: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> Hits:
        """Return the k memories nearest to a text.

        ``by``: "dense" (cosine of vectors), "trace" (cosine of traces; ``idf=True`` lets rare
        neurons count more), "words" (BM25 of any of the words) or "hybrid" (reciprocal rank fusion
        of the three; ``weights={"dense": 1, "words": 0.5}`` for a weighted sum instead).
        ``steer`` adds a neuron expression to the score; ``half_life`` ("90d") fades old memories.
        Exact, except that fusion reads each side's first max(100, k).
        """
        self._open_database()
        options = Options(steer, half_life, idf, weights)
        return self._searcher.search(text, k, by, where, options)

    def similar(
        self,
        id: int,
        k: int = 10,
        *,
        by: By = "dense",
        where: Where | None = None,
        half_life: str | timedelta | None = None,
        idf: bool = False,
    ) -> Hits:
        """Return the k memories nearest to a stored one, itself left out. Loads no embedder."""
        self._open_database()
        return self._searcher.similar(check_id(id), k, by, where, Options(None, half_life, idf))

    @property
    def neurons(self) -> Neurons:
        """The neurons of this store's encoder: ``store.neurons[15]``, ``.label(15, "grief")``."""
        return Neurons(self._open_database(), self._searcher)

    # --- care ------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Return counts, categories, encoder, change number and sizes in bytes."""
        database = self._open_database()
        with database.read() as connection:
            record = neurons.require_encoder(connection)
            facts = {
                "path": database.name,
                "memories": memories.count(connection),
                "categories": memories.categories(connection),
                "labels": len(neurons.all_labels(connection, record.id)),
                "encoder": record.name,
                "fingerprint": record.fingerprint,
                "dimension": record.dimension,
                "neurons": record.neurons,
                "change": neurons.state(connection).change,
                "schema": migrate.revision(connection),
            }
        return facts | file_sizes(database.path)

    def optimize(self) -> None:
        """Leave nothing of deleted memories behind, free their space, save the index.

        Rebuilds word lists, clears the log of deletions, refreshes neuron statistics, rewrites the
        file. Needs free space of about the store's size, and waits for other writers.
        """
        database = self._open_database()
        with database.write() as tx:
            words.compact(tx.connection)
            memories.forget_deletions(tx.connection, tx.change)
        self._save_index()
        with database.driver() as raw:
            raw.execute("VACUUM")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def check(self) -> list[str]:
        """Return what is wrong with the store, a sentence each; an empty list is well."""
        return check.problems(self._open_database(), self._indices)

    def repair(self) -> list[str]:
        """Rebuild everything derived (index, word lists); returns what is still wrong."""
        return list(check.repair(self._open_database(), self._indices))

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store, live, to a new file. The index is left out: it rebuilds itself."""
        target = Path(path)
        require_folder(target)
        if inspect_file(target) != "missing":
            raise StoreError(f"{target} exists: name a new file for the backup")
        migrate.copy_store(self._open_database(), target)

    def export(self, path: str | os.PathLike[str], where: Where | None = None) -> int:
        """Write memories as JSON Lines, which `memstore import` reads; returns how many."""
        target = Path(path)
        require_folder(target)
        part = target.with_name(target.name + ".part")
        count = 0
        try:
            with part.open("w", encoding="utf-8") as file:
                for memory in self.iter(where):
                    file.write(json.dumps(memory.to_dict(), ensure_ascii=False) + "\n")
                    count += 1
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return count

    # --- inside ----------------------------------------------------------------------------

    def _open_database(self) -> Database:
        if self._database is None:
            raise StoreClosed("this store was closed: open it again")
        return self._database

    def _id_of_key(self, key: str) -> int | None:
        with self._open_database().read() as connection:
            return memories.id_of_key(connection, key)

    def _own_encoder(self) -> Encoder:
        with self._open_database().read() as connection:
            record = neurons.require_encoder(connection)
        return self._load_encoder(record)

    def _load_encoder(self, record: EncoderRecord) -> Encoder:
        """Return the store's encoder, loaded once and checked against its fingerprint."""
        with self._loading:
            if self._encoder is None:
                from memstore.encoder import Encoder

                self._encoder = Encoder.from_config(record.config)
            return self._encoder.require(record.fingerprint, record.name)

    def _save_index(self) -> None:
        database = self._open_database()
        if self._indices.folder is None:
            return
        with database.exclusive() as connection:
            neurons.renew_index_token(connection)
        with self._indices.turn, database.read() as connection:
            record = neurons.require_encoder(connection)
            self._indices.save(connection, neurons.state(connection), record)


def open_database(path: str | os.PathLike[str], mode: Mode, busy_timeout: float) -> Database:
    """Return a database with the current schema, made if nothing is there and ``mode`` allows."""
    if os.fspath(path) == IN_MEMORY:
        database = Database(None, "rw", busy_timeout)
        migrate.create(database)
        return database
    file = Path(path)
    found = inspect_file(file)
    if mode == "r" and found != "store":
        raise StoreNotFound(
            f"no store at {file}: check the path, or create it with `memstore init`"
        )
    if mode == "rw":
        require_folder(file)
    database = Database(file, mode, busy_timeout)
    try:
        if mode == "rw" and (found != "store" or not migrate.is_set_up(database)):
            migrate.create(database)
        migrate.require_current(database)
    except BaseException:
        database.close()
        raise
    return database


def prepare(database: Database, encoder: Encoder | None) -> Encoder | None:
    """Check the encoder handed in against the store's; write it down in a store that has none."""
    with database.read() as connection:
        record = neurons.active_encoder(connection)
    if record is not None:
        return None if encoder is None else encoder.require(record.fingerprint, record.name)
    if database.mode == "r":
        return encoder
    from memstore.encoder import Encoder

    chosen = encoder or Encoder.default()
    with database.write() as tx:
        if neurons.active_encoder(tx.connection) is None:
            neurons.register_encoder(
                tx.connection,
                EncoderRecord(
                    0,
                    chosen.fingerprint,
                    chosen.name,
                    chosen.dimension,
                    chosen.neurons,
                    chosen.config,
                ),
            )
    return chosen


def check_id(value: object) -> int:
    """Return a memory id. Raises ``InvalidQuery`` for anything that cannot be one."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InvalidQuery(f"{value!r} is not a memory id: ids are whole numbers")
    return int(value)


def file_sizes(path: Path | None) -> dict[str, int]:
    """Return bytes of the store's file, its WAL and its index."""
    if path is None:
        return {"bytes": 0, "index_bytes": 0}
    files: Sequence[Path] = (path, path.with_name(path.name + "-wal"))
    index = layout.index_folder(path)
    inside = [file for file in index.iterdir() if file.is_file()] if index.is_dir() else []
    return {
        "bytes": sum(file.stat().st_size for file in files if file.exists()),
        "index_bytes": sum(file.stat().st_size for file in inside),
    }
