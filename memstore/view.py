"""One state of a store: the read transaction a query runs in and what holds throughout it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection

from memstore.catalog import memories, neurons, traces
from memstore.catalog.filters import compile_filter
from memstore.catalog.neurons import EncoderRecord, StoreState
from memstore.core.expression import Expression, NeuronQuery, NeuronRef
from memstore.core.ranking import Ranked, decay, decayed
from memstore.errors import UnknownNeuron
from memstore.rows import now
from memstore.types import Int64, Memory, Trace

Where = Mapping[str, Any]
Query = Expression | str | int | Mapping[NeuronRef, float]


@dataclass(frozen=True)
class View:
    """One state of the store: the transaction a query runs in and what holds throughout it."""

    connection: Connection
    state: StoreState
    encoder: EncoderRecord

    def number(self, name: str) -> int:
        """Return the neuron with this label. Raises ``UnknownNeuron``, with near names."""
        found = neurons.number_of_label(self.connection, self.encoder.id, name)
        if found is None:
            known = neurons.all_labels(self.connection, self.encoder.id)
            near = difflib.get_close_matches(name, known, 3)
            hint = (
                f"did you mean {', '.join(map(repr, near))}?"
                if near
                else (
                    "give it one: `memstore neuron STORE 15 --label grief`, store.neurons.label()"
                )
            )
            raise UnknownNeuron(f"no neuron is called {name!r}: {hint}")
        return found

    def resolve(self, expression: Query) -> NeuronQuery:
        """Return an expression with its names resolved."""
        return Expression.of(expression).resolve(self.number, self.encoder.neurons)

    def compile(self, where: Where | None) -> ColumnElement[bool] | None:
        """Return a filter as SQL; none where there is none."""
        return None if where is None else compile_filter(where)

    def allowed(self, where: Where | None) -> Int64 | None:
        """Return the ids that pass a filter, ascending, or None where there is none."""
        if where is None:
            return None
        return np.array(memories.ids(self.connection, compile_filter(where)), dtype=np.int64)

    def fade(self, found: Ranked, half_life: float | None) -> Ranked:
        """Return the scores faded by age, counted from ``occurred_at``, else ``created_at``."""
        if half_life is None or not len(found):
            return found
        times = memories.times(self.connection, found.ids.tolist())
        born = np.array([times[i] for i in found.ids.tolist()], dtype=np.float64)
        factors = decay((now() - born) / 1e6, half_life)
        return Ranked(found.ids, decayed(found.scores, factors))

    def labels(self, wanted: list[int]) -> dict[int, str]:
        """Return the labels of these neurons."""
        return neurons.labels(self.connection, self.encoder.id, wanted)

    def traces(self, ids: Int64) -> dict[int, Trace]:
        """Return ``{id: trace}``."""
        found = traces.by_ids(self.connection, self.encoder.id, ids.tolist(), self.encoder.neurons)
        return dict(zip(found.ids.tolist(), found, strict=True))

    def rows(self, ids: Int64) -> dict[int, Memory]:
        """Return ``{id: memory}``."""
        return memories.by_ids(self.connection, ids.tolist())
