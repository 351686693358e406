"""What the right answer is, worked out slowly: plain loops over rows, written from the contract.

Nothing here calls memstore's index, core or search. Activations come from the SQL view
``activation``, vectors and texts from the tables; float tolerances are the caller's business.
"""

import bisect
import math
import operator
import sqlite3
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from memstore.hits import Hits

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MISSING = object()


@dataclass
class Row:
    """One memory as it should be; vector, activations and birth are read from the database."""

    id: int
    text: str
    category: str | None = None
    key: str | None = None
    metadata: dict = field(default_factory=dict)
    occurred_at: datetime | None = None
    created_at: datetime = EPOCH
    vector: tuple[float, ...] = ()
    activations: dict[int, float] = field(default_factory=dict)


def read_truth(connection: sqlite3.Connection, rows: Mapping[int, Row]) -> None:
    """Complete rows from the database, insisting that it holds exactly their texts."""
    stored = connection.execute("SELECT id, text, created_at FROM memory ORDER BY id").fetchall()
    assert [(i, text) for i, text, _ in stored] == [(i, rows[i].text) for i in sorted(rows)]
    for memory_id, _, created in stored:
        rows[memory_id].created_at = EPOCH + timedelta(microseconds=created)
        rows[memory_id].activations = {}
    for memory_id, blob in connection.execute("SELECT memory_id, vector FROM vector"):
        rows[memory_id].vector = tuple(value for (value,) in struct.iter_unpack("<e", blob))
    found = "SELECT memory_id, neuron, activation FROM activation ORDER BY memory_id, neuron"
    for memory_id, neuron, activation in connection.execute(found):
        rows[memory_id].activations[neuron] = activation


COMPARE: dict[str, Callable] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "!": operator.le,  # silent: not above 0
}


@dataclass(frozen=True)
class Asked:
    """A neuron expression as data: (neuron, weight) terms and (neuron, operator, bound)s."""

    terms: Sequence[tuple[int, float]]
    conditions: Sequence[tuple[int, str, float]] = ()

    def weights(self) -> dict[int, float]:
        """Return the weight of each neuron, ascending, repeated terms added up."""
        total: dict[int, float] = {}
        for neuron, weight in self.terms:
            total[neuron] = total.get(neuron, 0.0) + weight
        return {neuron: total[neuron] for neuron in sorted(total) if total[neuron] != 0}

    def parts(self, row: Row) -> dict[int, float]:
        """Return weight x activation of each term that fires."""
        fired = row.activations
        return {n: weight * fired[n] for n, weight in self.weights().items() if n in fired}

    def admits(self, row: Row) -> bool:
        """Return whether every condition holds."""
        fired = row.activations
        return all(COMPARE[op](fired.get(n, 0.0), bound) for n, op, bound in self.conditions)


class Mark(NamedTuple):
    """A score, and what memories have alike that tie exactly, however scores are rounded."""

    score: float
    like: object


Marks = Mapping[int, Mark]


def composite_scores(rows: Iterable[Row], asked: Asked, min_score: float | None = 0.0) -> Marks:
    """Return the score of each candidate of a composite, summed by ascending neuron."""
    positive = [neuron for neuron, weight in asked.weights().items() if weight > 0]
    marks = {}
    for row in rows:
        score = 0.0
        for share in asked.parts(row).values():
            score += share
        fires = any(neuron in row.activations for neuron in positive)
        above = min_score is None or score > min_score
        if asked.admits(row) and (not positive or (fires and above)):
            marks[row.id] = Mark(score, score)
    return marks


def dense_scores(rows: Iterable[Row], query: Sequence[float]) -> Marks:
    """Return the cosine of vectors for every row."""
    marks = {}
    for row in rows:
        product = math.fsum(x * y for x, y in zip(query, row.vector, strict=True))
        score = product / math.hypot(*query) / math.hypot(*row.vector)
        marks[row.id] = Mark(score, row.vector)
    return marks


def neuron_idf(live: Collection[Row], width: int) -> dict[int, float]:
    """Return ln((1 + N) / (1 + df)) + 1 for every neuron."""
    fires = Counter(neuron for row in live for neuron in row.activations)
    return {n: math.log((1 + len(live)) / (1 + fires[n])) + 1 for n in range(width)}


