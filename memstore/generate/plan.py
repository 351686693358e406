"""A plan: which narratives to ask for, in data: a TOML file. ``memstore/plans`` has ours.

::

    name, model, language, system, prompt     texts
    seed, max_tokens, attempts                whole numbers
    words                                     [fewest, most]
    temperature                               a number
    [price] input, output, batch              US dollars per million tokens, and a batch's share
    [variation] NAME = [values]               each narrative gets one value of each
    [[category]] name, count, description     and [category.variation], for it alone

``system`` and ``prompt`` hold ``{category}``, ``{description}``, ``{language}``, ``{fewest}``,
``{most}`` and the names of variations, each in braces.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memstore.errors import InvalidPlan, brief

LANGUAGE = re.compile(r"[a-z]{2}")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
VARIATION = re.compile(r"[a-z][a-z_]{0,39}")
#: What every plan may name in its messages, beside its variations.
KNOWN = ("category", "description", "language", "fewest", "most")
#: Names that a memory's metadata has already.
TAKEN = ("request", "job", "plan", "model")
#: Characters that no store keeps, and the letters of a category, at most.
UNFIT = re.compile("[\x00\ud800-\udfff]")
LONGEST = 1_000
TEXTS = ("name", "model", "language", "system", "prompt")
#: Entry -> what it is where a plan leaves it out.
DEFAULTS: dict[str, Any] = {
    "model": "gpt-4.1-nano",
    "language": "en",
    "system": "",
    "seed": 0,
    "words": [20, 120],
    "temperature": 1.0,
    "max_tokens": 400,
    "attempts": 3,
    "variation": {},
    "price": None,
}
#: Narratives of one plan: what numbers in their names have digits for.
MOST = 1_000_000

Variation = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Category:
    """A category and how many narratives of it."""

    name: str
    count: int
    description: str
    variation: Variation
    """The plan's variations, and its own."""


