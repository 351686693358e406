"""Experiments from the shell: a table, figures and a page in a folder."""

from __future__ import annotations

from pathlib import Path

import click

from memstore import layout
from memstore.cli.lab import cache_option, embed, embedder_option, field_option, read_texts
from memstore.errors import InvalidInput, MissingExtra
from memstore.training import require_folder

EXPERIMENTS = ("sparsity", "l1", "narratives", "finetune", "sweep")
FEWEST = 100


@click.command("experiment")
@click.argument("name", type=click.Choice(EXPERIMENTS))
@click.argument("files", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for results.")
@click.option("--category", default="category", show_default=True, help="Field with the category.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides all.")
@field_option
@embedder_option
@cache_option
def experiment_command(
    name: str,
    files: tuple[str, ...],
    out: Path,
    category: str,
    seed: int,
    text: str,
    embedder: str | None,
    cache: Path,
) -> None:
    """Run an experiment on the texts of FILES (default: the sample narratives).

    OUT gets README.md with what was found, table.json, and figures as PNG and SVG. Run again after
    an interruption.
    """
    try:
        from memstore.experiments import prototype, sweep
        from memstore.experiments.lab import WORK, Lab, write
    except ImportError as error:
        raise MissingExtra(error.name or "torch", "train", "an experiment") from error

    require_folder(out)
    if out.is_dir() and any(out.iterdir()) and not (out / WORK).is_dir():
        raise InvalidInput(f"{out} holds other things: name a folder that does not exist")
    texts, categories = read_texts(files or (str(layout.NARRATIVES),), text, category)
    if len(texts) < FEWEST:
        raise InvalidInput(f"{len(texts)} texts are too few: an experiment wants {FEWEST}")
    if name in ("l1", "narratives") and len(set(categories) - {""}) < 2:
        raise InvalidInput(f"{name} compares categories: name their field with --category")
    lab = Lab(embed(texts, embedder, cache), categories, seed, out)
    run = getattr(sweep if name == "sweep" else prototype, name)
    for path in write(run(lab), out):
        click.echo(path)
