"""Full-text search through SQLite's FTS5: any of the words, ranked by BM25."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, Connection, Float, Integer, column, select, table, text
from sqlalchemy.sql.expression import literal_column

from memstore.catalog.memories import JOINED
from memstore.catalog.schema import memory
from memstore.errors import InvalidQuery

MAX_WORDS = 1_000
_words = table("memory_words", column("rowid", Integer))


def match_expression(query: str) -> str:
    """Return the FTS5 expression for any of the words of ``query``; no syntax gets through."""
    found = list(dict.fromkeys(re.findall(r"\w+", query)))
    if not found:
        raise InvalidQuery(f"{query!r:.60} has no word to search for: use letters or digits")
    return " OR ".join(f'"{word}"' for word in found[:MAX_WORDS])


def search(
    connection: Connection, query: str, where: ColumnElement[bool] | None, k: int | None
) -> list[tuple[int, float]]:
    """Return (memory id, score) in order, all matches where ``k`` is None.

    The score is FTS5's BM25 with the sign turned, so that higher is nearer.
    """
    score = (-literal_column("bm25(memory_words)", Float)).label("score")
    statement = (
        select(memory.c.id, score)
        .select_from(JOINED.join(_words, _words.c.rowid == memory.c.id))
        .where(text("memory_words MATCH :match"))
    )
    if where is not None:
        statement = statement.where(where)
    statement = statement.order_by(score.desc(), memory.c.id).limit(k)
    rows = connection.execute(statement, {"match": match_expression(query)})
    return [(row[0], row[1]) for row in rows]


def compact(connection: Connection) -> None:
    """Rebuild the word lists from the texts, which removes every trace of deleted words."""
    connection.execute(text("INSERT INTO memory_words (memory_words) VALUES ('rebuild')"))


def check(connection: Connection) -> None:
    """Raise SQLite's error unless the word lists agree with the texts."""
    connection.execute(
        text("INSERT INTO memory_words (memory_words, rank) VALUES ('integrity-check', 1)")
    )
