"""The laboratory: train an SAE on texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from memstore.cli.options import EMBEDDERS, json_option
from memstore.cli.output import print_facts, print_json
from memstore.errors import InvalidFile, InvalidInput, brief
from memstore.files import read_rows
from memstore.sae.config import WITH_K, Architecture, SAEConfig
from memstore.sae.measure import Measures
from memstore.tables import shown
from memstore.types import Float32

F = TypeVar("F", bound=Callable[..., Any])
COUNT = click.IntRange(1)

texts_argument = click.argument("files", nargs=-1, required=True)
field_option = click.option(
    "--text", default="text", show_default=True, help="Field with the text."
)
embedder_option = click.option("--embedder", help=f"{EMBEDDERS} Default: the shipped one.")
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/vectors"),
    show_default=True,
    help="Folder for embedded texts.",
)


def read_texts(files: tuple[str, ...], text: str, category: str) -> tuple[list[str], list[str]]:
    """Return the texts in some files, and their categories, "" where there is none."""
    texts, categories = [], []
    for file in files:
        for row in read_rows(file, None, text):
            texts.append(text_of(file, row, text))
            given = row.get(category)
            categories.append("" if given is None else str(given))
    if not texts:
        raise InvalidFile(f"{', '.join(files)}: there is no text in it")
    return texts, categories


def text_of(file: str, row: Mapping[str, Any], field: str) -> str:
    """Return the text of a row of a file. Raises ``InvalidFile`` for what is none."""
    if not isinstance(row[field], str):
        raise InvalidFile(f"{file}: {brief(row[field])} is no text: leave the row out")
    return str(row[field])


def embed(texts: list[str], embedder: str | None, cache: Path) -> Float32:
    """Return the vectors of texts, from the cache where it has them."""
    from memstore.encoder import embedder_config, load_embedder
    from memstore.training import cached_vectors

    return cached_vectors(texts, load_embedder(embedder_config(embedder)), cache)


def read_weights(weigh: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Return ``{category: (weight of reconstruction, of sparsity)}`` of CATEGORY=R:S options."""
    found = {}
    for given in weigh:
        match = re.fullmatch(r"(.+)=([0-9]+\.?[0-9]*):([0-9]+\.?[0-9]*)", given, re.DOTALL)
        if match is None:
            raise InvalidInput(f"--weigh {given!r}: write it like --weigh 'Routine=1:2'")
        found[match[1]] = (float(match[2]), float(match[3]))
    return found


def read_repeats(repeat: tuple[str, ...]) -> dict[str, int]:
    """Return ``{category: times an epoch goes through it}`` of CATEGORY=N options."""
    found = {}
    for given in repeat:
        match = re.fullmatch(r"(.+)=0*([1-9][0-9]{0,2})", given, re.DOTALL)
        if match is None:
            raise InvalidInput(f"--repeat {given!r}: write it like --repeat Routine=3, 999 at most")
        found[match[1]] = int(match[2])
    return found


def print_measures(result: Measures, *, as_json: bool) -> None:
    """Print measures."""
    if as_json:
        print_json(result.to_dict())
    else:
        print_facts(shown(result.to_dict()))


def sae_options(command: F) -> F:
    """Add what an SAE is: architecture and sizes."""
    options = (
        click.option(
            "--architecture",
            type=click.Choice(get_args(Architecture)),
            default="topk",
            show_default=True,
            help="docs/encoder.md has their equations.",
        ),
        click.option("--neurons", type=COUNT, default=2048, show_default=True, help="How many."),
        click.option(
            "-k",
            type=COUNT,
            default=32,
            show_default=True,
            help="How many neurons may fire for one text, or do on average: of topk, batch_topk, "
            "jump_relu and matryoshka.",
        ),
        click.option(
            "--event-size",
            type=COUNT,
            default=300,
            show_default=True,
            help="Width of the projection of sparse_memory_text.",
        ),
    )
    for option in reversed(options):  # decorators print from the bottom up
        command = option(command)
    return command


def schedule_options(command: F) -> F:
    """Add how to train."""
    options = (
        click.option("--epochs", type=COUNT, default=20, show_default=True, help="Passes."),
        click.option("--batch", type=COUNT, default=1024, show_default=True, help="Texts a step."),
        click.option(
            "--sparsity",
            type=click.FloatRange(0),
            help="Weight of the L1, KL or L0 penalty. Default: the architecture's own.",
        ),
        click.option(
            "--learning-rate", type=click.FloatRange(0, min_open=True), help="Adam's, at its peak."
        ),
        click.option(
            "--frozen-decoder",
            is_flag=True,
            help="Keep the decoder as it was drawn: a baseline that trained SAEs must beat.",
        ),
        click.option(
            "--patience",
            type=COUNT,
            help="Stop when so many passes gained nothing on held-out texts.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Decides first weights and order.",
        ),
        click.option(
            "--device",
            type=click.Choice(["cpu", "cuda"]),
            default="cpu",
            show_default=True,
            help="Where to train.",
        ),
    )
    for option in reversed(options):  # decorators print from the bottom up
        command = option(command)
    return command


@click.command("train")
@texts_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Weights folder.")
@sae_options
@schedule_options
@click.option(
    "--base", type=click.Path(path_type=Path), help="Weights to start from: a folder, or a .pth."
)
@click.option(
    "--weigh",
    multiple=True,
    metavar="CATEGORY=R:S",
    help="Weights of a category's reconstruction and sparsity, in sparse_memory_text.",
)
@click.option(
    "--repeat",
    multiple=True,
    metavar="CATEGORY=N",
    help="Go through the texts of a category N times in each epoch.",
)
@click.option("--category", default="category", show_default=True, help="Field with the category.")
@click.option("--float16", is_flag=True, help="Store weights in half the space, for shipping.")
@field_option
@embedder_option
@cache_option
@json_option
def train_command(
    files: tuple[str, ...],
    out: Path,
    base: Path | None,
    weigh: tuple[str, ...],
    repeat: tuple[str, ...],
    category: str,
    float16: bool,
    text: str,
    embedder: str | None,
    cache: Path,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Train an SAE on the texts of FILES and write its weights folder.

    `memstore init STORE --sae FOLDER` then makes a store with it. Run again after an interruption.
    """
    import numpy as np

    from memstore.sae.schedule import TrainConfig
    from memstore.training import (
        Split,
        require_folder,
        require_torch,
        row_repeats,
        row_weights,
        text_digest,
        train,
    )

    require_torch(chosen["device"])  # before minutes of embedding
    require_folder(out)
    architecture, neurons = chosen.pop("architecture"), chosen.pop("neurons")
    k, event_size = chosen.pop("k"), chosen.pop("event_size")
    schedule = TrainConfig(**chosen)
    texts, categories = read_texts(files, text, category)
    weights = row_weights(categories, read_weights(weigh)) if weigh else None
    repeats = row_repeats(categories, read_repeats(repeat)) if repeat else None
    vectors = embed(texts, embedder, cache)
    config = SAEConfig(
        architecture,
        vectors.shape[1],
        neurons,
        k=k if architecture in WITH_K else None,
        event_size=event_size if architecture == "sparse_memory_text" else None,
    )
    dtype = np.float16 if float16 else np.float32
    result = train(
        vectors,
        config,
        schedule,
        Split(),
        out,
        dtype,
        weigh=weights,
        repeat=repeats,
        base=base,
        texts=text_digest(texts),
    )
    print_measures(result, as_json=as_json)
