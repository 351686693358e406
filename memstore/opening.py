"""Opening and closing a store: the file, the schema, the encoder, and what all methods share."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from memstore import layout
from memstore.catalog import memories, migrate, neurons
from memstore.catalog.engine import Database
from memstore.catalog.files import (
    Mode,
    create_private,
    inspect_file,
    require_folder,
    warn_of_network,
)
from memstore.catalog.neurons import EncoderRecord
from memstore.errors import InvalidQuery, StoreClosed, StoreError, StoreNotFound, brief
from memstore.indices import Indices
from memstore.search import Searcher
from memstore.upkeep import Upkeep
from memstore.writer import Writer

if TYPE_CHECKING:
    from memstore.encoder import Encoder
    from memstore.types import Float32

IN_MEMORY = ":memory:"
#: Closing writes index files once this many memories are new; fewer are replayed in no time.
WORTH_SAVING = 2_000
log = logging.getLogger(__name__)


class OpenStore:
    """A store's connections, indices and encoder, from ``open`` to ``close``."""

    def __init__(self, database: Database, encoder: Encoder | None) -> None:
        self._database: Database | None = database
        #: Encoders by fingerprint: the store's own, and one that it moves to.
        self._encoders = {} if encoder is None else {encoder.fingerprint: encoder}
        self._loading = threading.Lock()
        folder = None if database.path is None else layout.index_folder(database.path)
        self._indices = Indices(folder)
        self._upkeep = Upkeep(database, self._indices)
        self._searcher = Searcher(database, self._indices, self._load_encoder)
        self._writer = Writer(database, self._own_encoder, self._upkeep.wrote, self._repeated)
        if encoder is not None:
            self._writer.known_embedder = encoder.embedder.fingerprint

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
            raise InvalidQuery(f"mode={brief(mode)}: use 'rw' or 'r'")
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
            if not database.is_foreign:
                self._upkeep.close()
                if self._upkeep.written >= WORTH_SAVING:
                    self._save_index_or_warn()
        finally:
            self._database = None
            database.close()

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
            known = self._encoders.get(record.fingerprint)
            if known is None:
                from memstore.encoder import Encoder

                loaded = Encoder.from_config(record.config)
                known = loaded.require(record.fingerprint, record.name)
                self._encoders[known.fingerprint] = known
            return known

    def _repeated(self, vectors: Float32, fingerprint: str) -> dict[int, tuple[int, float]]:
        from memstore import links

        return links.repeated(self._searcher, vectors, fingerprint)

    def _save_index_or_warn(self, *, everything: bool = False) -> None:
        """Save the index; failing costs the next open some time and nothing else."""
        try:
            self._upkeep.save(everything=everything)
        except (OSError, StoreError) as error:
            log.warning("the index was not saved, the next open will rebuild it: %s", error)


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
        create_private(file)
    warn_of_network(file)
    database = Database(file, mode, busy_timeout)
    try:
        if mode == "rw":
            if found != "store" or not migrate.is_set_up(database):
                migrate.create(database)
            migrate.use_wal(database)
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
            neurons.register_encoder(tx.connection, chosen.record())
    return chosen
