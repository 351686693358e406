"""A job: a folder of requests, what was done about them, and the answers.

::

    job.json                what it is; written last, so a folder without it holds no job
    requests-0001.jsonl     what is asked, as the Batch API takes it; later parts ask again
    journal.jsonl           each thing done at the server, before and after
    output-0001.jsonl       what came back, as the server sent it
    errors-0001.jsonl
    direct.jsonl            answers of requests asked one by one

Whoever opens the folder learns the state from the journal alone; nothing is remembered elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from memstore.durable import appearing, medium
from memstore.errors import InvalidInput, JobBusy, JobDamaged, JobError, JobNotFound
from memstore.jobs.answers import Answer, read_answers
from memstore.jobs.log import Log, read_log
from memstore.jobs.requests import Limits, Request, read_part, write_parts
from memstore.jobs.standing import Judge, Standing

FORMAT = 1
#: Of a part that will not be handed in: its requests are asked otherwise.
VOID = "void"
JOB, JOURNAL, DIRECT = "job.json", "journal.jsonl", "direct.jsonl"


@dataclass(frozen=True)
class Facts:
    """What a job is."""

    kind: str
    """What its answers become: "narratives", "embeddings"."""
    endpoint: str
    model: str
    parts: tuple[int, ...] = ()
    """Requests in each file that it began with."""
    limits: Limits = field(default_factory=Limits)
    """What one file may hold."""
    price: Mapping[str, float] | None = None
    """US dollars per million tokens of input and output, and the share that a batch costs."""
    tokens: tuple[int, int] = (0, 0)
    """Tokens that an answer will have, about, and the most it may have."""
    attempts: int = 3
    """How often a request may be answered in vain."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    format: int = FORMAT


@dataclass
class Part:
    """One file of requests, and what became of it."""

    number: int
    requests: int
    file: str | None = None
    """Id of the uploaded file."""
    begun: bool = False
    """Whether the server was asked for a batch, and its answer not yet written down."""
    begun_at: float = 0.0
    """When, in seconds since 1970."""
    batch: str | None = None
    server: str | None = None
    status: str = "planned"
    output: str | None = None
    errors: str | None = None
    why: str = ""
    completed: int = 0
    """Requests that the server says it answered."""
    fetched: bool = False
    broken: int = 0
    """Lines of its output that could not be read."""

    def hear(self, event: str, facts: Mapping[str, Any]) -> None:
        """Bring it up to date with a line of the journal."""
        if event == "uploaded":
            self.file, self.status = str(facts["file"]), "uploaded"
            self.server = facts.get("server")
        elif event == "void":
            self.status = VOID
        elif event == "submitting":
            self.begun, self.begun_at = True, float(facts.get("at", 0.0))
            self.server = facts.get("server")
        elif event == "dropped":  # the server would not take the file
            self.file, self.begun, self.status, self.server = None, False, "planned", None
        elif event == "submitted":
            self.begun, self.status = False, "submitted"
            self.batch, self.server = str(facts["batch"]), str(facts["server"])
        elif event == "ended":
            self.status, self.why = str(facts["status"]), str(facts["why"])
            self.output, self.errors = facts["output"] or None, facts["errors"] or None
            self.completed = int(facts.get("completed", 0))
        elif event == "fetched":
            self.fetched, self.broken = True, int(facts["broken"])

    @property
    def waits(self) -> bool:
        """Whether it has not been handed in yet."""
        return self.batch is None and self.status != VOID

    @property
    def runs(self) -> bool:
        """Whether the server is at work on it."""
        return self.status == "submitted"

    @property
    def files(self) -> tuple[str, ...]:
        """Ids of the files that the server keeps of it."""
        return tuple(file for file in (self.output, self.errors) if file is not None)

    @property
    def can_fetch(self) -> bool:
        """Whether there is something to download; once more, if it came broken."""
        return bool(self.files) and (not self.fetched or self.broken > 0)

    @property
    def done(self) -> bool:
        """Whether all is here that will come of it, so that its requests may be asked elsewhere."""
        return not self.waits and not self.runs and (self.fetched or not self.files)


