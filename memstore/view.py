"""One state of a store: the read transaction a query runs in and what holds throughout it."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar

import numpy as np
from sqlalchemy import ColumnElement, Connection

from memstore.catalog import lenses, memories, neurons, traces
from memstore.catalog.filters import MAX_DEPTH, Holding, compile_filter
from memstore.catalog.memories import HitRow
from memstore.catalog.neurons import EncoderRecord, StoreState
from memstore.core.expression import Expression, N, NeuronQuery, NeuronRef, check_ref
from memstore.core.ranking import Ranked, decay, decayed
from memstore.errors import IndexDamaged, InvalidExpression, UnknownNeuron, brief
from memstore.index.question import Work
from memstore.index.selection import Selection
from memstore.indices import Moment
from memstore.neurons.dictionary import Names, dictionary_of, find
from memstore.neurons.lens import lenses_of
from memstore.rows import now
from memstore.types import Int64, Lens, Step, Trace

T = TypeVar("T")
Where = Mapping[str, Any]
Query = Expression | str | int | Mapping[NeuronRef, float]

#: Filters whose memories are remembered, as long as nobody writes.
REMEMBERED = 8
#: Larger filters are compiled each time.
REMEMBERED_ITEMS = 1_000_000
#: A filter inside ``$and``, ``$or`` or ``$nor`` is two deeper than the one around it.
NESTED = 2 * MAX_DEPTH + 4
#: What a filter compares with.
PLAIN = frozenset({str, int, float, bool, type(None), datetime})
FilterKey = tuple[int, str]


class Filters:
    """The selections of the filters asked last, while the store stays as it is."""

    def __init__(self) -> None:
        self._known: dict[FilterKey, Selection] = {}
        self._lock = threading.Lock()

    def find(self, moment: Moment, where: Where, holding: Holding) -> Selection:
        """Return the memories that pass a filter; ``holding`` answers ``$holds``."""
        if not is_plain(where):
            query = memories.ids_query(moment.connection, compile_filter(where, holding))
            return Selection(memories.run_ids_query(moment.connection, query))
        # Filters of equal text are equal where nothing in them writes its own text.
        key = (moment.state.change, repr(where))
        with self._lock:
            found = self._known.get(key)
        if found is not None:
            return found
        query = memories.ids_query(moment.connection, compile_filter(where, holding))
        found = Selection(memories.run_ids_query(moment.connection, query), kept=True)
        with self._lock:
            current = [(k, v) for k, v in self._known.items() if k[0] == key[0]]
            self._known = dict([*current, (key, found)][-REMEMBERED:])
        return found


def is_plain(where: object) -> bool:
    """Return whether a filter is made of Python's own types alone, no classes derived from them.

    And can be written out: not where it is nested deeper, or larger, than a filter may be.
    """
    layer: list[Any] = [where]
    items = 0
    for _ in range(NESTED):
        inner: list[Any] = []
        for value in layer:
            kind = type(value)
            if kind is dict:
                if not all(type(name) is str for name in value):
                    return False
                inner.extend(value.values())
            elif kind is list or kind is tuple:
                inner.extend(value)
            elif kind not in PLAIN or (kind is int and not -(2**63) <= value < 2**63):
                return False
            if items + len(inner) > REMEMBERED_ITEMS:
                return False
        if not inner:
            return True
        layer, items = inner, items + len(inner)
    return False


#: What a lens of either kind scores.
SCORES = {"trace": "scores what fired", "dense": "scores vectors"}
#: Near names offered for one that nobody gave.
NEAR = 4


def lens_called(name: str, lenses: Iterable[Lens]) -> Lens | None:
    """Return the lens of this name, capitals and blanks aside."""
    wanted = neurons.alike(name)
    return next((lens for lens in lenses if neurons.alike(lens.name) == wanted), None)


@dataclass(frozen=True)
class View:
    """One state of the store: the transaction a query runs in and what holds throughout it."""

    moment: Moment
    filters: Filters
    holds: Callable[[View, Query | Lens], Sequence[int]] = field(repr=False)
    """Returns the ids of the memories that an expression finds in this state."""
    steps: list[Step] | None = None
    """Where steps are noted while somebody watches (``explain_query``)."""

    def note(self, name: str, work: Work, began: float) -> None:
        """Note what an index did since ``began`` (``time.perf_counter``)."""
        if self.steps is not None:
            elapsed = 1e3 * (time.perf_counter() - began)
            self.steps.append(Step(name, work.plan, work.postings, work.rows, elapsed))

    def note_rows(self, name: str, plan: str, rows: int, began: float) -> None:
        """Note a step that read so many rows."""
        self.note(name, Work(plan, rows=rows), began)

    @property
    def connection(self) -> Connection:
        """The read transaction."""
        return self.moment.connection

    @property
    def state(self) -> StoreState:
        """What the transaction shows."""
        return self.moment.state

    @property
    def encoder(self) -> EncoderRecord:
        """The encoder whose traces are served."""
        return self.moment.encoder

    def named(self, name: str) -> int | Lens:
        """Return the neuron or lens of this name.

        A label given here comes first, then a lens saved here, then the dictionary's labels and the
        lenses that ship, then labels made here. Raises ``UnknownNeuron``, with near names.
        """
        number = neurons.number_of_label(self.connection, self.encoder.id, name)
        saved = lenses.all_lenses(self.connection, self.encoder.id)
        found: int | Lens | None = number if number is not None else lens_called(name, saved)
        dictionary = None if found is not None else dictionary_of(self.encoder.fingerprint)
        if dictionary is not None:
            found = dictionary.number(name)
        if found is None:
            found = lens_called(name, lenses_of(self.encoder.fingerprint))
        if found is None:
            found = neurons.number_of_label(self.connection, self.encoder.id, name, made=True)
        if found is None:
            known = neurons.all_labels(self.connection, self.encoder.id)
            known += [lens.name for lens in saved]
            near = difflib.get_close_matches(name, known, NEAR)
            if dictionary is not None:
                near += [str(entry.label) for entry in find(dictionary.entries, name, NEAR)]
            hint = "give it one: `memstore neuron STORE 15 --label grief`, store.neurons.label()"
            if near:
                hint = f"did you mean {', '.join(map(brief, dict.fromkeys(near)))}?"
            elif not known and dictionary is None:
                hint = (
                    "the neurons of this store's encoder have no names: "
                    "`memstore labels make STORE` writes some"
                )
            raise UnknownNeuron(f"no neuron is called {brief(name)}: {hint}")
        return found

    def number(self, ref: NeuronRef) -> int:
        """Return the number of one neuron. Raises ``UnknownNeuron``, also for a lens."""
        check_ref(ref)
        found = self.named(ref) if isinstance(ref, str) else ref
        if isinstance(found, Lens):
            raise UnknownNeuron(f"{brief(ref)} is a lens, not a neuron: see `memstore lens list`")
        return self.resolve({found: 1.0}).terms[0][0]

    def whole(self, expression: Query) -> Expression:
        """Return an expression; the bare name of a neuron or lens is one, blanks and all."""
        try:
            return Expression.of(expression)
        except InvalidExpression as error:
            if not isinstance(expression, str) or not expression.strip():
                raise
            try:
                self.named(expression.strip())
            except UnknownNeuron:
                raise error from None
            return N[expression.strip()]

    def lens(self, expression: Query | Lens) -> Lens | None:
        """Return the lens that an expression consists of, None where it is anything else."""
        if isinstance(expression, Lens):
            return expression
        whole = self.whole(expression)
        if whole.conditions or len(whole.terms) != 1:
            return None
        [(ref, weight)] = whole.terms
        found = self.named(ref) if isinstance(ref, str) and weight == 1 else None
        return found if isinstance(found, Lens) else None

    def resolve(self, expression: Query, by: Literal["trace", "dense"] = "trace") -> NeuronQuery:
        """Return an expression with its names resolved, to be asked of traces or of vectors.

        What a lens stands for is spelled in numbers, and asked like any expression of those.

        Raises ``InvalidExpression`` where a lens in it was made for the other.
        """

        def meant(name: str) -> int | Expression:
            found = self.named(name)
            if not isinstance(found, Lens):
                return found
            if found.by != by:
                raise InvalidExpression(
                    f"{brief(name)} is a lens by={found.by!r}, which {SCORES[found.by]}: ask for "
                    f"it alone, or learn one by={by!r} to mix it (`lens learn --by {by}`)"
                )
            return Expression.of(found.expression)

        return self.whole(expression).resolve(meant, self.encoder.neurons)

    def compile(self, where: Where | None) -> ColumnElement[bool] | None:
        """Return a filter as SQL; none where there is none."""
        return None if where is None else compile_filter(where, self.holding)

    def holding(self, expression: Query | Lens) -> Sequence[int]:
        """Return the ids of the memories that an expression finds, or a lens holds for."""
        return self.holds(self, expression)

    def selected(self, where: Where | None) -> Selection | None:
        """Return the memories that pass a filter, or None where there is none."""
        if where is None:
            return None
        began = time.perf_counter()
        found = self.filters.find(self.moment, where, self.holding)
        self.note_rows("filter", "SQL", len(found), began)
        return found

    def fade(self, found: Ranked, half_life: float | None) -> Ranked:
        """Return the scores faded by age, counted from ``occurred_at``, else ``created_at``."""
        if half_life is None or not len(found):
            return found
        times = complete(memories.times(self.connection, found.ids.tolist()), found.ids)
        born = np.array([times[i] for i in found.ids.tolist()], dtype=np.float64)
        factors = decay((now() - born) / 1e6, half_life)
        return Ranked(found.ids, decayed(found.scores, factors))

    def labels(self, wanted: list[int]) -> Mapping[int, str]:
        """Return the labels of these neurons, given here or in the dictionary."""
        given, made = neurons.labels(self.connection, self.encoder.id, wanted)
        return Names(given, made, self.encoder.fingerprint)

    def traces(self, ids: Int64) -> dict[int, Trace]:
        """Return ``{id: trace}``."""
        found = traces.by_ids(self.connection, self.encoder.id, ids.tolist(), self.encoder.neurons)
        return dict(zip(found.ids.tolist(), found, strict=True))

    def rows(self, ids: Int64) -> dict[int, HitRow]:
        """Return ``{id: what a hit shows of it}`` of ids that an index names."""
        return complete(memories.hit_rows(self.connection, ids.tolist()), ids)


def complete(rows: dict[int, T], ids: Int64) -> dict[int, T]:
    """Return the rows of ids that an index names. Raises ``IndexDamaged`` where some have none.

    Index and rows are of one state, so an id without a row, or one that comes twice, is no answer.
    """
    if len(rows) != len(ids):
        raise IndexDamaged("the index names memories that are not in the store")
    return rows
