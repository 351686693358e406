"""Labels by a language model: what it is asked of a neuron, and what its answers are worth.

Three questions, each a request of a job. *Explain* shows texts from the whole range of strong
activations and hard negatives, and wants a label and a sentence (after Bills et al. 2023).
*Detect* shows the label and ten unseen texts, half of which fire, and wants to know which (Paulo
et al., arXiv 2410.13928). *Intruder* shows four texts that fire and one that does not, without the
label: whether there is anything to label at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memstore.jobs.answers import Answer
from memstore.jobs.requests import Request

KIND = "labels"
ENDPOINT = "/v1/chat/completions"
EXPLAIN, DETECT, INTRUDER = "explain", "detect", "intruder"
#: Words of a label, letters of a text that is shown.
WORDS, LETTERS = 5, 300
#: Tokens of an answer: about, and at most.
TOKENS = (60, 200)

SYSTEM = (
    "You study an encoder that describes short texts by a few neurons. You judge only by reading "
    "the texts you are shown, and answer with the JSON object you are asked for."
)
EXPLAINING = """
Find out what one neuron stands for.

It fires for these texts, the number from 0 to 10 saying how strongly:
{fires}

It does not fire for these, although they are close in meaning:
{near}

Give it a label of 1 to 5 words, in lower case, as a person would type it: what strong and
middling texts share and the others lack. It may be a subject, a feeling, a form, or a word. A
stranger who sees only the label must be able to say whether the neuron fires for a new text. Add
one sentence of what fires it and what does not. Where the texts share nothing, the label is
"unclear".
"""
DETECTING = """
A neuron is labelled: {label}

Which of these texts does the label describe? A text that merely touches it is none of them.
{texts}

Give their numbers; none, if none fits.
"""
INTRUDING = """
Four of these five texts make one neuron fire, one does not. Which is it?
{texts}
"""


@dataclass(frozen=True)
class Sheet:
    """The texts of one neuron: to read, and to be graded on."""

    neuron: int
    fires: Sequence[tuple[float, str]]
    """(strength from 0 to 10, text), strongest first."""
    near: Sequence[str]
    test: Sequence[str]
    """Ten unseen texts, shuffled."""
    answers: Sequence[int]
    """Places in ``test`` of those that fire."""
    five: Sequence[str]
    """Four unseen texts that fire and one that does not, shuffled."""
    intruder: int
    """Place in ``five`` of the one that does not."""


def explain(sheet: Sheet, model: str) -> Request:
    """Return the request for a label."""
    prompt = EXPLAINING.format(
        fires="\n".join(f"{strength:.0f}  {shown(text)}" for strength, text in sheet.fires),
        near="\n".join(f"-  {shown(text)}" for text in sheet.near),
    )
    return request(f"{EXPLAIN}-{sheet.neuron:06d}", model, prompt, EXPLAIN, LABELLED)


def detect(sheet: Sheet, label: str, model: str) -> Request:
    """Return the request that tries a label."""
    prompt = DETECTING.format(label=label, texts=numbered(sheet.test))
    return request(f"{DETECT}-{sheet.neuron:06d}", model, prompt, DETECT, FITTING)


def intrude(sheet: Sheet, model: str) -> Request:
    """Return the request that tries the texts."""
    prompt = INTRUDING.format(texts=numbered(sheet.five))
    return request(f"{INTRUDER}-{sheet.neuron:06d}", model, prompt, INTRUDER, INTRUDING_ONE)


LABELLED = {"label": {"type": "string"}, "sentence": {"type": "string"}}
FITTING = {"fits": {"type": "array", "items": {"type": "integer"}}}
INTRUDING_ONE = {"intruder": {"type": "integer"}}


def request(id: str, model: str, prompt: str, name: str, properties: Mapping[str, Any]) -> Request:
    """Return a request whose answer is an object of these properties."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return Request(
        id,
        {
            "model": model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": prompt},
            ],
            "temperature": 0.0,
            "max_tokens": TOKENS[1],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": name, "strict": True, "schema": schema},
            },
        },
    )


def shown(text: str) -> str:
    """Return a text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= LETTERS else text[:LETTERS] + "..."


def numbered(texts: Sequence[str]) -> str:
    """Return texts on numbered lines, from 0."""
    return "\n".join(f"{place}  {shown(text)}" for place, text in enumerate(texts))


def parsed(answer: Answer) -> tuple[str, int, dict[str, Any]]:
    """Return (question, neuron, what was answered). Raises ``ValueError`` saying what is wrong."""
    question, _, number = answer.id.partition("-")
    try:
        choice = (answer.body or {})["choices"][0]
        message = choice["message"]
        if message.get("refusal") or choice.get("finish_reason") in ("content_filter", "length"):
            raise ValueError(f"refused or cut off: {message.get('refusal') or 'no whole answer'}")
        found = json.loads(message["content"])
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"schema: no answer in it ({type(error).__name__})") from error
    if not isinstance(found, dict) or not number.isdecimal():
        raise ValueError("schema: the answer is no object")
    check = {EXPLAIN: check_label, DETECT: check_fits, INTRUDER: check_intruder}.get(question)
    if check is None:
        raise ValueError(f"schema: nobody asked {question!r}")
    return question, int(number), check(found)


def check_label(found: dict[str, Any]) -> dict[str, Any]:
    """Return label and sentence, on one line each."""
    label, sentence = found.get("label"), found.get("sentence")
    if not isinstance(label, str) or not isinstance(sentence, str):
        raise ValueError("schema: label and sentence must be texts")
    label, sentence = " ".join(label.split()), " ".join(sentence.split())
    if not 1 <= len(label.split()) <= WORDS or len(label) > LETTERS:
        raise ValueError(f"schema: a label of {len(label.split())} words")
    return {"label": label, "sentence": sentence[: 2 * LETTERS]}


def check_fits(found: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the texts that fit."""
    fits = found.get("fits")
    if not isinstance(fits, list) or not all(type(place) is int for place in fits):
        raise ValueError("schema: fits must be a list of numbers")
    return {"fits": sorted(set(fits))}


def check_intruder(found: dict[str, Any]) -> dict[str, Any]:
    """Return the number of the intruder."""
    if type(found.get("intruder")) is not int:
        raise ValueError("schema: intruder must be a number")
    return {"intruder": found["intruder"]}


def judge(answer: Answer) -> str | None:
    """Return what is wrong with an answer, None if it can be used."""
    try:
        parsed(answer)
    except ValueError as error:
        return str(error)
    return None


def balanced_accuracy(sheet: Sheet, fits: Sequence[int]) -> float:
    """Return the mean of the shares of firing and of silent texts that were told rightly."""
    said, right = set(fits), set(sheet.answers)
    silent = set(range(len(sheet.test))) - right
    return (len(said & right) / len(right) + len(silent - said) / len(silent)) / 2
