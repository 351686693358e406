"""What a store is about: what fires most, sets its groups apart, is new, or is there twice.

Counted are strong firings alone, for of those a label can be taken at its word (docs/neurons.md).
No model is asked; all is read from the neuron index and two columns of the catalog.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from memstore.catalog import columns, traces
from memstore.core.vectors import NEAR_COPY
from memstore.errors import InvalidQuery, brief
from memstore.neurons.dictionary import dictionary_of
from memstore.neurons.statistics import STRONG, benjamini_hochberg
from memstore.search import Searcher
from memstore.types import Int64, Traces
from memstore.view import View

By = Literal["category", "month"]
#: Memories of a group in which a neuron fires strongly, at least.
FEWEST = 5
#: False discoveries among what is told of groups, at most (Benjamini and Hochberg 1995).
FALSE = 0.01
#: Neurons told of the whole store, of each group, and of what is new.
TOLD = 8
#: The share of the memories, those stored last, that is looked at for what is new.
NEWEST = 0.1
#: Cosine and strong neurons in common from which two memories are near-copies.
NEAR, ALIKE = NEAR_COPY, 3
#: Pairs of near-copies told, and candidates looked at.
PAIRS, CANDIDATES = 20, 1_000
#: Times that a pair may be found, by each neuron they can do without.
MANY = 32


@dataclass(frozen=True)
class Told:
    """A neuron, and in what share of some memories it fires strongly."""

    neuron: int
    label: str | None
    memories: int
    rate: float
    elsewhere: float
    """The share among the others; 0 for the whole store."""
    adjusted_p: float | None = None
    """Of a two-proportion z-test, adjusted by Benjamini and Hochberg over neurons and groups."""

    @property
    def lift(self) -> float:
        """How many times as often as elsewhere; infinite where it fires nowhere else."""
        return self.rate / self.elsewhere if self.elsewhere else math.inf


@dataclass(frozen=True)
class Audit:
    """What a store is about."""

    memories: int
    common: tuple[Told, ...]
    """What fires strongly for most memories."""
    groups: dict[str, tuple[Told, ...]]
    """What fires strongly more often in a group than outside, best told apart first."""
    new: tuple[Told, ...]
    """What fires strongly for the tenth stored last and never did before."""
    copies: tuple[tuple[int, int, float], ...]
    """(id, other id, cosine) of near-copies: cosine 0.95 or more, strong neurons nearly alike."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def audit(searcher: Searcher, by: By = "category") -> Audit:
    """Return what a store is about, its memories grouped by category or month (UTC).

    Raises ``InvalidQuery``.
    """
    if by not in get_args(By):
        raise InvalidQuery(f"by={brief(by)}: use 'category' or 'month'")
    with searcher.view() as view:
        all_traces: Traces = searcher.ask(view, lambda index: index.traces())
        strong = strong_firings(view, all_traces)
        codes, names = grouped(view, all_traces.ids, by)
        counts = np.bincount(strong[1], minlength=all_traces.width)
        over = dict(over_represented(strong, codes, len(names), counts))
        newest = newest_of(strong, len(all_traces), counts)
        copies = tuple(near_copies(view, all_traces.ids, strong))
        shown = {n for found in (*over.values(), newest) for n, *_ in found}
        common = np.argsort(-counts, kind="stable")[:TOLD].tolist()
        labels = view.labels([*shown, *common])
    total = max(len(all_traces), 1)

    def told(found: Sequence[tuple[int, int, float, float, float | None]]) -> tuple[Told, ...]:
        return tuple(Told(n, labels.get(n), c, rate, other, p) for n, c, rate, other, p in found)

    return Audit(
        len(all_traces),
        told([(n, int(counts[n]), int(counts[n]) / total, 0.0, None) for n in common if counts[n]]),
        {name: told(over.get(code, [])) for code, name in enumerate(names)},
        told(newest),
        copies,
    )


def strong_firings(view: View, all_traces: Traces) -> tuple[Int64, Int64]:
    """Return (rows, neurons) of the strong firings, rows ascending."""
    activations, neurons = all_traces.activations, all_traces.neurons
    # Positive float16 sort as the whole numbers that their bits are, which is far quicker.
    bits = np.zeros(all_traces.width, dtype=np.uint16)
    np.maximum.at(bits, neurons, activations.view(np.uint16))
    largest = bits.view(np.float16).astype(np.float32)
    if (dictionary := dictionary_of(view.encoder.fingerprint)) is not None:
        tops = np.array([entry.top or 0.0 for entry in dictionary.entries], dtype=np.float32)
        largest = np.maximum(largest, tops)
    strong = np.flatnonzero(activations >= (STRONG * largest)[neurons])
    rows = np.searchsorted(all_traces.indptr, strong, side="right") - 1
    return rows, neurons[strong].astype(np.int64)


