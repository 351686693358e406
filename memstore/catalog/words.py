"""Full-text search through SQLite's FTS5: any of the words, ranked by BM25."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np
from sqlalchemy import ColumnElement, Connection, Float, Integer, column, select, table, text
from sqlalchemy.sql.expression import literal_column

from memstore.catalog.engine import driver_of
from memstore.catalog.memories import JOINED
from memstore.catalog.schema import memory
from memstore.core.ranking import Ranked
from memstore.errors import InvalidQuery

MAX_WORDS = 1_000
_words = table("memory_words", column("rowid", Integer))


def terms(query: str) -> list[str]:
    """Return the words of a text as FTS5 itself cuts and folds them, each once.

    Asked of SQLite rather than imitated: where a word ends, and which letters are the same, is its
    tokenizer's business.
    """
    with closing(sqlite3.connect(":memory:")) as scratch:
        scratch.execute("CREATE VIRTUAL TABLE query USING fts5 (text, tokenize = 'unicode61')")
        scratch.execute("CREATE VIRTUAL TABLE words USING fts5vocab (query, 'row')")
        scratch.execute("INSERT INTO query (text) VALUES (?)", (query,))
        return [row[0] for row in scratch.execute("SELECT term FROM words")]


def match_expression(query: str) -> str:
    """Return the FTS5 expression for any of the words of ``query``; no syntax gets through."""
    found = terms(query)
    if not found:
        raise InvalidQuery(f"{query!r:.60} has no word to search for: use letters or digits")
    if len(found) > MAX_WORDS:
        raise InvalidQuery(f"{len(found)} different words: search for at most {MAX_WORDS}")
    return " OR ".join(f'"{word}"' for word in found)


def search(
    connection: Connection, query: str, where: ColumnElement[bool] | None, k: int | None
) -> Ranked:
    """Return ids and scores in order, all matches where ``k`` is None.

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
    found = [(row[0], row[1]) for row in rows]
    ids = np.array([row[0] for row in found], dtype=np.int64)
    return Ranked(ids, np.array([row[1] for row in found], dtype=np.float64))


def add(connection: Connection, first: int, last: int) -> None:
    """Take the words of new memories, ids from ``first`` to ``last``, into the lists.

    In one statement: FTS5 closes its books at the end of each, which took 36 us a row and takes 7.
    """
    driver_of(connection).execute(
        "INSERT INTO memory_words (rowid, text) SELECT id, text FROM memory "
        "WHERE id BETWEEN ? AND ?",
        (first, last),
    )


def compact(connection: Connection) -> None:
    """Rebuild the word lists from the texts, which removes every trace of deleted words."""
    connection.execute(text("INSERT INTO memory_words (memory_words) VALUES ('rebuild')"))


def check(connection: Connection) -> None:
    """Raise SQLite's error unless the word lists agree with the texts."""
    connection.execute(
        text("INSERT INTO memory_words (memory_words, rank) VALUES ('integrity-check', 1)")
    )
