"""``memstore labels``: what neurons are called; found, made from texts, carried between stores."""

from __future__ import annotations

import random
import re
from dataclasses import asdict
from pathlib import Path

import click

from memstore import model_labels
from memstore.cli import jobs
from memstore.cli.options import Finite, changer, json_option, reader, store_argument
from memstore.cli.output import one_line, print_json, print_result, print_table
from memstore.errors import InvalidInput
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

    One label at a time is given by `memstore neuron STORE 15 --label grief`. To have a language
    model write them: plan, submit, watch, fetch (or direct), grade, the same for FOLDER/grades,
    process.
    """


@click.command("find")
@store_argument
@click.argument("words", nargs=-1, required=True)
@count_option
@json_option
def find_command(store: str, words: tuple[str, ...], count: int, as_json: bool) -> None:
    """Find neurons of STORE by WORDS in their labels: given there, read, or made there."""
    with reader(store) as opened:
        found = opened.neurons.find(" ".join(words), count)
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    if not found:
        click.echo(
            "no label has such words; where there are few labels, `labels make` writes some",
            err=True,
        )
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
    with changer(store) as opened:
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
    with changer(store) as opened:
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
            label = known.label or ("unclear" if known.grade is not None else "no label")
            names = [f"{label}** (grade {graded(known.grade)})"]
            if known.id in made and made[known.id][0] != known.label:
                name, grade = made[known.id]
                names.append(f"made: **{name}** (grade {graded(grade)})")
            click.echo(f"**N{known.id}: {'; '.join(names)}\n")
            for hit in known.top[:EXAMPLES]:
                text = one_line(hit.text)
                short = text if len(text) <= LETTERS else text[:LETTERS].rstrip() + "..."
                click.echo(f"* {hit.score:.2f} {short}")
            click.echo("")


@click.command("plan")
@store_argument
@jobs.folder_argument
@click.option("--model", required=True, help="Such as gpt-4.1-mini.")
@click.option("--neurons", metavar="N,N,...", help="Default: all that fire often enough.")
@click.option(
    "--price",
    type=Finite(0),
    nargs=2,
    metavar="IN OUT",
    help="US dollars per million tokens, for the estimate.",
)
@json_option
def plan_command(
    store: str,
    folder: Path,
    model: str,
    neurons: str | None,
    price: tuple[float, float] | None,
    as_json: bool,
) -> None:
    """Write the requests that have a model explain STORE's neurons into FOLDER; nothing is sent.

    The texts it will read, and those the labels will be graded on, are drawn now and kept.
    """
    prices = None if price is None else {"input": price[0], "output": price[1], "batch": 0.5}
    with reader(store) as opened:
        job = opened.neurons.plan_labels(folder, model, read_numbers(neurons), price=prices)
    count = sum(job.facts.parts)
    facts = {"folder": str(folder), "requests": list(job.facts.parts)}
    line = f"{count:,} neurons to explain; others fire strongly for too few texts"
    print_result(line, facts, as_json=as_json)


def read_numbers(given: str | None) -> list[int] | None:
    """Return the numbers in ``N,N,...``."""
    if given is None:
        return None
    parts = [part.strip().removeprefix("N") for part in given.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise InvalidInput(f"--neurons {given!r}: write it like --neurons 15,450")
    return sorted({int(part) for part in parts})


@click.command("grade")
@jobs.folder_argument
@json_option
def grade_command(folder: Path, as_json: bool) -> None:
    """Write the requests that grade the labels in FOLDER into FOLDER/grades.

    Each label is tried on ten texts its author has not seen, and the texts alone on an intruder.
    """
    job = model_labels.plan_grades(folder)
    count = sum(job.facts.parts)
    facts = {"folder": str(job.folder), "requests": list(job.facts.parts)}
    print_result(f"{count:,} requests in {job.folder}", facts, as_json=as_json)


@click.command("process")
@jobs.folder_argument
@click.option("--store", type=click.Path(dir_okay=False), help="Give its neurons these labels.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Where the labels go. Default: FOLDER/{model_labels.LABELS}.",
)
@json_option
def process_command(folder: Path, store: str | None, out: Path | None, as_json: bool) -> None:
    """Make the graded labels in FOLDER one file, and labels of a store.

    A label of a balanced accuracy below 0.8 is "unclear": its sentence and grade stay in the file.
    """
    path, entries = model_labels.write_labels(folder, out)
    clear = sum(entry.label is not None for entry in entries)
    if store is not None:
        with changer(store) as opened:
            opened.neurons.import_labels(path)
    facts = {"neurons": len(entries), "clear": clear, "file": str(path)}
    line = f"{clear:,} of {len(entries):,} neurons have a clear label, in {path}"
    print_result(line, facts, as_json=as_json)


def drawn(store: MemoryStore, count: int, seed: int) -> list[Neuron]:
    """Return so many random neurons that fire often enough, by number."""
    fires = store.traces().to_dense() > 0
    often = [number for number, n in enumerate(fires.sum(axis=0)) if n >= EXAMPLES]
    chosen = random.Random(seed).sample(often, min(count, len(often)))
    return [store.neurons[number] for number in sorted(chosen)]


def graded(grade: float | None) -> str:
    """Return a grade as it is shown."""
    return "-" if grade is None else f"{grade:.2f}"


for command in (
    find_command,
    make_command,
    export_command,
    import_command,
    page_command,
    plan_command,
    *jobs.STEPS,
    grade_command,
    process_command,
):
    labels_command.add_command(command)
