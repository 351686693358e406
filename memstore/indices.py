"""A store's two indices: loaded from files where they can be believed, followed up, saved.

The one place where catalog and index meet. An index shows the state of the catalog at its change
number; whatever was written since is replayed from the catalog before a query is answered, no
matter which process wrote it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from sqlalchemy import Connection

from memstore.catalog import traces
from memstore.catalog.neurons import EncoderRecord, StoreState
from memstore.index import segments
from memstore.index.postings import NeuronIndex

if TYPE_CHECKING:
    from memstore.index.dense import DenseIndex

TRACES, VECTORS = "traces", "vectors"
log = logging.getLogger(__name__)


class Indices:
    """The indices of one open store. ``folder`` is None for a store in memory.

    Hold ``turn`` from reading the store's state until the index has answered: an index must never
    be newer than the transaction that its answer is completed in.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.turn = threading.RLock()
        self._neurons: NeuronIndex | None = None
        self._dense: DenseIndex | None = None

    def neurons(
        self, connection: Connection, state: StoreState, encoder: EncoderRecord
    ) -> NeuronIndex:
        """Return the neuron index, up to date with ``state``."""
        # Kept again only once it is whole: an update cut short must not answer.
        index, self._neurons = self._neurons, None
        if index is None or behind(index.change, state):
            loaded = self._load(TRACES, state, encoder)
            index = NeuronIndex(encoder.neurons)
            if loaded is not None:
                index = NeuronIndex.from_arrays(encoder.neurons, loaded.change, loaded.arrays)
        if index.change != state.change:
            deleted = traces.deleted(connection, index.change) if index.change else []
            written = traces.changed_traces(connection, encoder.id, index.change, encoder.neurons)
            index.apply(deleted, written, state.change)
        self._neurons = index
        return index

    def dense(
        self, connection: Connection, state: StoreState, encoder: EncoderRecord
    ) -> DenseIndex:
        """Return the dense index, up to date with ``state``. Loads FAISS."""
        from memstore.index.dense import DenseIndex

        index, self._dense = self._dense, None
        if index is None or behind(index.change, state):
            loaded = self._load(VECTORS, state, encoder)
            index = DenseIndex(encoder.dimension)
            if loaded is not None:
                index = DenseIndex.from_arrays(encoder.dimension, loaded.change, loaded.arrays)
        if index.change != state.change:
            deleted = traces.deleted(connection, index.change) if index.change else []
            written = traces.changed_vectors(
                connection, encoder.id, index.change, encoder.dimension
            )
            index.apply(deleted, written, state.change)
        self._dense = index
        return index

    def _load(self, kind: str, state: StoreState, encoder: EncoderRecord) -> segments.Loaded | None:
        if self.folder is None or state.index_token is None:
            return None
        loaded = segments.load(
            self.folder, kind, state.index_token, encoder.fingerprint, state.change
        )
        return None if loaded is None or behind(loaded.change, state) else loaded

    def save(self, connection: Connection, state: StoreState, encoder: EncoderRecord) -> None:
        """Write both indices to files. Raises ``OSError``; nothing but speed is lost by that."""
        with self.turn:
            arrays = self.neurons(connection, state, encoder).to_arrays()
            self._write(TRACES, state, encoder, arrays)
            arrays = self.dense(connection, state, encoder).to_arrays()
            self._write(VECTORS, state, encoder, arrays)

    def _write(
        self,
        kind: str,
        state: StoreState,
        encoder: EncoderRecord,
        arrays: Mapping[str, NDArray[Any]],
    ) -> None:
        if self.folder is None or state.index_token is None:
            return
        stamp = segments.Stamp(kind, state.index_token, encoder.fingerprint, state.change)
        segments.save(self.folder, stamp, arrays)

    def forget(self) -> None:
        """Drop everything, files too; the next query builds anew from the catalog."""
        with self.turn:
            self._neurons = self._dense = None
            if self.folder is not None and self.folder.is_dir():
                for file in (*self.folder.glob("*.seg"), *self.folder.glob("*.part")):
                    file.unlink(missing_ok=True)


def behind(change: int, state: StoreState) -> bool:
    """Return whether an index is too old to follow up, or from a future that never came."""
    return change > state.change or 0 < change < state.log_floor
