"""What experiments share: texts as vectors, training with one seed, and a folder of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from memstore.experiments import figures
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE
from memstore.sae.measure import stored
from memstore.sae.model import Model
from memstore.sae.schedule import TrainConfig
from memstore.sae.train import LOG, Trainer
from memstore.tables import Row, markdown
from memstore.types import Float32

#: Folder of what the runs of an experiment leave.
WORK = "work"


@dataclass(frozen=True)
class Result:
    """What an experiment found: a table, figures, and what they show in a few sentences."""

    title: str
    text: str
    rows: Sequence[Row]
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Lab:
    """Vectors (n, d) of texts, their categories, a seed, and where to work."""

    vectors: Float32
    categories: Sequence[str]
    seed: int
    folder: Path

    def train(
        self,
        name: str,
        config: SAEConfig,
        *,
        vectors: Float32 | None = None,
        row_weights: Float32 | None = None,
        base: Mapping[str, Float32] | None = None,
        **schedule: Any,
    ) -> Run:
        """Train an SAE, on the lab's own vectors unless others are given."""
        settings = {"epochs": 100, "batch": 50, "dead_rows": 900, "seed": self.seed, **schedule}
        trainer = Trainer(
            self.vectors if vectors is None else vectors,
            config,
            TrainConfig(**settings),
            self.folder / WORK / name,
            row_weights=row_weights,
            base=base,
        )
        return Run(trainer.run(), self.folder / WORK / name / LOG)

    @property
    def names(self) -> list[str]:
        """The categories there are, in order of appearance."""
        return [name for name in dict.fromkeys(self.categories) if name]

    def members(self) -> dict[str, NDArray[np.bool_]]:
        """Return which rows are in each category."""
        given = np.array(self.categories, dtype=object)
        return {name: np.asarray(given == name, dtype=bool) for name in self.names}


@dataclass(frozen=True)
class Run:
    """A trained model and the log of its training."""

    model: Model
    log: Path

    @property
    def sae(self) -> SAE:
        """The model as numpy runs it."""
        return SAE(self.model.config, self.model.tensors())

    def activations(self, vectors: Float32) -> Float32:
        """Return (n, neurons) activations as a store would keep them."""
        return stored(self.sae, vectors)

    def curve(self, figure: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of one figure of the log."""
        found = [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]
        points = [(line["step"], line[figure]) for line in found if figure in line]
        return [x for x, _ in points], [y for _, y in points]


def write(result: Result, folder: Path) -> list[Path]:
    """Write table (JSON and Markdown), text and figures; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "table.json"
    table.write_text(json.dumps(list(result.rows), indent=2) + "\n", "utf-8")
    paths = [table]
    for name, figure in result.figures.items():
        paths += figures.save(figure, folder, name)
    images = "\n".join(f"![{name}]({name}.png)\n" for name in result.figures)
    page = folder / "README.md"
    page.write_text(
        f"# {result.title}\n\n{result.text}\n\n{markdown(result.rows)}\n\n{images}", "utf-8"
    )
    return [page, *paths]
