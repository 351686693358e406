"""``store.lenses``: neuron expressions saved under names, by hand or learned from a category."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from memstore.catalog import columns, lenses, neurons, traces
from memstore.catalog.engine import Database
from memstore.catalog.memories import from_microseconds
from memstore.catalog.neurons import EncoderRecord
from memstore.core.expression import MAX_WEIGHT, Expression, N, NeuronQuery
from memstore.core.vectors import cosines
from memstore.directions import axes_of
from memstore.errors import InvalidExpression, InvalidInput, UnknownNeuron, brief
from memstore.neurons import lens as learning
from memstore.neurons.lens import lenses_of
from memstore.options import Scoring
from memstore.rows import check_label, check_name, now
from memstore.search import Searcher
from memstore.types import Float32, Float64, Int64, Lens
from memstore.view import Query, lens_called

#: Memories of a category, and as many others, that a lens is learned from at most.
MOST = 2_000
#: Memories that either side must have.
FEWEST = 20
#: Neurons of a lens: few enough to read, and to say aloud.
SIZE, LARGEST = 5, 100


class Lenses:
    """The lenses of a store, by name; those that ship with its encoder are found, not listed."""

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
        return isinstance(name, str) and self._found(name) is not None

    def _found(self, name: str) -> Lens | None:
        return lens_called(name, self._all()) or lens_called(name, self.shipped())

    def __getitem__(self, name: str) -> Lens:
        """Return the lens of this name, saved here or shipped. Raises ``UnknownNeuron``."""
        found = self._found(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownNeuron(f"no lens is called {brief(name)}: `memstore lens list` names them")
        return found

    def hidden_by(self, name: str) -> str | None:
        """Return what a name means now, which a lens of that name will hide; None for nothing."""
        if lens_called(name, self._all()) is not None:
            return "the lens saved before"
        with self._searcher.view() as view:
            try:
                found = view.named(name)
            except UnknownNeuron:
                return None
        return "a lens that ships" if isinstance(found, Lens) else f"N{found}"

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

        It holds for what scores above ``threshold``; of a cosine (``by="dense"``) 0 says little.
        Names in it are resolved now: what they are called later does not change the lens. Raises
        ``InvalidInput`` where a neuron was given that name or the name reads as an expression, and
        what the expression raises.
        """
        self._database.require_writable()
        check_scoring(by)
        known, bound = called(name), checked_threshold(threshold)
        with self._searcher.view() as view:
            query, record = view.resolve(expression, by), view.encoder
        if by == "dense":
            axes_of(self._searcher.load_encoder(record), query)
        return self._save(Lens(known, spelled(query), by, bound), record)

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

        Raises ``InvalidInput`` where either side has too few memories, or nothing tells them apart.
        """
        self._database.require_writable()
        check_scoring(by)
        size = checked_count("neurons", neurons, 1, LARGEST, f"a lens has 1 to {LARGEST}")
        dice = checked_count("seed", seed, 0, 2**63 - 1, "use a whole number from 0")
        known = called(check_category(category) if name is None else name)
        with self._searcher.view() as view:
            record = view.encoder
        directions = None
        if by == "dense":  # before the transaction: a model takes its time
            directions = self._searcher.load_encoder(record).sae.directions()
        with self._searcher.view() as view:
            self._refuse_label(view.connection, record, known)
            material = Material.of(view.connection, record, category, dice, directions)
        inside, values = material.inside, material.values
        fitted = learning.learn(values, inside, size, positive)
        if not fitted.neurons:
            raise InvalidInput(f"nothing tells {brief(category)} from the rest: no lens was saved")
        query = fitted.expression.resolve(int, record.neurons)
        if material.vectors is None:
            scores = fitted.scores(values)
        else:
            axes = axes_of(self._searcher.load_encoder(record), query)
            scores = cosines(material.vectors, axes.direction)
        return self._save(
            Lens(
                name=known,
                expression=str(fitted.expression),
                by=by,
                threshold=learning.threshold(scores, inside),
                grade=round(learning.grade(values, inside, size, dice, positive), 4),
                category=category,
            ),
            record,
        )

    def _refuse_label(self, connection: Connection, record: EncoderRecord, name: str) -> None:
        owner = neurons.number_of_label(connection, record.id, name)
        if owner is not None:
            raise InvalidInput(f"neuron {owner} is called {name!r} already: choose another name")

    def _save(self, lens: Lens, record: EncoderRecord) -> Lens:
        made = replace(lens, created_at=from_microseconds(now()))
        with self._database.write() as tx:
            neurons.require_still(tx.connection, record)
            self._refuse_label(tx.connection, record, lens.name)
            before = lens_called(lens.name, lenses.all_lenses(tx.connection, record.id))
            if before is not None:
                lenses.remove(tx.connection, record.id, before.name)
            lenses.add(tx.connection, record.id, made)
        return made

    def remove(self, name: str) -> None:
        """Take a lens away; what it held for stays.

        Raises ``UnknownNeuron``, ``InvalidInput`` for one that ships.
        """
        known = self[name]
        with self._database.write() as tx:
            record = neurons.require_encoder(tx.connection)
            saved = lens_called(known.name, lenses.all_lenses(tx.connection, record.id))
            if saved is None:
                raise InvalidInput(
                    f"{brief(name)} ships with the encoder: one saved here comes before it"
                )
            lenses.remove(tx.connection, record.id, saved.name)


@dataclass(frozen=True)
class Material:
    """What a lens is learned from: (n, neurons) values, and which rows are of the category.

    ``vectors`` are the (n, d) vectors behind cosines; None where values are activations.
    """

    inside: NDArray[np.bool_]
    values: Float64
    vectors: Float32 | None

    @classmethod
    def of(
        cls,
        connection: Connection,
        record: EncoderRecord,
        category: str,
        seed: int,
        directions: Float32 | None,
    ) -> Material:
        """Return as many memories of a category as others, where neither vector nor trace is lost.

        Values are cosines to ``directions``, activations where there are none. Raises
        ``EncoderMismatch`` where the store has moved to another encoder meanwhile.
        """
        neurons.require_still(connection, record)
        own, ids = sides(connection, category, seed)
        if directions is None:
            fired = traces.by_ids(connection, record.id, ids.tolist(), record.neurons)
            return cls(own[np.isin(ids, fired.ids)], fired.to_dense(), None)
        found, vectors = traces.vectors_by_ids(
            connection, record.id, ids.tolist(), record.dimension
        )
        values = vectors.astype(np.float64) @ directions.T.astype(np.float64)
        return cls(own[np.isin(ids, found)], values, vectors)


def sides(connection: Connection, category: str, seed: int) -> tuple[NDArray[np.bool_], Int64]:
    """Return (which are of the category, ids ascending) of memories of it and of others."""
    dice = np.random.default_rng(seed)
    known, places, names = columns.categories(connection)
    of_it = places == (names.index(category) if category in names else -1)
    parts = [known[of_it], known[~of_it]]
    for part, what in zip(parts, (f"of {brief(category)}", "of other categories"), strict=True):
        if len(part) < FEWEST:
            near = difflib.get_close_matches(category.casefold(), map(str.casefold, names), 1)
            meant = [n for n in names if n.casefold() in near and n != category]
            hint = f"; did you mean {brief(meant[0])}?" if meant else ""
            raise InvalidInput(
                f"{len(part)} memories {what}: a lens is learned from {FEWEST} of either, or "
                f"more{hint}"
            )
    kept = [dice.permutation(part)[:MOST] for part in parts]
    ids = np.sort(np.concatenate(kept))
    return np.isin(ids, kept[0]), ids


# --- what a lens may be ---------------------------------------------------------------------------


def called(name: object) -> str:
    """Return a name that a lens may have: not one that reads as something else."""
    found = check_label(check_name("name", name))
    if found is None:
        raise InvalidInput("a lens needs a name")
    try:
        other = Expression.of(found) != N[found]
    except InvalidExpression:
        other = False  # it has blanks, and goes in quotes
    if other:
        raise InvalidInput(
            f"{found!r} reads as an expression: give the lens another name (--name, name=...)"
        )
    return found


def spelled(query: NeuronQuery) -> str:
    """Return the text that is saved of an expression, which reads back as the same."""
    if not query.terms and not query.conditions:
        raise InvalidExpression("the weights cancel out: nothing is left to save")
    whole = Expression(query.terms, query.conditions)
    if Expression.of(str(whole)) != whole:  # or raises, where it is too long to be read
        raise InvalidExpression("this expression cannot be written down: use plain numbers")
    return str(whole)


def check_scoring(by: object) -> None:
    """Raise ``InvalidInput`` unless a lens may go by this."""
    if by not in get_args(Scoring):
        raise InvalidInput(f"by={brief(by)}: a lens goes by 'trace' or 'dense'")


def check_category(category: object) -> str:
    """Return a category that memories may have."""
    found = check_name("category", category)
    if found is None:
        raise InvalidInput("name the category that the lens is to tell")
    return found


def checked_threshold(value: object) -> float:
    """Return a threshold."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise InvalidInput(f"threshold {brief(value)}: use a number")
    if not -MAX_WEIGHT <= value <= MAX_WEIGHT:
        raise InvalidInput(f"threshold {brief(value)}: use a number of sane size")
    return float(value)


