"""The laboratory: train an SAE on texts, evaluate one."""

from __future__ import annotations

from pathlib import Path

import click

from memstore.cli.options import json_option
from memstore.cli.output import print_facts, print_json
from memstore.errors import MissingExtra
from memstore.files import read_rows
from memstore.sae.measure import Measures
from memstore.types import Float32

texts_argument = click.argument("files", nargs=-1, required=True)
field_option = click.option(
    "--text", default="text", show_default=True, help="Field with the text."
)
embedder_option = click.option(
    "--embedder", help="Name or folder of a sentence-transformers model. Default: the shipped one."
)
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/vectors"),
    show_default=True,
    help="Folder for embedded texts.",
)


def read_vectors(files: tuple[str, ...], text: str, embedder: str | None, cache: Path) -> Float32:
    """Return the vectors of all texts in some files."""
    from memstore.encoder import embedder_config, load_embedder
    from memstore.training import cached_vectors

    texts = [str(row[text]) for file in files for row in read_rows(file, None, text)]
    return cached_vectors(texts, load_embedder(embedder_config(embedder)), cache)


def print_measures(result: Measures, *, as_json: bool) -> None:
    """Print measures."""
    if as_json:
        print_json(result.to_dict())
    else:
        print_facts({name: f"{value:,.4g}" for name, value in result.to_dict().items()})


@click.command("train")
@texts_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Weights folder.")
@click.option(
    "--neurons", type=click.IntRange(1), default=2048, show_default=True, help="How many neurons."
)
@click.option(
    "-k",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="How many may fire for one text.",
)
@click.option(
    "--epochs", type=click.IntRange(1), default=20, show_default=True, help="Passes over the texts."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Decides weights, order and hold-out.",
)
@click.option("--float16", is_flag=True, help="Store weights in half the space, for shipping.")
@field_option
@embedder_option
@cache_option
@json_option
def train_command(
    files: tuple[str, ...],
    out: Path,
    neurons: int,
    k: int,
    epochs: int,
    seed: int,
    float16: bool,
    text: str,
    embedder: str | None,
    cache: Path,
    as_json: bool,
) -> None:
    """Train a TopK SAE on the texts of FILES and write its weights folder.

    `memstore init STORE --sae FOLDER` then makes a store with it. Run again after an interruption.
    """
    import numpy as np

    try:
        from memstore.sae.train import TrainConfig
    except ImportError as error:
        raise MissingExtra("torch", "train", "training") from error
    from memstore.sae.config import SAEConfig
    from memstore.training import Split, train

    vectors = read_vectors(files, text, embedder, cache)
    result = train(
        vectors,
        SAEConfig("topk", vectors.shape[1], neurons, k=k),
        TrainConfig(epochs=epochs, seed=seed),
        Split(seed=seed),
        out,
        np.float16 if float16 else np.float32,
    )
    print_measures(result, as_json=as_json)


@click.command("evaluate")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@texts_argument
@click.option("--held-out", is_flag=True, help="Only the rows its training held out.")
@field_option
@embedder_option
@cache_option
@json_option
def evaluate_command(
    folder: Path,
    files: tuple[str, ...],
    held_out: bool,
    text: str,
    embedder: str | None,
    cache: Path,
    as_json: bool,
) -> None:
    """Measure the SAE in FOLDER on the texts of FILES: FVU, L0, dead neurons, fire rates."""
    from memstore.training import evaluate

    vectors = read_vectors(files, text, embedder, cache)
    print_measures(evaluate(folder, vectors, held_out=held_out), as_json=as_json)
