"""``store.lenses``: neuron expressions saved under names, by hand or learned from a category."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from memstore.catalog import categories, lenses, neurons, traces
from memstore.catalog.engine import Database
from memstore.catalog.neurons import EncoderRecord
from memstore.core.expression import Expression
from memstore.directions import axes_of
from memstore.errors import InvalidInput, UnknownNeuron, brief
from memstore.neurons import lens as learning
from memstore.neurons.lens import lenses_of
from memstore.options import Scoring
from memstore.rows import check_label, check_name, now
from memstore.search import Searcher
from memstore.types import Float64, Lens
from memstore.view import Query, lens_called

#: Memories of a category, and as many others, that a lens is learned from at most.
MOST = 2_000
#: Memories that either side must have.
FEWEST = 20
#: Neurons of a lens: few enough to read, and to say aloud.
SIZE, LARGEST = 5, 100


class Lenses:
    """The lenses of a store, by name; those that ship with its encoder are not among them."""

    def __init__(self, database: Database, searcher: Searcher) -> None:
        self._database, self._searcher = database, searcher

    def _all(self) -> list[Lens]:
        with self._database.read() as connection:
            return lenses.all_lenses(connection, neurons.require_encoder(connection).id)

    def __iter__(self) -> Iterator[Lens]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and lens_called(name, self._all()) is not None

    def __getitem__(self, name: str) -> Lens:
        """Return the lens of this name. Raises ``UnknownNeuron``."""
        found = lens_called(name, self._all())
        if found is None:
            raise UnknownNeuron(f"no lens is called {brief(name)}: `memstore lens list` names them")
        return found

    def shipped(self) -> list[Lens]:
        """Return the lenses that ship with the store's encoder; one saved here comes first."""
        with self._database.read() as connection:
            return list(lenses_of(neurons.require_encoder(connection).fingerprint))

    def save(
        self,
        name: str,
        expression: Query,
        *,
        by: Scoring = "trace",
        threshold: float = 0.0,
    ) -> Lens:
        """Save an expression under a name, in place of a lens of that name.

        Names in it are resolved now: what they are called later does not change the lens. Raises
        ``InvalidInput`` where a neuron was given that name, and what the expression raises.
        """
        if by not in ("trace", "dense"):
            raise InvalidInput(f"by={brief(by)}: a lens goes by 'trace' or 'dense'")
        if not isinstance(threshold, int | float) or not -1e9 <= threshold <= 1e9:
            raise InvalidInput(f"threshold {brief(threshold)}: use a number")
        with self._searcher.view() as view:
            query, record = view.resolve(expression, by), view.encoder
        if by == "dense":
            axes_of(self._searcher.load_encoder(record), query)
        spelled = str(Expression(query.terms, query.conditions))
        return self._save(Lens(called(name), spelled, by, float(threshold)), record)

    def learn(
        self,
        category: str,
        *,
        name: str | None = None,
        neurons: int = SIZE,
        by: Scoring = "dense",
        positive: bool = False,
        seed: int = 0,
    ) -> Lens:
        """Learn the few neurons that tell a category from all else, and save them as a lens.

        ``by="dense"`` learns directions, which tell more with few neurons; "trace" activations,
        which mix with other neurons in an expression. ``positive`` takes only neurons that speak
        for the category, so that taking the lens away from something adds nothing. Memories without
        a category are left out. The grade is the mean AUC of five lenses learned in the same way,
        each on the fifth of the memories that it had not seen; the lens itself is learned from all,
        at most ``MOST`` of either side. ``name``: the category's.

        Raises ``InvalidInput`` where either side has too few memories.
        """
        if by not in ("trace", "dense"):
            raise InvalidInput(f"by={brief(by)}: a lens goes by 'trace' or 'dense'")
        if not isinstance(neurons, int) or not 1 <= neurons <= LARGEST:
            raise InvalidInput(f"neurons={brief(neurons)}: a lens has 1 to {LARGEST}")
        known = called(category if name is None else name)
        with self._searcher.view() as view:
            record = view.encoder
            inside, ids = sides(view.connection, category, seed)
            if by == "trace":
                found = traces.by_ids(view.connection, record.id, ids, record.neurons)
                values = found.to_dense()
            else:
                vectors = vectors_of(view.connection, record, ids)
        if by == "dense":
            encoder = self._searcher.load_encoder(record)
            values = vectors @ encoder.sae.directions().T.astype(np.float64)
        fitted = learning.learn(values, inside, neurons, positive)
        if not fitted.neurons:
            raise InvalidInput(f"nothing tells {brief(category)} from the rest: no lens was saved")
        scores = fitted.scores(values)
        if by == "dense":
            query = fitted.expression.resolve(int, record.neurons)
            scores = vectors @ axes_of(encoder, query).direction.astype(np.float64)
        bound = learning.threshold(scores, inside)
        return self._save(
            Lens(
                name=known,
                expression=str(fitted.expression),
                by=by,
                threshold=bound if by == "dense" else max(bound, 0.0),
                grade=round(learning.grade(values, inside, neurons, seed, positive), 4),
                category=category,
            ),
            record,
        )

    def _save(self, lens: Lens, record: EncoderRecord) -> Lens:
        moment = now()
        with self._database.write() as tx:
            neurons.require_still(tx.connection, record)
            owner = neurons.number_of_label(tx.connection, record.id, lens.name)
            if owner is not None:
                raise InvalidInput(
                    f"neuron {owner} is called {lens.name!r} already: choose another name"
                )
            before = lens_called(lens.name, lenses.all_lenses(tx.connection, record.id))
            if before is not None:
                lenses.remove(tx.connection, record.id, before.name)
            lenses.save(tx.connection, record.id, lens, moment)
        return self[lens.name]

    def remove(self, name: str) -> None:
        """Take a lens away; what it held for stays. Raises ``UnknownNeuron``."""
        saved = self[name]
        with self._database.write() as tx:
            record = neurons.require_encoder(tx.connection)
            lenses.remove(tx.connection, record.id, saved.name)


def called(name: object) -> str:
    """Return a name that a lens may have."""
    found = check_label(check_name("name", name))
    if found is None:
        raise InvalidInput("a lens needs a name")
    return found


def sides(connection: Connection, category: str, seed: int) -> tuple[NDArray[np.bool_], list[int]]:
    """Return (which are of the category, ids ascending) of as many memories of it as others."""
    dice = np.random.default_rng(seed)
    own: list[int] = []
    other: list[int] = []
    for memory_id, name in categories.by_memory(connection):
        (own if name == category else other).append(memory_id)
    for count, what in ((len(own), f"of {brief(category)}"), (len(other), "of other categories")):
        if count < FEWEST:
            raise InvalidInput(
                f"{count} memories {what}: a lens is learned from {FEWEST} of either, or more"
            )
    kept = [dice.permutation(np.array(side, dtype=np.int64))[:MOST] for side in (own, other)]
    ids = np.sort(np.concatenate(kept))
    return np.isin(ids, kept[0]), ids.tolist()


def vectors_of(connection: Connection, record: EncoderRecord, ids: list[int]) -> Float64:
    """Return the vectors of memories, in the order of their ids (ascending)."""
    _, vectors = traces.vectors_by_ids(connection, record.id, ids, record.dimension)
    return vectors.astype(np.float64)
