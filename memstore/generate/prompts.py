"""From a plan to requests: the same plan, the same requests, in the same order."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memstore.generate.plan import Category, Plan
from memstore.jobs.requests import Request

ENDPOINT = "/v1/chat/completions"
FIELD = "narrative"
#: The answer is an object with one text, so that no remark of the model stands around it.
SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "narrative",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {FIELD: {"type": "string"}},
            "required": [FIELD],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Asked:
    """One narrative of a plan: its request's name, its category, what was varied."""

    id: str
    category: str
    values: Mapping[str, str]


def asked(plan: Plan) -> Iterator[Asked]:
    """Yield every narrative of a plan.

    Each value of a variation comes up as often as any other of it, give or take one; which values
    meet is drawn with the plan's seed.
    """
    for place, category in enumerate(plan.categories, 1):
        name = f"{place:02d}-{slug(category.name)}"
        for number, values in enumerate(drawn(category, f"{plan.seed}/{category.name}"), 1):
            yield Asked(f"{name}-{number:06d}", category.name, values)


def drawn(category: Category, seed: str) -> Iterator[dict[str, str]]:
    """Yield what each narrative of a category gets: values dealt from decks shuffled anew."""
    dice = {name: random.Random(f"{seed}/{name}") for name in category.variation}
    decks: dict[str, list[str]] = {name: [] for name in category.variation}
    for _ in range(category.count):
        for name, values in category.variation.items():
            if not decks[name]:
                decks[name] = list(values)
                dice[name].shuffle(decks[name])
        yield {name: deck.pop() for name, deck in decks.items()}


def requests(plan: Plan) -> Iterator[Request]:
    """Yield the request of every narrative."""
    descriptions = {category.name: category.description for category in plan.categories}
    for place, one in enumerate(asked(plan)):
        filled = {
            **one.values,
            "category": one.category,
            "description": descriptions[one.category],
            "language": plan.language,
            "fewest": plan.words[0],
            "most": plan.words[1],
        }
        messages = [{"role": "user", "content": plan.prompt.format(**filled)}]
        if plan.system.strip():
            messages.insert(0, {"role": "system", "content": plan.system.format(**filled)})
        yield Request(
            one.id,
            {
                "model": plan.model,
                "messages": messages,
                "temperature": plan.temperature,
                "max_tokens": plan.max_tokens,
                "seed": plan.seed + place,
                "response_format": SCHEMA,
            },
        )


def slug(name: str) -> str:
    """Return a name as it may stand in a request's: "Complex/Chaotic" as complex-chaotic."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24] or "category"
