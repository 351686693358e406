"""From texts to a weights folder: embed (cached), hold out, train, measure.

Every stage can be interrupted and goes on where it stopped: vectors are cached by the chunk,
training by checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memstore.core.vectors import NEAR_COPY, unit_vectors
from memstore.errors import InvalidInput, InvalidWeights, MissingExtra
from memstore.progress import Progress
from memstore.sae import weights
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE
from memstore.sae.measure import Measures, held_out_rows, measure
from memstore.types import Embedder, Float32

if TYPE_CHECKING:
    from memstore.sae.train import TrainConfig

CHUNK = 8_192
#: Fewer rows than this leave nothing to hold out and nothing to learn from.
FEWEST = 200
METRICS, TRAINING = "metrics.json", "training.json"


@dataclass(frozen=True)
class Split:
    """Which rows are held out: a random share, less near-duplicates of training rows."""

    share: float = 0.05
    near: float = NEAR_COPY
    seed: int = 0

    def held_out(self, vectors: Float32) -> NDArray[np.bool_]:
        """Return the mask of held-out rows; a pure function of vectors and settings."""
        return held_out_rows(vectors, self.share, self.near, self.seed)


def cached_vectors(texts: Sequence[str], embedder: Embedder, cache: Path) -> Float32:
    """Return unit vectors of texts, (n, d), embedding only what the cache does not hold."""
    digest = hashlib.sha256(embedder.fingerprint.encode())
    for text in texts:
        digest.update(text.encode("utf-8", "replace") + b"\0")
    folder = cache / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    report, parts = Progress("texts embedded"), []
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        path = folder / f"{start:09d}.npy"
        if (vectors := read_vectors(path)) is None:
            vectors = unit_vectors(embedder.embed(chunk), len(chunk), embedder.dimension)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, vectors, allow_pickle=False)
            part.replace(path)
        parts.append(vectors)
        report(min(start + CHUNK, len(texts)), len(texts))
    report.close()
    return np.concatenate(parts)


def read_vectors(path: Path) -> Float32 | None:
    """Return the vectors in a file of the cache, None where there is none that can be read."""
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except (OSError, ValueError, EOFError):
        return None


def train(  # noqa: PLR0913 - two more than a trainer: where to, and how exactly
    vectors: Float32,
    config: SAEConfig,
    schedule: TrainConfig,
    split: Split,
    out: Path,
    dtype: type[np.floating],
    *,
    weigh: Float32 | None = None,
    base: Path | None = None,
) -> Measures:
    """Train an SAE and write its folder; returns its measures on the held-out rows.

    ``out`` gets weights, config, measures and training settings; checkpoints and the log lie in
    OUT.work. ``weigh``, (n, 2), weighs each row's reconstruction and sparsity; ``base`` are
    weights to start from. Raises ``MissingExtra`` without torch, ``InvalidInput`` for too few rows,
    ``InvalidWeights`` for a base that does not fit.
    """
    if len(vectors) < FEWEST:
        raise InvalidInput(f"{len(vectors)} texts are too few to train on: at least {FEWEST}")
    try:
        import torch

        from memstore.sae.train import Trainer
    except ImportError as error:
        raise MissingExtra("torch", "train", "training") from error
    if schedule.device != "cpu" and not torch.cuda.is_available():
        raise InvalidInput(f"torch finds no GPU for device={schedule.device!r}: train on the cpu")
    held_out = split.held_out(vectors)
    trainer = Trainer(
        vectors[~held_out],
        config,
        schedule,
        out.with_name(out.name + ".work"),
        row_weights=None if weigh is None else weigh[~held_out],
        base=None if base is None else weights.load(base)[1],
        held_out=vectors[held_out] if held_out.any() else None,
    )
    report = Progress("rows trained")
    model = trainer.run(report)
    report.close()
    weights.save(out, config, model.tensors(), dtype)
    # Measured as it ships: after rounding to the stored type.
    result = measure(SAE.load(out), vectors[held_out])
    settings = {"split": vars(split), "schedule": vars(schedule), "rows": int((~held_out).sum())}
    write_json(out / TRAINING, settings)
    write_json(out / METRICS, result.to_dict())
    return result


def row_weights(categories: Sequence[str], weigh: Mapping[str, tuple[float, float]]) -> Float32:
    """Return (n, 2) weights of reconstruction and sparsity, 1 and 1 for categories not named.

    Raises ``InvalidInput`` for a category that no row has.
    """
    if unknown := set(weigh) - set(categories):
        known = ", ".join(sorted(set(categories))[:10])
        raise InvalidInput(f"no text has the category {min(unknown)!r}: there are {known}")
    pairs = [weigh.get(category, (1.0, 1.0)) for category in categories]
    return np.array(pairs, dtype=np.float32)


def held_out_of(folder: Path, vectors: Float32) -> NDArray[np.bool_]:
    """Return which of the vectors an SAE was trained on its training held out.

    Raises ``InvalidWeights`` where its folder does not say.
    """
    settings = weights.read_json(folder / TRAINING)
    try:
        split = Split(**settings["split"])
    except (KeyError, TypeError) as error:
        raise InvalidWeights(f"{folder / TRAINING} does not say what was held out") from error
    return split.held_out(vectors)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON for people."""
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