def trace_scores(
    rows: Iterable[Row], query: Mapping[int, float], weights: Mapping[int, float] | None = None
) -> Marks:
    """Return the affinity to the query of every row that shares a neuron with it.

    The cosine of the query's activations, weighted, and the square roots of the row's.
    """
    asked = {n: a * (1.0 if weights is None else weights[n]) for n, a in query.items()}
    marks = {}
    for row in rows:
        own = {n: math.sqrt(a) for n, a in row.activations.items()}
        if shared := own.keys() & asked.keys():
            product = math.fsum(own[n] * asked[n] for n in shared)
            score = product / math.hypot(*own.values()) / math.hypot(*asked.values())
            marks[row.id] = Mark(score, tuple(row.activations.items()))
    return marks


def word_scores(live: Iterable[Row], rows: Iterable[Row], query: str) -> Marks:
    """Return FTS5's own BM25 (sign turned) of rows with any of the words, from a fresh table."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE VIRTUAL TABLE own USING fts5(text, tokenize='unicode61')")
        pairs = [(row.id, row.text) for row in live]
        connection.executemany("INSERT INTO own (rowid, text) VALUES (?, ?)", pairs)
        # One word is what the tokenizer takes for one: case and accents folded.
        connection.execute("CREATE VIRTUAL TABLE asked USING fts5(text, tokenize='unicode61')")
        connection.execute("CREATE VIRTUAL TABLE term USING fts5vocab(asked, 'instance')")
        connection.execute("INSERT INTO asked (text) VALUES (?)", (query,))
        terms = connection.execute("SELECT term FROM term ORDER BY offset")
        match = " OR ".join(f'"{term}"' for term in dict.fromkeys(term for (term,) in terms))
        ranked = "SELECT rowid, -bm25(own) FROM own WHERE own MATCH ?"
        found = dict(connection.execute(ranked, (match,)).fetchall())
    # Equal sums may differ in the last bit where other words make them up: FTS5 adds in the order
    # of the query's words. The same words tie exactly.
    return {row.id: Mark(found[row.id], row.text.lower()) for row in rows if row.id in found}


def steered(rows: Iterable[Row], marks: Marks, asked: Asked) -> Marks:
    """Return the scores of the rows with the weighted activations of an expression added."""
    added = {row.id: sum(asked.parts(row).values()) for row in rows}
    return {i: Mark(marks[i].score + share, marks[i].like) for i, share in added.items()}


def faded(rows: Mapping[int, Row], marks: Marks, half_life: timedelta, now: datetime) -> Marks:
    """Return the scores halved with every half-life of age; what is not positive stays."""
    result = {}
    for memory_id, (score, like) in marks.items():
        born = rows[memory_id].occurred_at or rows[memory_id].created_at
        factor = 0.5 ** (max(now - born, timedelta(0)) / half_life) if score > 0 else 1.0
        result[memory_id] = Mark(score * factor, (like, born))
    return result


def rank_windows(marks: Marks, tolerance: float) -> dict[int, tuple[int, int]]:
    """Return the first and last rank each id may have, scores being known to ``tolerance``.

    Those alike tie exactly, so among them the order is known: by id.
    """
    ascending = sorted(mark.score for mark in marks.values())
    families = defaultdict(list)
    for memory_id in sorted(marks):
        families[marks[memory_id].like].append(memory_id)
    windows = {}
    for memory_id, (score, like) in marks.items():
        elder = families[like].index(memory_id)
        younger = len(families[like]) - elder - 1
        above = len(ascending) - bisect.bisect_right(ascending, score + tolerance)
        reachable = len(ascending) - bisect.bisect_left(ascending, score - tolerance)
        windows[memory_id] = (above + elder + 1, reachable - younger)
    return windows


def assert_ranking(hits: Hits, marks: Marks, k: int, tolerance: float = 0.0) -> None:
    """Insist on the k best: scores to ``tolerance``, order, ties, and none left out."""
    order = [(-hit.score, hit.id) for hit in hits]
    expected = sorted((-mark.score, memory_id) for memory_id, mark in marks.items())[:k]
    detail = f"\ngot      {order}\nexpected {expected}"
    assert len({hit.id for hit in hits}) == len(hits) == len(expected), detail
    assert order == sorted(order), f"not by score, then id{detail}"
    windows, of_like = rank_windows(marks, tolerance), {}
    for rank, hit in enumerate(hits, start=1):
        assert hit.id in marks, f"{hit.id} is no candidate{detail}"
        score, like = marks[hit.id]
        assert abs(hit.score - score) <= tolerance, f"score of {hit.id}{detail}"
        assert windows[hit.id][0] <= rank <= windows[hit.id][1], f"rank of {hit.id}{detail}"
        assert hit.score == of_like.setdefault(like, hit.score), f"{hit.id} does not tie{detail}"
    left_out = marks.keys() - {hit.id for hit in hits}
    assert all(windows[memory_id][1] > k for memory_id in left_out), f"left out{detail}"


def fusion_shares(marks: Marks, tolerance: float, depth: int) -> dict[int, tuple[float, float]]:
    """Return the least and most that a side may add to each id: 1 / (60 + rank), or nothing."""

    def share(rank: int) -> float:
        return 1 / (60 + rank) if rank <= depth else 0.0

    windows = rank_windows(marks, tolerance).items()
    return {i: (share(last), share(first)) for i, (first, last) in windows}


def assert_fused(hits: Hits, shares: dict[str, dict[int, tuple[float, float]]], k: int) -> None:
    """Insist on the best sums; a share is a range where rounding alone decides a rank."""
    order = [(-hit.score, hit.id) for hit in hits]
    assert order == sorted(order), f"not by score, then id: {order}"
    for hit in hits:
        assert set(hit.parts) <= set(shares)
        assert abs(hit.score - sum(hit.parts.values())) < 1e-12, hit
        for side, ranges in shares.items():
            least, most = ranges.get(hit.id, (0.0, 0.0))
            assert least - 1e-12 <= hit.parts.get(side, 0.0) <= most + 1e-12, (side, hit)
    least_sums: Counter[int] = Counter()
    for ranges in shares.values():
        least_sums.update({i: least for i, (least, _) in ranges.items() if least > 0})
    assert min(k, len(least_sums)) <= len(hits) <= k
    for memory_id in least_sums.keys() - {hit.id for hit in hits}:
        assert least_sums[memory_id] <= hits[-1].score + 1e-12, f"{memory_id} is left out: {order}"


def passes(where: Mapping[str, object], row: Row) -> bool:
    """Return whether a row passes a Mongo-style filter."""
    logic: dict[str, Callable] = {
        "$and": lambda parts: all(passes(part, row) for part in parts),
        "$or": lambda parts: any(passes(part, row) for part in parts),
        "$nor": lambda parts: not any(passes(part, row) for part in parts),
    }
    fields = {name: wanted for name, wanted in where.items() if name not in logic}
    parts = [logic[name](parts) for name, parts in where.items() if name in logic]
    return all(parts) and all(field_holds(look_up(n, row), wanted) for n, wanted in fields.items())


def look_up(name: str, row: Row) -> object:
    """Return the value of a field; columns without one are missing, a JSON null is a value."""
    if name in ("id", "key", "category", "text", "occurred_at"):
        value = getattr(row, name)
        return MISSING if value is None else value
    value = row.metadata
    for part in name.removeprefix("metadata.").split("."):
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def field_holds(found: object, wanted: object) -> bool:
    """Return whether a value meets a bare value or every operator of a dict."""
    if not isinstance(wanted, dict):
        return equal(found, wanted)
    meets: dict[str, Callable] = {
        "$eq": lambda w: equal(found, w),
        "$ne": lambda w: not equal(found, w),
        "$in": lambda w: any(equal(found, each) for each in w),
        "$nin": lambda w: not any(equal(found, each) for each in w),
        "$gt": lambda w: kind(found) == kind(w) and found > w,
        "$gte": lambda w: kind(found) == kind(w) and found >= w,
        "$lt": lambda w: kind(found) == kind(w) and found < w,
        "$lte": lambda w: kind(found) == kind(w) and found <= w,
        "$exists": lambda w: (found is not MISSING) == w,
        "$contains": lambda w: kind(found) == "text" and w in found,
        "$not": lambda w: not field_holds(found, w),
    }
    return all(meets[name](operand) for name, operand in wanted.items())


def kind(value: object) -> str:
    """Return the type within which values compare."""
    kinds = {bool: "bool", int: "number", float: "number", str: "text", datetime: "time"}
    return kinds.get(type(value), "none")


def equal(found: object, wanted: object) -> bool:
    """Return equality within one type; None means null and missing alike."""
    if wanted is None:
        return found is None or found is MISSING
    return kind(found) == kind(wanted) and found == wanted
