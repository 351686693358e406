"""Labels by a model: explained, graded, one file; over HTTP, interrupted, bound to an encoder."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from memstore import Encoder, MemoryStore, model_labels
from memstore.embed.function import FunctionEmbedder
from memstore.errors import EncoderMismatch, JobError, JobNotFound
from memstore.jobs.answers import Answer
from memstore.neurons import reading
from memstore.neurons.reading import Sheet, balanced_accuracy
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE

NEURONS = 220


def hashed(texts):
    """Texts -> 16 random numbers each, the same for the same text."""
    return np.array(
        [
            np.random.default_rng(
                int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
            ).normal(size=16)
            for text in texts
        ],
        dtype=np.float32,
    )


def an_encoder(seed=0):
    dice = np.random.default_rng(seed)
    config = SAEConfig("topk", 16, NEURONS, k=8)
    tensors = {n: dice.normal(size=s).astype(np.float32) for n, s in config.shapes().items()}
    # Of equal length and without bias, so that all fire about as often.
    tensors["encoder.weight"] /= np.linalg.norm(tensors["encoder.weight"], axis=1, keepdims=True)
    tensors["encoder.bias"][:] = tensors["decoder.bias"][:] = 0
    return Encoder(
        FunctionEmbedder(hashed, 16, "hashed"),
        SAE(config, tensors),
        name="hashed",
        config={"embedder": {"kind": "object", "class": "FunctionEmbedder"}, "sae": "hashed"},
    )


@pytest.fixture(scope="module")
def hashed_store(tmp_path_factory):
    """2,500 texts, each neuron firing for about ninety."""
    path = tmp_path_factory.mktemp("hashed") / "hashed.db"
    with MemoryStore.open(path, encoder=an_encoder()) as store:
        store.insert_many([f"text number {number}" for number in range(2500)])
    return path


def sheets_of(folder):
    lines = (folder / "sheets.jsonl").read_text().splitlines()
    return [Sheet(**json.loads(line)) for line in lines[1:]]


def test_the_loop_for_two_hundred_neurons_interrupted_and_resumed(shell, api, hashed_store):
    """Explain in batches with failures, grade one by one with kills between, process."""
    with MemoryStore.open(hashed_store, mode="r") as store:
        store.neurons.plan_labels(shell.folder / "job", "m", list(range(200)))
    assert len(sheets_of(shell.folder / "job")) == 200
    done = shell.run("labels", "grade", "job", code=1)
    assert "200 of 200 neurons in job have no answer yet" in done.stderr
    api.fault(at="batch", kind="expire", after=120)
    for _ in range(2):
        for step in (("submit", "--yes"), ("watch", "--every", "0.1"), ("fetch",)):
            shell.run("labels", step[0], "job", *step[1:])
    assert shell.json("labels", "status", "job")["requests"] == {"answered": 200}
    assert len(api.paid) == len(set(api.paid)) == 200
    assert "not graded yet" in shell.run("labels", "process", "job", code=1).stderr
    assert shell.json("labels", "grade", "job")["requests"] == [400]
    told = shell.run("labels", "process", "job", code=1)
    assert "400 of 400 grading requests" in told.stderr
    api.fault(at="POST /chat/completions", kind="slow", seconds=0.05, times=400)
    asking = [sys.executable, "-m", "memstore", "labels", "direct", "job/grades", "--yes"]
    kept = []
    for _ in range(2):
        process = subprocess.Popen(
            asking, cwd=shell.folder, env=shell.environment(), stderr=subprocess.DEVNULL
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.6)
        process.kill()
        process.wait()
        log = shell.folder / "job" / "grades" / "direct.jsonl"
        kept.append(log.read_bytes().count(b"\n") if log.exists() else 0)
    assert 0 < kept[0] < kept[1] < 400
    api.heal()
    assert shell.json("labels", "direct", "job/grades", "--yes") == {"answered": 400}
    assert len(set(api.prompts)) == 600
    assert len(api.paid) <= 600 + 2 * 8
    told = shell.json("labels", "process", "job")
    assert told["neurons"] == 200
    heading, *lines = map(
        json.loads, (shell.folder / "job" / "labels.jsonl").read_text().splitlines()
    )
    assert heading["encoder"] == an_encoder().fingerprint
    assert heading["model"] == "m"
    assert [line["neuron"] for line in lines] == list(range(200))
    assert all(0 <= line["grade"] <= 1 and line["sentence"] for line in lines)
    assert {line["intruder"] for line in lines} == {True, False}
    assert all((line["label"] is None) or line["grade"] >= 0.8 for line in lines)


def test_a_sheet_is_what_it_says(hashed_store, tmp_path):
    """Against the traces: what fires, what does not, no text in two places, strata from the top."""
    with MemoryStore.open(hashed_store, mode="r") as store:
        store.neurons.plan_labels(tmp_path / "job", "m", [3, 50])
        dense = store.traces().to_dense()
        row = {memory.text: place for place, memory in enumerate(store)}
    for sheet in sheets_of(tmp_path / "job"):
        column = dense[:, sheet.neuron]
        assert sheet.fires[0][1] in row
        top = np.sort(column)[-3:].mean()
        for strength, text in sheet.fires:
            assert strength == pytest.approx(min(10 * column[row[text]] / top, 10))
        assert not any(column[row[text]] for text in sheet.near)
        fires = [place for place, text in enumerate(sheet.test) if column[row[text]] > 0]
        assert fires == list(sheet.answers)
        assert all(column[row[sheet.test[place]]] >= 0.4 * top for place in fires)
        assert len(sheet.test) == 10
        assert [bool(column[row[text]]) for text in sheet.five].count(True) == 4
        assert not column[row[sheet.five[sheet.intruder]]]
        every = [text for _, text in sheet.fires] + [*sheet.near, *sheet.test, *sheet.five]
        assert len(set(every)) == len(every)
        strengths = [strength for strength, _ in sheet.fires]
        assert strengths == sorted(strengths, reverse=True)
        assert len({int(strength) for strength in strengths}) >= 4


def answered(id, found):
    message = {"content": json.dumps(found), "refusal": None}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


def test_grades_are_balanced_accuracies_and_weak_labels_are_unclear(hashed_store, tmp_path):
    """Answers written by hand: all right, half right, none; and a label that says nothing."""
    with MemoryStore.open(hashed_store, mode="r") as store:
        job = store.neurons.plan_labels(tmp_path / "job", "m", [1, 2, 3, 4])
    sheets = {sheet.neuron: sheet for sheet in sheets_of(tmp_path / "job")}
    said = {1: "red things", 2: "blue things", 3: "Red things", 4: "unclear"}
    write_direct(job.folder, {
        f"explain-{n:06d}": {"label": label, "sentence": f"Fires for {label}."}
        for n, label in said.items()
    })  # fmt: skip
    grades = model_labels.plan_grades(job.folder)
    assert sum(grades.facts.parts) == 6
    right = {n: list(sheets[n].answers) for n in (1, 2, 3)}
    write_direct(grades.folder, {
        "detect-000001": {"fits": right[1]},
        "detect-000002": {"fits": right[2][:2]},
        "detect-000003": {"fits": right[3]},
        "intruder-000001": {"intruder": sheets[1].intruder},
        "intruder-000002": {"intruder": (sheets[2].intruder + 1) % 5},
        "intruder-000003": {"intruder": 77},
    })  # fmt: skip
    path, entries = model_labels.write_labels(job.folder)
    assert [e.label for e in entries] == ["red things", None, None, None]
    assert [e.grade for e in entries] == [1.0, 0.7, 1.0, None]
    assert [e.intruder for e in entries] == [True, False, False, None]
    assert entries[1].sentence == "Fires for blue things."
    with MemoryStore.open(hashed_store, encoder=an_encoder()) as store:
        assert store.neurons.import_labels(path) == 1
        known = store.neurons["red things"]
        assert (known.id, known.grade, known.sentence) == (1, 1.0, "Fires for red things.")
        store.export(tmp_path / "all.jsonl", encoded=True)
    heading = json.loads((tmp_path / "all.jsonl").read_text().splitlines()[0])
    assert heading["labels"][0]["model"] == "m"
    assert heading["labels"][0]["method"] == "model"
    with MemoryStore.open(tmp_path / "copy.db", encoder=an_encoder()) as copy:
        copy.load(tmp_path / "all.jsonl")
        assert copy.neurons["red things"].sentence == "Fires for red things."
    with (
        MemoryStore.open(tmp_path / "other.db", encoder=an_encoder(seed=1)) as other,
        pytest.raises(EncoderMismatch),
    ):
        other.neurons.import_labels(path)


def write_direct(folder, answers):
    with (folder / "direct.jsonl").open("w") as file:
        for id, found in answers.items():
            response = {"status_code": 200, "body": answered(id, found)}
            file.write(json.dumps({"custom_id": id, "response": response, "error": None}) + "\n")


def test_balanced_accuracy_by_hand():
    """Two of four firing and five of six silent texts told rightly."""
    sheet = Sheet(1, [], [], ["t"] * 10, [0, 1, 2, 3], [], 0)
    assert balanced_accuracy(sheet, [0, 1, 9, 9]) == pytest.approx((2 / 4 + 5 / 6) / 2)
    assert balanced_accuracy(sheet, [0, 1, 2, 3, 55]) == 1


@pytest.mark.parametrize(
    ("id", "content"),
    [
        ("explain-000001", {"label": "one two three four five six", "sentence": "x"}),
        ("explain-000001", {"label": "", "sentence": "x"}),
        ("explain-000001", {"label": 3, "sentence": "x"}),
        ("explain-000001", {"label": "x"}),
        ("explain-000001", ["x"]),
        ("detect-000001", {"fits": "1, 2"}),
        ("detect-000001", {"fits": [True]}),
        ("detect-000001", {"fits": [1.5]}),
        ("intruder-000001", {"intruder": "2"}),
        ("intruder-000001", {"intruder": None}),
        ("other-000001", {"intruder": 1}),
        ("explain-one", {"label": "x", "sentence": "x"}),
    ],
)
def test_an_answer_of_another_form_is_of_no_use(id, content):
    """It says so, and is asked again."""
    assert reading.judge(Answer(id, answered(id, content), None)).startswith("schema")


def test_wrong_use_is_a_typed_error(hashed_store, tmp_path, encoder):
    """No job, a job of too few texts, neurons that are not there."""
    with pytest.raises(JobNotFound):
        model_labels.write_labels(tmp_path)
    with MemoryStore.open(hashed_store, mode="r") as store:
        with pytest.raises(Exception, match="neuron 220 does not exist"):
            store.neurons.plan_labels(tmp_path / "job", "m", [220])
        store.neurons.plan_labels(tmp_path / "job", "m", [1])
        with pytest.raises(JobError, match="holds a job already"):
            store.neurons.plan_labels(tmp_path / "job", "m", [1])
