"""From an answer to a narrative, or to what is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Any

from memstore.generate.prompts import FIELD
from memstore.jobs.answers import Answer
from memstore.jobs.server import clean

REFUSED = "refused"
#: How models begin when they decline in plain words.
DECLINES = re.compile(
    r"(i['\u2019]m sorry|i am sorry|sorry|unfortunately|i apologi[sz]e)\b.{0,60}"
    r"\b(can['\u2019]?t|cannot|can not|unable|won['\u2019]t)\b|"
    r"\b(i can['\u2019]?t|i cannot|i['\u2019]m unable to|i am unable to|as an ai)\b.{0,40}"
    r"\b(help|assist|provide|write|create|comply|fulfil|language model|model)\b",
    re.IGNORECASE | re.DOTALL,
)
#: People in narratives are sorry and cannot come; a model that declines is brief about it.
DECLINING_WORDS = 25


def read(answer: Answer) -> tuple[str | None, str | None]:
    """Return (narrative, None), or (None, what is wrong with the answer)."""
    body = answer.body or {}
    try:
        choice: dict[str, Any] = body["choices"][0]
        message: dict[str, Any] = choice["message"]
        content, refusal, ending = (
            message.get("content"),
            message.get("refusal"),
            choice.get("finish_reason"),
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        return None, "schema: no message in the answer"
    if refusal or ending == "content_filter":
        return None, f"{REFUSED}: {clean(str(refusal or 'content filter'))[:120]}"
    if ending == "length":
        return None, "cut off: max_tokens is too small for it"
    return narrative_of(content)


def narrative_of(content: Any) -> tuple[str | None, str | None]:
    """Return the narrative in a message's content, or what is wrong with it."""
    try:
        found = json.loads(content)
    except (TypeError, ValueError, RecursionError):
        if isinstance(content, str) and DECLINES.match(content.strip()):
            return None, f"{REFUSED}: {clean(content)[:120]}"
        return None, "schema: the content is not JSON"
    text = found.get(FIELD) if isinstance(found, dict) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        return None, f"schema: no text in the field {FIELD!r}"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return None, "schema: half of a character pair, which no file can hold"
    text = text.strip()
    if DECLINES.match(text) and len(text.split()) < DECLINING_WORDS:
        return None, f"{REFUSED}: {clean(text)[:120]}"
    return text, None


def judge(answer: Answer) -> str | None:
    """Return what is wrong with an answer, None if it holds a narrative."""
    return read(answer)[1]
