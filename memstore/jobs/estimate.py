"""What requests will cost, about: said before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memstore.jobs.job import Facts
from memstore.jobs.requests import Request

#: Characters of English a token has, by OpenAI's own rule of thumb (help.openai.com, "What are
#: tokens and how to count them?"). Only an estimate hangs on it.
LETTERS_A_TOKEN = 4
MILLION = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """Tokens of some requests, and US dollars where the prices are known."""

    requests: int
    input_tokens: int
    output_tokens: int
    dollars: float | None
    most_dollars: float | None

    def __str__(self) -> str:
        """Return it in one sentence."""
        said = f"about {self.input_tokens:,} tokens in and {self.output_tokens:,} out"
        if self.dollars is None:
            return f"{said}; no prices are known"
        return f"{said}: about ${self.dollars:.4f}, at most ${self.most_dollars:.4f}"


def estimate(facts: Facts, requests: Iterable[Request], *, batch: bool) -> Estimate:
    """Return what requests of a job will cost, in a batch or one by one."""
    count = letters = 0
    for request in requests:
        count += 1
        letters += len(request.line(facts.endpoint))
    tokens = -(-letters // LETTERS_A_TOKEN)
    out, most = (count * own for own in facts.tokens)

    def dollars(answered: int) -> float | None:
        if facts.price is None:
            return None
        whole = tokens * facts.price["input"] + answered * facts.price["output"]
        return whole / MILLION * (facts.price["batch"] if batch else 1.0)

    return Estimate(count, tokens, out, dollars(out), dollars(most))