@contextmanager
def claimed(folder: Path) -> Iterator[Log]:
    """Lend the journal of a folder that no other process works on. Raises ``JobBusy``."""
    journal = Log(folder / JOURNAL)
    try:
        fcntl.flock(journal.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        journal.close()
        raise JobBusy(f"{folder}: another process is at work on it: wait") from error
    try:
        yield journal
    finally:
        journal.close()


class Job:
    """A job in a folder. Reading needs no lock; ``working`` takes it for what changes something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            found = json.loads((folder / JOB).read_text("utf-8"))
            if found["format"] != FORMAT:
                raise JobDamaged(f"{folder} has format {found['format']}: update the package")
            found["limits"] = Limits(**found["limits"])
            self.facts = Facts(
                **{**found, "parts": tuple(found["parts"]), "tokens": tuple(found["tokens"])}
            )
            if not all(type(count) is int for count in self.facts.parts):
                raise ValueError("parts are no numbers")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise JobNotFound(f"{folder} holds no job: make one with plan first") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise JobDamaged(f"{folder / JOB} cannot be read: {error}") from error
        self._journal: Log | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        facts: Facts,
        requests: Iterable[Request],
        files: Mapping[str, bytes] | None = None,
    ) -> Job:
        """Write the requests of a new job and files that go with it; it exists once all are there.

        What an interrupted call left is written over. Raises ``JobError`` where a job is already.
        """
        if (folder / JOB).exists():
            raise JobError(f"{folder} holds a job already: name another folder")
        with medium(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder):
            return cls._written(folder, facts, requests, files)

    @classmethod
    def _written(
        cls,
        folder: Path,
        facts: Facts,
        requests: Iterable[Request],
        files: Mapping[str, bytes] | None,
    ) -> Job:
        for name, content in (files or {}).items():
            with appearing(folder / name, over=True) as path:
                path.write_bytes(content)
        written = write_parts(folder, 1, facts.endpoint, requests, facts.limits)
        whole = asdict(facts) | {"parts": [count for _, count in written]}
        if not whole["parts"]:
            raise InvalidInput("there is nothing to ask: no text, or no request, was given")
        with appearing(folder / JOB) as path:
            path.write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
        return cls(folder)

    # --- the journal -----------------------------------------------------------------------

    @contextmanager
    def working(self) -> Iterator[Job]:
        """Hold the job: no other process may work on it meanwhile. Raises ``JobBusy``."""
        with claimed(self.folder) as journal:
            journal.mend()
            self._journal = journal
            try:
                yield self
            finally:
                self._journal = None

    def record(self, part: Part, event: str, **facts: Any) -> None:
        """Write down what was done about a part, before anything relies on it."""
        if self._journal is None:
            raise JobError("the job is not held: a call of record outside of working()")
        line = {"at": round(time.time(), 3), "part": part.number, "event": event, **facts}
        self._journal.append(line)
        part.hear(event, line)

    def parts(self) -> list[Part]:
        """Return every part as the journal tells it."""
        parts: dict[int, Part] = {}
        for number, count in enumerate(self.facts.parts, 1):
            parts[number] = Part(number, count)
        for line in read_log(self.folder / JOURNAL):
            try:
                number = line["part"]
                if type(number) is not int:
                    raise TypeError("a number of a part")
                part = parts.setdefault(number, Part(number, line.get("requests", 0)))
                part.hear(line["event"], line)
            except (KeyError, TypeError, ValueError) as error:
                raise JobDamaged(f"{self.folder / JOURNAL}: a line lacks {error}") from error
        return [parts[number] for number in sorted(parts)]

    # --- requests and answers --------------------------------------------------------------

    def requests(self) -> Iterator[Request]:
        """Yield every request of the job, in order, each once."""
        for number in range(1, len(self.facts.parts) + 1):
            yield from read_part(self.folder, number)

    def plan_again(self, ids: set[str], most_requests: int | None = None) -> None:
        """Plan parts that ask some of the requests once more, ``most_requests`` a part."""
        chosen = (request for request in self.requests() if request.id in ids)
        first = self.parts()[-1].number + 1
        limits = self.facts.limits
        if most_requests is not None:
            limits = replace(limits, requests=most_requests)
        for number, count in write_parts(self.folder, first, self.facts.endpoint, chosen, limits):
            self.record(Part(number, count), "planned", requests=count)

    def output_path(self, part: Part) -> Path:
        """Return where the answers of a part are."""
        return self.folder / f"output-{part.number:04d}.jsonl"

    def errors_path(self, part: Part) -> Path:
        """Return where the errors of a part are."""
        return self.folder / f"errors-{part.number:04d}.jsonl"

    def part_answers(self, part: Part) -> Iterator[Answer]:
        """Yield what came back of a part."""
        for path in (self.output_path(part), self.errors_path(part)):
            yield from (answer for answer in read_answers(path) if isinstance(answer, Answer))

    def direct_answers(self) -> Iterator[Answer]:
        """Yield what came back of requests asked one by one."""
        answers = map(Answer.of, read_log(self.folder / DIRECT))
        return (answer for answer in answers if answer is not None)

    def answers(self) -> Iterator[Answer]:
        """Yield all that came back, in the order it was asked; a request may come up again."""
        for part in self.parts():
            if part.done:
                yield from self.part_answers(part)
        yield from self.direct_answers()

    def standing(self, judge: Judge) -> Standing:
        """Return where each request stands."""
        standing = Standing({request.id: ("waiting", "") for request in self.requests()})
        for part in self.parts():
            if part.status == VOID:
                continue
            own = {request.id for request in read_part(self.folder, part.number)}
            if not part.done:
                (standing.planned if part.waits else standing.asked).update(own)
                continue
            for answer in self.part_answers(part):
                standing.hear(answer, judge)
                own.discard(answer.id)
            refused = None if part.output else part.why or part.status
            for id in own & standing.states.keys():
                standing.miss(id, refused, part.number)
        for answer in self.direct_answers():
            standing.hear(answer, judge)
        return standing
