"""`audit` against counts by brute force and scipy's tests."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from memstore import MemoryStore, layout
from memstore.audit import benjamini_hochberg, z_test
from memstore.errors import InvalidQuery

ROOT = Path(__file__).parent.parent


def test_the_test_is_scipy_s():
    """Two proportions: the square of z is the chi-square of the table without correction."""
    for a, n, b, m in ((30, 100, 10, 90), (5, 50, 1, 400), (3, 9, 3, 9), (0, 5, 0, 7)):
        found = z_test(a / n, n, b / m, m)
        if a + b == 0:
            assert found == 1.0
            continue
        expected = stats.chi2_contingency([[a, n - a], [b, m - b]], correction=False).pvalue
        assert found == pytest.approx(expected)


def test_the_adjustment_is_scipy_s():
    """Benjamini and Hochberg's, ties and all."""
    p = np.random.default_rng(2).random(200) ** 3
    p[10:20] = p[10]
    assert np.allclose(benjamini_hochberg(p), stats.false_discovery_control(p))
    assert benjamini_hochberg(np.array([])).size == 0


def text_of(number, wanted):
    """Return a text whose vector, on the grid of conftest.py, is the one of this number."""
    head = f"text {number} "
    return next(head + c for c in "abcde" if sum(map(ord, head + c)) % 5 == wanted)


@pytest.fixture
def filled(store):
    """Two categories of mostly different vectors, some without one, over two months."""
    dice = np.random.default_rng(4)
    store.insert_many(
        [
            {
                "text": text_of(number, (number % 3) if dice.random() < 0.7 else 4),
                "category": ("A", "B", None)[number % 3],
                "occurred_at": f"2026-0{1 + number % 2}-11T00:00:00Z",
            }
            for number in range(300)
        ]
    )
    store.delete([4, 50, 299])
    return store


def strong_table(store):
    dense = store.traces().to_dense()
    return dense >= 0.4 * dense.max(axis=0) - 1e-12, dense


@pytest.mark.parametrize("by", ["category", "month"])
def test_groups_are_told_apart_by_what_fires_more_often(filled, by):
    """Counts, rates and p of every neuron told; none that brute force would not tell."""
    strong, dense = strong_table(filled)
    strong &= dense > 0
    memories = list(filled)
    name = (
        (lambda m: m.category) if by == "category" else (lambda m: m.occurred_at.strftime("%Y-%m"))
    )
    groups = sorted({name(m) for m in memories} - {None})
    tested, rows = {}, {}
    for group in groups:
        inside = np.array([name(m) == group for m in memories])
        for neuron in range(strong.shape[1]):
            a, b = strong[inside, neuron].sum(), strong[~inside, neuron].sum()
            n, m = inside.sum(), (~inside).sum()
            if a >= 5 and a / n > b / m:
                table = [[a, n - a], [b, m - b]]
                tested[group, neuron] = stats.chi2_contingency(table, correction=False).pvalue
                rows[group, neuron] = (a, a / n, b / m)
    adjusted = dict(
        zip(tested, stats.false_discovery_control(list(tested.values())), strict=True)
    ) if tested else {}  # fmt: skip
    found = filled.audit(by)
    assert found.memories == len(memories)
    assert sorted(found.groups) == groups
    for group, told in found.groups.items():
        wanted = {n for (g, n), q in adjusted.items() if g == group and q <= 0.01}
        assert len(told) == min(len(wanted), 8)
        assert {one.neuron for one in told} <= wanted
        for one in told:
            count, rate, other = rows[group, one.neuron]
            assert (one.memories, one.rate, one.elsewhere) == pytest.approx((count, rate, other))
            assert one.adjusted_p == pytest.approx(adjusted[group, one.neuron])
    if by == "category":
        assert any(found.groups.values())
    common = [one.neuron for one in found.common]
    counts = strong.sum(axis=0)
    assert [counts[n] for n in common] == sorted(counts, reverse=True)[: len(common)]


def test_what_is_new_fired_for_nothing_older(store):
    """The tenth stored last brings a neuron that never fired before."""
    store.insert_many([f"text {number % 7}" for number in range(90)])
    store.insert_many([f"other {number} zz" for number in range(10)])
    strong, dense = strong_table(store)
    strong &= dense > 0
    expected = {
        n
        for n in range(strong.shape[1])
        if strong[90:, n].any() and not strong[:90, n].any()
    }  # fmt: skip
    assert {one.neuron for one in store.audit().new} == expected


def test_near_copies_are_found(narrative_store, tmp_path, narratives):
    """A text with another word, beside 120 others: that pair and no other."""
    texts = [row["text"] for row in narratives[:120]]
    texts.append(texts[16].replace(" the ", " that ", 1))
    with MemoryStore.open(tmp_path / "copies.db") as store:
        store.insert_many(texts)
        [(one, other, cosine)] = store.audit().copies
    assert (one, other) == (17, 121)
    assert 0.95 <= cosine <= 1


def test_near_copies_may_differ_in_a_neuron(tmp_path, narratives):
    """Forty texts, twelve of them again with another word; pairs as brute force finds them."""
    texts = [row["text"] for row in narratives[:40]]
    texts += [text.replace(" the ", " that ", 1) for text in texts if " the " in text][:12]
    with MemoryStore.open(tmp_path / "copies.db") as store:
        store.insert_many(texts)
        dense = store.traces().to_dense()
        lines = layout.DICTIONARY.read_text("utf-8").splitlines()[1:]
        known = {row["neuron"]: row.get("top") or 0.0 for row in map(json.loads, lines)}
        tops = np.array([known.get(neuron, 0.0) for neuron in range(dense.shape[1])])
        strong = (dense > 0) & (dense >= 0.4 * np.maximum(dense.max(axis=0), tops) - 1e-12)
        vectors = np.concatenate([part for _, part in store.iter_vectors()])
        found = {(one, other) for one, other, _ in store.audit().copies}
        with store._database.driver() as raw:  # a vector is lost: the others are still found
            raw.execute("DELETE FROM vector WHERE memory_id = ?", (lost := min(found)[0],))
        left = {(one, other) for one, other, _ in store.audit().copies}
    expected, differing = set(), 0
    for (i, one), (j, other) in itertools.combinations(enumerate(strong), 2):
        more, less, both = ((a & b).sum() for a, b in ((one, ~other), (~one, other), (one, other)))
        if max(more, less) <= 1 and both >= 3 and vectors[i] @ vectors[j] >= 0.95:
            expected.add((i + 1, j + 1))
            differing += bool(more or less)
    assert found == expected
    assert left == {pair for pair in expected if lost not in pair} < expected
    assert 0 < differing < len(expected)


def test_an_empty_store_and_a_wrong_word(store):
    """Nothing is nothing; a word it does not know is an error."""
    found = store.audit()
    assert (found.memories, found.common, found.groups, found.new) == (0, (), {}, ())
    with pytest.raises(InvalidQuery, match="'category' or 'month'"):
        store.audit("year")


def test_the_command_says_it(narrative_store):
    """Groups with what sets them apart; JSON that any reader takes."""
    command = [sys.executable, "-m", "memstore", "audit", str(narrative_store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    for title in ("common", "Routine", "Strong Emotional", "new: only"):
        assert title in done.stdout
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout)["memories"] == 450
