"""What is told of one neuron, against scipy and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memstore import MemoryStore
from memstore.neurons.statistics import auc_p, category_auc, company, strata, tellings
from tests.conftest import DIMENSION, NEURONS, lively_encoder


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=4, max_size=60))
def test_the_p_of_an_auc_is_scipy_s(pairs):
    """Mann and Whitney, ties corrected, without continuity correction."""
    values = np.array([float(value) for value, _ in pairs])
    inside = np.array([own for _, own in pairs])
    if inside.all() or not inside.any() or len(set(values)) == 1:
        return
    auc = category_auc(values, {"own": inside})["own"]
    _, ties = np.unique(values, return_counts=True)
    found = auc_p(auc, int(inside.sum()), len(values), ties)
    expected = stats.mannwhitneyu(
        values[inside], values[~inside], method="asymptotic", use_continuity=False
    ).pvalue
    assert found == pytest.approx(expected, abs=1e-9)


def test_tellings_are_counted_by_hand():
    """Lift, and precision among the twenty strongest that fire, ties by place."""
    activations = np.array([0.9, 0.0, 0.5, 0.5, 0.0, 0.2, 0.0, 0.0])
    inside = np.array([True, True, True, False, False, False, False, False])
    [found] = tellings(activations, {"a": inside})
    assert found.lift == pytest.approx((2 / 4) / (3 / 8))
    assert found.precision == pytest.approx(2 / 4)
    assert found.auc == pytest.approx(
        stats.mannwhitneyu([0.9, 0, 0.5], [0.5, 0, 0.2, 0, 0])[0] / 15
    )
    many = np.linspace(1, 2, 50)
    [found] = tellings(many, {"top": np.arange(50) >= 40})
    assert found.precision == 10 / 20
    [silent] = tellings(np.zeros(8), {"a": inside})
    assert (silent.lift, silent.precision, silent.auc) == (0.0, 0.0, 0.5)


def test_strata_are_the_middles_of_the_tenths():
    """Strongest first; of few, all."""
    values = np.random.default_rng(0).permutation(100).astype(float)
    assert values[strata(values)].tolist() == [94, 84, 74, 64, 54, 44, 34, 24, 14, 4]
    assert strata(np.array([1.0, 3.0, 2.0])).tolist() == [1, 2, 0]
    assert strata(np.array([])).tolist() == []


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store of several blocks of rows, some deleted, in two categories and three months."""
    path = tmp_path_factory.mktemp("statistics") / "filled.db"
    with MemoryStore.open(path, encoder=lively_encoder()) as store:
        store.insert_many(
            [
                {
                    "text": f"entry {i}",
                    "category": "ab"[i % 7 == 0],
                    "occurred_at": f"2026-0{1 + i % 3}-15",
                }
                for i in range(700)
            ],
            vectors=np.random.default_rng(0).integers(-2, 3, (700, DIMENSION)) + 0.1,
        )
        store.optimize()
        store.insert_many([{"text": f"later {i}", "occurred_at": "2026-04-01"} for i in range(50)])
        store.delete(range(5, 90, 3))
    return path


def test_a_neuron_is_what_the_traces_say(filled):
    """Company, months, categories and strata by brute force over the dense matrix."""
    with MemoryStore.open(filled, encoder=lively_encoder()) as store:
        dense = store.traces().to_dense()
        fires = dense > 0
        rows = list(store)
        total = len(rows)
        for number in range(NEURONS):
            known = store.neurons[number]
            own = fires[:, number]
            both = (fires & own[:, None]).sum(axis=0)
            expected = {}
            for other in range(NEURONS):
                lift = both[other] * total / (own.sum() * fires[:, other].sum() or 1)
                if other != number and both[other] >= 5 and lift > 1:
                    expected[other] = (both[other], lift)
            ordered = sorted(expected, key=lambda n: (-expected[n][0] * np.log(expected[n][1]), n))[
                :8
            ]
            assert [one.neuron for one in known.company] == ordered
            for one in known.company:
                assert (one.memories, one.lift) == pytest.approx(expected[one.neuron])
            months = {}
            for row, fired in zip(rows, own, strict=True):
                if fired:
                    month = row.occurred_at.strftime("%Y-%m")
                    months[month] = months.get(month, 0) + 1
            assert dict(known.months) == dict(sorted(months.items()))
            assert {one.category for one in known.tells} == {"a", "b"}
            for one in known.tells:
                inside = np.array([row.category == one.category for row in rows])
                assert one.auc == known.categories[one.category]
                assert one.lift == pytest.approx(inside[own].mean() / inside.mean())
            assert len(known.strata) == min(10, own.sum())
            assert list(known.strata.scores) == sorted(known.strata.scores, reverse=True)


def test_company_is_empty_where_nothing_is_more_than_chance():
    """Neurons that fire for all memories keep nobody company."""
    everyone = np.array([100, 100, 100])
    assert company(0, everyone, everyone, 100) == ()


def test_alike_is_the_cosine_of_decoder_columns():
    """From the weights alone, itself left out."""
    encoder = lively_encoder()
    columns = encoder.sae.tensors["decoder.weight"].astype(np.float64)
    columns = columns / np.linalg.norm(columns, axis=0)
    cosines = columns.T @ columns
    with MemoryStore.open(":memory:", encoder=encoder) as store:
        found = store.neurons.alike(4, 3)
        order = [n for n in np.argsort(-cosines[4]).tolist() if n != 4][:3]
        assert [neuron for neuron, _ in found] == order
        assert [cosine for _, cosine in found] == pytest.approx(cosines[4][order], abs=1e-6)
