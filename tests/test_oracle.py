"""Every query equals brute force, over random stores with random histories."""

import functools
import itertools
import re
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Asked, Row, assert_ranking, composite_scores, dense_scores, trace_scores

from memstore import Encoder, MemoryStore, N
from memstore.embed.function import FunctionEmbedder
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE

CONFIG = SAEConfig("topk", dimension=6, neurons=10, k=2)
DENSE, TRACE, WORDY = 1e-6, 1e-9, 1e-12  # how near the scores must be
budget = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))

DICE = np.random.default_rng(3329)  # with this seed no activation lies on a rounding edge
GRID = DICE.integers(-1, 2, size=(6, CONFIG.dimension))
WORDS = dict(zip(["rain", "walk", "joy", "quiet", "café", "letter"], GRID, strict=True))
TENSORS = {n: DICE.normal(size=size).astype("float32") for n, size in CONFIG.shapes().items()}
TENSORS["encoder.bias"] -= 0.5  # so that some texts fire more than k neurons, some none


def meaning(text):
    """Return the sum of the vectors of a text's words; never zero."""
    total = np.sum([WORDS[word] for word in re.findall(r"\w+", text.lower())], axis=0)
    return total if total.any() else np.ones(CONFIG.dimension)


@functools.cache
def unit(text):
    return (meaning(text) / np.linalg.norm(meaning(text))).tolist()


@functools.cache
def trace_of(text, k=CONFIG.k):
    """Return the k strongest of ReLU(W (x - b_d) + b_e), as the float16 that is stored."""
    centred = np.array(unit(text)) - TENSORS["decoder.bias"]
    z = TENSORS["encoder.weight"] @ centred + TENSORS["encoder.bias"]
    strongest = np.sort(np.argsort(-z)[:k])
    return {n: float(np.float16(z[n])) for n in strongest.tolist() if z[n] > 0}


def question_of(text):
    """Return what a text is asked by: three times as many."""
    return trace_of(text, 3 * CONFIG.k)


ENCODER = Encoder(
    FunctionEmbedder(lambda texts: [meaning(t) for t in texts], CONFIG.dimension, name="test"),
    SAE(CONFIG, TENSORS),
    name="test",
    config={"embedder": {"kind": "object", "class": "test"}, "sae": "test"},
)

TEXTS = st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=3).map(" ".join)
NARRATIVES = TEXTS | TEXTS.map(str.capitalize) | TEXTS.map("{}!".format)
CATEGORIES = ["Routine", "routine", "Strong Emotional", "Ärger"]
NUMBERS = [-1, 0, 1, 1.0, 2, 2.5, 0.1, 1 / 3, 2**53 + 1, float(2**53), 2**63 - 1, 5e-324, 1e308]
SCALARS = [*NUMBERS, True, False, "", "1", "rain", "Rain", "ß", "%_", 'quo"te', "back\\slash"]
TIMES = [datetime(year, 1, 1, tzinfo=UTC) for year in (1960, 2024, 2025, 2026, 2999)]
VALUES = st.none() | st.sampled_from(SCALARS)
PLACES = VALUES | st.fixed_dictionaries({}, optional={"name": VALUES}) | st.just(["rain", 1])
METADATA = {"mood": VALUES, "place": PLACES, "category": VALUES, "two words": VALUES}
TEXT = {"text": NARRATIVES}
OTHERS = {
    "category": st.none() | st.sampled_from(CATEGORIES),
    "metadata": st.fixed_dictionaries({}, optional=METADATA),
    "occurred_at": st.none() | st.sampled_from(TIMES),
}
ROWS = st.fixed_dictionaries(TEXT, optional=OTHERS)
CHANGES = st.fixed_dictionaries({}, optional=TEXT | OTHERS).filter(bool)
ASKABLE = dict.fromkeys(["mood", "place", "place.name", "two words", "no.such"], SCALARS) | {
    "metadata.category": SCALARS,
    "category": CATEGORIES,
    "text": ["rain", "Rain", "joy walk"],
    "key": ["key-1", "key-2", "nobody"],
    "id": list(range(1, 25)),
    "occurred_at": TIMES,
}
BARE, LISTED, ORDERED = ["$eq", "$ne"], ["$in", "$nin"], ["$gt", "$gte", "$lt", "$lte"]
PIECES = st.sampled_from(["rain", "r", "R", "-1", "%", "\\", "Ä"])


