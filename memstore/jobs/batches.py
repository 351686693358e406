"""Batches: handing parts in, waiting for them, fetching what came of them.

Every call may be cut off anywhere and made again. What costs money is written down before and
after; where the server's word is missing between the two, the server is asked what it has.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from memstore.durable import appearing
from memstore.errors import ServerRefused, ServerUnreachable
from memstore.jobs.answers import Answer, read_answers
from memstore.jobs.job import Job, Part
from memstore.jobs.requests import part_path
from memstore.jobs.server import GONE, Batch, Server

#: Seconds after which a batch must show that a server was asked to create without an answer.
SETTLE = 15.0
#: Between two looks at a batch: growing from the first to the last, in seconds.
FIRST_WAIT, LAST_WAIT, GROWTH = 5.0, 120.0, 1.5


def submit(job: Job, server: Server) -> list[Part]:
    """Hand in every part that waits; returns those that were. The job must be held."""
    handed = []
    for part in job.parts():
        if not part.waits:
            continue
        if part.server not in (None, server.base_url):
            raise ServerRefused(
                f"part {part.number} was begun at {part.server}: add --base-url {part.server}"
            )
        marks = {"memstore_job": job.facts.id, "memstore_part": f"{part.number:04d}"}
        batch = found(server, part, marks) if part.begun else None
        if batch is None:
            if part.file is None:
                file = server.upload(part_path(job.folder, part.number))
                job.record(part, "uploaded", file=file, server=server.base_url)
            job.record(part, "submitting", server=server.base_url)
            batch = created(job, server, part, marks)
        job.record(part, "submitted", batch=batch, server=server.base_url)
        handed.append(part)
    return handed


def created(job: Job, server: Server, part: Part, marks: dict[str, str]) -> str:
    """Create the batch of a part; where no answer comes, look whether there is one."""
    try:
        return server.create_batch(part.file or "", job.facts.endpoint, marks)
    except ServerRefused:
        job.record(part, "dropped")
        raise
    except ServerUnreachable:
        batch = found(server, part, marks)
        if batch is None:
            raise
        return batch


def found(server: Server, part: Part, marks: dict[str, str]) -> str | None:
    """Return the batch of a part whose creation was not answered, None if there is none.

    A server may still be at it, or slow to list it: only what does not show ``SETTLE`` seconds
    after it was asked for is not there.
    """
    while True:
        batch = server.find_batch(marks, part.file or "")
        left = part.begun_at + SETTLE - time.time()
        if batch is not None or left <= 0:
            return batch
        time.sleep(min(max(left, 0.1), 2.0))


def look(job: Job, base_url: str | None = None) -> list[tuple[Part, Batch]]:
    """Return every part the server is at work on, and how far it is."""
    with Server(base_url) as server:
        return [
            (part, looked(at_home(server, part), part.batch))
            for part in job.parts()
            if part.runs and part.batch is not None
        ]


def looked(server: Server, id: str) -> Batch:
    """Return how far a batch is; one that the server has forgotten has ended."""
    try:
        return server.batch(id)
    except ServerRefused as error:
        if error.status != 404:
            raise
        return Batch(id, GONE, 0, 0, 0, None, None, "the server does not know it any more")


def at_home(server: Server, part: Part) -> Server:
    """Return the server, if the part is there: a folder alone must not say where the key goes."""
    if part.server != server.base_url:
        raise ServerRefused(
            f"part {part.number} is at {part.server}, not at {server.base_url}: "
            f"add --base-url {part.server} if you trust it"
        )
    return server


def poll(job: Job, base_url: str | None = None) -> list[tuple[Part, Batch]]:
    """Look at every part the server is at work on, and write down which ended."""
    parts = look(job, base_url)
    for part, batch in parts:
        if batch.ended:
            facts = {"output": batch.output, "errors": batch.errors, "why": batch.why}
            done = batch.completed
            job.record(part, "ended", status=batch.status, completed=done, **facts)
    return parts


def watch(
    job: Job,
    every: float | None,
    report: Callable[[int, int], None],
    base_url: str | None = None,
) -> None:
    """Wait until every part has ended; ``report(done, total)`` counts requests."""
    wait = every or FIRST_WAIT
    done = total = 0
    while parts := poll(job, base_url):
        total = max(total, done + sum(batch.total for _, batch in parts))
        now = done + sum(batch.completed + batch.failed for _, batch in parts)
        report(now, total)
        done += sum(batch.completed + batch.failed for _, batch in parts if batch.ended)
        if all(batch.ended for _, batch in parts):
            return
        time.sleep(wait)
        wait = wait if every else min(wait * GROWTH, LAST_WAIT)


def fetch(job: Job, base_url: str | None = None) -> list[Part]:
    """Download what ended parts left; returns those parts. Broken output is fetched once more."""
    poll(job, base_url)
    parts = [part for part in job.parts() if part.can_fetch]
    with Server(base_url) as server:
        for part in parts:
            broken = download(at_home(server, part), part.output, job.output_path(part))
            broken += download(at_home(server, part), part.errors, job.errors_path(part))
            lacking = part.completed - good(job.output_path(part))
            # A download that ends early without a word shows by the server's own count.
            lost = max(lacking, broken) if part.output else broken
            job.record(part, "fetched", broken=max(lost, 0))
    return parts


def download(server: Server, file: str | None, path: Path) -> int:
    """Download a file into its place; returns how many of its lines cannot be read.

    What is there already stays where it has more answers: a second download may be the worse one.
    """
    if file is None:
        return 0
    try:
        with appearing(path, over=True) as fresh:
            server.download(file, fresh)
            if path.exists() and good(fresh) < good(path):
                shutil.copyfile(path, fresh)
    except ServerRefused as error:
        if error.status != 404:
            raise
        return 0  # deleted at the server: what is here is all there will be
    return sum(not isinstance(answer, Answer) for answer in read_answers(path))


def good(path: Path) -> int:
    """Return how many answers are in a file."""
    return sum(isinstance(answer, Answer) for answer in read_answers(path))
