"""Labels without a model: the words that set a neuron's texts apart from their neighbours.

For one neuron there are texts it fires for and hard negatives: the nearest in meaning for which it
does not fire. A term's score is its class-based TF-IDF among the former less that among the latter,
after Grootendorst (arXiv 2203.05794, eq. 1)::

    s(t) = (tf(t, fires) - tf(t, near)) log(1 + N / f(t))

tf is the share of the texts that have the term, f how many of all N texts do (that paper: how often
a term is, and A words a class; short texts seldom have one twice). Terms are words and pairs of
neighbouring words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
#: Words of grammar, which set nothing apart; English, as the shipped encoder is.
STOP = frozenset(
    """a about above after again all also am an and any are as at back be because been before being
    but by can could did do does doing don't down each even every few for from further get got had
    has have having he her here hers him his how i i'm if in into is it it's its just like made make
    many me more most much my no nor not now of off on once one only or other our out over own same
    she should so some such than that that's the their them then there these they this those through
    to too two under until up us very was way we were what when where which while who whom why will
    with would you your""".split()  # noqa: SIM905 - a list of quoted words would hide the words
)
#: A label's further terms score at least this share of its first.
SHARE = 0.5
#: Terms of a label.
TERMS = 3


@lru_cache(maxsize=200_000)
def terms(text: str) -> frozenset[str]:
    """Return the words of a text that mean something, and its pairs of neighbouring words."""
    found = [word.casefold() for word in WORD.findall(text)]
    kept = {word for word in found if word not in STOP and len(word) > 1}
    pairs = {f"{one} {other}" for one, other in pairwise(found) if one in kept and other in kept}
    return frozenset(kept | pairs)


def counts(texts: Iterable[str]) -> Counter[str]:
    """Return in how many of some texts each term is."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(terms(text))
    return found


def scores(
    fires: Sequence[str], near: Sequence[str], everywhere: Mapping[str, int], total: int
) -> dict[str, float]:
    """Return the scores above 0 of terms that two texts or more have, best first.

    ``everywhere`` says how many of ``total`` texts have a term.
    """
    inside, outside = counts(fires), counts(near)
    result = {}
    for term, count in inside.items():
        share = count / len(fires) - outside[term] / max(len(near), 1)
        if count > 1 and share > 0:
            result[term] = share * math.log(1 + total / max(everywhere.get(term, 1), 1))
    return dict(sorted(result.items(), key=lambda item: (-item[1], item[0])))


def label(found: Mapping[str, float]) -> str | None:
    """Return the best terms as a label, none of them part of another; None where there is none."""
    chosen: list[str] = []
    for term, score in found.items():
        if chosen and score < SHARE * found[chosen[0]]:
            break
        if any(set(term.split()) & set(other.split()) for other in chosen):
            continue
        chosen.append(term)
        if len(chosen) == TERMS:
            break
    return ", ".join(chosen) or None