@st.composite
def field_filters(draw):
    """Draw a condition on one field: a bare value, or operators, perhaps under $not."""
    name = draw(st.sampled_from(sorted(ASKABLE)))
    value = st.sampled_from(ASKABLE[name])
    maybe = st.none() | value
    operands = dict.fromkeys(BARE, maybe) | dict.fromkeys(LISTED, st.lists(maybe, max_size=4))
    operands |= dict.fromkeys(ORDERED, value) | {"$exists": st.booleans()}
    if name not in ("id", "occurred_at"):
        operands["$contains"] = PIECES
    names = draw(st.lists(st.sampled_from(sorted(operands)), max_size=2, unique=True))
    if not names:
        return {name: draw(maybe)}
    wanted = {operator: draw(operands[operator]) for operator in names}
    return {name: {"$not": wanted} if draw(st.booleans()) else wanted}


LOGIC = st.sampled_from(["$and", "$or", "$nor"])
FILTERS = st.recursive(
    field_filters(),
    lambda inner: st.dictionaries(LOGIC, st.lists(inner, min_size=1, max_size=3), min_size=1),
    max_leaves=5,
)
WHERES = st.none() | FILTERS
K = st.integers(1, 12) | st.sampled_from([40, 95, 1000])
NEURON = st.integers(0, CONFIG.neurons - 1)
TERMS = st.tuples(NEURON, st.sampled_from([1, -1, 2, -3, 0.5, -0.5, 0.1, -1 / 3, 0]))


@st.composite
def expressions(draw, rows):
    """Draw an expression as data and in one of the forms in which people write it."""
    met = {a for row in rows for a in row.activations.values()}  # bounds met exactly
    bounds = st.sampled_from([0, 0.5, *sorted(met)])
    bound = st.tuples(NEURON, st.sampled_from([">", ">=", "<", "<="]), bounds)
    condition = bound | st.tuples(NEURON, st.just("!"), st.just(0))
    terms = draw(st.lists(TERMS, max_size=5))
    conditions = draw(st.lists(condition, min_size=0 if terms else 1, max_size=2))
    forms = [as_text, as_algebra]
    if not conditions and len(dict(terms)) == len(terms):
        forms.append(lambda asked: dict(asked.terms))
    asked = Asked(terms, conditions)
    return asked, draw(st.sampled_from(forms))(asked)


def as_text(asked):
    """Return "+3 -0.5*5 & 8>0.3 & !7"."""
    terms = [{1: "+", -1: "-"}.get(w, f"{w:+}*") + str(n) for n, w in asked.terms]
    bounds = [f"!{n}" if op == "!" else f"{n}{op}{b}" for n, op, b in asked.conditions]
    return " & ".join([" ".join(terms)] * bool(terms) + bounds)


def as_algebra(asked):
    """Return N[3] - 0.5 * N[5] & (N[8] > 0.3) & ~N[7]."""
    pieces = [-(-w * N[n]) if w < 0 else w * N[n] for n, w in asked.terms]
    whole = [sum(pieces[1:], pieces[0])] if pieces else []
    for n, op, bound in asked.conditions:
        whole.append(~N[n] if op == "!" else oracle.COMPARE[op](N[n], bound))
    return functools.reduce(lambda left, right: left & right, whole)


