"""What one memory means, and two beside each other, in words: no model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from memstore.catalog import links, memories, traces
from memstore.errors import MemoryNotFound
from memstore.neurons.dictionary import dictionary_of
from memstore.neurons.statistics import STRONG
from memstore.search import Searcher
from memstore.types import Memory, Trace
from memstore.view import View


@dataclass(frozen=True)
class Fired:
    """A neuron that fires for a memory."""

    neuron: int
    label: str | None
    activation: float
    share: float
    """Of the neuron's largest activation: in this store, or, if that is more, of the mean of its
    three largest where the dictionary was written."""
    fire_rate: float
    """Share of the store's memories it fires for."""

    @property
    def strong(self) -> bool:
        """Whether it fires so strongly that its label can be taken at its word."""
        return self.share >= STRONG


@dataclass(frozen=True)
class Meaning:
    """A memory and what fires for it, the largest share first."""

    memory: Memory
    fires: tuple[Fired, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "memory": self.memory.to_dict(),
            "fires": [asdict(one) | {"strong": one.strong} for one in self.fires],
        }


@dataclass(frozen=True)
class Difference:
    """Two memories: what fires for both, and for one alone."""

    one: Memory
    other: Memory
    cosine: float
    """Of their vectors."""
    shared: tuple[tuple[Fired, Fired], ...]
    """By the smaller of the two shares, largest first."""
    only_one: tuple[Fired, ...]
    only_other: tuple[Fired, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "one": self.one.to_dict(),
            "other": self.other.to_dict(),
            "cosine": self.cosine,
            "shared": [[asdict(a), asdict(b)] for a, b in self.shared],
            "only_one": [asdict(fired) for fired in self.only_one],
            "only_other": [asdict(fired) for fired in self.only_other],
        }


def explain(searcher: Searcher, id: int) -> Meaning:
    """Return what one memory means. Raises ``MemoryNotFound``."""
    with searcher.view() as view:
        [memory], [trace] = stored(view, id)
        return Meaning(memory, in_words(searcher, view, trace))


def diff(searcher: Searcher, one: int, other: int) -> Difference:
    """Return two memories beside each other. Raises ``MemoryNotFound``."""
    with searcher.view() as view:
        both, fired = stored(view, one, other)
        record = view.encoder
        _, vectors = traces.vectors_by_ids(
            view.connection, record.id, sorted({one, other}), record.dimension
        )
        a, b = ({f.neuron: f for f in in_words(searcher, view, trace)} for trace in fired)
    shared = sorted(
        ((a[n], b[n]) for n in a.keys() & b.keys()),
        key=lambda pair: (-min(pair[0].share, pair[1].share), pair[0].neuron),
    )
    first, second = both
    return Difference(
        first,
        second,
        cosine=float(np.clip(vectors[0] @ vectors[-1], -1.0, 1.0)),
        shared=tuple(shared),
        only_one=tuple(fired for n, fired in a.items() if n not in b),
        only_other=tuple(fired for n, fired in b.items() if n not in a),
    )


def copies(searcher: Searcher, id: int) -> list[Difference]:
    """Return a memory beside each that it is linked with. Raises ``MemoryNotFound``."""
    with searcher.view() as view:
        stored(view, id)
        linked = [other for other, _ in links.of(view.connection, id)]
    return [diff(searcher, id, other) for other in linked]


def stored(view: View, *ids: int) -> tuple[list[Memory], list[Trace]]:
    """Return memories and their traces, in the order asked for."""
    rows: Mapping[int, Memory] = memories.by_ids(view.connection, list(ids))
    found = view.traces(np.array(sorted(set(ids) & rows.keys()), dtype=np.int64))
    for id in ids:
        if id not in found:
            raise MemoryNotFound(f"no memory has id {id}: `list` shows which there are")
    return [rows[id] for id in ids], [found[id] for id in ids]


def in_words(searcher: Searcher, view: View, trace: Trace) -> tuple[Fired, ...]:
    """Return the neurons of a trace, the largest share first."""
    labels = view.labels(trace.neurons.tolist())
    dictionary = dictionary_of(view.encoder.fingerprint)
    total = max(memories.count(view.connection, None), 1)

    def fired(neuron: int, activation: float) -> Fired:
        everywhere = searcher.ask(view, lambda index: index.activations(neuron))
        elsewhere = dictionary.entries[neuron].top if dictionary is not None else None
        largest = max(activation, elsewhere or 0.0, float(everywhere.scores.max(initial=0.0)))
        rate = len(everywhere) / total
        return Fired(neuron, labels.get(neuron), activation, activation / largest, rate)

    found = [fired(neuron, activation) for neuron, activation in trace.to_dict().items()]
    return tuple(sorted(found, key=lambda one: (-one.share, one.neuron)))
