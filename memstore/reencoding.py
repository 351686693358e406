"""Moving a store to another encoder: made beside, batch by batch, then switched to at once.

Until the switch every query answers from the old vectors and traces, and others may read and write;
what they write is encoded before the switch, too. Interrupted anywhere, the same call goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sqlalchemy import Connection

from memstore.batches import BATCH
from memstore.catalog import memories, neurons, reencoding, traces
from memstore.catalog.engine import Database, Write
from memstore.catalog.neurons import EncoderRecord
from memstore.core.traces import select
from memstore.encoder import Encoder
from memstore.errors import EncoderMismatch, InvalidWeights, MissingExtra, StoreDamaged
from memstore.progress import Report
from memstore.types import Float32, Traces

#: Memories whose vectors stay, encoded at a time; and rows of the old encoder dropped at a time.
BULK, DROPPED = 4_096, 16_384
#: So few are encoded while the switch keeps other writers waiting.
FEW = 64


class Reencoding:
    """One store on its way to another encoder."""

    def __init__(
        self,
        database: Database,
        load: Callable[[EncoderRecord], Encoder],
        encoder: Encoder,
        embed: bool,
    ) -> None:
        database.require_writable()
        self.database, self.encoder = database, encoder
        with database.read() as connection:
            self.old = neurons.require_encoder(connection)
        self.keeps_vectors = not embed and same_embedder(self.old, load, encoder)
        self.size = BULK if self.keeps_vectors else BATCH

    def run(self, report: Report | None) -> int:
        """Encode what is not yet encoded, switch, drop what was; returns how many were encoded."""
        with self.database.write() as tx:
            encoder_id = neurons.note_encoder(tx.connection, self.encoder.record())
        self._drop(encoder_id)
        if self.old.id == encoder_id:
            return 0  # and whatever was begun for another encoder is given up
        with self.database.read() as connection:
            total = reencoding.count_missing(connection, encoder_id)
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            if report is not None and count:
                report(done, max(total, done))

        while (rest := self._switched(encoder_id)) is None:
            last = 0
            while (page := self._next(encoder_id, last)) is not None:
                count, last = page
                told(count)
        told(rest)
        self._drop(encoder_id)
        return done

    def _next(self, encoder_id: int, after: int) -> tuple[int, int] | None:
        """Encode the next page above an id; returns (how many, its last id), None at the end."""
        with self.database.read() as connection:
            seen = neurons.state(connection)
            if seen.encoder_id != self.old.id:
                return None  # somebody else has moved it
            ids = reencoding.missing(connection, encoder_id, after, self.size)
            texts, kept = self._material(connection, ids)
        if not ids:
            return None
        vectors = self._vectors(texts, kept)
        made = self.encoder.traces(vectors)
        with self.database.write() as tx:
            # What was changed or deleted while it was being encoded comes again, or never.
            same = set(reencoding.unchanged(tx.connection, ids, seen.change))
            rows = [row for row, memory_id in enumerate(ids) if memory_id in same]
            store_rows(tx, encoder_id, ids, rows, vectors, made)
        return len(rows), ids[-1]

    def _material(
        self, connection: Connection, ids: Sequence[int]
    ) -> tuple[list[str], Float32 | None]:
        """Return the texts of memories, or their vectors where those stay."""
        if self.keeps_vectors:
            old = self.old
            found, kept = traces.vectors_by_ids(connection, old.id, ids, old.dimension)
            if found != list(ids):
                # Handed in, perhaps: a text embedded in their place would not be the same.
                raise StoreDamaged(
                    "memories lack their vectors: run `memstore check --repair` first"
                )
            return [], kept
        rows = memories.hit_rows(connection, ids)
        return [rows[memory_id][1] for memory_id in ids], None

    def _vectors(self, texts: list[str], kept: Float32 | None) -> Float32:
        return self.encoder.vectors(texts) if kept is None else kept

    def _switched(self, encoder_id: int) -> int | None:
        """Encode the last few memories and switch; returns how many, None where more are left.

        Raises ``EncoderMismatch`` where somebody has moved the store elsewhere meanwhile.
        """
        with self.database.write() as tx:
            if neurons.require_encoder(tx.connection).id == encoder_id:
                return 0  # somebody else has moved it here
            neurons.require_still(tx.connection, self.old)
            ids = reencoding.missing(tx.connection, encoder_id, 0, FEW + 1)
            if len(ids) > FEW:
                return None
            if ids:
                vectors = self._vectors(*self._material(tx.connection, ids))
                made = self.encoder.traces(vectors)
                store_rows(tx, encoder_id, ids, range(len(ids)), vectors, made)
            reencoding.switch(tx, encoder_id)
        return len(ids)

    def _drop(self, encoder_id: int) -> None:
        """Drop what lies aside for other encoders, a part a transaction."""
        while True:
            with self.database.write() as tx:
                if not reencoding.clear(tx.connection, encoder_id, DROPPED):
                    return


def store_rows(
    tx: Write,
    encoder_id: int,
    ids: Sequence[int],
    rows: Sequence[int],
    vectors: Float32,
    made: Traces,
) -> None:
    """Put aside these rows of what was made for some memories."""
    chosen = np.array(rows, dtype=np.int64)
    kept = [ids[row] for row in rows]
    reencoding.add(tx.connection, encoder_id, kept, vectors[chosen], select(made, chosen))


def same_embedder(
    old: EncoderRecord, load: Callable[[EncoderRecord], Encoder], encoder: Encoder
) -> bool:
    """Return whether vectors stay as they are, since one embedder serves both encoders.

    Where the old encoder cannot be loaded here nothing says so, and texts are embedded anew.
    """
    try:
        return load(old).embedder.fingerprint == encoder.embedder.fingerprint
    except (InvalidWeights, MissingExtra, EncoderMismatch):
        return False
