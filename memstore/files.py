"""Reading rows from files people have: JSON Lines, JSON, CSV, Parquet, plain lines; gzip; stdin.

Streamed, except a JSON array, which must be read whole. Every error names file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from memstore.errors import InvalidFile, MissingExtra, brief

Format = Literal["jsonl", "json", "csv", "parquet", "text"]
FORMATS = get_args(Format)
STDIN = "-"
#: Where DictReader puts cells that have no column; no header can be called so.
SURPLUS = "\0surplus"

#: A line beyond this is no narrative but the wrong file.
MAX_LINE = 8_000_000
#: A JSON array is held in memory several times over while it is parsed.
MAX_JSON = 64_000_000
#: Rows of a Parquet file decoded at a time.
PAGE = 2_048
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
}


def format_of(file: str, kind: Format | None) -> Format:
    """Return the format asked for, or the one the file's name tells."""
    if kind is not None:
        return kind
    suffix = Path(file.removesuffix(".gz")).suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidFile(f"{file}: cannot tell its format: add --format {'|'.join(FORMATS)}")
    return SUFFIXES[suffix]


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """Open a file, a gzip file or stdin for reading bytes."""
    if file == STDIN:
        yield sys.stdin.buffer
        return
    try:
        if file.endswith(".gz"):
            with gzip.open(file, "rb") as compressed:
                yield compressed  # type: ignore[misc]  # a GzipFile reads like any binary file
        else:
            with open(file, "rb") as plain:
                yield plain
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InvalidFile(f"{file}: {error.strerror}: check the path") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidFile(f"{file} is not a whole gzip file: {error}") from error


def lines(file: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end), of bounded length, as UTF-8."""
    with opened(file) as source:
        number = 0
        while raw := source.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                raise InvalidFile(
                    f"{file} line {number} is longer than {MAX_LINE:,} bytes: split it"
                )
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InvalidFile(f"{file} line {number} is not UTF-8: convert the file") from error
            yield number, text.rstrip("\r\n")


def read_rows(file: str, kind: Format | None, text: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as dicts; see ``numbered_rows``."""
    return (row for _, row in numbered_rows(file, kind, text))


def numbered_rows(
    file: str, kind: Format | None, text: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, row as a dict); a plain line becomes ``{text: line}``.

    The number is that of the line, in CSV, JSON and Parquet that of the row. ``text`` is the field
    every row must have. Empty lines are passed over.
    """
    readers = {
        "jsonl": jsonl_rows,
        "json": json_rows,
        "csv": csv_rows,
        "parquet": parquet_rows,
        "text": text_rows,
    }
    for number, row in readers[format_of(file, kind)](file, text):
        if not isinstance(row, dict):
            raise InvalidFile(
                f"{file} row {number} is no object but {brief(row)}: one object a row"
            )
        if text not in row:
            raise InvalidFile(
                f"{file} row {number} has no field {brief(text)} (it has "
                f"{', '.join(map(brief, list(row)[:8]))}): name the right one with --text"
            )
        yield number, row


def jsonl_rows(file: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of JSON Lines; a bare string is a narrative."""
    for number, line in lines(file):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidFile(
                    f"{file} line {number} is not JSON: {error}; mend or remove it"
                ) from error
            yield number, {text: value} if isinstance(value, str) else value


def json_rows(file: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, value) of a JSON array: the prototype's narratives file."""
    with opened(file) as source:
        raw = source.read(MAX_JSON + 1)
    if len(raw) > MAX_JSON:
        raise InvalidFile(f"{file} is larger than {MAX_JSON:,} bytes: convert it to JSON Lines")
    try:
        values = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{file} is not JSON: {error}") from error
    if not isinstance(values, list):
        raise InvalidFile(f"{file} holds no JSON array: one object a narrative, in a list")
    for number, value in enumerate(values, 1):
        yield number, {text: value} if isinstance(value, str) else value


def csv_rows(file: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yield (row number from 1, row) of a CSV file whose first line names the columns."""
    csv.field_size_limit(MAX_LINE)
    del text
    number = size = 0

    def bounded() -> Iterator[str]:
        nonlocal size
        for at, line in lines(file):
            size += len(line)
            if size > MAX_LINE:  # in quotes a row goes on over any number of lines
                raise InvalidFile(
                    f"{file} line {at}: its row is longer than {MAX_LINE:,} characters: close the "
                    "quote, or split it"
                )
            yield line + "\n"

    table = csv.DictReader(bounded(), restkey=SURPLUS)
    try:
        for number, row in enumerate(table, 1):
            size = 0
            if SURPLUS in row or None in row.values():
                raise InvalidFile(
                    f"{file} row {number} has another number of cells than the first line: mend it"
                )
            yield number, row
    except csv.Error as error:
        raise InvalidFile(f"{file} row {number + 1} is not CSV: {error}") from error


def text_rows(file: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line number, row) of plain lines, one narrative each."""
    for number, line in lines(file):
        if line.strip():
            yield number, {text: line}


def parquet_rows(file: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yield (row number from 1, row) of a Parquet file.

    A column ``metadata`` of JSON text, as our own exports have it, is decoded.
    """
    del text
    done = 0
    with parquet_file(file) as (table, error_kinds):
        try:
            for batch in table.iter_batches(PAGE):
                rows = batch.to_pylist()
                for number, row in enumerate(rows, done + 1):
                    yield number, {name: plain(name, value) for name, value in row.items()}
                done += len(rows)
        except error_kinds as error:
            raise InvalidFile(f"{file} past row {done} is not Parquet: {error}") from error


@contextmanager
def parquet_file(file: str) -> Iterator[tuple[Any, tuple[type[Exception], ...]]]:
    """Lend an open Parquet file, and the kinds of errors that reading on in it may raise."""
    arrow, parquet = load_arrow()
    kinds = (arrow.ArrowException, OSError, ValueError, OverflowError)
    if file == STDIN:
        raise InvalidFile("Parquet cannot be read from stdin: name the file")
    try:
        table = parquet.ParquetFile(file, memory_map=False)
    except FileNotFoundError as error:
        raise InvalidFile(f"{file}: no such file: check the path") from error
    except kinds as error:
        raise InvalidFile(f"{file} is no Parquet file: {error}") from error
    with table:
        yield table, kinds


def load_arrow() -> tuple[Any, Any]:
    """Return pyarrow and its Parquet module. Raises ``MissingExtra``."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", "Parquet") from error
    return pyarrow, pyarrow.parquet


def plain(name: str, value: Any) -> Any:
    """Return a value of a Parquet column as JSON has it: times as text, metadata as an object."""
    if isinstance(value, date):  # a datetime is one, too
        return value.isoformat()
    if name == "metadata" and isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def count_rows(file: str, kind: Format | None) -> int | None:
    """Return how many lines a plain file has, None where counting would cost a parse."""
    if format_of(file, kind) not in ("jsonl", "text") or file == STDIN or file.endswith(".gz"):
        return None
    with opened(file) as source:
        count, last = 0, b"\n"
        while block := source.read(1 << 20):
            count += block.count(b"\n")
            last = block
    return count + (not last.endswith(b"\n"))
