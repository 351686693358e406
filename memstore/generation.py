"""Generated narratives: planned into a job, checked, and made into rows of memories.

Facts that a check tells of a narrative are reasons to leave it out: ``process`` keeps what has
none. Nothing is judged by a model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memstore.durable import appearing, medium
from memstore.errors import InvalidPlan, JobError, JobNotFound, MissingExtra
from memstore.generate.plan import Plan
from memstore.generate.prompts import ENDPOINT, Asked, asked, requests
from memstore.generate.reading import judge, read
from memstore.jobs.job import Facts, Job
from memstore.jobs.requests import Limits
from memstore.layout import PLANS
from memstore.rows import MAX_TEXT
from memstore.tables import Row, markdown
from memstore.training import Split, cached_vectors
from memstore.types import Embedder, Float32

KIND = "narratives"
PLAN, CHECKED, REPORT, NARRATIVES = "plan.toml", "check.jsonl", "report.md", "narratives.json"
VECTORS = "vectors"
SHIPPED = PLANS / "three-categories.toml"
#: Cosine from which two narratives tell the same: what training takes for a copy.
NEAR = Split.near
#: How sure the language must be, for a text to be called one of another.
SURE = 0.9
#: Rows compared at a time.
BLOCK = 256
#: A model's English has about so many tokens a word.
TOKENS_A_WORD = 4 / 3
#: Of the answers around a narrative: the JSON they come in.
TOKENS_AROUND = 8
#: Share of a category's narratives below which the report asks for more.
ENOUGH = 0.9


def plan_job(folder: Path, source: bytes, most_requests: int | None = None) -> tuple[Job, bool]:
    """Return the job of a plan in ``folder``, and whether it was made just now.

    Raises ``InvalidPlan``, and ``JobError`` where the folder holds a job of another plan.
    """
    plan = Plan.read(source)
    try:
        job = Job(folder)
    except JobNotFound:
        pass
    else:
        if (folder / PLAN).exists() and (folder / PLAN).read_bytes() == source:
            return job, False
        raise JobError(f"{folder} holds a job of another plan: name a new folder")
    words = sum(plan.words) / 2
    limits = Limits() if most_requests is None else Limits(requests=most_requests)
    facts = Facts(
        KIND,
        ENDPOINT,
        plan.model,
        limits=limits,
        price=plan.price,
        tokens=(
            min(round(words * TOKENS_A_WORD) + TOKENS_AROUND, plan.max_tokens),
            plan.max_tokens,
        ),
        attempts=plan.attempts,
    )
    return Job.create(folder, facts, requests(plan), {PLAN: source}), True


def plan_of(job: Job) -> Plan:
    """Return the plan of a job. Raises ``JobError`` for a job of another kind."""
    if job.facts.kind != KIND:
        raise JobError(f"{job.folder} is a job of {job.facts.kind}, not of {KIND}")
    with medium(job.folder / PLAN, "read"):
        return Plan.read((job.folder / PLAN).read_bytes())


@dataclass(frozen=True)
class Finding:
    """One narrative of the plan, and what a check found."""

    id: str
    category: str
    text: str | None
    reasons: tuple[str, ...]
    """Why it is left out: "refused: ...", "words: 9", "language: de", "near: <request> 0.97"."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The first words of the reasons."""
        return tuple(reason.partition(":")[0] for reason in self.reasons)


@dataclass(frozen=True)
class Check:
    """What a check found."""

    findings: Sequence[Finding]

    @property
    def usable(self) -> list[Finding]:
        """Narratives with no reason to leave them out."""
        return [finding for finding in self.findings if not finding.reasons]

    def balance(self) -> list[dict[str, Any]]:
        """Return each category's narratives: asked for, answered, usable."""
        wanted = Counter(finding.category for finding in self.findings)
        answered = Counter(f.category for f in self.findings if f.text is not None)
        usable = Counter(f.category for f in self.usable)
        return [
            {"category": c, "asked": n, "answered": answered[c], "usable": usable[c]}
            for c, n in wanted.items()
        ]

    def reasons(self) -> dict[str, int]:
        """Return how many narratives each kind of reason concerns."""
        return dict(Counter(kind for finding in self.findings for kind in finding.kinds))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "asked": len(self.findings),
            "usable": len(self.usable),
            "categories": self.balance(),
            "reasons": self.reasons(),
        }


def check(job: Job, embedder: Embedder) -> Check:
    """Look at every narrative of a job: schema, refusals, words, language, near-duplicates.

    Writes ``check.jsonl``, a line a narrative, and ``report.md`` for people. Vectors are kept in
    the folder, so that a check of the same narratives embeds none.
    """
    plan = plan_of(job)
    texts, wrong = answered(job)
    wanted = list(asked(plan))
    tell = language_teller()
    reasons: dict[str, list[str]] = {}
    for one in wanted:
        own = reasons[one.id] = [wrong[one.id]] if one.id in wrong else []
        if one.id not in texts:
            own[:] = own or ["absent: the job has no such request"]
            continue
        text = texts[one.id]
        count = len(text.split())
        if len(text) > MAX_TEXT:
            own.append(f"long: {len(text):,} characters")
        if not plan.words[0] <= count <= plan.words[1]:
            own.append(f"words: {count}")
        language, sure = tell(text)
        if language != plan.language and sure >= SURE:
            own.append(f"language: {language}")
    # A narrative that is left out anyway must not take its near-duplicate with it.
    ids = [one.id for one in wanted if one.id in texts and not reasons[one.id]]
    if ids:
        vectors = cached_vectors([texts[id] for id in ids], embedder, job.folder / VECTORS)
        for place, other, cosine in copies(vectors):
            reasons[ids[place]].append(f"near: {ids[other]} {cosine:.2f}")
    found = Check(
        [Finding(o.id, o.category, texts.get(o.id), tuple(reasons[o.id])) for o in wanted]
    )
    write_check(job, plan, found)
    return found


