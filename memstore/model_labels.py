"""Labels by a language model, as jobs: one that explains neurons, one that grades, then a file.

::

    FOLDER/sheets.jsonl     heading (encoder, model), then the texts of a neuron a line
    FOLDER/...              the job that explains
    FOLDER/grades/...       the job that grades what was explained
    FOLDER/labels.jsonl     labels, sentences, grades, bound to the encoder
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memstore.durable import appearing, medium
from memstore.errors import InvalidInput, JobDamaged, JobError, JobNotFound
from memstore.jobs.job import JOB, Facts, Job
from memstore.jobs.requests import Request
from memstore.labelling import NEAR, by_neuron
from memstore.neurons import reading
from memstore.neurons.dictionary import Entry, heading_of
from memstore.neurons.reading import DETECT, EXPLAIN, INTRUDER, KIND, Sheet
from memstore.neurons.statistics import STRONG
from memstore.types import Float32, Int64, Traces

SHEETS, GRADES, LABELS = "sheets.jsonl", "grades", "labels.jsonl"
METHOD = "model"
#: Strata of activation that texts to read are drawn from, of the mean of the three strongest.
STRATA = 10
#: Texts of each stratum, hard negatives to read, and what a test holds: strong, hard, random.
READ, HARD, FIRING, HARD_TEST, RANDOM_TEST = 1, 5, 5, 2, 3
#: The intruder test's texts that fire.
FOUR = 4
#: Labels of a lower balanced accuracy say "unclear".
CLEAR = 0.8


def make_sheets(
    wanted: Sequence[int], texts: Sequence[str], vectors: Float32, traces: Traces
) -> Iterator[Sheet]:
    """Yield the sheet of each neuron that fires strongly often enough, of (n,) texts."""
    columns = by_neuron(traces)
    for neuron in wanted:
        rows, activations = columns(neuron)
        dice = np.random.default_rng(neuron)
        if (sheet := sheet_of(neuron, rows, activations, texts, vectors, dice)) is not None:
            yield sheet


def sheet_of(
    neuron: int,
    rows: Int64,
    activations: np.ndarray[Any, Any],
    texts: Sequence[str],
    vectors: Float32,
    dice: np.random.Generator,
) -> Sheet | None:
    """Return one neuron's sheet, None where it has too few texts for one."""
    if len(rows) < STRATA + FIRING + FOUR:
        return None
    top = float(activations[:3].mean())
    shares = activations / top
    read = list(rows[:2])
    for low in np.linspace(1 - 1 / STRATA, 0.2, STRATA - 2):
        inside = rows[(shares >= low) & (shares < low + 0.8 / (STRATA - 2))]
        read += dice.permutation(np.setdiff1d(inside, read))[:READ].tolist()
    strong = dice.permutation(np.setdiff1d(rows[shares >= STRONG], read))
    middle = vectors[rows].T @ activations.astype(np.float32)
    cosines = vectors @ (middle / max(float(np.linalg.norm(middle)), 1e-12))
    cosines[rows] = -np.inf
    count = min(NEAR, len(texts) - len(rows))
    silent = np.setdiff1d(np.arange(len(texts)), rows)
    if len(strong) < FIRING + FOUR or count < HARD + HARD_TEST + RANDOM_TEST + 1:
        return None
    near = dice.permutation(np.argpartition(-cosines, count - 1)[:count])
    others = dice.permutation(np.setdiff1d(silent, near[: HARD + HARD_TEST]))
    right = strong[:FIRING]
    test = dice.permutation(
        np.concatenate([right, near[HARD : HARD + HARD_TEST], others[:RANDOM_TEST]])
    )
    intruder = int(others[RANDOM_TEST])
    five = dice.permutation(np.append(strong[FIRING : FIRING + FOUR], intruder))
    strength = dict(zip(rows.tolist(), shares.tolist(), strict=True))
    return Sheet(
        neuron,
        sorted(((10 * min(strength[int(r)], 1.0), texts[r]) for r in read), reverse=True),
        [texts[row] for row in near[:HARD]],
        [texts[row] for row in test],
        np.flatnonzero(np.isin(test, right)).tolist(),
        [texts[row] for row in five],
        five.tolist().index(intruder),
    )


def plan(
    folder: Path, model: str, fingerprint: str, name: str, sheets: Iterator[Sheet], **facts: Any
) -> Job:
    """Write the job that explains neurons. Raises ``JobError`` where the folder holds one."""
    lines = [json.dumps({**heading_of(fingerprint, name), "model": model})]
    kept = list(sheets)
    lines += [json.dumps(asdict(sheet), ensure_ascii=False) for sheet in kept]
    if not kept:
        raise InvalidInput("no neuron wanted fires strongly for enough texts: store more of them")
    content = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
    asked = (reading.explain(sheet, model) for sheet in kept)
    return Job.create(folder, job_facts(model, **facts), asked, {SHEETS: content})


