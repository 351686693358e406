"""Labels without a model: written from a store's own texts, graded on texts kept apart.

For each neuron half of the texts it fires for strongly, and half of the nearest for which it does
not fire, write a label: the words that set them apart, or the text in the middle of them, whichever
tells the two apart better as a question to the embedder. The other halves grade it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from memstore.catalog import columns, lenses, memories, neurons
from memstore.catalog import traces as catalog
from memstore.catalog.neurons import MADE, EncoderRecord, Label
from memstore.durable import appearing
from memstore.encoder import Encoder
from memstore.errors import (
    EncoderMismatch,
    InvalidFile,
    InvalidInput,
    StoreDamaged,
    StoreError,
    brief,
)
from memstore.neurons.dictionary import heading_of, read_labels
from memstore.neurons.statistics import STRONG, category_auc
from memstore.neurons.words import counts, label, scores
from memstore.progress import Report
from memstore.rows import check_id, check_label, check_name
from memstore.types import Float32, Float64, Int64, Traces

#: Strong texts a neuron must have, and at most so many are looked at.
FEWEST, MOST = 12, 120
#: Hard negatives a neuron.
NEAR = 120
#: Texts that are nobody's neighbours, to grade with.
RANDOM = 60
#: A label that grades below this says "unclear".
CLEAR = 0.7
#: An exemplar longer than this is no name.
LETTERS = 60
WORDS, EXEMPLAR = MADE
#: Memories that labels are written from, at most.
SAMPLE = 100_000
PAGE = 4_096


@dataclass(frozen=True)
class Made:
    """A label that was written for a neuron, and how well it does."""

    neuron: int
    label: str | None
    """None where nothing set its texts apart, or where the grade is below ``CLEAR``."""
    grade: float | None
    """AUC of the label's cosine on texts kept apart; None for too few texts."""
    method: str | None


@dataclass(frozen=True)
class _Sides:
    """Rows of one neuron's texts: to write a label from, and to grade it on."""

    fires: Int64
    near: Int64
    other_fires: Int64
    other_near: Int64


def make_labels(
    texts: Sequence[str],
    vectors: Float32,
    traces: Traces,
    encoder: Encoder,
    report: Report | None = None,
) -> list[Made]:
    """Return a label for each neuron, of (n,) texts, their (n, d) unit vectors and traces.

    The same texts, the same labels.
    """
    dice = np.random.default_rng(0)
    everywhere = counts(texts)
    column = by_neuron(traces)
    drafts: dict[int, dict[str, str]] = {}
    sides: dict[int, _Sides] = {}
    for neuron in range(traces.width):
        rows, activations = column(neuron)
        if (found := split(rows, activations, vectors, dice)) is None:
            continue
        sides[neuron] = found
        own = [texts[row] for row in found.fires]
        words = label(scores(own, [texts[row] for row in found.near], everywhere, len(texts)))
        middle = exemplar(found.fires, texts, vectors)
        drafts[neuron] = {m: d for m, d in ((WORDS, words), (EXEMPLAR, middle)) if d is not None}
        if report is not None:
            report(neuron + 1, traces.width)
    wanted = sorted({draft for own in drafts.values() for draft in own.values()})
    asked = dict(zip(wanted, encoder.vectors(wanted), strict=True)) if wanted else {}
    random = dice.choice(len(texts), size=min(RANDOM, len(texts)), replace=False)
    return [
        graded(neuron, drafts.get(neuron, {}), sides.get(neuron), asked, vectors, random)
        for neuron in range(traces.width)
    ]


def by_neuron(traces: Traces) -> Callable[[int], tuple[Int64, Float64]]:
    """Return a function from a neuron to (rows it fires for, activations), strongest first."""
    rows = np.repeat(np.arange(len(traces)), np.diff(traces.indptr))
    order = np.lexsort((rows, -traces.activations.astype(np.float32), traces.neurons))
    neurons, rows = traces.neurons[order], rows[order]
    activations = traces.activations[order].astype(np.float64)
    bounds = np.searchsorted(neurons, np.arange(traces.width + 1))

    def column(neuron: int) -> tuple[Int64, Float64]:
        span = slice(int(bounds[neuron]), int(bounds[neuron + 1]))
        return rows[span], activations[span]

    return column


def split(
    rows: Int64, activations: Float64, vectors: Float32, dice: np.random.Generator
) -> _Sides | None:
    """Return the sides of a neuron, None where it fires too seldom.

    Strong texts and their neighbours are halved at random.
    """
    if len(rows) < FEWEST:
        return None
    strong = rows[activations >= STRONG * activations[:3].mean()]
    if len(strong) < FEWEST:
        return None
    strong = dice.permutation(strong)[:MOST]
    middle = vectors[strong].mean(axis=0)
    cosines = vectors @ (middle / max(float(np.linalg.norm(middle)), 1e-12))
    cosines[rows] = -np.inf
    count = min(NEAR, len(vectors) - len(rows))
    if count < FEWEST:
        return None
    near = dice.permutation(np.argpartition(-cosines, count - 1)[:count])
    half, cut = len(strong) // 2, count // 2
    return _Sides(strong[:half], near[:cut], strong[half:], near[cut:])


