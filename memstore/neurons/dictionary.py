"""The dictionary that ships: what each neuron of the shipped encoder was read to mean.

One file, bound to its encoder by fingerprint: of another encoder it says nothing. How its labels
were written and graded: docs/neurons.md.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from memstore.errors import InvalidFile, brief
from memstore.layout import DICTIONARY

FORMAT = 1
#: Words of a name that say nothing of what it names.
STOP = frozenset(
    {
        "a",
        "an",
        "and",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "not",
        "of",
        "on",
        "or",
        "the",
        "to",
        "with",
    }
)
WORD = re.compile(r"[a-z0-9']+")
#: How alike two spellings must be, from 0 to 1 (difflib's ratio).
SPELT = 0.75


@dataclass(frozen=True)
class Entry:
    """What is known of one neuron."""

    neuron: int
    label: str | None
    """None where reading found nothing that its texts share, or a second reading disagreed."""
    sentence: str | None
    """What it fires for, and what not; without a label, what was seen."""
    grade: float | None
    """How well the label did on unseen texts, 0 to 1; of the shipped dictionary the balanced
    accuracy of a second reading."""
    method: str = "read"
    """How the label came about."""
    also: Sequence[str] = ()
    """Other names for it, which people may type."""
    top: float | None = None
    """Mean of the neuron's three largest activations over the texts it was read from."""
    model: str | None = None
    """The language model that wrote the label, where one file has several."""
    intruder: bool | None = None
    """Whether the text that does not belong was found among five, without the label."""


def read_labels(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """Return the heading and the entries of a file of labels. Raises ``InvalidFile``."""
    try:
        with path.open(encoding="utf-8") as file:
            heading, lines = json.loads(file.readline() or "null"), list(map(json.loads, file))
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror}: check the path") from error
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} is no file of labels: {error}") from error
    if not isinstance(heading, dict) or heading.get("memstore") != "labels":
        raise InvalidFile(f"{path} is no file of labels, as `labels export` writes them")
    if heading.get("format") != FORMAT:
        raise InvalidFile(f"{path} has format {brief(heading.get('format'))}: update the package")
    try:
        return heading, [Entry(**line) for line in lines]
    except TypeError as error:
        raise InvalidFile(f"{path} has a line that is no label: {error}") from error


def heading_of(fingerprint: str, name: str) -> dict[str, Any]:
    """Return the first line of a file of labels, which binds them to an encoder."""
    return {"memstore": "labels", "format": FORMAT, "encoder": fingerprint, "name": name}


class Dictionary:
    """Labels of the neurons of one encoder."""

    def __init__(self, heading: Mapping[str, Any], entries: Sequence[Entry]) -> None:
        self.heading, self.entries = heading, entries
        self.fingerprint = str(heading["encoder"])

    @classmethod
    def read(cls, path: Path) -> Dictionary:
        """Return the dictionary in a file: a heading, then a line a neuron, in order.

        Raises ``InvalidFile``.
        """
        heading, entries = read_labels(path)
        if [entry.neuron for entry in entries] != list(range(len(entries))):
            raise InvalidFile(f"{path} does not have a line a neuron, in order: reinstall memstore")
        return cls(heading, entries)

    @cached_property
    def names(self) -> dict[str, int]:
        """``{name in small letters: neuron}``, labels and their other names."""
        return {
            name.casefold(): entry.neuron
            for entry in self.entries
            if entry.label is not None
            for name in (*entry.also, entry.label)
        }

    def label(self, neuron: int) -> str | None:
        """Return the label of a neuron."""
        return self.entries[neuron].label if neuron < len(self.entries) else None

    def number(self, name: str) -> int | None:
        """Return the neuron of this name, capitals aside."""
        return self.names.get(" ".join(name.split()).casefold())


def find(entries: Iterable[Entry], text: str, count: int = 10) -> list[Entry]:
    """Return the labelled entries nearest to some words, best first.

    A name is nearest, then words in common (their beginnings count: "grieving" finds "grief over"),
    in the names before the sentence, the better graded first; where there are none, spelling.
    """
    wanted, exact = words(text), " ".join(text.split()).casefold()
    scored: list[tuple[float, int, float, int, Entry]] = []
    spelt: dict[str, Entry] = {}
    for entry in entries:
        if entry.label is None:
            continue
        names = [name.casefold() for name in (entry.label, *entry.also)]
        spelt |= dict.fromkeys(names, entry)
        near = shared(wanted, words(" ".join(names)))
        near += 0.3 * shared(wanted, words(entry.sentence or "")) + 2.0 * (exact in names)
        if near > 0:
            length = len(words(entry.label))
            scored.append((-near, length, -(entry.grade or 0.0), entry.neuron, entry))
    if not scored:
        alike = difflib.get_close_matches(exact, spelt, count, SPELT)
        return list({spelt[name].neuron: spelt[name] for name in alike}.values())
    return [entry for *_, entry in sorted(scored, key=lambda one: one[:4])[:count]]


def words(text: str) -> list[str]:
    """Return the words of a text that mean something."""
    return [word for word in WORD.findall(text.casefold()) if word not in STOP]


def shared(wanted: Sequence[str], own: Sequence[str]) -> float:
    """Return the share of ``wanted`` that has a word in ``own``: whole, or five letters alike."""
    if not wanted:
        return 0.0
    total = 0.0
    for word in wanted:
        if word in own:
            total += 1.0
        elif len(word) >= 5 and any(other[:5] == word[:5] for other in own):
            total += 0.6
    return total / len(wanted)


@lru_cache(maxsize=1)
def shipped() -> Dictionary:
    """Return the dictionary of the shipped encoder, read once."""
    return Dictionary.read(DICTIONARY)


def dictionary_of(fingerprint: str) -> Dictionary | None:
    """Return the dictionary of an encoder, None where there is none."""
    found = shipped()
    return found if found.fingerprint == fingerprint else None


class Names(Mapping[int, str]):
    """Labels by neuron: those a store was given, then the dictionary's, then those made there.

    The dictionary is read when it is first needed.
    """

    def __init__(self, given: Mapping[int, str], made: Mapping[int, str], fingerprint: str) -> None:
        self._given, self._made, self._fingerprint = given, made, fingerprint

    def __getitem__(self, neuron: int) -> str:
        if neuron in self._given:
            return self._given[neuron]
        dictionary = dictionary_of(self._fingerprint)
        label = None if dictionary is None else dictionary.label(neuron)
        return self._made[neuron] if label is None else label

    def __iter__(self) -> Iterator[int]:
        dictionary = dictionary_of(self._fingerprint)
        known = () if dictionary is None else dictionary.names.values()
        return iter({*self._given, *known, *self._made})

    def __len__(self) -> int:
        return sum(1 for _ in self)
