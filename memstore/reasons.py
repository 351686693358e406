"""From ids and parts to hits: the rows behind an answer and the sentences of ``why()``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from memstore.core.expression import NeuronQuery
from memstore.core.ranking import Ranked
from memstore.types import Hit, Hits, Memory, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sentences for the sides of a text search; neurons have their own.
SIDES = {
    "dense": "cosine of the two meanings, which no neuron takes apart",
    "trace": "neurons that fire for both",
    "words": "words in common (BM25)",
    "steer": "neurons asked for by steer",
}


def neuron_name(neuron: int) -> str:
    """Return what parts call a neuron."""
    return f"N{neuron}"


def composite_parts(
    query: NeuronQuery, trace: Trace, labels: Mapping[int, str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return (share a neuron, sentence a neuron) of one memory's score."""
    fired = trace.to_dict()
    weights = dict(query.terms)
    parts, sentences = {}, {}
    for neuron, share in query.parts(trace).items():
        name = neuron_name(neuron)
        parts[name] = share
        label = f"{labels[neuron]!r} " if neuron in labels else ""
        sentences[name] = f"{label}fires {fired[neuron]:.4f} x weight {weights[neuron]:g}"
    return parts, sentences


def shared_parts(
    shares: Mapping[int, float], labels: Mapping[int, str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return (share a neuron, sentence a neuron) of a cosine of two traces, largest first."""
    parts, sentences = {}, {}
    for neuron, share in sorted(shares.items(), key=lambda item: (-item[1], item[0])):
        name = neuron_name(neuron)
        parts[name] = share
        label = f"{labels[neuron]!r} " if neuron in labels else ""
        sentences[name] = f"{label}fires for both"
    return parts, sentences


def build_hits(
    ranked: Ranked,
    memories: Mapping[int, Memory],
    explain: Callable[[int], tuple[Mapping[str, float], Mapping[str, str]]],
) -> Hits:
    """Return the hits of a ranking.

    ``explain(id)`` gives parts and sentences before decay. Where age has faded a score, every part
    fades alike, so that the parts still sum to it.
    """
    hits = []
    for memory_id, score in ranked.pairs():
        memory = memories[memory_id]
        parts, sentences = explain(memory_id)
        total = sum(parts.values())
        faded = score / total if total != 0 else 1.0
        age = "" if abs(faded - 1.0) < 1e-9 else f", x {faded:.3f} for its age"
        hits.append(
            Hit(
                id=memory.id,
                key=memory.key,
                text=memory.text,
                category=memory.category,
                score=score,
                parts={name: share * faded if age else share for name, share in parts.items()},
                metadata=memory.metadata,
                occurred_at=memory.occurred_at,
                reasons=tuple(sentences[name] + age for name in parts),
            )
        )
    return Hits(hits)


def side_sentences(sides: Iterable[str], ranks: Mapping[str, int] | None = None) -> dict[str, str]:
    """Return the sentence of each side, with its rank there where fusion went by ranks."""
    place = ranks or {}
    return {
        side: SIDES[side] + (f"; rank {place[side]} there" if side in place else "")
        for side in sides
    }
