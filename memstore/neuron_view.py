"""``store.neurons``: one neuron at a time, its statistics over this store, and its label."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from memstore.catalog import categories, neurons
from memstore.catalog.engine import Database
from memstore.core.expression import NeuronQuery, NeuronRef
from memstore.core.ranking import best
from memstore.errors import InvalidInput, brief
from memstore.neurons.statistics import category_auc, histogram
from memstore.rows import check_name
from memstore.search import Searcher
from memstore.types import Neuron

#: Memories shown with a neuron.
EXAMPLES = 5


class Neurons:
    """The neurons of a store's encoder, by number or label. ``len`` is how many there are."""

    def __init__(self, database: Database, searcher: Searcher) -> None:
        self._database, self._searcher = database, searcher

    def __len__(self) -> int:
        with self._database.read() as connection:
            return neurons.require_encoder(connection).neurons

    def __iter__(self) -> Iterator[Neuron]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, ref: NeuronRef) -> Neuron:
        """Return what is known of one neuron. Raises ``UnknownNeuron``."""
        with self._searcher.view() as view:
            number = view.resolve({ref: 1.0}).terms[0][0]
            query = NeuronQuery(((number, 1.0),))
            fired = self._searcher.ask(view, lambda index: index.activations(number))
            everywhere = self._searcher.ask(view, lambda index: index.weighted(query))
            order = np.argsort(everywhere.ids)
            ids, activations = everywhere.ids[order], everywhere.scores[order]
            members: dict[str, NDArray[np.bool_]] = {}
            known = set(ids.tolist())
            for memory_id, name in categories.by_memory(view.connection):
                if memory_id not in known:
                    continue  # its trace is lost: `check` reports it
                mask = members.setdefault(name, np.zeros(len(ids), dtype=bool))
                mask[np.searchsorted(ids, memory_id)] = True
            label, grade = neurons.label(view.connection, view.encoder.id, number)
            return Neuron(
                id=number,
                label=label,
                grade=grade,
                fires=len(fired),
                fire_rate=len(fired) / len(ids) if len(ids) else 0.0,
                mean=float(fired.scores.mean()) if len(fired) else 0.0,
                maximum=float(fired.scores.max(initial=0.0)),
                histogram=histogram(fired.scores),
                categories=category_auc(activations, members),
                top=self._searcher.composite_hits(view, query, best(fired, EXAMPLES)),
            )

    def label(self, neuron: NeuronRef, name: str | None, grade: float | None = None) -> None:
        """Name a neuron, so that expressions can use the name; None takes the name away.

        Labels are hypotheses: ``grade`` (0 to 1) says how far this one could be trusted.
        """
        if grade is not None and (not isinstance(grade, int | float) or not 0 <= grade <= 1):
            raise InvalidInput(f"grade {brief(grade)}: use a number from 0 to 1")
        name = check_label(name)
        with self._searcher.view() as view:
            number = view.resolve({neuron: 1.0}).terms[0][0]
        with self._database.write() as tx:
            encoder_id = neurons.require_encoder(tx.connection).id
            owner = None
            if name is not None:
                owner = neurons.number_of_label(tx.connection, encoder_id, name)
            if owner not in (None, number):
                raise InvalidInput(
                    f"neuron {owner} is called {name!r} already: choose another name"
                )
            neurons.set_label(tx.connection, encoder_id, number, name, grade)

    def of(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return ``{neuron: label}`` of those of these neurons that have one."""
        with self._database.read() as connection:
            encoder_id = neurons.require_encoder(connection).id
            return neurons.labels(connection, encoder_id, numbers)

    def labels(self) -> list[str]:
        """Return every label given so far, by name."""
        with self._database.read() as connection:
            return neurons.all_labels(connection, neurons.require_encoder(connection).id)


def check_label(name: str | None) -> str | None:
    """Return a label without blanks at its ends. Raises for one that reads as a number."""
    label = check_name("label", name)
    if label is None:
        return None
    label = " ".join(label.split())
    if re.fullmatch(r"N?[0-9]+", label):
        raise InvalidInput(f"{label!r} would be read as the number of a neuron: use a word")
    return label
