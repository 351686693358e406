"""`explain` and `diff` against the traces themselves, counted by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memstore import MemoryStore
from memstore.errors import MemoryNotFound
from memstore.neurons.dictionary import shipped

ROOT = Path(__file__).parent.parent


@pytest.fixture
def filled(store):
    store.insert_many([f"text {number}" for number in range(40)])
    store.delete(7)
    store.neurons.label(2, "two")
    return store


def test_explain_is_the_trace_in_words(filled):
    """Activation, share of the largest, fire rate and label of each neuron, by brute force."""
    dense = filled.traces().to_dense()
    rows = [memory.id for memory in filled]
    for id in (1, 8, 40):
        own = dense[rows.index(id)]
        found = filled.explain(id)
        assert found.memory == filled.get(id)
        assert {one.neuron for one in found.fires} == set(np.flatnonzero(own).tolist())
        for one in found.fires:
            column = dense[:, one.neuron]
            assert one.activation == own[one.neuron]
            assert one.share == pytest.approx(own[one.neuron] / column.max())
            assert one.fire_rate == pytest.approx(np.mean(column > 0))
            assert one.label == ("two" if one.neuron == 2 else None)
            assert one.strong == (one.share >= 0.4)
        shares = [one.share for one in found.fires]
        assert shares == sorted(shares, reverse=True)


def test_diff_parts_two_traces(filled):
    """Shared and alone add up to both traces; the cosine is that of the vectors."""
    vectors = np.concatenate([page for _, page in filled.iter_vectors()])
    rows = [memory.id for memory in filled]
    found = filled.diff(3, 20)
    one, other = (set(filled.trace(id).neurons.tolist()) for id in (3, 20))
    assert {a.neuron for a, _ in found.shared} == one & other
    assert all(a.neuron == b.neuron for a, b in found.shared)
    assert {fired.neuron for fired in found.only_one} == one - other
    assert {fired.neuron for fired in found.only_other} == other - one
    cosine = float(vectors[rows.index(3)] @ vectors[rows.index(20)])
    assert found.cosine == pytest.approx(cosine)
    smaller = [min(a.share, b.share) for a, b in found.shared]
    assert smaller == sorted(smaller, reverse=True)
    assert (found.one.id, found.other.id) == (3, 20)
    turned = filled.diff(20, 3)
    assert turned.only_one == found.only_other
    assert filled.diff(5, 5).only_one == ()
    assert filled.diff(5, 5).cosine == pytest.approx(1)


def test_what_is_not_there_is_a_typed_error(filled):
    """A deleted memory, and one that never was."""
    for ask in (
        lambda: filled.explain(7),
        lambda: filled.diff(1, 7),
        lambda: filled.diff(7, 1),
        lambda: filled.explain(99),
    ):
        with pytest.raises(MemoryNotFound, match="no memory has id"):
            ask()


def test_the_dictionary_says_how_strongly_a_neuron_can_fire(narrative_store):
    """A neuron that fires for one memory alone does not fire strongly for that."""
    with MemoryStore.open(narrative_store, mode="r") as store:
        for one in store.explain(435).fires:
            top = shipped().entries[one.neuron].top
            assert one.share <= one.activation / top + 1e-9
            assert one.label == shipped().entries[one.neuron].label


def test_the_commands_say_it(narrative_store):
    """Two memories in words, and as JSON."""

    def said(*arguments):
        command = [sys.executable, "-m", "memstore", arguments[0], str(narrative_store)]
        done = subprocess.run(
            [*command, *arguments[1:]], capture_output=True, text=True, check=True, cwd=ROOT
        )
        return done.stdout

    assert "horses" in said("explain", "435")
    assert "only 435" in said("diff", "435", "12")
    found = json.loads(said("explain", "435", "--json"))
    assert len(found["fires"]) == 32
    assert json.loads(said("diff", "435", "12", "--json"))["other"]["id"] == 12
