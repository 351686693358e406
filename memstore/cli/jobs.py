"""What every job goes through at the server: submit, watch, fetch; or asked directly."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from memstore.cli.options import Finite, json_option
from memstore.cli.output import one_line, print_json, print_table
from memstore.durable import appearing
from memstore.embed import batch as embeddings
from memstore.errors import InvalidInput, JobError
from memstore.generate.reading import judge as judge_narrative
from memstore.generation import KIND as NARRATIVES
from memstore.jobs.batches import fetch, look, submit, watch
from memstore.jobs.direct import AT_ONCE, ask
from memstore.jobs.estimate import estimate
from memstore.jobs.job import VOID, Job
from memstore.jobs.requests import MOST_REQUESTS, Request, read_part
from memstore.jobs.server import BASE_URL, Server
from memstore.jobs.standing import Judge, Standing
from memstore.neurons import reading
from memstore.progress import Progress

#: Kind of job -> what judges its answers.
JUDGES: dict[str, Callable[[Job], Judge]] = {
    NARRATIVES: lambda _: judge_narrative,
    embeddings.KIND: embeddings.judge_of,
    reading.KIND: lambda _: reading.judge,
}
FAILED = "failed.jsonl"
#: Failures that are printed; the file has all.
SHOWN = 10


folder_argument = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
base_url_option = click.option(
    "--base-url", metavar="URL", help=f"OpenAI-compatible server. Default: {BASE_URL}, or OpenAI."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask before spending money.")


def standing_of(job: Job) -> Standing:
    """Return where the requests of a job stand, as its kind judges answers."""
    if job.facts.kind not in JUDGES:
        raise JobError(f"{job.folder} is a job of {job.facts.kind}: update the package")
    return job.standing(JUDGES[job.facts.kind](job))


@click.command("submit")
@folder_argument
@base_url_option
@click.option(
    "--most-requests",
    type=click.IntRange(1, MOST_REQUESTS),
    help="Requests a batch, where some are asked again: for accounts that allow few at a time.",
)
@yes_option
@json_option
def submit_command(
    folder: Path, base_url: str | None, most_requests: int | None, yes: bool, as_json: bool
) -> None:
    """Hand the requests of FOLDER in as batches, after saying what they cost.

    Only what is not at the server and has no good answer is asked: run it again after a failure,
    an expired batch or an interruption, and nothing is paid for twice.
    """
    job = Job(folder)
    with Server(base_url).ready() as server, job.working():
        standing = standing_of(job)
        again = standing.open(job.facts.attempts, planned=False)
        waiting = [part for part in job.parts() if part.waits]
        wanted = again | {r.id for p in waiting for r in read_part(folder, p.number)}
        if not wanted:
            tell_nothing(job, standing, as_json)
            return
        confirm(job, server, wanted, yes=yes, batch=True)
        if again:
            job.plan_again(again, most_requests)
        handed = submit(job, server)
    if as_json:
        print_json([{"part": p.number, "batch": p.batch, "requests": p.requests} for p in handed])
        return
    for part in handed:
        click.echo(f"part {part.number}: {part.requests:,} requests are batch {part.batch}")


@click.command("direct")
@folder_argument
@base_url_option
@click.option(
    "--at-once",
    type=click.IntRange(1, 256),
    default=AT_ONCE,
    show_default=True,
    help="Requests in the air.",
)
@yes_option
@json_option
def direct_command(
    folder: Path, base_url: str | None, at_once: int, yes: bool, as_json: bool
) -> None:
    """Ask the requests of FOLDER one by one, for servers without batches.

    Waits as Retry-After says. Run it again after an interruption: of what was paid for, only
    requests in the air when the process was killed are asked once more.
    """
    job = Job(folder)
    with Server(base_url).ready() as server, job.working():
        for part in job.parts():
            if part.waits and part.begun:
                raise JobError(f"part {part.number} may be at the server: run submit first")
        standing = standing_of(job)
        wanted = standing.open(job.facts.attempts, planned=True)
        if not wanted:
            tell_nothing(job, standing, as_json)
            return
        confirm(job, server, wanted, yes=yes, batch=False)
        for part in job.parts():
            if part.waits:
                # Handed in later, it would be paid for once more.
                job.record(part, VOID)
        progress = Progress("requests done")
        try:
            ask(
                job,
                server,
                chosen(job, wanted),
                at_once=at_once,
                total=len(wanted),
                report=progress,
            )
        finally:
            progress.close()
            standing = standing_of(job)
            write_failed(job, standing)
    tell_standing(standing, as_json)


@click.command("status")
@folder_argument
@base_url_option
@json_option
def status_command(folder: Path, base_url: str | None, as_json: bool) -> None:
    """Say how far the batches of FOLDER are, and where its requests stand."""
    job = Job(folder)
    standing = standing_of(job)
    looked = {part.number: batch for part, batch in look(job, base_url)}
    rows = []
    for part in job.parts():
        batch = looked.get(part.number)
        status = batch.status if batch else part.status
        done = f"{batch.completed + batch.failed}/{batch.total}" if batch else ""
        rows.append([str(part.number), f"{part.requests:,}", status, done, part.batch or "-"])
    columns = ["part", "requests", "status", "done", "batch"]
    if as_json:
        parts = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"parts": parts, "requests": standing.counts()})
        return
    print_table(columns, rows)
    tell_standing(standing, as_json=False)
    ended = [number for number, batch in looked.items() if batch.ended]
    ended += [part.number for part in job.parts() if part.can_fetch and not part.fetched]
    if ended:
        click.echo(f"memstore: part {', '.join(map(str, sorted(ended)))} ended: fetch", err=True)


@click.command("watch")
@folder_argument
@base_url_option
@click.option(
    "--every", type=Finite(0.1, 3600), help="Seconds between looks. Default: growing to 120."
)
@json_option
def watch_command(folder: Path, base_url: str | None, every: float | None, as_json: bool) -> None:
    """Wait until the batches of FOLDER have ended; Ctrl-C stops the waiting, not the batches."""
    job = Job(folder)
    progress = Progress("requests done")
    with job.working():
        try:
            watch(job, every, progress, base_url)
        finally:
            progress.close()
        parts = [part for part in job.parts() if part.batch is not None]
    if as_json:
        print_json([{"part": p.number, "status": p.status, "why": p.why} for p in parts])
        return
    if not parts:
        click.echo("memstore: nothing was handed in: submit first", err=True)
    for part in parts:
        why = f" ({one_line(part.why)})" if part.why else ""
        click.echo(f"part {part.number}: {part.status}{why}")


@click.command("fetch")
@folder_argument
@base_url_option
@json_option
def fetch_command(folder: Path, base_url: str | None, as_json: bool) -> None:
    """Download what the ended batches of FOLDER left: answers, and errors by request."""
    job = Job(folder)
    with job.working():
        parts = fetch(job, base_url)
        running = [part.number for part in job.parts() if part.runs]
        standing = standing_of(job)
        write_failed(job, standing)
    for part in parts:
        if part.broken:
            click.echo(
                f"memstore: part {part.number} came with {part.broken} lines that cannot be read: "
                "fetch again; if they stay so, submit asks their requests again",
                err=True,
            )
    if not parts and all(part.waits for part in job.parts()):
        click.echo("memstore: nothing was handed in: submit first", err=True)
    if running:
        click.echo(f"memstore: still at the server: part {', '.join(map(str, running))}", err=True)
    tell_standing(standing, as_json)


# --- what they say -------------------------------------------------------------------------------


def chosen(job: Job, ids: set[str]) -> Iterator[Request]:
    """Yield some requests of a job, in order."""
    return (request for request in job.requests() if request.id in ids)


def confirm(job: Job, server: Server, ids: set[str], *, yes: bool, batch: bool) -> None:
    """Say what requests will cost, and let a person say no. Raises ``click.Abort``."""
    cost = estimate(job.facts, chosen(job, ids), batch=batch)
    click.echo(
        f"memstore: {cost.requests:,} requests to {job.facts.model} at {server.base_url}, {cost}",
        err=True,
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput("nobody is there to ask: add --yes to spend this")
    click.confirm("Go on?", abort=True, err=True)


def tell_nothing(job: Job, standing: Standing, as_json: bool) -> None:
    """Say why there is nothing to ask."""
    if standing.asked and not as_json:
        click.echo("memstore: all that is open is at the server: watch, then fetch", err=True)
    elif set(standing.counts()) != {"answered"} and not as_json:
        click.echo(
            f"memstore: what is left was answered in vain {job.facts.attempts} times: ask it in "
            "other words, in a new folder",
            err=True,
        )
    tell_standing(standing, as_json)


def tell_standing(standing: Standing, as_json: bool) -> None:
    """Print how many requests are where, and the first that went wrong."""
    counts = standing.counts()
    if as_json:
        print_json(counts)
        return
    click.echo(", ".join(f"{count:,} {state}" for state, count in counts.items()))
    wrong = list(failures(standing))
    for id, state, why in wrong[:SHOWN]:
        click.echo(f"memstore: {id}: {state}: {one_line(why)}", err=True)
    if len(wrong) > SHOWN:
        click.echo(f"memstore: and {len(wrong) - SHOWN:,} more, in {FAILED}", err=True)


def failures(standing: Standing) -> Iterator[tuple[str, str, str]]:
    """Yield (request, state, why) of each that was asked and has no good answer."""
    for id, (_, why) in standing.states.items():
        state = standing.state(id)
        if state in ("failed", "lost", "unusable"):
            yield id, state, why


def write_failed(job: Job, standing: Standing) -> None:
    """Write each failed request and why, for programs and people."""
    with (
        appearing(job.folder / FAILED, over=True) as path,
        path.open("w", encoding="utf-8", errors="backslashreplace") as out,
    ):
        for id, state, why in failures(standing):
            line: dict[str, Any] = {"request": id, "state": state, "why": why}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


#: What every job goes through at the server, in the order of ``--help``.
STEPS = (submit_command, direct_command, status_command, watch_command, fetch_command)
