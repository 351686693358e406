"""Plans and what they become: requests, and narratives read from answers."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter

import numpy as np
import pytest

from memstore.errors import InvalidPlan
from memstore.generate.plan import Plan
from memstore.generate.prompts import asked, requests
from memstore.generate.reading import judge, read
from memstore.generation import copies, shipped_plan
from memstore.jobs.answers import Answer

SMALL = """
name = "small"
prompt = "{persona} tells of {event}: {category}, {description}, {fewest} to {most}, {language}."
seed = 3

[variation]
persona = ["a baker", "a diver", "a clerk"]

[[category]]
name = "Strong Emotional"
count = 7
description = "one feeling"
[category.variation]
event = ["a loss", "a win"]

[[category]]
name = "Routine"
count = 4
description = "nothing new"
[category.variation]
event = ["a bus ride"]
"""


def test_the_plan_that_ships_is_the_prototype_s_three_categories():
    """450 narratives, gpt-4.1-nano, every request different, every placeholder filled."""
    plan = Plan.read(shipped_plan())
    assert plan.model == "gpt-4.1-nano"
    assert {c.name: c.count for c in plan.categories} == {
        "Strong Emotional": 150,
        "Complex/Chaotic": 150,
        "Routine": 150,
    }
    made = list(requests(plan))
    assert len({request.id for request in made}) == 450
    prompts = [request.body["messages"][-1]["content"] for request in made]
    assert len(set(prompts)) == 450
    assert not [p for p in prompts if re.search(r"\{[a-z_]+\}", p)]
    assert {request.body["model"] for request in made} == {"gpt-4.1-nano"}


def test_the_same_plan_makes_the_same_requests_and_deals_its_values_evenly():
    """A function of the plan and its seed; each value comes up as often as the others."""
    plan = Plan.read(SMALL.encode())
    lines = [request.line("/v1/chat/completions") for request in requests(plan)]
    assert lines == [request.line("/v1/chat/completions") for request in requests(plan)]
    other = Plan.read(SMALL.replace("seed = 3", "seed = 4").encode())
    assert lines != [request.line("/v1/chat/completions") for request in requests(other)]
    first = Counter(one.values["persona"] for one in asked(plan) if one.category != "Routine")
    assert sorted(first.values()) == [2, 2, 3]
    assert [one.id for one in asked(plan)][6:9] == [
        "01-strong-emotional-000007",
        "02-routine-000001",
        "02-routine-000002",
    ]
    line = json.loads(lines[-1])
    assert line["method"] == "POST"
    assert line["url"] == "/v1/chat/completions"
    sentence = line["body"]["messages"][0]["content"]
    assert sentence.endswith("tells of a bus ride: Routine, nothing new, 20 to 120, en.")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('name = "small"', 'name = "Not Fine"'), "name ="),
        (('name = "small"', "name = 4"), "name must be a text"),
        (("seed = 3", "sead = 3"), "sead"),
        (("seed = 3", "seed = -1"), "seed = -1"),
        (("seed = 3", "words = [9, 3]"), "fewest and most"),
        (("seed = 3", "temperature = 'hot'"), "temperature"),
        (("seed = 3", "language = 'english'"), "language = 'english'"),
        (("seed = 3", "max_tokens = 30"), "max_tokens = 30 cannot hold 120 words"),
        (('description = "nothing new"', ""), "{description} stands in a message"),
        (("seed = 3", "[price]\ninput = 1"), "price needs input and output"),
        (("{persona}", "{person}"), "{person} stands in a message"),
        (("{persona} tells", "Somebody tells"), "persona is in no message"),
        (("{persona}", "{persona!r}"), "no placeholder"),
        (("{persona}", "{persona.name}"), "no placeholder"),
        (("{persona}", "{"), "double a brace"),
        (("count = 7", "count = 0"), "category 1: count = 0"),
        (("count = 7", "count = 2000000"), "count = 2000000"),
        (('name = "Routine"', 'name = "Strong Emotional"'), "same name"),
        (("event = [\"a bus ride\"]", "event = []"), "event must be a list"),
        (("event = [\"a bus ride\"]", "event = [\"x\", \"x\"]"), "twice"),
        (("event = [\"a bus ride\"]", "persona = [\"x\"]"), "the plan's already"),
        (("event = [\"a bus ride\"]", "happening = [\"x\"]"), "{event} stands in a message"),
        (("[variation]", "[variation"), "no TOML file"),
        (("persona = [", "most = ["), "cannot be the name of a variation"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_plan_that_cannot_be_followed_names_the_entry(change, says):
    """One typed error, before anything is written or sent."""
    assert change[0] in SMALL
    with pytest.raises(InvalidPlan, match=re.escape(says)):
        Plan.read(SMALL.replace(*change, 1).encode())


@pytest.mark.parametrize("source", [b"", b"\xff\xfe", b"category = 3", b"[" * 100_000, b'name="a"'])
def test_what_is_no_plan_is_a_typed_error(source):
    """Whatever the bytes are."""
    with pytest.raises(InvalidPlan):
        Plan.read(source)


def answer(content, **more):
    message = {"role": "assistant", "content": content, "refusal": None} | more
    ending = message.pop("finish_reason", "stop")
    return Answer("a", {"choices": [{"message": message, "finish_reason": ending}]}, None)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (answer(json.dumps({"narrative": "  It rained.\nWe went. "})), None),
        (answer("It rained."), "schema"),
        (answer(json.dumps({"text": "It rained."})), "schema"),
        (answer(json.dumps({"narrative": " "})), "schema"),
        (answer(json.dumps({"narrative": 5})), "schema"),
        (answer(json.dumps(["narrative"])), "schema"),
        (answer('{"narrative": "half \\ud800"}'), "schema"),
        (answer('{"narrative": "nul \\u0000"}'), "schema"),
        (answer("[" * 100_000), "schema"),
        (answer(None), "schema"),
        (answer(None, refusal="I'm sorry, I can't help with that."), "refused"),
        (answer("I'm sorry, but I can't help with that."), "refused"),
        (answer(json.dumps({"narrative": "I cannot assist with this request."})), "refused"),
        (answer('{"narrative": "It ra', finish_reason="length"), "cut off"),
        (answer("", finish_reason="content_filter"), "refused"),
        (Answer("a", {}, None), "schema"),
        (Answer("a", {"choices": []}, None), "schema"),
        (Answer("a", {"choices": [{"message": "text"}]}, None), "schema"),
    ],
)
def test_an_answer_is_a_narrative_or_says_what_is_wrong(given, why):
    """The kind of reason is its first word."""
    found = judge(given)
    assert (found is None) if why is None else found.startswith(why + ":")
    if why is None:
        assert read(given)[0] == "It rained.\nWe went."


def test_no_narrative_is_taken_for_a_refusal(narratives):
    """People who are sorry, or cannot help it, are no refusals."""
    letter = (
        "I'm sorry I can't be at the wedding, Ines: the boat from Horta is cancelled until "
        "Thursday, and I have sat on this suitcase since noon writing you postcards."
    )
    for text in [row["text"] for row in narratives] + [letter]:
        assert judge(answer(json.dumps({"narrative": text}))) is None


def test_copies_are_those_that_brute_force_finds(monkeypatch):
    """Each row near to an earlier one that is no copy itself, over several blocks."""
    monkeypatch.setattr("memstore.generation.BLOCK", 7)
    dice = np.random.default_rng(5)
    vectors = dice.normal(size=(60, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected, copied = {}, set()
    for row in range(60):
        for other in range(row):
            if other not in copied and float(vectors[row] @ vectors[other]) >= 0.9:
                copied.add(row)
                expected[row] = other
                break
    assert len(expected) > 10
    assert {row: other for row, other, _ in copies(vectors, 0.9)} == expected


def test_the_shipped_plan_reads_as_toml():
    """Data that any TOML reader takes."""
    assert tomllib.loads(shipped_plan().decode())["attempts"] >= 1
