"""``memstore generate``: from a plan to narratives in a store."""

from __future__ import annotations

from pathlib import Path

import click

from memstore import files, generation
from memstore.cli import jobs
from memstore.cli.importing import NAMES, store_file, tell_stored
from memstore.cli.options import json_option
from memstore.cli.output import print_json, print_result, print_table
from memstore.durable import medium
from memstore.errors import InvalidFile, InvalidPlan, JobError
from memstore.files import Format
from memstore.jobs.job import Job

#: Reasons that a person may overrule.
KEEP = ("near", "words", "language")


@click.group("generate")
def generate_command() -> None:
    """Have a language model write narratives, step by step.

    plan, submit, watch, fetch, check, process; or plan, direct, check, process. Each step may be
    interrupted and run again. The key comes from OPENAI_API_KEY.
    """


@click.command("plan")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option(
    "--plan",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Your plan. Default: the one that ships, 450 narratives of three categories.",
)
@click.option("--print", "shown", is_flag=True, help="Print the plan that ships, to begin yours.")
@click.option(
    "--most-requests",
    type=click.IntRange(1, 50_000),
    help="Requests a batch, for accounts that allow few waiting tokens. Default: 50,000.",
)
@json_option
def plan_command(
    folder: Path | None,
    source: Path | None,
    shown: bool,
    most_requests: int | None,
    as_json: bool,
) -> None:
    """Write the requests of a plan into FOLDER; nothing is sent."""
    if shown:
        if folder is not None or source is not None:
            raise click.UsageError("--print stands alone")
        click.echo(generation.shipped_plan().decode("utf-8"), nl=False)
        return
    if folder is None:
        raise click.UsageError("Missing argument 'FOLDER'.")
    try:
        job, new = generation.plan_job(folder, read_plan(source), most_requests)
    except InvalidPlan as error:
        raise InvalidPlan(f"{source or 'the plan that ships'}: {error}") from error
    facts = {"folder": str(folder), "new": new, "requests": list(job.facts.parts)}
    count, files = sum(job.facts.parts), len(job.facts.parts)
    line = f"{count:,} requests in {files} file{'s' * (files > 1)}"
    print_result(line if new else f"{line}, planned before", facts, as_json=as_json)


def read_plan(source: Path | None) -> bytes:
    """Return the plan in a file, or the one that ships."""
    if source is None:
        return generation.shipped_plan()
    if not source.is_file():
        raise InvalidFile(
            f"{source}: no such file: `memstore generate plan --print > {source}` writes the plan "
            "that ships"
        )
    with medium(source, "read"):
        return source.read_bytes()


@click.command("check")
@jobs.folder_argument
@json_option
def check_command(folder: Path, as_json: bool) -> None:
    """Check the narratives in FOLDER: schema, refusals, length, language, near-duplicates, balance.

    Writes check.jsonl, a line a narrative, and report.md.
    """
    found = checked(folder)
    if as_json:
        print_json(found.to_dict())
        return
    rows = [[str(value) for value in row.values()] for row in found.balance()]
    print_table(["category", "asked", "answered", "usable"], rows)
    click.echo(f"{len(found.usable):,} of {len(found.findings):,} usable")
    for reason, count in found.reasons().items():
        click.echo(f"memstore: left out: {count:,} {reason}", err=True)
    if found.reasons():
        click.echo(f"memstore: see {folder / generation.REPORT}", err=True)


def checked(folder: Path) -> generation.Check:
    """Return what a check with the shipped embedder finds."""
    from memstore.encoder import embedder_config, load_embedder

    return generation.check(Job(folder), load_embedder(embedder_config(None)))


@click.command("process")
@jobs.folder_argument
@click.option(
    "--store", type=click.Path(dir_okay=False), help="Put the narratives into this store, too."
)
@click.option(
    "--keep",
    type=click.Choice(KEEP),
    multiple=True,
    help="Keep narratives that a check leaves out for this reason.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Where the narratives go. Default: FOLDER/{generation.NARRATIVES}.",
)
@json_option
def process_command(
    folder: Path, store: str | None, keep: tuple[str, ...], out: Path | None, as_json: bool
) -> None:
    """Make the usable narratives in FOLDER a JSON file, and memories of a store.

    Each knows the request it came from. Run it again after more answers came: a memory is stored
    once.
    """
    found = checked(folder)
    if not any(finding.text is not None for finding in found.findings):
        raise JobError(f"{folder} has no narrative yet: submit, watch and fetch, or ask directly")
    target = out or folder / generation.NARRATIVES
    count = generation.process(Job(folder), found, keep, target)
    if store is None:
        facts = {"narratives": count, "file": str(target)}
        print_result(f"{count:,} narratives in {target}", facts, as_json=as_json)
        return
    if target.suffix != ".jsonl" and target.stat().st_size > files.MAX_JSON:
        # An array is read whole; so many are read line by line.
        target = target.with_suffix(".jsonl")
        generation.process(Job(folder), found, keep, target)
    kind: Format = "jsonl" if target.suffix == ".jsonl" else "json"
    tell_stored(store_file(store, str(target), kind, NAMES), as_json=as_json)


for command in (
    plan_command,
    *jobs.STEPS,
    check_command,
    process_command,
):
    generate_command.add_command(command)
