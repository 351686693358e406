"""Asking requests one by one, several at once: for servers without batches.

An answer is on the disk before it is counted. What a killed process had asked and not yet heard is
asked again by the next call: at most as many requests as were in the air.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from memstore.errors import JobError, ServerRefused, ServerUnreachable
from memstore.jobs.answers import line_of
from memstore.jobs.job import DIRECT, Job
from memstore.jobs.log import Log
from memstore.jobs.requests import Request
from memstore.jobs.server import Server, hidden
from memstore.progress import Report

#: Requests in the air.
AT_ONCE = 8
#: A server that gave no answer to so many in a row is not asked on.
FAILURES = 5
#: Statuses that say no to this request alone.
ITS_OWN = (400, 413, 422)

Asked = dict[Future[dict[str, Any]], Request]


def ask(
    job: Job,
    server: Server,
    requests: Iterable[Request],
    *,
    at_once: int = AT_ONCE,
    total: int | None = None,
    report: Report | None = None,
) -> int:
    """Ask requests and keep each answer as it comes; returns how many were answered.

    The job must be held. Ctrl-C asks nothing more, and keeps what is in the air. Raises
    ``ServerRefused`` for what would be said of every request, ``ServerUnreachable`` where the
    server fails ``FAILURES`` times in a row.
    """
    log = Log(job.folder / DIRECT)
    log.mend()
    run = _Run(log, total, report)
    stream = iter(requests)
    air: Asked = {}
    stopping = threading.Event()

    def answer(request: Request) -> dict[str, Any]:
        return server.ask(job.facts.endpoint, request.body, stopping)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            while run.stop is None:
                # The first goes alone: a wrong key or a dead server is found out once.
                most = at_once if run.done else 1
                while len(air) < most and (request := next(stream, None)) is not None:
                    air[pool.submit(answer, request)] = request
                if not air:
                    break
                run.keep(air, wait(air, return_when=FIRST_COMPLETED).done)
        finally:
            # What waits to be asked again is not; what is in the air is paid for, and kept.
            stopping.set()
            run.keep(air, wait(air).done)
            log.close()
    if run.stop is not None:
        raise run.stop
    return run.answered


class _Run:
    """What came back so far."""

    def __init__(self, log: Log, total: int | None, report: Report | None) -> None:
        self.log, self.total, self.report = log, total, report
        self.answered = self.done = self.failures = 0
        self.stop: JobError | None = None

    def keep(self, air: Asked, done: Iterable[Future[dict[str, Any]]]) -> None:
        """Write down what is done, and take it out of the air."""
        for future in done:
            request = air.pop(future)
            try:
                body = future.result()
            except (ServerRefused, ServerUnreachable) as error:
                self.fail(request, error)
            else:
                self.log.append(json.loads(hidden(json.dumps(line_of(request.id, body)))))
                self.answered, self.failures = self.answered + 1, 0
                self.done += 1
            if self.report is not None and self.done:
                self.report(self.done, self.total)

    def fail(self, request: Request, error: ServerRefused | ServerUnreachable) -> None:
        """Write down a failure, or stop: what every request would hear is not this one's fault."""
        if isinstance(error, ServerRefused) and error.status not in ITS_OWN:
            self.stop = error
            return
        status = error.status if isinstance(error, ServerRefused) else None
        self.log.append(line_of(request.id, None, status, str(error)))
        self.done += 1
        if isinstance(error, ServerUnreachable):
            self.failures += 1
            if self.failures >= FAILURES:
                self.stop = error