def grouped(view: View, ids: Int64, by: By) -> tuple[Int64, list[str]]:
    """Return the group of each of these memories, -1 for none, and the groups' names."""
    if by == "month":
        known, times = columns.moments(view.connection)
        # Months are few and close together: counted, not sorted.
        numbers = columns.to_months(times).astype(np.int64)
        first = int(numbers.min()) if len(numbers) else 0
        present = np.flatnonzero(np.bincount(numbers - first))
        own = np.searchsorted(present, numbers - first)
        names = [str(np.datetime64(first + int(number), "M")) for number in present]
    else:
        known, own, names = columns.categories(view.connection)
    codes = np.full(len(ids), -1, dtype=np.int64)
    if len(known):
        places = np.searchsorted(known, ids).clip(max=len(known) - 1)
        here = known[places] == ids
        codes[here] = own[places[here]]
    return codes, names


Found = tuple[int, int, float, float, float | None]


def over_represented(
    strong: tuple[Int64, Int64], codes: Int64, groups: int, counts: Int64
) -> Iterator[tuple[int, list[Found]]]:
    """Yield (group, what fires strongly there more often than elsewhere), best told apart first."""
    rows, neurons = strong
    width = len(counts)
    inside = codes[rows] >= 0
    table = np.bincount(
        codes[rows[inside]] * width + neurons[inside], minlength=groups * width
    ).reshape(groups, width)
    sizes = np.bincount(codes[codes >= 0], minlength=groups)
    everyone = len(codes)
    tested = []
    for group in range(groups):
        size, others = int(sizes[group]), everyone - int(sizes[group])
        for neuron in np.flatnonzero(table[group] >= FEWEST).tolist() if others else []:
            count = int(table[group, neuron])
            rate, other = count / size, (int(counts[neuron]) - count) / others
            if rate > other:
                p = z_test(rate, size, other, others)
                tested.append((p, group, neuron, count, rate, other))
    adjusted = benjamini_hochberg(np.array([one[0] for one in tested]))
    found: dict[int, list[tuple[float, Found]]] = {}
    for (p, group, neuron, count, rate, other), q in zip(tested, adjusted.tolist(), strict=True):
        if q <= FALSE:
            found.setdefault(group, []).append((p, (neuron, count, rate, other, q)))
    for group, own in found.items():
        yield group, [one for _, one in sorted(own, key=lambda pair: (pair[0], pair[1][0]))[:TOLD]]


def z_test(rate: float, size: int, other: float, others: int) -> float:
    """Return the two-sided p of a two-proportion z-test, pooled variance."""
    pooled = (rate * size + other * others) / (size + others)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / size + 1 / others))
    return math.erfc(abs(rate - other) / spread / math.sqrt(2)) if spread > 0 else 1.0


def newest_of(strong: tuple[Int64, Int64], total: int, counts: Int64) -> list[Found]:
    """Return what fires strongly for the tenth stored last and for nothing older, most first."""
    size = int(total * NEWEST)
    rows, neurons = strong
    late = rows >= total - size
    fresh = np.bincount(neurons[late], minlength=len(counts))
    chosen = np.flatnonzero((fresh > 0) & (fresh == counts))
    best = chosen[np.argsort(-fresh[chosen], kind="stable")][:TOLD].tolist()
    return [(n, int(fresh[n]), int(fresh[n]) / size, 0.0, None) for n in best]


def near_copies(
    view: View, ids: Int64, strong: tuple[Int64, Int64]
) -> Iterator[tuple[int, int, float]]:
    """Yield near-copies: cosine 0.95, and strong neurons alike but for one on either side."""
    pairs = ids[nearly_alike(*strong)]
    record = view.encoder
    found, vectors = traces.vectors_by_ids(
        view.connection, record.id, np.unique(pairs).tolist(), record.dimension
    )
    place = {id: at for at, id in enumerate(found)}
    told = 0
    for one, other in sorted(map(tuple, pairs.tolist())):
        if one not in place or other not in place:
            continue  # of a damaged store, whose vectors `check` misses
        cosine = float(vectors[place[one]] @ vectors[place[other]])
        if cosine >= NEAR and told < PAIRS:
            told += 1
            yield one, other, min(cosine, 1.0)


def nearly_alike(rows: Int64, neurons: Int64) -> Int64:
    """Return (p, 2) rows of the same neurons but for one on either side, most in common first.

    Sets are compared by sums of random marks: each set's, and with any one neuron left out, for a
    word more or less moves an activation over the line. Of those that fall on one sum, each is
    compared with the next alone.
    """
    if not len(rows):
        return np.empty((0, 2), dtype=np.int64)
    marks = np.random.default_rng(0).integers(1, 2**62, int(neurons.max()) + 1)
    starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
    sums = np.add.reduceat(marks[neurons], starts)
    sizes = np.diff(np.r_[starts, len(rows)])
    own = np.repeat(np.arange(len(starts)), sizes)
    keys = np.concatenate([sums, sums[own] - marks[neurons]])
    owners = np.concatenate([np.arange(len(starts)), own])
    common = np.concatenate([sizes, sizes[own] - 1])
    keys, owners, common = (values[common >= ALIKE] for values in (keys, owners, common))
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    pairs = np.sort(np.column_stack([owners[order[same]], owners[order[same + 1]]]), axis=1)
    best = np.lexsort((pairs[:, 1], pairs[:, 0], -common[order[same]]))[: CANDIDATES * MANY]
    _, first = np.unique(pairs[best], axis=0, return_index=True)
    return np.asarray(rows[starts][pairs[best][np.sort(first)[:CANDIDATES]]])