def job_facts(model: str, **facts: Any) -> Facts:
    """Return what such a job is."""
    return Facts(KIND, reading.ENDPOINT, model, tokens=reading.TOKENS, **facts)


def read_sheets(folder: Path) -> tuple[dict[str, Any], dict[int, Sheet]]:
    """Return the heading and the sheets of a job. Raises ``JobNotFound``, ``JobDamaged``."""
    path = folder / SHEETS
    if not path.exists():
        raise JobNotFound(f"{folder} holds no job of labels: make one with `labels plan`")
    try:
        with medium(path, "read"), path.open(encoding="utf-8") as file:
            heading, *lines = map(json.loads, file)
        return dict(heading), {line["neuron"]: Sheet(**line) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise JobDamaged(f"{path} cannot be read: {error}") from error


def answers_of(job: Job) -> dict[str, dict[int, dict[str, Any]]]:
    """Return ``{question: {neuron: answer}}``, the first good one of each."""
    found: dict[str, dict[int, dict[str, Any]]] = {EXPLAIN: {}, DETECT: {}, INTRUDER: {}}
    for answer in job.answers():
        if answer.failure is None and reading.judge(answer) is None:
            question, neuron, body = reading.parsed(answer)
            found[question].setdefault(neuron, body)
    return found


def require_answers(job: Job, total: int, what: str) -> None:
    """Raise ``JobError`` while some of a job's requests may still be answered."""
    standing = job.standing(reading.judge)
    left = len(standing.open(job.facts.attempts, planned=True) | standing.asked)
    if left:
        raise JobError(
            f"{left} of {total} {what} in {job.folder} have no answer yet: submit, watch and "
            "fetch, or ask directly"
        )


def is_named(label: str) -> bool:
    """Return whether a label says something."""
    return label.casefold() != "unclear"


def plan_grades(folder: Path) -> Job:
    """Return the job that grades the labels in ``folder``, beside the job that explains."""
    if (folder / GRADES / JOB).exists():
        return Job(folder / GRADES)
    job = Job(folder)
    heading, sheets = read_sheets(folder)
    said = answers_of(job)[EXPLAIN]
    require_answers(job, len(sheets), "neurons")

    def asked() -> Iterator[Request]:
        for neuron, sheet in sheets.items():
            if neuron in said and is_named(said[neuron]["label"]):
                yield reading.detect(sheet, said[neuron]["label"], heading["model"])
                yield reading.intrude(sheet, heading["model"])

    return Job.create(folder / GRADES, job_facts(heading["model"], price=job.facts.price), asked())


def labels_of(folder: Path) -> list[Entry]:
    """Return the labels of a job that was explained and graded, an entry a neuron."""
    heading, sheets = read_sheets(folder)
    model = str(heading["model"])
    said = answers_of(Job(folder))[EXPLAIN]
    try:
        grading = Job(folder / GRADES)
    except JobNotFound as error:
        raise JobError(f"{folder} is not graded yet: run `labels grade` first") from error
    require_answers(grading, sum(grading.facts.parts), "grading requests")
    grades = answers_of(grading)
    entries = []
    taken: set[str] = set()
    for neuron, sheet in sheets.items():
        own = said.get(neuron)
        grade = intruder = None
        if neuron in grades[DETECT]:
            grade = round(reading.balanced_accuracy(sheet, grades[DETECT][neuron]["fits"]), 4)
        if neuron in grades[INTRUDER]:
            intruder = grades[INTRUDER][neuron]["intruder"] == sheet.intruder
        label = own["label"] if own and is_named(own["label"]) else None
        if label is not None and (grade is None or grade < CLEAR or label.casefold() in taken):
            label = None
        if label is not None:
            taken.add(label.casefold())
        sentence = own["sentence"] if own else None
        entries.append(
            Entry(neuron, label, sentence, grade, METHOD, model=model, intruder=intruder)
        )
    return entries


def write_labels(folder: Path, out: Path | None = None) -> tuple[Path, list[Entry]]:
    """Write the labels of a graded job as one file, bound to encoder and model."""
    heading, _ = read_sheets(folder)
    entries = labels_of(folder)
    target = out or folder / LABELS
    with appearing(target, over=True) as path, path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(heading) + "\n")
        for entry in entries:
            line = {name: own for name, own in asdict(entry).items() if name not in ("also", "top")}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return target, entries
