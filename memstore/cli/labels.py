"""``memstore labels``: what neurons are called; found, made from texts, carried between stores."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

import click

from memstore.cli.options import json_option, reader, store_argument, writer
from memstore.cli.output import one_line, print_json, print_result, print_table
from memstore.progress import Progress
from memstore.store import MemoryStore
from memstore.types import Neuron

file_argument = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
count_option = click.option(
    "-n", "count", type=click.IntRange(1), default=10, show_default=True, help="How many."
)
#: Memories that a neuron on a page fires for, at least, and how much of each is shown.
EXAMPLES, LETTERS = 5, 110


@click.group("labels")
def labels_command() -> None:
    """Find, make, export and import what neurons are called.

    One label at a time is given by `memstore neuron STORE 15 --label grief`.
    """


@click.command("find")
@store_argument
@click.argument("words", nargs=-1, required=True)
@count_option
@json_option
def find_command(store: str, words: tuple[str, ...], count: int, as_json: bool) -> None:
    """Find neurons of STORE's encoder by WORDS in the dictionary that ships with it."""
    with reader(store) as opened:
        found = opened.neurons.find(" ".join(words), count)
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    if not found:
        click.echo("no neuron is described in such words", err=True)
        return
    rows = [[f"N{e.neuron}", graded(e.grade), e.label or "-", e.sentence or "-"] for e in found]
    print_table(["neuron", "grade", "label", "meaning"], rows)


@click.command("make")
@store_argument
@json_option
def make_command(store: str, as_json: bool) -> None:
    """Write labels from STORE's own texts, without a model: words, or an example.

    Each is graded on texts kept apart; what grades 0.7 or less is "unclear" and not stored. Labels
    given by hand stay, and those of the dictionary come first.
    """
    progress = Progress("neurons")
    with writer(store) as opened:
        made = opened.neurons.make_labels(progress)
    progress.close()
    measured = [one for one in made if one.grade is not None]
    clear = [one for one in measured if one.label is not None]
    facts = {"neurons": len(made), "graded": len(measured), "clear": len(clear)}
    line = (
        f"{len(clear):,} of {len(made):,} neurons have a clear label, "
        f"{len(measured) - len(clear):,} are unclear, {len(made) - len(measured):,} fire too seldom"
    )
    print_result(line, facts, as_json=as_json)


@click.command("export")
@store_argument
@file_argument
@json_option
def export_command(store: str, file: Path, as_json: bool) -> None:
    """Write the labels given or made in STORE to FILE, bound to its encoder."""
    with reader(store) as opened:
        count = opened.neurons.export_labels(file)
    print_result(f"{count:,} labels in {file}", {"labels": count}, as_json=as_json)


@click.command("import")
@store_argument
@file_argument
@json_option
def import_command(store: str, file: Path, as_json: bool) -> None:
    """Take the labels in FILE into STORE; refused where they are of another encoder's neurons."""
    with writer(store) as opened:
        count = opened.neurons.import_labels(file)
    print_result(f"{count:,} labels from {file}", {"labels": count}, as_json=as_json)


@click.command("page")
@store_argument
@click.option("-n", "count", type=click.IntRange(1), default=30, show_default=True, help="Neurons.")
@click.option("--seed", default=0, show_default=True, help="Decides which.")
def page_command(store: str, count: int, seed: int) -> None:
    """Print random neurons of STORE with label, grade and five examples, for a person to judge.

    Markdown. Drawn among those that fire for five memories or more; a label made from texts stands
    beside the one that is shown elsewhere.
    """
    with reader(store) as opened:
        made = opened.neurons.made()
        for known in drawn(opened, count, seed):
            names = [f"{known.label or 'unclear'}** (grade {graded(known.grade)})"]
            if known.id in made and made[known.id][0] != known.label:
                name, grade = made[known.id]
                names.append(f"made: **{name}** (grade {graded(grade)})")
            click.echo(f"**N{known.id}: {'; '.join(names)}\n")
            for hit in known.top[:EXAMPLES]:
                text = one_line(hit.text)
                short = text if len(text) <= LETTERS else text[:LETTERS].rstrip() + "..."
                click.echo(f"* {hit.score:.2f} {short}")
            click.echo("")


def drawn(store: MemoryStore, count: int, seed: int) -> list[Neuron]:
    """Return so many random neurons that fire often enough, by number."""
    fires = store.traces().to_dense() > 0
    often = [number for number, n in enumerate(fires.sum(axis=0)) if n >= EXAMPLES]
    chosen = random.Random(seed).sample(often, min(count, len(often)))
    return [store.neurons[number] for number in sorted(chosen)]


def graded(grade: float | None) -> str:
    """Return a grade as it is shown."""
    return "-" if grade is None else f"{grade:.2f}"


for command in (find_command, make_command, export_command, import_command, page_command):
    labels_command.add_command(command)