def exemplar(rows: Int64, texts: Sequence[str], vectors: Float32) -> str | None:
    """Return the short text nearest to the middle of some, None where none is short."""
    short = [row for row in rows.tolist() if len(texts[row]) <= LETTERS]
    if not short:
        return None
    middle = vectors[rows].mean(axis=0)
    best = max(short, key=lambda row: (float(vectors[row] @ middle), -row))
    return " ".join(texts[best].split())


def graded(
    neuron: int,
    drafts: Mapping[str, str],
    sides: _Sides | None,
    asked: Mapping[str, Float32],
    vectors: Float32,
    random: Int64,
) -> Made:
    """Return the better of a neuron's drafts, chosen on one half of its texts, graded on the other.

    Half of what it is told from on the other side are hard negatives, half are random texts.
    """
    if sides is None or not drafts:
        return Made(neuron, None, None, None)

    def told(draft: str, fires: Int64, others: Int64) -> float:
        return auc(vectors[fires] @ asked[draft], vectors[others] @ asked[draft])

    method = max(drafts, key=lambda name: told(drafts[name], sides.fires, sides.near))
    fired = np.concatenate([sides.fires, sides.other_fires])
    others = np.concatenate([sides.other_near, np.setdiff1d(random, fired)])
    grade = told(drafts[method], sides.other_fires, others)
    return Made(neuron, drafts[method] if grade > CLEAR else None, grade, method)


def auc(inside: NDArray[np.floating], outside: NDArray[np.floating]) -> float:
    """Return the chance that one of ``inside`` is larger than one of ``outside``, ties half."""
    both = np.concatenate([inside, outside]).astype(np.float64)
    return category_auc(both, {"inside": np.arange(len(both)) < len(inside)})["inside"]


# --- in a store ----------------------------------------------------------------------------------


def material(connection: Connection, record: EncoderRecord) -> tuple[list[str], Float32, Traces]:
    """Return the texts of the newest memories with their vectors and traces."""
    ids = columns.newest(connection, SAMPLE)
    found, vectors = catalog.vectors_by_ids(connection, record.id, ids, record.dimension)
    traces = catalog.by_ids(connection, record.id, found, record.neurons)
    if traces.ids.tolist() != found:
        raise StoreDamaged("memories lack their traces: run `memstore check STORE --repair`")
    texts: list[str] = []
    for start in range(0, len(found), PAGE):
        rows = memories.hit_rows(connection, found[start : start + PAGE])
        texts += [rows[id][1] for id in found[start : start + PAGE]]
    return texts, vectors, traces


def store_labels(connection: Connection, encoder_id: int, made: Sequence[Made]) -> None:
    """Store the clear labels in place of those made before; of two alike the better graded stays.

    Labels of another origin are left as they are.
    """
    rows = neurons.label_rows(connection, encoder_id)
    given = {row.neuron for row in rows if row.method not in MADE}
    taken = {str(row.label).casefold() for row in rows if row.method not in MADE}
    taken |= {neurons.alike(lens.name) for lens in lenses.all_lenses(connection, encoder_id)}
    for row in rows:
        if row.method in MADE:
            neurons.set_label(connection, encoder_id, Label(row.neuron, None))
    for one in sorted(made, key=lambda one: (-(one.grade or 0.0), one.neuron)):
        if one.neuron in given or one.label is None or one.label.casefold() in taken:
            continue
        taken.add(one.label.casefold())
        named = Label(one.neuron, one.label, round(one.grade or 0.0, 4), one.method)
        neurons.set_label(connection, encoder_id, named)


def export_labels(connection: Connection, path: Path) -> int:
    """Write a store's labels to a new file."""
    record = neurons.require_encoder(connection)
    rows = neurons.label_rows(connection, record.id)
    if path.exists():
        raise StoreError(f"{path} exists: name a new file")
    with appearing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(heading_of(record.fingerprint, record.name)) + "\n")
        for row in rows:
            file.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")
    return len(rows)


def import_labels(connection: Connection, path: Path) -> int:
    """Take over the labels of a file, and their grades and methods."""
    record = neurons.require_encoder(connection)
    heading, entries = read_labels(path)
    if heading.get("encoder") != record.fingerprint:
        other = str(heading.get("encoder"))
        raise EncoderMismatch(
            record.fingerprint,
            other,
            record.name,
            f"{path} labels the neurons of {brief(heading.get('name'))}, this store has those of "
            f"{record.name}: the labels say nothing here",
        )
    count = 0
    for entry in entries:
        try:
            number, grade = check_id(entry.neuron), entry.grade
            name, method = check_label(entry.label), check_name("method", entry.method)
            sentence = check_name("sentence", entry.sentence)
            model = check_name("model", entry.model or heading.get("model"))
            sound = number < record.neurons and (grade is None or 0 <= grade <= 1)
        except (InvalidInput, TypeError) as error:
            raise InvalidFile(f"{path}: {brief(entry)} is no label: {error}") from error
        if not sound:
            raise InvalidFile(f"{path}: {brief(entry)} is no label of a neuron")
        owner = None if name is None else neurons.number_of_label(connection, record.id, name)
        if owner not in (None, number):
            raise InvalidFile(f"{path}: neuron {owner} is called {name!r} already")
        if name is not None:
            named = Label(number, name, grade, method, sentence, model)
            neurons.set_label(connection, record.id, named)
            count += 1
    return count
