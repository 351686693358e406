"""Everything there is to say of an SAE in figures, beside others and beside plain baselines.

What is measured follows from what is given: held-out texts always, labels where there are labelled
texts, retrieval where there are questions with answers, stability where there is another SAE of the
same sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from memstore.errors import InvalidInput
from memstore.neurons.cohesion import cohesion
from memstore.neurons.match import match
from memstore.progress import Progress
from memstore.sae import probing
from memstore.sae.encode import SAE
from memstore.sae.measure import Measures, measure, some_rows, stored
from memstore.sae.retrieval import Judged, retrieval
from memstore.tables import Row
from memstore.types import Float32, Float64

RAW, PCA = "raw dimensions", "PCA"
#: Texts that cohesion is measured on, and PCA fitted to.
SAMPLE = 20_000


@dataclass(frozen=True)
class Labelled:
    """Vectors, (n, d), and the labels of each text."""

    vectors: Float32
    labels: Sequence[frozenset[str]]


@dataclass(frozen=True)
class Evaluation:
    """The figures, by SAE or baseline."""

    measures: Mapping[str, Measures]
    probes: Mapping[str, Mapping[str, Mapping[str, float]]]
    """``{texts: {code: {columns looked at: mean accuracy}}}``."""
    separation: Mapping[str, Mapping[str, float]]
    """``{texts: {code: mean AUC of the best single column a label}}``."""
    neurons: Mapping[str, Mapping[str, probing.Separation]]
    """``{texts: {label: best neuron of the first SAE}}``."""
    retrieval: Mapping[str, Mapping[str, Mapping[str, float]]]
    """``{texts: {SAE: {scoring: nDCG@10}}}``."""
    cohesion: Mapping[str, Mapping[str, float]]
    """``{code: mean over its columns, share of them above most random pairs}``."""
    stability: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of the first SAE beside others: share of neurons matched, and the median cosine."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def tables(self) -> Iterator[tuple[str, list[Row]]]:
        """Yield (title, rows) of each table there is something for."""
        yield (
            "Measures",
            [{"SAE": name, **flat(m.to_dict())} for name, m in self.measures.items()],
        )
        for texts, codes in self.probes.items():
            rows: list[Row] = []
            for code, found in codes.items():
                sizes = {f"{size} columns": value for size, value in found.items()}
                area = self.separation[texts][code]
                rows.append({"code": code, **sizes, "best column's AUC": area})
            yield f"k-sparse probing, {texts}: mean accuracy (chance 0.5)", rows
        for texts, saes in self.retrieval.items():
            yield f"Retrieval, {texts}: nDCG@10", [{"SAE": n, **found} for n, found in saes.items()]
        if self.cohesion:
            yield (
                "Cohesion of the strongest texts (cosine)",
                [{"code": name, **found} for name, found in self.cohesion.items()],
            )
        if self.stability:
            yield (
                "The same neuron in another SAE",
                [{"beside": name, **found} for name, found in self.stability.items()],
            )


def evaluate(
    saes: Mapping[str, SAE],
    vectors: Float32,
    labelled: Mapping[str, Labelled] | None = None,
    judged: Mapping[str, Judged] | None = None,
) -> Evaluation:
    """Return the evaluation of ``saes``, the first the one in question, on (n, d) unit vectors."""
    labelled, judged = labelled or {}, judged or {}
    tasks = {
        texts: [list(probing.tasks(given.labels, seed)) for seed in range(probing.SPLITS)]
        for texts, given in labelled.items()
    }
    for texts, splits in tasks.items():
        if not splits[0]:
            raise InvalidInput(
                f"{texts}: no label has {probing.FEWEST} texts, and as many without: leave it out"
            )
    report = Progress("parts measured")
    total, done = len(saes) + len(labelled) * (len(saes) + 2) + len(judged) * len(saes) + 1, 0

    def step() -> None:
        nonlocal done
        done += 1
        report(done, total)

    measures = {}
    for name, sae in saes.items():
        measures[name] = measure(sae, vectors)
        step()
    probed: dict[str, dict[str, dict[str, float]]] = {}
    separated: dict[str, dict[str, float]] = {}
    neurons: dict[str, dict[str, probing.Separation]] = {}
    for texts, given in labelled.items():
        first, asked = tasks[texts][0], [task for split in tasks[texts] for task in split]
        probed[texts], separated[texts] = {}, {}
        for code, values in codes(saes, vectors, given.vectors):
            sizes = (*probing.SIZES, None) if code == RAW else probing.SIZES
            probed[texts][code] = probing.probing(values, asked, sizes)
            found = [probing.separation(values, task) for task in first]
            separated[texts][code] = float(np.mean([one.auc for one in found]))
            if code == next(iter(saes)):
                neurons[texts] = {one.label: one for one in found}
            step()
    ranked: dict[str, dict[str, dict[str, float]]] = {}
    for texts, questions in judged.items():
        ranked[texts] = {}
        for name, sae in saes.items():
            ranked[texts][name] = retrieval(sae, questions)
            step()
    result = Evaluation(
        measures, probed, separated, neurons, ranked, cohesions(saes, vectors), stability(saes)
    )
    step()
    report.close()
    return result


def codes(
    saes: Mapping[str, SAE], fitted: Float32, vectors: Float32
) -> Iterator[tuple[str, Float32 | Float64]]:
    """Yield (name, (n, columns) values) of each SAE and of the baselines.

    PCA is fitted to ``fitted``.
    """
    for name, sae in saes.items():
        yield name, stored(sae, vectors)
    yield RAW, vectors
    sample = some_rows(fitted, SAMPLE)
    mean = sample.mean(axis=0)
    _, _, components = np.linalg.svd(sample - mean, full_matrices=False)
    yield PCA, np.asarray((vectors - mean) @ components.T, dtype=np.float32)


def cohesions(saes: Mapping[str, SAE], vectors: Float32) -> dict[str, dict[str, float]]:
    """Return mean cohesion of each code's columns and the share above what random texts reach."""
    few = some_rows(vectors, SAMPLE)
    result = {}
    for name, values in codes(saes, few, few):
        found = cohesion(np.asarray(values, dtype=np.float32), few)
        result[name] = {
            "mean": found.mean,
            "share above 99 % of random pairs": found.share,
            "random pairs": found.random,
        }
    return result


def stability(saes: Mapping[str, SAE]) -> dict[str, dict[str, float]]:
    """Return how the first SAE's neurons match those of each other one of the same sizes."""
    (_, first), *others = saes.items()
    result = {}
    for name, other in others:
        if other.config.shapes() != first.config.shapes():
            continue
        found = match(*directions(first), *directions(other))
        result[name] = {
            "share of neurons with cosine 0.7": found.share,
            "median cosine": float(np.median(found.cosines)),
        }
    return result


def directions(sae: SAE) -> tuple[Float32, Float32]:
    """Return encoder rows and decoder columns, (neurons, d) each."""
    return sae.tensors["encoder.weight"], np.ascontiguousarray(sae.tensors["decoder.weight"].T)


def flat(values: Mapping[str, Any]) -> Row:
    """Return nested figures side by side: ``{"fire_rates": {"p5": 0.1}}`` as ``fire_rates p5``."""
    result: dict[str, float | int | str | None] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= {f"{name} {part}": own for part, own in value.items()}
        else:
            result[name] = value
    return result
