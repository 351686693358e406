"""From ids and parts to hits: the rows behind an answer and the sentences of ``why()``.

Sentences are written when somebody asks for them: an answer takes microseconds, prose does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from memstore.catalog.memories import HitRow, to_metadata, to_time
from memstore.core.expression import NeuronQuery
from memstore.core.ranking import Ranked
from memstore.hits import Hit, Hits
from memstore.types import Trace

#: Sentences for the sides of a text search; neurons have their own.
SIDES = {
    "dense": "cosine of the two meanings, which no neuron takes apart",
    "trace": "neurons that fire for both",
    "words": "words in common (BM25)",
    "steer": "neurons asked for by steer",
}

Parts = Mapping[str, float]
#: Returns a sentence a part, given the parts before any fading.
Sentences = Callable[[Parts], Iterable[str]]


def neuron_name(neuron: int) -> str:
    """Return what parts call a neuron."""
    return f"N{neuron}"


def composite_parts(query: NeuronQuery, trace: Trace, prefix: str = "") -> dict[str, float]:
    """Return each neuron's share of one memory's score, silent ones left out."""
    shares = query.parts(trace).items()
    return {prefix + neuron_name(neuron): share for neuron, share in shares}


def composite_sentences(
    query: NeuronQuery, labels: Mapping[int, str]
) -> Callable[[str, float], str]:
    """Return what says how a neuron's share came about, given part name and share."""
    weights = dict(query.terms)

    def sentence(name: str, share: float) -> str:
        neuron = int(name.rpartition("N")[2])
        label = f"{labels[neuron]!r} " if neuron in labels else ""
        return f"{label}fires {share / weights[neuron]:.4f} x weight {weights[neuron]:g}"

    return sentence


def shared_parts(shares: Mapping[int, float]) -> dict[str, float]:
    """Return each neuron's share of the affinity of two traces, largest first."""
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return {neuron_name(neuron): share for neuron, share in ordered}


def shared_sentence(name: str, labels: Mapping[int, str]) -> str:
    """Return what says that a neuron fires for both."""
    neuron = int(name[1:])
    label = f"{labels[neuron]!r} " if neuron in labels else ""
    return f"{label}fires for both"


def pointing_sentence(name: str, labels: Mapping[int, str]) -> str:
    """Return what says how a neuron's share of a direction came about."""
    neuron = int(name[1:])
    label = f"{labels[neuron]!r}, " if neuron in labels else ""
    return f"{label}how far the vector points its way, fired or not"


def side_sentence(side: str, rank: int | None = None) -> str:
    """Return the sentence of a side, with its rank there where fusion went by ranks."""
    return SIDES[side] + ("" if rank is None else f"; rank {rank} there")


def later_hits(
    ranked: Ranked,
    stored: Mapping[int, HitRow],
    parts: Callable[[], Sequence[Parts]],
    sentences: Callable[[int, Parts], Iterable[str]],
) -> Hits:
    """Return the hits of a ranking; ``parts`` beside it, before any fading.

    ``parts`` and ``sentences`` are called once somebody looks, after the transaction has ended.
    """
    ids, scores = ranked.ids.tolist(), ranked.scores.tolist()
    return Hits.later(ids, scores, lambda: make_hits(ids, scores, stored, parts(), sentences))


def make_hits(
    ids: list[int],
    scores: list[float],
    stored: Mapping[int, HitRow],
    parts: Sequence[Parts],
    sentences: Callable[[int, Parts], Iterable[str]],
) -> Iterator[Hit]:
    """Yield hits. Where age has faded a score, every part fades alike, so that they sum to it."""
    for memory_id, score, own in zip(ids, scores, parts, strict=True):
        _, text, category, key, metadata, occurred_at = stored[memory_id]
        total = sum(own.values())
        faded = score / total if total != 0 else 1.0
        aged = abs(faded - 1.0) >= 1e-9
        yield Hit.of(
            {
                "id": memory_id,
                "key": key,
                "text": text,
                "category": category,
                "score": score,
                "parts": {n: share * faded for n, share in own.items()} if aged else own,
                "metadata": to_metadata(metadata),
                "occurred_at": to_time(occurred_at),
                "explain": Reasons(memory_id, own, faded if aged else None, sentences),
            }
        )


class Reasons:
    """The sentences of one hit, written when asked for."""

    __slots__ = ("faded", "memory_id", "parts", "sentences")

    def __init__(
        self,
        memory_id: int,
        parts: Parts,
        faded: float | None,
        sentences: Callable[[int, Parts], Iterable[str]],
    ) -> None:
        self.memory_id, self.parts, self.faded, self.sentences = memory_id, parts, faded, sentences

    def __call__(self) -> tuple[str, ...]:
        """Return a sentence a part, in their order."""
        age = "" if self.faded is None else f", x {self.faded:.3f} for its age"
        return tuple(line + age for line in self.sentences(self.memory_id, self.parts))
