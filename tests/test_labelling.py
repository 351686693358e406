"""Labels without a model: from a store's own texts, graded on texts kept apart."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from memstore import MemoryStore
from memstore.errors import EncoderMismatch, InvalidFile, StoreError
from memstore.labelling import auc, make_labels
from memstore.neurons.words import label, scores, terms
from tests.conftest import make_encoder


def test_terms_are_words_that_mean_something_and_their_pairs():
    """Grammar is left out, and a pair needs two words side by side."""
    assert terms("The cat sat on the old mat, don't you know") == {
        "cat", "sat", "old", "mat", "know", "cat sat", "old mat",
    }  # fmt: skip


def test_scores_are_the_formula():
    """(tf(fires) - tf(near)) log(1 + N / f), by hand; terms of one text alone are no pattern."""
    fires = ["guitar solo", "guitar loud", "drums loud", "guitar"]
    near = ["loud crowd", "crowd"]
    everywhere = {"guitar": 3, "loud": 3, "crowd": 2, "solo": 1, "drums": 1}
    found = scores(fires, near, everywhere, 100)
    assert found == {"guitar": pytest.approx(3 / 4 * math.log(1 + 100 / 3))}
    assert label({"guitar": 1.0, "guitar solo": 0.9, "drums": 0.6, "bass": 0.4}) == "guitar, drums"
    assert label({}) is None


def test_the_grade_is_scikit_learn_s_auc():
    """Ties count half."""
    dice = np.random.default_rng(3)
    inside, outside = dice.integers(0, 6, 40), dice.integers(0, 5, 70)
    expected = roc_auc_score([1] * 40 + [0] * 70, np.concatenate([inside, outside]))
    assert auc(inside, outside) == pytest.approx(expected)


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A store of texts about few things, under the shipped encoder."""
    things = {
        "guitar": ["bought", "tuned", "played", "lost", "sold", "painted", "dropped", "found"],
        "sushi": ["ordered", "made", "shared", "burned", "tried", "wanted", "missed", "drew"],
        "snow": ["shovelled", "watched", "cursed", "tasted", "painted", "expected", "feared"],
    }
    people = ("My brother", "A neighbour", "The teacher", "Our landlord", "She")
    texts = [
        f"{person} {verb} the {thing} again on a {day}."
        for thing, verbs in things.items()
        for verb in verbs
        for person in people
        for day in ("Monday", "Friday")
    ]
    path = tmp_path_factory.mktemp("animals") / "animals.db"
    with MemoryStore.open(path) as store:
        store.insert_many([{"text": text} for text in texts])
        store.neurons.make_labels()
    return path


def test_words_that_set_texts_apart_become_labels(animals):
    """Of neurons that the dictionary says are about them."""
    with MemoryStore.open(animals, mode="r") as store:
        made = set(store.neurons.labels())
    for thing in ("guitar", "sushi", "snow"):
        assert any(thing in name for name in made), made


def test_made_labels_are_clear_ones_and_a_second_making_replaces_them(animals, tmp_path):
    """Grades above 0.7, no two alike; a label given by hand stays."""
    with MemoryStore.open(animals) as store:
        made = [one for one in store.neurons.make_labels() if one.label is not None]
        assert made
        assert all(0.7 < one.grade <= 1 for one in made)
        names = store.neurons.labels()
        assert len({name.casefold() for name in names}) == len(names)
        store.neurons.label(made[0].neuron, "mine")
        store.neurons.make_labels()
        assert store.neurons[made[0].neuron].label == "mine"
        assert sorted(set(store.neurons.labels()) - {"mine"} - set(names)) == []
        store.neurons.label(made[0].neuron, None)


def test_made_labels_yield_to_the_dictionary(animals):
    """A neuron that it names keeps that name; a made name still finds the neuron."""
    with MemoryStore.open(animals, mode="r") as store:
        shown = {number: store.neurons[number].label for number in range(0, 3072, 37)}
        from memstore.neurons.dictionary import shipped

        for number, name in shown.items():
            official = shipped().entries[number].label
            assert official is None or name == official
        for name in store.neurons.labels():
            store.top(name, 1)


def test_few_texts_get_no_label():
    """Nothing to write from, nothing to grade with: nothing is said."""
    encoder = make_encoder()
    texts = [f"text {number}" for number in range(8)]
    vectors = encoder.vectors(texts)
    made = make_labels(texts, vectors, encoder.traces(vectors), encoder)
    assert [one.label for one in made] == [None] * encoder.neurons
    assert [one.grade for one in made] == [None] * encoder.neurons


def test_labels_travel_as_one_file_bound_to_the_encoder(animals, tmp_path, encoder):
    """Export, import elsewhere, the same labels, grades and methods; refused on another encoder."""
    file = tmp_path / "labels.jsonl"
    with MemoryStore.open(animals, mode="r") as store:
        count = store.neurons.export_labels(file)
        names = store.neurons.labels()
        with pytest.raises(StoreError, match="exists"):
            store.neurons.export_labels(file)
    assert count == len(names) == len(file.read_text().splitlines()) - 1
    with MemoryStore.open(tmp_path / "new.db") as store:
        store.insert("one")
        assert store.neurons.import_labels(file) == count
        assert store.neurons.labels() == names
        assert store.neurons.export_labels(tmp_path / "again.jsonl") == count
    assert (tmp_path / "again.jsonl").read_text() == file.read_text()
    with MemoryStore.open(tmp_path / "other.db", encoder=encoder) as store:
        store.insert("one")
        with pytest.raises(EncoderMismatch):
            store.neurons.import_labels(file)
        assert store.neurons.labels() == []


@pytest.mark.parametrize(
    "line",
    [
        '{"neuron": 99999, "label": "x", "sentence": null, "grade": 0.5, "method": "words"}',
        '{"neuron": 1, "label": "x", "sentence": null, "grade": 7, "method": "words"}',
        '{"neuron": 1, "label": "15", "sentence": null, "grade": 0.5, "method": "words"}',
        '{"neuron": "1", "label": "x", "sentence": null, "grade": 0.5, "method": "words"}',
        '{"neuron": 1, "label": ["x"], "sentence": null, "grade": 0.5, "method": "words"}',
        '{"neuron": 1, "label": "x", "sentence": null, "grade": "good", "method": "words"}',
        '{"neuron": 1, "label": "x", "sentence": null, "grade": 0.5, "method": 3}',
        '{"neuron": 1, "label": "x"}',
        "[]",
        "{",
    ],
)
def test_a_bad_line_takes_over_nothing(animals, tmp_path, line):
    """One typed error, and the store is as it was."""
    file = tmp_path / "labels.jsonl"
    with MemoryStore.open(animals) as store:
        store.neurons.export_labels(file)
        names = store.neurons.labels()
        heading = file.read_text().splitlines()[0]
        good = {"neuron": 2, "label": "zebra", "sentence": None, "grade": 0.9, "method": "given"}
        file.write_text(f"{heading}\n{json.dumps(good)}\n{line}\n")
        with pytest.raises(InvalidFile):
            store.neurons.import_labels(file)
        assert store.neurons.labels() == names