def checked_count(name: str, value: object, least: int, most: int, remedy: str) -> int:
    """Return a whole number within bounds."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise InvalidInput(f"{name}={brief(value)}: {remedy}")
    if not least <= value <= most:
        raise InvalidInput(f"{name}={brief(value)}: {remedy}")
    return int(value)


def checked(lens: Lens, width: int) -> Lens:
    """Return a lens that a stranger wrote. Raises ``InvalidInput`` for what ``save`` would not."""
    check_scoring(lens.by)
    if not isinstance(lens.expression, str):
        raise InvalidInput(f"an expression is text, not {brief(lens.expression)}")
    query = Expression.of(lens.expression).resolve(unnamed, width)
    if lens.by == "dense" and query.conditions:
        raise InvalidInput("a lens by 'dense' has no conditions")
    grade = lens.grade
    if grade is not None and not (isinstance(grade, int | float) and 0 <= grade <= 1):
        raise InvalidInput(f"grade {brief(grade)}: use a number from 0 to 1")
    return replace(
        lens,
        name=called(lens.name),
        expression=spelled(query),
        threshold=checked_threshold(lens.threshold),
        category=check_name("category", lens.category),
    )


def unnamed(name: str) -> int:
    """Raise: what is saved is spelled in numbers."""
    raise InvalidExpression(f"{brief(name)} is a name: a saved lens is of neuron numbers")
