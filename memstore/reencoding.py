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
from memstore.encoder import Encoder, load_embedder
from memstore.errors import EncoderError, InvalidInput, StoreDamaged
from memstore.progress import Report
from memstore.types import Float32, Traces

#: Memories whose vectors stay, encoded at a time; and rows of the old encoder dropped at a time.
BULK, DROPPED = 4_096, 16_384
#: So few are encoded while the switch keeps other writers waiting, once it has been tried so often.
FEW, PATIENCE = 64, 5


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
            if neurons.require_encoder(tx.connection).id != encoder_id:
                neurons.require_still(tx.connection, self.old)
        with self.database.read() as connection:
            moved = neurons.require_encoder(connection).id == encoder_id
            total = 0 if moved else reencoding.count_missing(connection, encoder_id)
        self._drop(None if moved else encoder_id)
        if moved:
            return 0  # and whatever was begun for another encoder is given up
        done, tries = 0, 0
        while True:
            last = 0
            while (page := self._next(encoder_id, last)) is not None:
                count, last = page
                done += count
                if report is not None and count:
                    report(done, max(total, done))
            # Writers that are faster than the encoder wait for a few texts in the end.
            rest = self._switched(encoder_id, FEW if tries > PATIENCE else 0)
            if rest is not None:
                self._drop(None)
                return done + rest
            tries += 1

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
            if neurons.state(tx.connection).encoder_id != self.old.id:
                return None
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

    def _switched(self, encoder_id: int, most: int) -> int | None:
        """Switch; returns how many memories were encoded for it, None where too many are left.

        Raises ``EncoderMismatch`` where somebody has moved the store elsewhere meanwhile.
        """
        with self.database.read() as connection:
            seen = neurons.state(connection).change
            whole = not reencoding.missing(connection, encoder_id, 0, 1)
        with self.database.write() as tx:
            if neurons.require_encoder(tx.connection).id == encoder_id:
                return 0  # somebody else has moved it here
            neurons.require_still(tx.connection, self.old)
            # Looked through again only where others have written since, who may also have dropped
            # what lay aside here.
            ids: list[int] = []
            if not whole or tx.change != seen + 1:
                ids = reencoding.missing(tx.connection, encoder_id, 0, most + 1)
            if len(ids) > most:
                return None
            if ids:
                vectors = self._vectors(*self._material(tx.connection, ids))
                made = self.encoder.traces(vectors)
                store_rows(tx, encoder_id, ids, range(len(ids)), vectors, made)
            reencoding.switch(tx, encoder_id)
        return len(ids)

    def _drop(self, kept: int | None) -> None:
        """Drop what lies aside, but for one encoder if given, a part a transaction."""
        while True:
            with self.database.read() as connection:
                if not reencoding.aside(connection, kept):
                    return
            with self.database.write() as tx:
                reencoding.clear(tx.connection, kept, DROPPED)


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

    Raises ``InvalidInput`` where the old embedder cannot be loaded here, and nothing says so.
    """
    try:
        known = load(old).embedder
    except EncoderError:  # its SAE may be gone where its embedder is not
        config = old.config["embedder"]
        if config["kind"] == "object":
            raise InvalidInput(
                "whether vectors can stay is not known without the store's own encoder: open the "
                "store with it, or have every text embedded anew (embed=True, --embed)"
            ) from None
        known = load_embedder(config)
    return known.fingerprint == encoder.embedder.fingerprint
