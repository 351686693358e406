"""A store's two indices: loaded from files where believable, followed up from the catalog.

The one place where catalog and index meet. An index shows the state of the catalog at its change
number; whatever was written since is replayed from the catalog before a query is answered, no
matter which process wrote it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Connection

from memstore.catalog import traces
from memstore.catalog.neurons import EncoderRecord, StoreState
from memstore.errors import IndexDamaged
from memstore.index import files, storing
from memstore.index.postings import NeuronIndex
from memstore.types import Float32, Int64

if TYPE_CHECKING:
    from memstore.index.dense import DenseIndex

#: Seed of the sample that lists are trained on: the same memories, the same index.
SEED = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moment:
    """One state of the catalog, in the read transaction that shows it.

    ``known`` is an index from no later than that, published before the transaction began.
    """

    connection: Connection
    state: StoreState
    encoder: EncoderRecord
    known: NeuronIndex | None


class Indices:
    """The indices of one open store. ``folder`` is None for a store in memory.

    The neuron index is a value: whoever has one may go on with it. The dense index is not: hold
    ``dense_turn`` from before the transaction begins until it has answered, so that it is never
    newer than the transaction.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.dense_turn = threading.RLock()
        #: Called, if set, after an index was followed up.
        self.on_growth: Callable[[NeuronIndex], None] | None = None
        self._loading = threading.RLock()
        self._neurons: NeuronIndex | None = None
        self._dense: DenseIndex | None = None
        self._distrusted = False

    @property
    def published(self) -> NeuronIndex | None:
        """The newest neuron index so far."""
        return self._neurons

    # --- neurons ---------------------------------------------------------------------------

    def neurons(self, now: Moment) -> NeuronIndex:
        """Return the neuron index at a moment."""
        known = self._neurons
        if known is not None and known.change == now.state.change:
            return known
        with self._loading:
            known = self._neurons
            if known is not None and known.change > now.state.change:
                # Another thread is ahead: this moment's own index, for this moment only.
                return follow(now.known, now) if usable(now.known, now) else self._built(now)
            if known is None or not usable(known, now):
                known = self._loaded(now)
            self._neurons = follow(known, now)
            published = self._neurons
        if self.on_growth is not None:
            self.on_growth(published)
        return published

    def _loaded(self, now: Moment) -> NeuronIndex:
        manifest = self.manifest(now)
        if manifest is not None and self.folder is not None:
            try:
                found = storing.load_neurons(self.folder, manifest)
                if found.width == now.encoder.neurons:
                    return found
            except (IndexDamaged, OSError) as error:
                log.warning("rebuilding the neuron index from the catalog: %s", error)
        return NeuronIndex(now.encoder.neurons)

    def _built(self, now: Moment) -> NeuronIndex:
        return follow(NeuronIndex(now.encoder.neurons), now)

    def rebuilt(self, now: Moment, error: IndexDamaged) -> NeuronIndex:
        """Return the neuron index built from the catalog alone, instead of one that is damaged."""
        log.warning("rebuilding the neuron index from the catalog: %s", error)
        with self._loading:
            self._neurons = self._built(now)
            return self._neurons

    def replace(self, before: NeuronIndex, after: NeuronIndex) -> None:
        """Publish ``after``, compacted from ``before``, with what has come since.

        Not where the index was loaded or built anew meanwhile: that one knows nothing of either.
        """
        with self._loading:
            if self._neurons is not None and self._neurons.origin is before.origin:
                self._neurons = self._neurons.caught_up(before, after)

    def manifest(self, now: Moment) -> files.IndexFile | None:
        """Return the manifest in force, or None where none can be believed."""
        token = now.state.index_token
        if self.folder is None or token is None:
            return None
        stamp = storing.Stamp(token, now.encoder.fingerprint, now.state.change)
        try:
            manifest = storing.read_manifest(self.folder, stamp)
        except FileNotFoundError:
            return None
        except (IndexDamaged, OSError) as error:
            log.warning("the index files are not usable: %s", error)
            return None
        return manifest if manifest.fields["change"] >= now.state.log_floor else None

    # --- vectors ---------------------------------------------------------------------------

    def dense(self, now: Moment, source: Vectors, renewing: bool = False) -> DenseIndex:
        """Return the dense index at a moment. Loads FAISS.

        With ``renewing`` an index that has outgrown its lists is made anew; a query does that
        only where it must.
        """
        from memstore.index.dense import DenseIndex

        # Kept again only once it is whole: an update cut short must not answer.
        index, self._dense = self._dense, None
        since = now.state.log_floor
        if index is None or not since <= index.change <= now.state.change:
            index = self._loaded_dense(now)
        if index is None or (
            (renewing or not index.trained_for) and index.outgrown(source.count())
        ):
            index = DenseIndex.for_source(now.encoder.dimension, source)
        if index.change != now.state.change:
            deleted = traces.deleted(now.connection, index.change) if index.change else []
            written = traces.changed_vectors(
                now.connection, now.encoder.id, index.change, now.encoder.dimension
            )
            index.apply(deleted, written, now.state.change)
        self._dense = index
        return index

    def _loaded_dense(self, now: Moment) -> DenseIndex | None:
        from memstore.index.dense import DenseIndex

        manifest = None if self._distrusted else self.manifest(now)
        if manifest is None or self.folder is None:
            return None
        told = manifest.fields.get("vectors")
        if told is None or told["change"] < now.state.log_floor:
            return None
        try:
            file = files.read(self.folder / told["name"], storing.VECTORS)
            return DenseIndex.from_file(
                now.encoder.dimension, told["change"], file, told["trained_for"]
            )
        except (IndexDamaged, OSError) as error:
            log.warning("rebuilding the dense index from the catalog: %s", error)
            return None

    def distrust_vectors(self) -> None:
        """Have the dense index built from the catalog: its file named what is not there."""
        with self.dense_turn:
            self._dense, self._distrusted = None, True

    def forget(self) -> None:
        """Drop everything, files too; the next query builds anew from the catalog."""
        with self.dense_turn, self._loading:
            self._neurons = self._dense = None
            if self.folder is not None and self.folder.is_dir():
                try:
                    storing.sweep(self.folder, None)
                except OSError as error:
                    # No longer in force either way: the catalog holds no token.
                    log.warning("old index files were not deleted: %s", error)


