"""What the soak goes by: a journal of all that was written, and the right answers of every state.

The journal says what was begun and what was acknowledged. An operation is one transaction, so an
answer must be that of one state: no older than the last write acknowledged before the question, no
newer than the last one begun before the answer was there, and no older than what was seen before.
The right answer of a state is worked out here, in numpy, from texts alone.
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from oracle import Mark, Marks, assert_fused, assert_ranking, fusion_shares

from memstore import Encoder, MemoryStore, reader, upkeep
from memstore.embed.function import FunctionEmbedder
from memstore.errors import MemoryNotFound
from memstore.hits import Hits
from memstore.index import blocks, postings
from memstore.types import Memory, Trace
from tests.conftest import DIMENSION, NEURONS, make_encoder

#: Texts of one class have one vector: ties are frequent, and a class is looked up, not encoded.
CLASSES = 200
GRID = np.random.default_rng(5).integers(-2, 3, (CLASSES, DIMENSION)).astype(np.float32)
GRID[~GRID.any(axis=1)] = 1
WORDS = ["amber", "birch", "cloud", "delta", "ember", "frost", "grain", "heath", "inlet", "jetty"]
SIDES = {"dense": 1e-6, "trace": 1e-9, "words": 1e-12}  # how near the scores must be


def class_of(text: str) -> int:
    """Return the class of a text: what decides its vector."""
    return zlib.crc32(text.encode()) % CLASSES


def soak_encoder() -> Encoder:
    """Return an encoder whose vectors stand in ``GRID``."""
    embedder = FunctionEmbedder(lambda texts: GRID[[class_of(t) for t in texts]], DIMENSION, "crc")
    config = {"embedder": {"kind": "object", "class": "FunctionEmbedder"}, "sae": "small"}
    return Encoder(embedder, make_encoder().sae, name="soak", config=config)


ENCODER = soak_encoder()
UNITS = GRID / np.linalg.norm(GRID, axis=1, keepdims=True)
STORED = UNITS.astype(np.float16).astype(np.float64)
FIRED = ENCODER.traces(UNITS).to_dense().astype(np.float64)
#: A text that asks is heard with more neurons than a memory keeps.
ASKED = ENCODER.sae.encode(UNITS, wide=True).to_dense().astype(np.float64)


def hurry(patch: Callable[[object, str, int], None], saved: int = 300) -> None:
    """Have blocks sealed, merged and saved all the time, in a store of few memories."""
    patch(upkeep, "CHECKPOINT", saved)
    patch(reader, "PAGE", 400)
    for module in (blocks, postings):
        patch(module, "BLOCK_ROWS", 300)
        patch(module, "FEW_ROWS", 8)
    for name in ("FEW", "FEW_OF_TRACE", "FEW_OF_COMPOSITE"):
        patch(postings, name, 0)
    patch(postings, "QUICK_ROWS", 64)


def outcome(work: Callable[[], object], patience: float = 10) -> str:
    """Return the name of the error that ``work`` ends in in a forked child, or how else it ends."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(theirs, b"no error")
        except BaseException as error:  # noqa: BLE001 - named to the parent
            os.write(theirs, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(theirs)
    ended = bool(select.select([ours], [], [], patience)[0])
    told = os.read(ours, 100).decode() if ended else "hangs"
    os.close(ours)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return told


def text_of(memory_id: int, version: int) -> str:
    """Return a text that says which memory it is of, and which version: five words, always."""
    return f"memory m{memory_id} version v{version} {WORDS[(memory_id + version) % len(WORDS)]}"


class Operation(NamedTuple):
    """What one transaction does: texts that memories get, memories that go."""

    number: int
    texts: dict[int, str]
    gone: list[int]


class Journal:
    """What was begun, and how it ended. One process writes it, any number follow."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        self._rest = b""

    def note(self, *entry: object) -> None:
        """Write an entry down, seen by every other process from here on."""
        line = json.dumps(entry).encode() + b"\n"
        if os.write(self._handle, line) != len(line):
            raise OSError("the journal of the soak has no room left")

    def news(self) -> Iterator[list]:
        """Yield the entries that came since the last call."""
        while piece := os.read(self._handle, 1 << 20):
            *lines, self._rest = (self._rest + piece).split(b"\n")
            yield from map(json.loads, lines)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


class State:
    """The memories of one state, and every right answer."""

    def __init__(self) -> None:
        self.number, self.texts = 0, {}
        self.classes: list[int] = []

    def apply(self, operation: Operation) -> None:
        """Become the next state. Ids only ascend, so the dict stays in their order."""
        self.number = operation.number
        self.texts.update(operation.texts)
        for memory_id in operation.gone:
            del self.texts[memory_id]
        self.classes = [class_of(text) for text in self.texts.values()]

    def composite(self, terms: dict[int, float]) -> Marks:
        """Return the candidates of a composite with a positive term, summed by neuron."""
        scores = np.zeros(CLASSES)
        for neuron in sorted(terms):
            scores += terms[neuron] * FIRED[:, neuron]
        positive = [neuron for neuron, weight in terms.items() if weight > 0]
        return self._marks(scores, (FIRED[:, positive] > 0).any(axis=1) & (scores > 0), scores)

    def dense(self, text: str) -> Marks:
        """Return the cosine of every memory."""
        asked = UNITS[class_of(text)].astype(np.float64)
        lengths = np.linalg.norm(STORED, axis=1) * np.linalg.norm(asked)
        return self._marks(STORED @ asked / lengths, np.ones(CLASSES, bool), np.arange(CLASSES))

    def trace(self, text: str) -> Marks:
        """Return the affinity of all that share a neuron, rare neurons weighing more."""
        fires = sum((FIRED[each] > 0 for each in self.classes), np.zeros(NEURONS))
        asked = ASKED[class_of(text)] * (np.log((1 + len(self.texts)) / (1 + fires)) + 1)
        own = np.sqrt(FIRED)
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(asked)
        scores = np.divide(own @ asked, lengths, out=np.zeros(CLASSES), where=lengths > 0)
        return self._marks(scores, scores > 0, np.arange(CLASSES))

    def words(self, text: str) -> Marks:
        """Return BM25 of any of the words: all texts are of one length, so each adds its IDF."""
        scores: Counter[int] = Counter()
        for word in text.split():
            having = [i for i, own in self.texts.items() if word in own.split()]
            rarity = math.log((len(self.texts) - len(having) + 0.5) / (len(having) + 0.5))
            scores.update(dict.fromkeys(having, max(rarity, 1e-6)))
        return {i: Mark(scores[i], scores[i]) for i in sorted(scores)}

    def _marks(self, scores: np.ndarray, kept: np.ndarray, alike: np.ndarray) -> Marks:
        marks = [Mark(*pair) for pair in zip(scores.tolist(), alike.tolist(), strict=True)]
        pairs = zip(self.texts, self.classes, strict=True)
        return {memory_id: marks[own] for memory_id, own in pairs if kept[own]}


class Follower:
    """Follows the journal, and finds the state that an answer is of."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.state = journal, State()
        self._waiting: list[Operation] = []
        self._acknowledged = 0

    def read(self) -> None:
        """Take note of what was begun and how it ended. Raises where a refused write was seen."""
        for kind, number, *rest in self.journal.news():
            if kind == "begin":
                texts = {int(memory_id): text for memory_id, text in rest[0].items()}
                self._waiting.append(Operation(number, texts, rest[1]))
            elif kind == "done":
                self._acknowledged = number
            elif self.state.number == number:
                raise AssertionError(f"operation {number} was seen, and refused")
            else:
                self._waiting = [each for each in self._waiting if each.number != number]

    def settle(self) -> None:
        """Go on to the last state acknowledged: no question asked from here on may show less."""
        self.read()
        while self._waiting and self._waiting[0].number <= self._acknowledged:
            self.state.apply(self._waiting.pop(0))

    def agrees(self, holds: Callable[[State], bool]) -> bool:
        """Return whether something holds in this state, or in a later one that was begun."""
        self.read()
        while not holds(self.state):
            if not self._waiting:
                return False
            self.state.apply(self._waiting.pop(0))
        return True


# --- questions -----------------------------------------------------------------------------------


class Question(NamedTuple):
    """What to ask of a store, and whether an answer, or each piece of it, is that of a state."""

    ask: Callable[[MemoryStore], Any]
    holds: Callable[[State, Any], bool]
    cut: Callable[[Any], list] = lambda answer: [answer]


def ranked(ask: Callable[[MemoryStore], Hits], insist: Callable[[State, Hits], None]) -> Question:
    """Return a question for hits; each must show its memory as it is, its parts summing up."""

    def holds(state: State, hits: Hits) -> bool:
        for hit in hits:
            gap = abs(sum(hit.parts.values()) - hit.score)
            if state.texts.get(hit.id) != hit.text or hit.key != f"m{hit.id}" or gap > 1e-9:
                return False
        try:
            insist(state, hits)
        except AssertionError:
            return False
        return True

    return Question(ask, holds)


def insist_fused(state: State, hits: Hits, text: str, k: int) -> None:
    """Insist on the best sums of 1 / (60 + rank) over the three sides."""
    shares = {
        side: fusion_shares(getattr(state, side)(text), near, max(100, k))
        for side, near in SIDES.items()
    }
    assert_fused(hits, shares, k)


def of_one(memory_id: int) -> dict[str, Question]:
    """Return the questions about one memory; one that is not there answers None."""

    def asking(get: Callable[[MemoryStore], Any]) -> Callable[[MemoryStore], Any]:
        def ask(store: MemoryStore) -> Any:
            try:
                return get(store)
            except MemoryNotFound:
                return None

        return ask

    def is_text(state: State, memory: Memory | None) -> bool:
        return state.texts.get(memory_id) == (memory and memory.text)

    def is_trace(state: State, trace: Trace | None) -> bool:
        text = state.texts.get(memory_id)
        if text is None or trace is None:
            return text is trace
        fired = FIRED[class_of(text)]
        return np.array_equal(trace.neurons, np.flatnonzero(fired)) and np.array_equal(
            trace.activations, fired[fired > 0]
        )

    return {
        "get": Question(asking(lambda store: store.get(memory_id)), is_text),
        "get by key": Question(asking(lambda store: store.get(key=f"m{memory_id}")), is_text),
        "trace": Question(asking(lambda store: store.trace(memory_id)), is_trace),
    }


def of_all(word: str) -> dict[str, Question]:
    """Return the questions about all memories."""

    def pages(answer: list[Memory]) -> list[tuple[int, list[Memory]]]:
        starts = range(0, len(answer) + 1, reader.PAGE)
        return [(answer[i - 1].id if i else 0, answer[i : i + reader.PAGE]) for i in starts]

    def is_page(state: State, piece: tuple[int, list[Memory]]) -> bool:
        after, memories = piece
        own = (pair for pair in state.texts.items() if pair[0] > after)
        return [(memory.id, memory.text) for memory in memories] == list(islice(own, reader.PAGE))

    return {
        "count": Question(
            lambda store: store.count(), lambda state, count: count == len(state.texts)
        ),
        "count where": Question(
            lambda store: store.count({"text": {"$contains": word}}),
            lambda state, count: count == sum(word in own for own in state.texts.values()),
        ),
        "iter": Question(lambda store: list(store), is_page, pages),
        "stats": Question(
            lambda store: store.stats(),
            lambda state, stats: stats["memories"] == len(state.texts),
        ),
    }


def questions(dice: random.Random, state: State) -> dict[str, Question]:
    """Return one question of every kind."""
    k, word = dice.choice([1, 5, 20, 150]), dice.choice(WORDS)
    neuron, other = dice.sample(range(NEURONS), 2)
    terms = {neuron: 1.0, other: dice.choice([-1.0, 0.5, 2.0])}
    memory_id = dice.choice([*state.texts, 1]) + dice.choice([0, 0, 0, 1])
    text = f"m{memory_id} {word}"

    def search(by: str) -> Question:
        return ranked(
            lambda store: store.search(text, k, by=by),
            lambda state, hits: assert_ranking(hits, getattr(state, by)(text), k, SIDES[by]),
        )

    return {
        "top": ranked(
            lambda store: store.top(neuron, k),
            lambda state, hits: assert_ranking(hits, state.composite({neuron: 1.0}), k),
        ),
        "composite": ranked(
            lambda store: store.composite(terms, k),
            lambda state, hits: assert_ranking(hits, state.composite(terms), k),
        ),
        **{f"by {side}": search(side) for side in SIDES},
        "by hybrid": ranked(
            lambda store: store.search(text, k, by="hybrid"),
            lambda state, hits: insist_fused(state, hits, text, k),
        ),
        **of_one(memory_id),
        **of_all(word),
    }
