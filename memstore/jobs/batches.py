"""Batches: handing parts in, waiting for them, fetching what came of them.

Every call may be cut off anywhere and made again. What costs money is written down before and
after; where the server's word is missing between the two, the server is asked what it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from memstore.durable import appearing
from memstore.errors import ServerRefused, ServerUnreachable
from memstore.jobs.answers import Answer, read_answers
from memstore.jobs.job import Job, Part
from memstore.jobs.requests import part_path
from memstore.jobs.server import Batch, Server

#: Seconds to give a server whose answer was cut off, until what it did must show.
SETTLE = 2.0
#: Between two looks at a batch: growing from the first to the last, in seconds.
FIRST_WAIT, LAST_WAIT, GROWTH = 5.0, 120.0, 1.5


def submit(job: Job, server: Server) -> list[Part]:
    """Hand in every part that waits; returns those that were. The job must be held."""
    handed = []
    for part in job.parts():
        if not part.waits:
            continue
        marks = {"memstore_job": job.facts.id, "memstore_part": f"{part.number:04d}"}
        batch = found(job, server, marks) if part.begun else None
        if batch is None:
            if part.file is None:
                job.record(part, "uploaded", file=server.upload(part_path(job.folder, part.number)))
            job.record(part, "submitting")
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
        batch = found(job, server, marks)
        if batch is None:
            raise
        return batch


def found(job: Job, server: Server, marks: dict[str, str]) -> str | None:
    """Return the batch with these marks, looking twice: a server may still be at it."""
    batch = server.find_batch(marks, job.facts.created)
    if batch is None:
        time.sleep(SETTLE)
        batch = server.find_batch(marks, job.facts.created)
    return batch


def look(job: Job) -> list[tuple[Part, Batch]]:
    """Return every part the server is at work on, and how far it is."""
    with servers() as at:
        return [
            (part, at(part.server).batch(part.batch))
            for part in job.parts()
            if part.runs and part.batch is not None
        ]


def poll(job: Job) -> list[tuple[Part, Batch]]:
    """Look at every part the server is at work on, and write down which ended."""
    looked = look(job)
    for part, batch in looked:
        if batch.ended:
            facts = {"output": batch.output, "errors": batch.errors, "why": batch.why}
            job.record(part, "ended", status=batch.status, **facts)
    return looked


def watch(job: Job, every: float | None, report: Callable[[int, int], None]) -> None:
    """Wait until every part has ended; ``report(done, total)`` counts requests."""
    wait = every or FIRST_WAIT
    done = total = 0
    while looked := poll(job):
        total = max(total, done + sum(batch.total for _, batch in looked))
        now = done + sum(batch.completed + batch.failed for _, batch in looked)
        report(now, total)
        done += sum(batch.completed + batch.failed for _, batch in looked if batch.ended)
        if all(batch.ended for _, batch in looked):
            return
        time.sleep(wait)
        wait = wait if every else min(wait * GROWTH, LAST_WAIT)


def fetch(job: Job) -> list[Part]:
    """Download what ended parts left; returns those parts. Broken output is fetched once more."""
    poll(job)
    parts = [part for part in job.parts() if part.can_fetch]
    with servers() as at:
        for part in parts:
            broken = 0
            for file, path in (
                (part.output, job.output_path(part)),
                (part.errors, job.errors_path(part)),
            ):
                if file is None:
                    continue
                with appearing(path, over=True) as aside:
                    at(part.server).download(file, aside)
                broken += sum(not isinstance(answer, Answer) for answer in read_answers(path))
            job.record(part, "fetched", broken=broken)
    return parts


@contextmanager
def servers() -> Iterator[Callable[[str | None], Server]]:
    """Lend a function from an address to its server, closed at the end."""
    with ExitStack() as stack:
        yield cache(lambda url: stack.enter_context(Server(url)))