class Vectors:
    """The vectors of the catalog at a moment, for an index that keeps none (``dense.Source``)."""

    def __init__(self, now: Moment) -> None:
        self.now = now

    def count(self) -> int:
        """Return how many vectors there are."""
        return traces.count_vectors(self.now.connection)

    def fetch(self, ids: Int64) -> Float32:
        """Return the vectors of these memories (ids ascending), in their order."""
        found, vectors = traces.vectors_by_ids(
            self.now.connection, self.now.encoder.id, ids.tolist(), self.now.encoder.dimension
        )
        if len(found) != len(ids):
            raise IndexDamaged("the dense index names memories that have no vector")
        return vectors

    def sample(self, count: int) -> Float32:
        """Return about so many vectors from all over, or all where there are fewer."""
        lowest, highest = traces.id_range(self.now.connection)
        dice, wanted = np.random.default_rng(SEED), np.empty(0, dtype=np.int64)
        total = self.count()
        while len(wanted) < min(count, total):
            drawn = dice.integers(lowest, highest + 1, 2 * count)
            if highest - lowest < 4 * count:
                drawn = dice.permutation(np.arange(lowest, highest + 1))
            ids = traces.existing(self.now.connection, self.now.encoder.id, drawn.tolist())
            wanted = np.union1d(wanted, np.array(ids, dtype=np.int64))
        chosen = np.sort(dice.permutation(wanted)[:count])
        return self.fetch(chosen)


def usable(index: NeuronIndex | None, now: Moment) -> bool:
    """Return whether an index can be followed up to a moment.

    Not where the log of deletions was cleared since, where the store has moved to another encoder,
    nor from a future that never came.
    """
    return (
        index is not None
        and index.width == now.encoder.neurons
        and (index.change == 0 or now.state.log_floor <= index.change <= now.state.change)
    )


def follow(index: NeuronIndex | None, now: Moment) -> NeuronIndex:
    """Return an index with all that was written since, up to a moment."""
    known = index or NeuronIndex(now.encoder.neurons)
    if known.change == now.state.change:
        return known
    deleted = traces.deleted(now.connection, known.change) if known.change else []
    written = traces.changed_traces(
        now.connection, now.encoder.id, known.change, now.encoder.neurons
    )
    return known.apply(deleted, written, now.state.change)
