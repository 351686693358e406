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
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from memstore.core.vectors import NEAR_COPY, unit_vectors
from memstore.durable import appearing
from memstore.errors import InvalidInput, InvalidWeights, MissingExtra
from memstore.progress import Progress
from memstore.sae import weights
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE
from memstore.sae.measure import Measures, held_out_rows, measure
from memstore.sae.schedule import SEEDS
from memstore.types import Embedder, Float32, Int64

if TYPE_CHECKING:
    from memstore.sae.schedule import TrainConfig

T = TypeVar("T")
CHUNK = 8_192
#: Rows held out: FVU has no value for one alone.
FEWEST_HELD_OUT = 2
#: Fewer rows than this leave nothing to hold out and nothing to learn from.
FEWEST = 200
METRICS, TRAINING = "metrics.json", "training.json"
#: What the name of the folder with checkpoints and log ends in.
WORK = ".work"


@dataclass(frozen=True)
class Split:
    """Which rows are held out: a random share, less near-duplicates of training rows."""

    share: float = 0.05
    near: float = NEAR_COPY
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and -1 <= self.near <= 2 and 0 <= self.seed < SEEDS):
            raise InvalidInput(f"not a split: {self}")

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
        if (vectors := read_vectors(path)) is None or len(vectors) != len(chunk):
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
    repeat: Int64 | None = None,
    base: Path | None = None,
    texts: str | None = None,
) -> Measures:
    """Train an SAE and write its folder; returns its measures on the held-out rows.

    ``out`` gets weights, config, measures and training settings; checkpoints and the log lie in
    OUT.work. ``weigh``, (n, 2), weighs each row's reconstruction and sparsity; ``repeat``, (n,),
    says how many times an epoch goes through it (rows held out count once); ``base`` are weights to
    start from, ``texts`` is the ``text_digest`` of what the vectors are of. Raises
    ``MissingExtra`` without torch, ``InvalidInput`` for too few rows, ``InvalidWeights`` for a base
    that does not fit.
    """
    require_enough(vectors, config)
    require_torch(schedule.device)
    out = out.resolve()
    require_folder(out)
    from memstore.sae.train import Trainer

    held_out = split.held_out(vectors)
    if np.count_nonzero(held_out) < FEWEST_HELD_OUT or not np.ptp(vectors[held_out], axis=0).any():
        raise InvalidInput("the texts are near copies of one another: none is left to measure on")
    rows = np.flatnonzero(~held_out)
    seen = rows if repeat is None else np.repeat(rows, repeat[rows])
    trainer = Trainer(
        vectors[seen],
        config,
        schedule,
        out.with_name(out.name + WORK),
        row_weights=None if weigh is None else weigh[seen],
        base=None if base is None else weights.load(base)[1],
        held_out=vectors[held_out],
    )
    report = Progress("rows trained")
    model = trainer.run(report)
    report.close()
    weights.save(out, config, model.tensors(), dtype)
    # What an earlier run left says nothing of these weights.
    for name in (METRICS, TRAINING):
        (out / name).unlink(missing_ok=True)
    # Measured as it ships: after rounding to the stored type.
    result = measure(SAE.load(out), vectors[held_out])
    counts = {"rows": len(rows), "rows_an_epoch": len(seen)}
    settings = {"split": vars(split), "schedule": vars(schedule), **counts, "texts": texts}
    write_json(out / TRAINING, settings)
    write_json(out / METRICS, result.to_dict())
    return result


def require_enough(vectors: Float32, config: SAEConfig) -> None:
    """Raise ``InvalidInput`` for vectors too few to train on, or out of an architecture's range."""
    if len(vectors) < FEWEST:
        raise InvalidInput(f"{len(vectors)} texts are too few to train on: at least {FEWEST}")
    if config.architecture == "sparse_memory" and (vectors.min() < 0 or vectors.max() > 1):
        raise InvalidInput(
            f"sparse_memory decodes to 0..1, and these vectors go from {vectors.min():.2f} to "
            f"{vectors.max():.2f}: take sparse_memory_text, or scale them (docs/encoder.md)"
        )


def text_digest(texts: Sequence[str]) -> str:
    """Return the SHA-256 of texts in their order: by it a split is found again, or refused."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "replace")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def require_folder(out: Path) -> None:
    """Raise ``InvalidInput`` where no folder can be: before hours of work."""
    out = out.resolve()
    if not out.name:
        raise InvalidInput(f"{out} cannot be a folder of results: name one in it")
    for path in (out, out.with_name(out.name + WORK), *out.parents):
        if path.exists() and not path.is_dir():
            raise InvalidInput(f"{path} is a file: name another folder")


def require_torch(device: str) -> None:
    """Raise ``MissingExtra`` without torch, ``InvalidInput`` without the device."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "train", "training") from error
    if device != "cpu" and not torch.cuda.is_available():
        raise InvalidInput(f"torch finds no GPU for device={device!r}: train on the cpu")


def row_weights(categories: Sequence[str], weigh: Mapping[str, tuple[float, float]]) -> Float32:
    """Return (n, 2) weights of reconstruction and sparsity, 1 and 1 for categories not named.

    Raises ``InvalidInput`` for a category that no row has.
    """
    return np.array(by_category(categories, weigh, (1.0, 1.0)), dtype=np.float32)


def row_repeats(categories: Sequence[str], repeat: Mapping[str, int]) -> Int64:
    """Return how many times an epoch goes through each row, once for categories not named.

    Raises ``InvalidInput`` for a category that no row has.
    """
    return np.array(by_category(categories, repeat, 1), dtype=np.int64)


def by_category(categories: Sequence[str], given: Mapping[str, T], default: T) -> list[T]:
    """Return what is given for each row's category. Raises ``InvalidInput`` for unknown ones."""
    if unknown := set(given) - set(categories):
        known = ", ".join(sorted(set(categories))[:10])
        raise InvalidInput(f"no text has the category {min(unknown)!r}: there are {known}")
    return [given.get(category, default) for category in categories]


def held_out_of(folder: Path, vectors: Float32, texts: str) -> NDArray[np.bool_]:
    """Return which of the vectors the training of an SAE held out.

    ``texts`` is the ``text_digest`` of what they are of. Raises ``InvalidWeights`` where the folder
    does not say, ``InvalidInput`` for other texts, or others' order: rows are held out by place.
    """
    split, known = split_of(folder)
    if known != texts:
        raise InvalidInput(
            f"{folder} was not trained on these texts in this order: which of them it has seen is "
            "not known. Name its training files, or leave --held-out away"
        )
    return split.held_out(vectors)


def require_same_split(folder: Path, others: Sequence[Path]) -> None:
    """Raise ``InvalidInput`` for an SAE that was trained on rows which another's training held out.

    What was trained on other texts, or does not say on which, is taken to have seen none of these.
    """
    split, texts = split_of(folder)
    for other in others:
        if (other / TRAINING).exists():
            its, known = split_of(other)
            if known == texts and its != split:
                raise InvalidInput(
                    f"{other} held out other rows than {folder}: train it with the same split"
                )


def split_of(folder: Path) -> tuple[Split, str | None]:
    """Return what an SAE's training held out, of which texts. Raises ``InvalidWeights``."""
    settings = weights.read_json(folder / TRAINING)
    try:
        return Split(**settings["split"]), settings.get("texts")
    except (KeyError, TypeError, AttributeError, InvalidInput) as error:
        raise InvalidWeights(f"{folder / TRAINING} does not say what was held out") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON for people."""
    with appearing(path, over=True) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