@dataclass(frozen=True)
class Plan:
    """A plan that can be followed."""

    name: str
    model: str
    language: str
    system: str
    prompt: str
    seed: int
    words: tuple[int, int]
    temperature: float
    max_tokens: int
    attempts: int
    price: Mapping[str, float] | None
    categories: tuple[Category, ...]

    @classmethod
    def read(cls, source: bytes) -> Plan:
        """Return the plan of a TOML file. Raises ``InvalidPlan``, naming the entry."""
        try:
            found = tomllib.loads(source.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one, too
            raise InvalidPlan(f"the plan is no TOML file: {error}") from error
        return checked(found)

    @property
    def count(self) -> int:
        """How many narratives it asks for."""
        return sum(category.count for category in self.categories)


def checked(found: dict[str, Any]) -> Plan:
    """Return a plan of what a file holds. Raises ``InvalidPlan``."""
    known = {"name", "prompt", "category", *DEFAULTS}
    refuse_unknown(found, known, "")
    whole = {**DEFAULTS, **found}
    for name in TEXTS:
        if not isinstance(whole.get(name), str) or (name != "system" and not whole[name].strip()):
            raise InvalidPlan(f'{name} must be a text: write {name} = "..."')
    if not NAME.fullmatch(whole["name"]):
        raise InvalidPlan(
            f"name = {brief(whole['name'])}: up to 40 lower-case letters, digits and hyphens"
        )
    common = variations(whole["variation"], "variation")
    given = whole["category"] if isinstance(whole.get("category"), list) else []
    if not given:
        raise InvalidPlan("the plan has no category: add [[category]] with name and count")
    categories = tuple(category(one, n, common) for n, one in enumerate(given, 1))
    names = [one.name for one in categories]
    if len(set(names)) < len(names):
        raise InvalidPlan("two categories have the same name: rename one")
    if not LANGUAGE.fullmatch(whole["language"]):
        raise InvalidPlan(f"language = {brief(whole['language'])}: an ISO 639-1 code, like 'en'")
    plan = Plan(
        **{name: whole[name] for name in TEXTS},
        seed=number(whole, "seed", 0, 2**53),
        words=word_range(whole["words"]),
        temperature=price_of(whole["temperature"], "temperature", 2.0),
        max_tokens=number(whole, "max_tokens", 1, 100_000),
        attempts=number(whole, "attempts", 1, 100),
        price=prices(whole["price"]),
        categories=categories,
    )
    if plan.max_tokens < plan.words[1]:
        raise InvalidPlan(f"max_tokens = {plan.max_tokens} cannot hold {plan.words[1]} words")
    if plan.count > MOST:
        raise InvalidPlan(f"{plan.count:,} narratives are more than one plan holds ({MOST:,})")
    check_messages(plan)
    return plan


def category(given: Any, place: int, common: Variation) -> Category:
    """Return the category of one entry."""
    where = f"category {place}"
    if not isinstance(given, dict):
        raise InvalidPlan(f"{where} is no table: write [[category]]")
    refuse_unknown(given, {"name", "count", "description", "variation"}, f"{where}: ")
    name, description = given.get("name"), given.get("description", "")
    if not isinstance(name, str) or not name.strip() or not isinstance(description, str):
        raise InvalidPlan(f"{where} needs a name, and a description that is a text")
    if UNFIT.search(name) or len(name) > LONGEST:
        raise InvalidPlan(f"{where}: name = {brief(name)}: no store could keep it")
    own = variations(given.get("variation", {}), f"{where}: variation")
    if both := set(own) & set(common):
        raise InvalidPlan(f"{where}: variation {min(both)} is the plan's already: rename one")
    count = number(given, "count", 1, MOST, f"{where}: ")
    return Category(name.strip(), count, description, {**common, **own})


def variations(given: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Return lists of values by name."""
    if not isinstance(given, dict):
        raise InvalidPlan(f"{where} is no table: write [{where}] and name = [values]")
    for name, values in given.items():
        if not VARIATION.fullmatch(name) or name in (*KNOWN, *TAKEN):
            raise InvalidPlan(
                f"{where}: {brief(name)} cannot be the name of a variation: use small letters, and "
                f"none of {', '.join((*KNOWN, *TAKEN))}"
            )
        if not isinstance(values, list) or not values:
            raise InvalidPlan(f"{where}: {name} must be a list of texts")
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise InvalidPlan(f"{where}: {name} has a value that is no text")
        if bad := next((v for v in values if UNFIT.search(v) or len(v) > LONGEST), None):
            raise InvalidPlan(f"{where}: {name} has {brief(bad)}, which no store could keep")
        if len(set(values)) < len(values):
            twice = Counter(values).most_common(1)[0][0]
            raise InvalidPlan(f"{where}: {name} has {brief(twice)} twice: remove one")
    return {name: tuple(values) for name, values in given.items()}


def check_messages(plan: Plan) -> None:
    """Refuse placeholders that a category cannot fill, and variations that no message uses."""
    used = placeholders(plan.system, "system") | placeholders(plan.prompt, "prompt")
    for one in plan.categories:
        if "description" in used and not one.description.strip():
            raise InvalidPlan(
                f"{{description}} stands in a message, and category {brief(one.name)} has none"
            )
        if lacking := used - set(KNOWN) - set(one.variation):
            raise InvalidPlan(
                f"{{{min(lacking)}}} stands in a message, and category {brief(one.name)} has no "
                f"variation of that name: add it, or take it out"
            )
        if unused := set(one.variation) - used:
            raise InvalidPlan(f"variation {min(unused)} is in no message: write {{{min(unused)}}}")


def placeholders(message: str, where: str) -> set[str]:
    """Return the names in braces."""
    try:
        found = [(name, spec, turn) for _, name, spec, turn in string.Formatter().parse(message)]
    except ValueError as error:
        raise InvalidPlan(f"{where}: {error}: double a brace that is meant as one") from error
    names = {name for name, _, _ in found if name is not None}
    for name, spec, turn in found:
        if name is not None and (not name.isidentifier() or spec or turn):
            raise InvalidPlan(f"{where}: {{{name}}} is no placeholder: double a brace meant as one")
    return names


def refuse_unknown(given: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuse an entry nobody reads: it is a slip of the pen."""
    if unknown := set(given) - known:
        entries = ", ".join(sorted(known))
        raise InvalidPlan(f"{where}{brief(min(unknown))} is no entry of a plan: it has {entries}")


def number(given: Mapping[str, Any], name: str, fewest: int, most: int, where: str = "") -> int:
    """Return a whole number of the plan."""
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not fewest <= value <= most:
        raise InvalidPlan(
            f"{where}{name} = {brief(value)}: a whole number from {fewest} to {most:,}"
        )
    return value


def word_range(given: Any) -> tuple[int, int]:
    """Return the fewest and the most words."""
    match given:
        case [int(fewest), int(most)] if (
            not isinstance(fewest, bool) and 1 <= fewest <= most <= 100_000
        ):
            return fewest, most
    raise InvalidPlan(f"words = {brief(given)}: write fewest and most, like words = [20, 120]")


def prices(given: Any) -> dict[str, float] | None:
    """Return the prices, if the plan has any."""
    if given is None:
        return None
    if not isinstance(given, dict) or not {"input", "output"} <= set(given):
        raise InvalidPlan("price needs input and output, in US dollars per million tokens")
    refuse_unknown(given, {"input", "output", "batch"}, "price: ")
    return {
        name: price_of(given.get(name, 1.0), f"price: {name}", 1.0 if name == "batch" else 1e6)
        for name in ("input", "output", "batch")
    }


def price_of(value: Any, where: str, most: float) -> float:
    """Return a number of 0 or more."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidPlan(f"{where} = {brief(value)}: a number from 0 to {most:g}")
    return float(value)