def answered(job: Job) -> tuple[dict[str, str], dict[str, str]]:
    """Return the narratives of a job by request, and what is wrong with the others."""
    texts: dict[str, str] = {}
    for answer in job.answers():
        text, _ = read(answer) if answer.failure is None else (None, None)
        if text is not None:
            texts.setdefault(answer.id, text)
    standing = job.standing(judge)
    wrong = {
        id: why
        if standing.state(id) == "unusable"
        else f"{standing.state(id)}: {why or 'no answer'}"
        for id, (_, why) in standing.states.items()
        if id not in texts
    }
    return texts, wrong


def language_teller() -> Any:
    """Return a function from a text to (language, how sure, 0 to 1). Raises ``MissingExtra``."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingExtra("py3langid", "openai", "telling languages apart") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).classify


def copies(vectors: Float32, near: float = NEAR) -> Iterator[tuple[int, int, float]]:
    """Yield (row, earlier row, cosine) of each row near to an earlier one that is no copy itself.

    ``vectors`` are unit rows, (n, d). Time grows with n squared, memory with n.
    """
    copied = np.zeros(len(vectors), dtype=np.bool_)
    for start in range(0, len(vectors), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors[: start + BLOCK].T
        for row, own in enumerate(cosines, start):
            others = np.flatnonzero((own[:row] >= near) & ~copied[:row])
            if len(others):
                copied[row] = True
                yield row, int(others[0]), float(own[others[0]])


def write_check(job: Job, plan: Plan, found: Check) -> None:
    """Write what a check found, for programs and for people."""
    with (
        appearing(job.folder / CHECKED, over=True) as path,
        path.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for finding in found.findings:
            file.write(json.dumps(asdict(finding), ensure_ascii=False) + "\n")
    with appearing(job.folder / REPORT, over=True) as path:
        path.write_text(report(job, plan, found), "utf-8", "backslashreplace")


def report(job: Job, plan: Plan, found: Check) -> str:
    """Return a page a person can act on."""
    lines = [
        f"# {plan.name}: {len(found.usable):,} of {len(found.findings):,} narratives usable",
        "",
        markdown(found.balance()),
        "",
    ]
    short = [row["category"] for row in found.balance() if row["usable"] < ENOUGH * row["asked"]]
    if short:
        lines += [
            f"Short of narratives: {', '.join(short)}. `memstore generate submit` asks again for "
            f"what was not answered well, up to {plan.attempts} times each; for more, make a plan "
            "with another `name` and `seed`.",
            "",
        ]
    if found.reasons():
        counts: list[Row] = [
            {"reason": kind, "narratives": n} for kind, n in found.reasons().items()
        ]
        lines += ["## Left out", "", markdown(counts), ""]
        lines += [
            f"* `{finding.id}` {'; '.join(finding.reasons)}"
            for finding in found.findings
            if finding.reasons
        ]
    return "\n".join(lines) + "\n"


def rows(job: Job, found: Check, keep: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield a row for each narrative to be stored, which knows its request.

    ``keep`` names kinds of reasons that are no reason ("near", "words", "language").
    """
    plan = plan_of(job)
    varied = {one.id: one for one in asked(plan)}
    for finding in found.findings:
        if finding.text is not None and not set(finding.kinds) - set(keep):
            yield row_of(finding, varied[finding.id], plan, job.facts.id)


def row_of(finding: Finding, one: Asked, plan: Plan, job: str) -> dict[str, Any]:
    """Return the row of a narrative."""
    return {
        "text": finding.text,
        "category": finding.category,
        "key": f"{plan.name}/{job[:8]}/{finding.id}",
        "metadata": {
            "request": finding.id,
            "job": job,
            "plan": plan.name,
            "model": plan.model,
            **one.values,
        },
    }


def process(job: Job, found: Check, keep: Sequence[str] = (), out: Path | None = None) -> int:
    """Write the narratives that are to be stored; returns how many.

    As a JSON array, or as JSON Lines where ``out`` ends so: of any number of them.
    """
    chosen = list(rows(job, found, keep))
    target = out or job.folder / NARRATIVES
    with appearing(target, over=True) as path, path.open("w", encoding="utf-8") as file:
        if target.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        else:
            json.dump(chosen, file, ensure_ascii=False, indent=1)
            file.write("\n")
    return len(chosen)


def shipped_plan() -> bytes:
    """Return the plan that ships. Raises ``InvalidPlan`` where it was removed."""
    try:
        return SHIPPED.read_bytes()
    except OSError as error:
        raise InvalidPlan(f"{SHIPPED} cannot be read: reinstall memstore-sae") from error
