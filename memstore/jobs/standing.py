"""Where each request of a job stands, told from what came back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from memstore.jobs.answers import Answer

#: Where a request stands: never asked; at the server; answered well; answered, but of no use;
#: refused by the server; asked, and nothing came back.
State = Literal["waiting", "asked", "answered", "unusable", "failed", "lost"]
#: Says why an answer is of no use, None if it is good.
Judge = Callable[[Answer], str | None]


@dataclass
class Standing:
    """Where each request of a job stands."""

    states: dict[str, tuple[State, str]]
    """``{request: (state, why)}``, in the order of the plan."""
    attempts: Counter[str] = field(default_factory=Counter)
    """How often each was answered: paid for."""
    planned: set[str] = field(default_factory=set)
    """Requests of parts that wait to be handed in."""
    asked: set[str] = field(default_factory=set)
    """Requests that the server is at work on, or whose answers wait to be fetched."""

    def hear(self, answer: Answer, judge: Judge) -> None:
        """Take in what came back for a request; its first good answer counts."""
        if self.states.get(answer.id, ("answered",))[0] == "answered":
            return
        if answer.failure is not None:
            self.states[answer.id] = ("failed", answer.failure)
            return
        self.attempts[answer.id] += 1
        why = judge(answer)
        self.states[answer.id] = ("answered", "") if why is None else ("unusable", why)

    def miss(self, id: str, refused: str | None, part: int) -> None:
        """Take in that nothing came back for a request of a part: it was ``refused``, or lost."""
        if self.states[id][0] == "answered":
            return
        if refused is not None:
            self.states[id] = ("failed", f"its batch was not taken: {refused}")
            return
        self.attempts[id] += 1
        self.states[id] = ("lost", f"the server's output of part {part} lacks it")

    def state(self, id: str) -> State:
        """Return where a request stands."""
        found = self.states[id][0]
        return "asked" if id in self.asked and found != "answered" else found

    def counts(self) -> dict[State, int]:
        """Return how many requests are in each state."""
        return dict(Counter(self.state(id) for id in self.states))

    def open(self, most: int, *, planned: bool) -> set[str]:
        """Return requests to ask: no good answer, not at the server, answered less than ``most``.

        Those that wait in a part of their own are among them only if ``planned``.
        """
        return {
            id
            for id in self.states
            if self.state(id) not in ("answered", "asked")
            and self.attempts[id] < most
            and (planned or id not in self.planned)
        }