STEPS = st.one_of(
    st.tuples(st.just("insert"), st.lists(ROWS, min_size=1, max_size=6)),
    st.tuples(st.just("update"), st.integers(0, 99), CHANGES),
    st.tuples(st.just("delete"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
    st.tuples(st.just("delete_where"), FILTERS),
    st.tuples(st.sampled_from(["optimize", "reopen", "ask"])),
)
COPIES = st.sampled_from([1, 1, 2, 12])
FIRST = st.tuples(st.lists(ROWS, min_size=1, max_size=12), COPIES).map(lambda p: p[0] * p[1])
PLANS = st.tuples(st.sampled_from([False, False, True]), FIRST, st.lists(STEPS, max_size=6))


class World:
    """A store and, beside it, the rows it should hold. Each step changes both."""

    def __init__(self, path):
        self.path, self.rows = path, {}
        self.keys = (f"key-{number}" for number in itertools.count())
        self.store = MemoryStore.open(path, encoder=ENCODER)

    def insert(self, rows):
        rows = [{**row, "key": next(self.keys)} if "metadata" in row else row for row in rows]
        ids = self.store.insert_many(rows)
        assert not self.rows.keys() & set(ids)
        self.rows |= {i: Row(i, **row) for i, row in zip(ids, rows, strict=True)}

    def update(self, number, changes):
        memory_id = sorted(self.rows)[number % len(self.rows)]
        self.store.update(memory_id, **changes)
        self.rows[memory_id] = replace(self.rows[memory_id], **changes)

    def delete(self, numbers):
        chosen = {sorted(self.rows)[number % len(self.rows)] for number in numbers}
        assert self.store.delete(chosen) == len(chosen)
        self.rows = {i: row for i, row in self.rows.items() if i not in chosen}

    def delete_where(self, where):
        deleted = self.store.delete_where(where)
        kept = {row.id: row for row in self.passing({"$nor": [where]})}
        assert deleted == len(self.rows) - len(kept)
        self.rows = kept

    def optimize(self):
        self.store.optimize()

    def reopen(self):
        if self.path != ":memory:":
            self.store.close()
            self.store = MemoryStore.open(self.path, encoder=ENCODER)

    def ask(self):
        """Have the indices built now, so that what follows must be added to them."""
        self.store.search("rain", by="hybrid")

    def passing(self, where):
        return [row for row in self.rows.values() if where is None or oracle.passes(where, row)]

    def read_truth(self):
        in_memory = self.path == ":memory:"
        lent = self.store._database.driver() if in_memory else closing(sqlite3.connect(self.path))
        with lent as connection:
            oracle.read_truth(connection, self.rows)
        for row in self.rows.values():
            assert row.vector == pytest.approx(unit(row.text), abs=5e-4)
            assert row.activations == trace_of(row.text)


def questions(plan, data, count=4):
    """Build the store of a plan; yield it with a filter, the rows that pass, and k, repeatedly."""
    in_file, rows, steps = plan
    with tempfile.TemporaryDirectory() as folder:
        world = World(f"{folder}/world.db" if in_file else ":memory:")
        try:
            world.insert(rows)
            for name, *arguments in steps:
                if world.rows or name == "insert":
                    getattr(world, name)(*arguments)
            world.read_truth()
            for _ in range(count):
                where, k = data.draw(WHERES), data.draw(K)
                yield world, where, world.passing(where), k
        finally:
            world.store.close()


def over_histories(test):
    """Run a test over random stores with random histories."""
    return budget(given(plan=PLANS, data=st.data())(test))


def assert_parts(parts, asked, row, score, prefix=""):
    """Insist that a neuron's part is weight x activation, and that parts sum to the score."""
    expected = {f"{prefix}N{n}": share for n, share in asked.parts(row).items()}
    assert {name: share for name, share in parts.items() if name != "dense"} == expected
    assert sum(parts.values()) == pytest.approx(score, abs=1e-12)


@over_histories
def test_composites(plan, data):
    """A composite returns the candidates the contract names, with its exact scores and parts."""
    for world, where, rows, k in questions(plan, data):
        asked, spelled = data.draw(expressions(world.rows.values()))
        reached = {mark.score for mark in composite_scores(rows, asked, None).values()}
        least = data.draw(st.sampled_from([None, 0, *sorted(reached)]))
        hits = world.store.composite(spelled, k, where=where, min_score=least)
        assert_ranking(hits, composite_scores(rows, asked, least), k)
        for hit in hits:
            row = world.rows[hit.id]
            for name in ("text", "category", "key", "metadata", "occurred_at"):
                assert getattr(hit, name) == getattr(row, name)
            assert_parts(hit.parts, asked, row, hit.score)


@over_histories
def test_top(plan, data):
    """The top of a neuron is the memories it fires for, strongest first, ties by id."""
    for world, where, rows, k in questions(plan, data):
        neuron = data.draw(NEURON)
        hits = world.store.top(neuron, k, where=where)
        assert_ranking(hits, composite_scores(rows, Asked([(neuron, 1)])), k)


def rarity(world):
    """The weights of neurons that a search by trace uses, where nobody says otherwise."""
    return oracle.neuron_idf(world.rows.values(), CONFIG.neurons)


@over_histories
def test_trace_search(plan, data):
    """A search by trace is the affinity of traces over the memories that share a neuron."""
    for world, where, rows, k in questions(plan, data):
        text, rare = data.draw(TEXTS), data.draw(st.sampled_from([None, True, False]))
        weights = None if rare is False else rarity(world)
        hits = world.store.search(text, k, by="trace", where=where, idf=rare)
        assert_ranking(hits, trace_scores(rows, question_of(text), weights), k, TRACE)
        for hit in hits:
            shared = question_of(text).keys() & world.rows[hit.id].activations.keys()
            assert set(hit.parts) == {f"N{neuron}" for neuron in shared}
            assert sum(hit.parts.values()) == pytest.approx(hit.score, abs=TRACE)


@over_histories
def test_dense_search(plan, data):
    """A dense search returns the nearest k of all that pass, duplicates side by side, by id."""
    for world, where, rows, k in questions(plan, data):
        text = data.draw(TEXTS)
        hits = world.store.search(text, k, where=where)
        assert_ranking(hits, dense_scores(rows, unit(text)), k, DENSE)
        assert all(dict(hit.parts) == {"dense": hit.score} for hit in hits)


@pytest.fixture(scope="module")
def large():
    """Lend a store too large for the dense index to look at every vector, full of duplicates."""
    texts = [" ".join(words) for words in itertools.product(sorted(WORDS), repeat=3)] * 14
    world = World(":memory:")
    world.insert([{"text": text, "metadata": {"mood": i % 7}} for i, text in enumerate(texts)])
    world.delete(range(0, 2000, 9))
    world.read_truth()
    yield world
    world.store.close()


@budget
@given(text=TEXTS, k=K, mood=st.integers(0, 6))
def test_dense_search_of_many(large, text, k, mood):
    """Among thousands of memories the nearest k are found too, ties at the edge cut by id."""
    for where in (None, {"mood": {"$ne": mood}}):
        hits = large.store.search(text, k, where=where)
        assert_ranking(hits, dense_scores(large.passing(where), unit(text)), k, DENSE)


@over_histories
def test_similar(plan, data):
    """Memories similar to one are found by its stored vector or trace, itself left out."""
    for world, where, rows, k in questions(plan, data):
        if not world.rows:
            continue
        asked = world.rows[data.draw(st.sampled_from(sorted(world.rows)))]
        others = [row for row in rows if row.id != asked.id]
        hits = world.store.similar(asked.id, k, where=where)
        assert_ranking(hits, dense_scores(others, asked.vector), k, DENSE)
        hits = world.store.similar(asked.id, k, by="trace", where=where)
        assert_ranking(hits, trace_scores(others, asked.activations, rarity(world)), k, TRACE)


@over_histories
def test_words_search(plan, data):
    """A search by words is FTS5's BM25 over the live texts, for any of the words."""
    some = st.lists(st.sampled_from([*sorted(WORDS), "absent"]), min_size=1, unique=True)
    for world, where, rows, k in questions(plan, data):
        query = data.draw(st.sampled_from([" ", ", ", "-"])).join(data.draw(some))
        hits = world.store.search(query, k, by="words", where=where)
        assert_ranking(hits, oracle.word_scores(world.rows.values(), rows, query), k, WORDY)


@pytest.mark.parametrize("query", ["Rain rain", "cafe café", "cafe\u0301s", "rain_walk"])
def test_odd_words(query):
    """One word is what the index takes for one, whatever its case, accents and neighbours."""
    with MemoryStore.open(":memory:", encoder=ENCODER) as store:
        texts = ["rain", "walk rain", "walk joy", "café", "café walk", "quiet quiet joy"]
        rows = [Row(i, text) for i, text in zip(store.insert_many(texts), texts, strict=True)]
        hits = store.search(query, by="words")
        assert_ranking(hits, oracle.word_scores(rows, rows, query), 10, WORDY)


@over_histories
def test_hybrid_search(plan, data):
    """A hybrid search adds 1 / (60 + rank) over the first max(100, k) of each side."""
    for world, where, rows, k in questions(plan, data):
        text, depth = data.draw(TEXTS), max(100, k)
        words = oracle.word_scores(world.rows.values(), rows, text)
        dense = dense_scores(rows, unit(text))
        trace = trace_scores(rows, question_of(text), rarity(world))
        sides = {"dense": (dense, DENSE), "trace": (trace, TRACE), "words": (words, WORDY)}
        shares = {name: oracle.fusion_shares(*side, depth) for name, side in sides.items()}
        oracle.assert_fused(world.store.search(text, k, by="hybrid", where=where), shares, k)


@over_histories
def test_filters(plan, data):
    """A filter passes the rows that a plain evaluation passes."""
    for world, where, rows, _ in questions(plan, data, count=12):
        assert [memory.id for memory in world.store.iter(where)] == sorted(row.id for row in rows)
        assert world.store.count(where) == len(rows)


def test_comparisons():
    """Values compare within their type only, whichever two meet."""
    held = [{}, *({"mood": value} for value in [None, ["rain", 1], {"rain": 1}, *SCALARS])]
    rows = [Row(i, "rain", metadata=metadata) for i, metadata in enumerate(held, start=1)]
    with MemoryStore.open(":memory:", encoder=ENCODER) as store:
        store.insert_many([{"text": row.text, "metadata": row.metadata} for row in rows])
        for operator, value in itertools.product([*BARE, *LISTED, *ORDERED], SCALARS):
            where = {"mood": {operator: [value] if operator in LISTED else value}}
            passing = [row.id for row in rows if oracle.passes(where, row)]
            assert [memory.id for memory in store.iter(where)] == passing, where


@pytest.mark.parametrize("name", ["two words", "é", "[0]", "back\\slash", "tab\tname"])
def test_odd_names(name):
    """A filter reaches metadata of any name."""
    with MemoryStore.open(":memory:", encoder=ENCODER) as store:
        store.insert("rain", metadata={name: 1})
        assert store.count({name: 1}) == 1


@over_histories
def test_half_life(plan, data):
    """A positive score halves with every half-life of age; the future counts as now."""
    for world, where, rows, k in questions(plan, data):
        text, (asked, spelled) = data.draw(TEXTS), data.draw(expressions(world.rows.values()))
        half_life, days = data.draw(st.sampled_from([("90d", 90), ("2.5y", 2.5 * 365.25)]))
        span, began = timedelta(days=days), datetime.now(UTC)
        options = {"where": where, "half_life": half_life}
        if data.draw(st.booleans()):
            marks = composite_scores(rows, asked, None)
            hits = world.store.composite(spelled, k, min_score=None, **options)
        else:
            marks = dense_scores(rows, unit(text))
            hits = world.store.search(text, k, **options)
        drift = (datetime.now(UTC) - began) / span  # ages went on growing meanwhile
        tolerance = (1e-6 + drift) * max([1.0, *(abs(mark.score) for mark in marks.values())])
        assert_ranking(hits, oracle.faded(world.rows, marks, span, began), k, tolerance)


@over_histories
def test_steered_search(plan, data):
    """Steering adds weighted activations to the cosine; its conditions filter."""
    for world, where, rows, k in questions(plan, data):
        text, (asked, spelled) = data.draw(TEXTS), data.draw(expressions(world.rows.values()))
        admitted, cosines = (
            [row for row in rows if asked.admits(row)],
            dense_scores(rows, unit(text)),
        )
        hits = world.store.search(text, k, where=where, steer=spelled)
        assert_ranking(hits, oracle.steered(admitted, cosines, asked), k, DENSE)
        for hit in hits:
            assert hit.parts["dense"] == pytest.approx(cosines[hit.id].score, abs=DENSE)
            assert_parts(hit.parts, asked, world.rows[hit.id], hit.score, "steer ")
