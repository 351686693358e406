"""Upkeep of the index beside the caller: merging blocks, saving them, sweeping what is left over.

A single thread a store, started when there is something to do. Nothing waits for it but ``close``:
queries go on with the blocks they have, and whatever it does not get done costs time, not data.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memstore.catalog import neurons
from memstore.catalog.engine import Database
from memstore.errors import IndexDamaged, MemstoreError, StoreLocked
from memstore.index import files, storing
from memstore.index.postings import NeuronIndex
from memstore.indices import Indices, Moment, Vectors

#: New memories after which what is new is saved, so that a restart replays little.
CHECKPOINT = 4_096
log = logging.getLogger(__name__)


class Upkeep:
    """Keeps the index of one open store in shape and in files."""

    def __init__(self, database: Database, indices: Indices) -> None:
        self.database, self.indices = database, indices
        #: Memories added since the store was opened, and since the index was last saved.
        self.written = self.unsaved = 0
        self._saving = threading.Lock()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closing = False
        indices.on_growth = self.notice

    @property
    def saves(self) -> bool:
        """Whether this store has files for its index and may write them."""
        return self.indices.folder is not None and self.database.mode == "rw"

    def wrote(self, memories: int) -> None:
        """Take note of new memories, and save once enough are new."""
        self.written += memories
        self.unsaved += memories
        if self.saves and self.unsaved >= CHECKPOINT:
            self.start()

    def notice(self, index: NeuronIndex) -> None:
        """Have blocks merged where too many are small."""
        if index.wants_compaction:
            self.start()

    def start(self) -> None:
        """Start the thread unless it is at work."""
        with self._lock:
            if self._closing or (self._thread is not None and self._thread.is_alive()):
                return
            # A daemon: an interpreter that ends without close() must not wait for it.
            self._thread = threading.Thread(target=self._work, name="memstore-upkeep", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait until the thread has come to an end."""
        with self._lock:
            self._closing = True
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closing:
                if self.saves and self.unsaved >= CHECKPOINT:
                    self.save(vectors=False)
                elif (known := self.indices.published) is not None and known.wants_compaction:
                    self.compact(known)
                else:
                    return
        except (MemstoreError, OSError) as error:
            # Nothing but time is lost: the catalog has everything.
            log.warning("upkeep of the index of %s stopped: %s", self.database.name, error)

    def compact(self, index: NeuronIndex) -> None:
        """Merge small and half-dead blocks of the published index."""
        self.indices.replace(index, index.compacted())

    @contextmanager
    def moment(self) -> Iterator[Moment]:
        """Open a read transaction with the state it shows."""
        known = self.indices.published
        with self.database.read() as connection:
            record = neurons.require_encoder(connection)
            yield Moment(connection, neurons.state(connection), record, known)

    def save(self, *, vectors: bool = True, everything: bool = False) -> None:
        """Write what is new of the index to files, and put them in force.

        ``vectors``: the dense index too. ``everything``: drop every dead row first. Raises
        ``OSError`` or ``StoreError``; files that are in force stay so. Another thread that is
        saving is waited for, another process as long as another writer.
        """
        folder = self.indices.folder
        if folder is None:
            return
        folder.mkdir(mode=0o700, exist_ok=True)
        with self._saving, alone(folder, self.database.busy_timeout):
            self._save(folder, vectors, everything)

    def _save(self, folder: Path, vectors: bool, everything: bool) -> None:
        token, self.unsaved = uuid.uuid4().hex, 0
        with self.moment() as now:
            before = self.indices.neurons(now)
            kept = self._kept_vectors(now)
        try:
            after = self._saved_blocks(folder, before, everything)
        except IndexDamaged as error:
            with self.moment() as now:
                before = self.indices.rebuilt(now, error)
            after = self._saved_blocks(folder, before, everything)
        if vectors:
            kept = self._save_vectors(folder)
        stamp = storing.Stamp(token, now.encoder.fingerprint, before.change)
        storing.save_manifest(folder, after, stamp, {"vectors": kept})
        # In force from here on, for every process; until then the manifest before it is.
        with self.database.exclusive() as connection:
            if neurons.state(connection).encoder_id != now.encoder.id:
                return  # the store has moved on: swept with the next save
            neurons.set_index_token(connection, token)
        storing.sweep(folder, token)
        self.indices.replace(before, after)

    def _saved_blocks(self, folder: Path, index: NeuronIndex, everything: bool) -> NeuronIndex:
        if everything or index.wants_compaction:
            index = index.compacted(everything)
        return storing.save_blocks(folder, index)

    def _kept_vectors(self, now: Moment) -> Any:
        manifest = self.indices.manifest(now)
        return None if manifest is None else manifest.fields["vectors"]

    def _save_vectors(self, folder: Path) -> dict[str, Any]:
        with self.indices.dense_turn, self.moment() as now:
            index = self.indices.dense(now, Vectors(now), renewing=True)
            name = storing.new_name("vectors")
            files.write(folder / name, "vectors", {}, index.to_arrays())
            return {"name": name, "change": index.change, "trained_for": index.trained_for}


@contextmanager
def alone(folder: Path, patience: float) -> Iterator[None]:
    """Keep other processes from saving here. Raises ``StoreLocked`` after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StoreLocked(
                        f"{folder} is being saved by another process: try again"
                    ) from error
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)
