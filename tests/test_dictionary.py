"""The dictionary that ships with the encoder: one line a neuron, honest, and usable as names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memstore import Encoder, MemoryStore
from memstore.errors import InvalidFile, UnknownNeuron
from memstore.layout import DICTIONARY
from memstore.neurons.dictionary import Dictionary, shipped

ROOT = Path(__file__).parent.parent


def test_it_is_of_the_shipped_encoder_and_has_a_line_a_neuron():
    """Bound by fingerprint."""
    encoder = Encoder.default()
    assert shipped().fingerprint == encoder.fingerprint
    assert len(shipped().entries) == encoder.neurons == 3072


def test_labels_are_names_and_a_label_has_passed_its_second_reading():
    """1 to 5 words, no two alike, nothing an expression reads otherwise; 0.8 or no label."""
    labels = [entry.label for entry in shipped().entries if entry.label is not None]
    assert len({label.casefold() for label in labels}) == len(labels)
    others = [name for entry in shipped().entries for name in entry.also]
    everything = [name.casefold() for name in (*labels, *others)]
    assert len(set(everything)) == len(everything) == len(shipped().names)
    for name in others:
        assert re.fullmatch(r"[\w' -]+", name)
        assert not re.fullmatch(r"N?[0-9]+", name)
    for label in labels:
        assert 1 <= len(label.split()) <= 5
        assert not re.search(r"[\"+<>=()\[\]{}|&*!\\]", label)
        assert not re.fullmatch(r"N?[0-9]+", label)
    for entry in shipped().entries:
        assert entry.sentence.strip()
        assert (entry.label is None) or entry.grade >= 0.8
        assert entry.grade is None or 0 <= entry.grade <= 1


def test_the_page_says_what_the_file_has():
    """docs/neurons.md: how many are labelled, and the distribution of their grades."""
    page = (ROOT / "docs" / "neurons.md").read_text("utf-8")
    entries = shipped().entries
    labelled = sum(entry.label is not None for entry in entries)
    assert f"{labelled:,} of 3,072" in page
    graded = [entry.grade for entry in entries if entry.grade is not None]
    for low, high in ((0.95, 1.01), (0.85, 0.95), (0.8, 0.85), (0.7, 0.8), (0.0, 0.7)):
        count = sum(low - 1e-9 <= grade < high - 1e-9 for grade in graded)
        assert f"| {count:,} |" in page, (low, count)


def test_labels_are_names_in_expressions(narrative_store):
    """A label asks what its number asks; capitals aside; and reasons say it."""
    with MemoryStore.open(narrative_store, mode="r") as store:
        number = shipped().number("crying and tears")
        by_name, by_number = store.top("Crying and tears", 5), store.top(number, 5)
        assert by_name.ids == by_number.ids
        assert "'crying and tears'" in by_number[0].why()
        both = store.composite("'crying and tears' - 0.5*'fathers and dads'", 5)
        other = shipped().number("fathers and dads")
        assert both.ids == store.composite({number: 1.0, other: -0.5}, 5).ids
        known = store.neurons["crying and tears"]
        assert (known.id, known.label) == (number, "crying and tears")
        assert known.grade >= 0.8
        assert known.sentence == shipped().entries[number].sentence
        assert store.neurons.of([number]) == {number: "crying and tears"}


def test_a_name_given_here_comes_first(path, narratives):
    """Over the dictionary's, which still knows the neuron by its own."""
    with MemoryStore.open(path) as store:
        store.insert_many(narratives[:30])
        number = shipped().number("laughing")
        store.neurons.label(number, "giggles")
        assert store.neurons[number].label == "giggles"
        assert store.neurons["laughing"].id == store.neurons["giggles"].id == number
        store.neurons.label(7, "laughing")
        assert store.neurons["laughing"].id == 7
        assert {entry.neuron for entry in store.neurons.find("laughing", 3)} >= {7}
        store.neurons.label(7, None)
        assert store.neurons["laughing"].id == number


def test_a_name_nobody_gave_is_answered_with_near_ones(narrative_store):
    """By words, by their beginnings, by spelling."""
    with MemoryStore.open(narrative_store, mode="r") as store:
        for name, near in (("fathered", "fathers and dads"), ("cryin", "crying and tears")):
            with pytest.raises(UnknownNeuron, match=f"did you mean .*{near}"):
                store.top(name)
        with pytest.raises(UnknownNeuron, match="give it one"):
            store.top("qqqqqqqq")
        assert store.top("grief", 1).ids == store.top("death and dying", 1).ids
        found = store.neurons.find("losing a job", 5)
        assert len(found) == 5
        assert any("job" in entry.sentence + entry.label for entry in found)


def test_another_encoder_has_no_dictionary(store):
    """Its neurons mean something else."""
    store.insert("one text")
    assert store.neurons.find("laughing") == []
    with pytest.raises(UnknownNeuron, match="labels make STORE"):
        store.top("laughing")
    store.neurons.label(3, "Laughing aloud")
    assert [entry.neuron for entry in store.neurons.find("laughing")] == [3]
    assert store.neurons[3].sentence is None


def test_the_command_finds_neurons(narrative_store):
    """As a table and as JSON."""
    command = [sys.executable, "-m", "memstore", "labels", "find"]
    command += [str(narrative_store), "laughing"]
    table = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "laughing" in table.stdout.splitlines()[1]
    done = subprocess.run(
        [*command, "--json", "-n", "1"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout)[0]["neuron"] == shipped().number("laughing")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [],
        lambda lines: lines[1:],
        lambda lines: [lines[0].replace('"format": 1', '"format": 9'), *lines[1:]],
        lambda lines: [*lines[:5], *lines[6:]],
        lambda lines: [*lines[:5], "{", *lines[6:]],
        lambda lines: [*lines[:5], "[1]", *lines[6:]],
    ],
)
def test_a_damaged_file_is_a_typed_error(tmp_path, change):
    """Whatever was cut or changed."""
    lines = DICTIONARY.read_text("utf-8").splitlines()
    (tmp_path / "labels.jsonl").write_text("\n".join(change(lines)) + "\n", "utf-8")
    with pytest.raises(InvalidFile):
        Dictionary.read(tmp_path / "labels.jsonl")
