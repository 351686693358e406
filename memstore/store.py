"""``MemoryStore``: the door of the house. Each method says what happens, in order; how is below."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike

from memstore import backups, care, exports, loading
from memstore.errors import InvalidFile, InvalidFilter, InvalidInput, brief
from memstore.files import Format, format_of
from memstore.progress import Progress, Report
from memstore.reader import Reader
from memstore.rows import check_id, check_row
from memstore.view import Where
from memstore.writer import OnDuplicate

if TYPE_CHECKING:
    from memstore.encoder import Encoder


class _Unset:
    """Marks an argument that was not given, where None means "take it away"."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset()


class MemoryStore(Reader):
    """A store of memories in one SQLite file. Open it with ``MemoryStore.open``.

    Safe to use from several threads and processes: one writer at a time, readers never wait for
    it, and each query sees all that was committed before it, whoever committed. After a fork the
    child opens the store anew.
    """

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

        ``on_duplicate="link"`` writes down which memory the new one nearly repeats, if any (cosine
        0.95 or more): ``copies`` shows what both say. Raises ``InvalidInput`` or ``DuplicateKey``.
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

        ``on_duplicate="link"`` stores all, and links each to the memory stored before it that it
        nearly repeats, if any. ``vectors``, (n, d), skips embedding. ``progress`` prints to
        stderr, or is called with (done, total or None).
        """
        self._open_database()
        if progress is not True:
            return self._writer.insert_many(rows, on_duplicate, vectors, progress or None)
        report = Progress("memories")
        try:
            return self._writer.insert_many(rows, on_duplicate, vectors, report)
        finally:
            report.close()

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
        if key is None:
            raise InvalidInput("upsert() needs a key to know the memory by")
        row = check_row({"text": text, "key": key, **fields})
        return self._writer.upsert(row, {"text", *fields})

    def delete(self, ids: int | Iterable[int]) -> int:
        """Delete memories by id; returns how many there were. Unknown ids are no error."""
        self._open_database()
        if not isinstance(ids, int | np.integer | Iterable):
            raise InvalidInput(f"{brief(ids)} is no id and no list of ids: delete([1, 2])")
        wanted = [ids] if isinstance(ids, int | np.integer) else list(ids)
        return self._writer.delete([check_id(i) for i in wanted])

    def delete_where(self, where: Where) -> int:
        """Delete the memories that pass a filter; returns how many. An empty filter is refused."""
        self._open_database()
        if not where:
            raise InvalidFilter("an empty filter would delete everything: name what to delete")
        return self._writer.delete_where(where, self._searcher.condition)

    # --- care ------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Return counts, categories, encoder, change number and sizes in bytes."""
        return care.stats(self._open_database())

    def optimize(self) -> None:
        """Leave nothing of deleted memories behind, free their space, save the index.

        Rebuilds word lists, clears the log of deletions, refreshes neuron statistics, rewrites the
        file. Needs free space of about the store's size, and waits for other writers.
        Raises ``StoreLocked`` where a reader kept the WAL from being emptied: call it again.
        """
        database = self._open_database()
        care.forget_deleted(database)
        care.write_statistics(database, self._indices)
        care.vacuum(database)
        self._save_index_or_warn(everything=True)

    def reencode(
        self, encoder: Encoder, *, embed: bool = False, progress: bool | Report = False
    ) -> int:
        """Move to another encoder; returns how many memories were encoded.

        Until the switch, which is one transaction, queries answer from the old vectors and traces,
        and others may read and write. Interrupted, the same call goes on where it stopped, keeping
        what was made; called with the store's own encoder it gives up what was begun. Where both
        encoders have one embedder vectors stay as they are stored, rounded to 10 bits, and no text
        is embedded unless ``embed`` asks for it. Labels and lenses are of an encoder's neurons:
        those of the old one are kept, and count again if the store moves back.

        Needs room for a second set of vectors and traces, which `optimize` then gives back.
        Raises what the encoder raises, ``InvalidInput`` where the old embedder cannot be loaded to
        be compared, ``EncoderMismatch`` where somebody moves the store elsewhere meanwhile,
        ``StoreDamaged`` for a vector that is lost, ``StoreReadOnly``, ``StoreLocked``,
        ``StoreFull``.
        """
        from memstore.encoder import Encoder as Known
        from memstore.reencoding import Reencoding

        database = self._open_database()
        if not isinstance(encoder, Known):
            raise InvalidInput(
                f"reencode() takes an encoder, not {brief(encoder)}: Encoder.of(sae='sae-3072-k64')"
            )
        moving = Reencoding(database, self._load_encoder, encoder, embed)
        with self._loading:
            # Before the switch: from then on every thread of this handle needs it.
            self._encoders[encoder.fingerprint] = encoder
        report = Progress("memories") if progress is True else progress or None
        try:
            count = moving.run(report)
        finally:
            if isinstance(report, Progress):
                report.close()
        self._writer.known_embedder = encoder.embedder.fingerprint
        self._save_index_or_warn(everything=True)
        return count

    def check(self) -> list[str]:
        """Return what is wrong with the store, a sentence each; an empty list is well."""
        return care.problems(self._open_database(), self._indices)

    def repair(self) -> list[str]:
        """Rebuild everything derived: index, word lists, broken vectors and traces.

        Returns what is still wrong.
        """
        database = self._open_database()
        care.rebuild(database, self._indices)
        if broken := care.broken_ids(database):
            self._writer.mend(broken)
        return care.problems(database, self._indices)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store, live, to a new file, with a manifest beside it (``memstore.backups``).

        The index is left out: it rebuilds itself.
        """
        backups.make(self._open_database(), Path(path))

    def export(
        self,
        path: str | os.PathLike[str],
        where: Where | None = None,
        *,
        encoded: bool = False,
    ) -> int:
        """Write memories to a new file, all of one moment; returns how many.

        JSON Lines, compressed where the name ends in ``.gz``; Parquet where it ends in
        ``.parquet``. ``encoded`` adds vectors, traces, labels, lenses, links and the encoder's
        fingerprint: what ``load`` needs to make the same store again. `memstore import` reads
        either.
        """
        self._open_database()
        with self._searcher.filtered(where) as (view, condition):
            return exports.export(view.connection, condition, Path(path), encoded)

    def load(self, path: str | os.PathLike[str], *, kind: Format | None = None) -> int:
        """Read what ``export(encoded=True)`` wrote into this store, which must be new.

        Ids, times, vectors, traces, labels, lenses and links come back bit by bit, in one
        transaction; no text is embedded. ``kind`` is the format where the name does not tell.
        Returns how many memories. Raises ``InvalidFile``, ``EncoderMismatch`` where the export is
        of another encoder, ``StoreError`` where memories are, or were, here already.
        """
        database, file = self._open_database(), os.fspath(path)
        kind = format_of(file, kind)
        heading = loading.heading_of(file, kind) if kind in loading.KINDS else None
        if heading is None:
            raise InvalidFile(
                f"{file} is no encoded export: `memstore import` reads plain ones, or export with "
                "--encoded"
            )
        count = loading.load(database, file, kind, heading)
        self._upkeep.wrote(count)
        return count
