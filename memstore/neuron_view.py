"""``store.neurons``: one neuron at a time, its statistics over this store, and its label."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from memstore import composites
from memstore.catalog import columns, neurons
from memstore.catalog.columns import to_months
from memstore.catalog.engine import Database
from memstore.catalog.neurons import Label
from memstore.core.expression import NeuronQuery, NeuronRef
from memstore.core.ranking import Ranked, best
from memstore.errors import InvalidInput, brief
from memstore.neurons.dictionary import Entry, Names, dictionary_of, find
from memstore.neurons.statistics import company, histogram, strata, tellings
from memstore.options import check_k
from memstore.progress import Report
from memstore.rows import check_label
from memstore.search import Searcher
from memstore.types import Int64, Neuron
from memstore.view import View

if TYPE_CHECKING:
    # What makes labels is loaded where labels are made.
    from memstore.jobs.job import Job
    from memstore.labelling import Made

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
            number = view.number(ref)
            query = NeuronQuery(((number, 1.0),))
            fired = self._searcher.ask(view, lambda index: index.activations(number))
            everywhere = self._searcher.ask(view, lambda index: index.weighted(query))
            both, fires = self._searcher.ask(view, lambda i: (i.together(number), i.fires))
            order = np.argsort(everywhere.ids)
            ids, activations = everywhere.ids[order], everywhere.scores[order]
            told = tellings(activations, members(view.connection, ids))
            own = called(view, number)
            spread = strata(fired.scores)
            return Neuron(
                id=number,
                label=own.label,
                grade=own.grade,
                sentence=own.sentence,
                fires=len(fired),
                fire_rate=len(fired) / len(ids) if len(ids) else 0.0,
                mean=float(fired.scores.mean()) if len(fired) else 0.0,
                maximum=float(fired.scores.max(initial=0.0)),
                histogram=histogram(fired.scores),
                categories={one.category: one.auc for one in told},
                tells=told,
                months=by_month(columns.moments(view.connection, fired.ids)[1]),
                company=company(number, both, fires, len(ids)),
                top=composites.hits_of(view, query, best(fired, EXAMPLES)),
                strata=composites.hits_of(
                    view, query, Ranked(fired.ids[spread], fired.scores[spread])
                ),
            )

    def alike(self, ref: NeuronRef, k: int = 8) -> list[tuple[int, float]]:
        """Return (neuron, cosine) of the k nearest directions in the decoder, nearest first.

        Loads the SAE. Raises ``UnknownNeuron``, ``InvalidWeights`` for one without directions.
        """
        check_k(k)
        with self._searcher.view() as view:
            number, record = view.number(ref), view.encoder
        directions = self._searcher.load_encoder(record).sae.directions()
        cosines = directions @ directions[number]
        order = np.lexsort((np.arange(len(cosines)), -cosines))
        return [(int(n), float(cosines[n])) for n in order[order != number][:k]]

    def label(self, neuron: NeuronRef, name: str | None, grade: float | None = None) -> None:
        """Name a neuron, so that expressions can use the name; None takes the name away.

        Labels are hypotheses: ``grade`` (0 to 1) says how far this one could be trusted.
        """
        if grade is not None and (not isinstance(grade, int | float) or not 0 <= grade <= 1):
            raise InvalidInput(f"grade {brief(grade)}: use a number from 0 to 1")
        name = check_label(name)
        with self._searcher.view() as view:
            number, record = view.number(neuron), view.encoder
        with self._database.write() as tx:
            neurons.require_still(tx.connection, record)
            encoder_id = record.id
            owner = None
            if name is not None:
                owner = neurons.number_of_label(tx.connection, encoder_id, name)
            if owner not in (None, number):
                raise InvalidInput(
                    f"neuron {owner} is called {name!r} already: choose another name"
                )
            neurons.set_label(tx.connection, encoder_id, Label(number, name, grade))

    def of(self, numbers: Sequence[int]) -> dict[int, str]:
        """Return ``{neuron: label}`` of those of these neurons that have one."""
        with self._database.read() as connection:
            encoder = neurons.require_encoder(connection)
            given, made = neurons.labels(connection, encoder.id, numbers)
            known = Names(given, made, encoder.fingerprint)
            return {number: known[number] for number in numbers if number in known}

    def find(self, words: str, count: int = 10) -> list[Entry]:
        """Return the labels nearest to some words, best first: given here, read, or made here.

        By words and spelling, not by meaning.
        """
        with self._database.read() as connection:
            record = neurons.require_encoder(connection)
            own = neurons.label_rows(connection, record.id)
        dictionary = dictionary_of(record.fingerprint)
        shown = {row.neuron: Entry(**row._asdict()) for row in own if row.method in neurons.MADE}
        if dictionary is not None:
            shown |= {entry.neuron: entry for entry in dictionary.entries if entry.label}
        shown |= {
            row.neuron: Entry(**row._asdict()) for row in own if row.method not in neurons.MADE
        }
        return find(shown.values(), words, count)

    def make_labels(self, report: Report | None = None) -> list[Made]:
        """Write labels from this store's own texts, without a model, and store the clear ones.

        A label given by hand stays, and the dictionary's come first. Returns one a neuron, with its
        grade: AUC on texts kept apart. Of a store of more than ``SAMPLE`` memories, the newest are
        looked at. Raises ``StoreReadOnly``, and what the encoder raises.
        """
        from memstore import labelling

        self._database.require_writable()
        with self._searcher.view() as view:
            record = view.encoder
            encoder = self._searcher.load_encoder(record)
            texts, vectors, traces = labelling.material(view.connection, record)
        made = labelling.make_labels(texts, vectors, traces, encoder, report)
        with self._database.write() as tx:
            neurons.require_still(tx.connection, record)
            labelling.store_labels(tx.connection, record.id, made)
        return made

    def plan_labels(
        self,
        folder: str | os.PathLike[str],
        model: str,
        wanted: Sequence[int] | None = None,
        **facts: Any,
    ) -> Job:
        """Write a job that has a language model explain neurons, all by default.

        Raises ``UnknownNeuron``, ``JobError`` where ``folder`` holds a job, ``InvalidInput`` where
        no neuron fires often enough.
        """
        from memstore import labelling, model_labels

        with self._searcher.view() as view:
            record = view.encoder
            numbers = range(record.neurons) if wanted is None else wanted
            view.resolve(dict.fromkeys((*numbers[:1], *numbers[-1:]), 1.0))
            texts, vectors, traces = labelling.material(view.connection, record)
        sheets = model_labels.make_sheets(numbers, texts, vectors, traces)
        return model_labels.plan(
            Path(folder), model, record.fingerprint, record.name, sheets, **facts
        )

    def made(self) -> dict[int, tuple[str, float | None]]:
        """Return ``{neuron: (label, grade)}`` of the labels that were made here, shown or not."""
        with self._database.read() as connection:
            rows = neurons.label_rows(connection, neurons.require_encoder(connection).id)
        return {
            row.neuron: (str(row.label), row.grade) for row in rows if row.method in neurons.MADE
        }

    def export_labels(self, path: str | os.PathLike[str]) -> int:
        """Write the labels given or made here to a new file; returns how many."""
        from memstore import labelling

        with self._database.read() as connection:
            return labelling.export_labels(connection, Path(path))

    def import_labels(self, path: str | os.PathLike[str]) -> int:
        """Take the labels of such a file; returns how many.

        Raises ``InvalidFile``, and ``EncoderMismatch`` for labels of another encoder's neurons.
        """
        from memstore import labelling

        with self._database.write() as tx:
            return labelling.import_labels(tx.connection, Path(path))

    def labels(self) -> list[str]:
        """Return every label given in this store so far, by name."""
        with self._database.read() as connection:
            return neurons.all_labels(connection, neurons.require_encoder(connection).id)


def called(view: View, number: int) -> Label | Entry:
    """Return what a neuron is called: the label given here, else read, else made here."""
    own: Label | Entry = neurons.label(view.connection, view.encoder.id, number)
    dictionary = dictionary_of(view.encoder.fingerprint)
    if dictionary is not None and (own.label is None or own.method in neurons.MADE):
        read = dictionary.entries[number]
        own = read if read.label is not None or own.label is None else own
    return own


def members(connection: Connection, ids: Int64) -> dict[str, NDArray[np.bool_]]:
    """Return ``{category: which of these memories (ids ascending) are of it}``."""
    known, places, names = columns.categories(connection)
    here = np.isin(known, ids)  # where a trace is lost `check` reports it
    at, own = np.searchsorted(ids, known[here]), places[here]
    found = {}
    for place, name in enumerate(names):
        mask = np.zeros(len(ids), dtype=bool)
        mask[at[own == place]] = True
        found[name] = mask
    return found


def by_month(times: Int64) -> dict[str, int]:
    """Return ``{month: how many of these times}``."""
    months, counts = np.unique(to_months(times), return_counts=True)
    return dict(zip(months.astype(str).tolist(), counts.tolist(), strict=True))
