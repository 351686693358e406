"""``memstore import``: JSON Lines, JSON, CSV, Parquet or lines of text, from files or stdin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from click.core import ParameterSource

from memstore.batches import BATCH
from memstore.cli import INTERRUPTED
from memstore.cli.options import json_option, store_argument, writer
from memstore.cli.output import print_json, print_result
from memstore.errors import InvalidFile, InvalidInput
from memstore.files import FORMATS, STDIN, Format, count_rows, format_of, numbered_rows
from memstore.loading import KINDS, heading_of
from memstore.progress import Progress
from memstore.rows import check_row, pick
from memstore.writer import OnDuplicate

#: What every line of our own export has; the ids and times of the old store stay behind.
EXPORTED = {
    "id",
    "key",
    "text",
    "category",
    "metadata",
    "occurred_at",
    "created_at",
    "updated_at",
}
#: Which field is what, where nobody says otherwise.
NAMES = {name: name for name in ("text", "category", "key", "occurred_at", "metadata")}


@click.command("import")
@store_argument
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Default: by the file's name.")
@click.option("--text", default="text", show_default=True, help="Field with the narrative.")
@click.option("--category", default="category", show_default=True, help="Field with the category.")
@click.option("--key", default="key", show_default=True, help="Field with a unique name.")
@click.option(
    "--occurred-at", default="occurred_at", show_default=True, help="Field with the time."
)
@click.option(
    "--on-duplicate",
    type=click.Choice(["skip", "add", "link"]),
    default="skip",
    show_default=True,
    help="What to do with a key, or else a text, that is there already; link: store all, and "
    "write down what each nearly repeats.",
)
@json_option
def import_command(
    store: str,
    file: str,
    kind: Format | None,
    text: str,
    category: str,
    key: str,
    occurred_at: str,
    on_duplicate: OnDuplicate,
    as_json: bool,
) -> None:
    """Import FILE ("-" for stdin) into STORE; run again to go on after an interruption.

    Fields that are not named become metadata. What `memstore export --encoded` wrote comes back
    as it was, ids and traces and all, into a new STORE.
    """
    given_names = {"text": text, "category": category, "key": key, "occurred_at": occurred_at}
    names = {**NAMES, **given_names}
    asked = [field for field in names if given(field)]
    if is_encoded(file, kind):
        load_encoded(store, file, kind, as_json)
        return
    stored = store_file(store, file, kind, names, asked, on_duplicate)
    tell_stored(stored, as_json=as_json, hint="; --on-duplicate add stores them again")


@dataclass(frozen=True)
class Stored:
    """What became of the rows of a file."""

    rows: int
    new: int
    memories: int
    """How many the store has now."""


def store_file(
    store: str,
    file: str,
    kind: Format | None,
    names: dict[str, str],
    asked: list[str] | None = None,
    on_duplicate: OnDuplicate = "skip",
) -> Stored:
    """Insert the rows of a file; what an interruption or a bad row leaves stored is said.

    ``names`` says which field is what, ``asked`` which of them a person named.
    """
    total = count_rows(file, kind)
    progress = Progress("rows")
    with writer(store) as opened:
        before = opened.count()
        try:
            ids = opened.insert_many(
                picked(file, kind, names, asked or []),
                on_duplicate=on_duplicate,
                progress=lambda done, _: progress(done, total),
            )
        except KeyboardInterrupt:
            progress.close()
            new = opened.count() - before
            again = "" if on_duplicate == "skip" else " with --on-duplicate skip"
            message = f"{new} new memories are stored; the same command{again} goes on from there"
            click.echo(f"memstore: {message}", err=True)
            raise SystemExit(INTERRUPTED) from None
        except InvalidInput as error:
            new = opened.count() - before
            raise InvalidFile(f"{error} ({new} new memories are stored)") from error
        progress.close()
        after = opened.count()
    return Stored(len(ids), after - before, after)


def tell_stored(stored: Stored, *, as_json: bool, hint: str = "") -> None:
    """Print what became of the rows of a file; ``hint`` says how to store doubles all the same."""
    if as_json:
        print_json(asdict(stored))
        return
    click.echo(f"{stored.rows} rows, {stored.new} new, {stored.memories} memories")
    if stored.new < stored.rows:
        click.echo(
            f"memstore: {stored.rows - stored.new} rows were there already by key or text{hint}",
            err=True,
        )


def is_encoded(file: str, kind: Format | None) -> bool:
    """Return whether a file is an encoded export; what comes through stdin is none."""
    own = format_of(file, kind)
    return file != STDIN and own in KINDS and heading_of(file, own) is not None


def load_encoded(store: str, file: str, kind: Format | None, as_json: bool) -> None:
    """Load an encoded export into a new store, as it was."""
    with writer(store) as opened:
        count = opened.load(file, kind=kind)
    facts = {"rows": count, "new": count, "memories": count}
    print_result(f"{count} memories as they were", facts, as_json=as_json)


def given(field: str) -> bool:
    """Return whether the command line named the option of a field."""
    context = click.get_current_context()
    return context.get_parameter_source(field) is ParameterSource.COMMANDLINE


def picked(
    file: str, kind: Format | None, names: dict[str, str], asked: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file under memstore's names, each fit to be stored.

    A field of ``asked`` that none of the first rows has is a slip of the pen, found before anything
    is stored.
    """
    unseen = {field: names[field] for field in asked}
    count = 0
    for count, (number, row) in enumerate(numbered_rows(file, kind, names["text"]), 1):
        unseen = {field: name for field, name in unseen.items() if name not in row}
        if count == BATCH:
            refuse_unseen(file, unseen)
        if set(row) == EXPORTED:
            row = {name: row[name] for name in names}
        chosen = pick(row, names)
        try:
            check_row(chosen)
        except InvalidInput as error:
            raise InvalidFile(f"{file} row {number}: {error}") from error
        yield chosen
    if 0 < count < BATCH:
        refuse_unseen(file, unseen)


def refuse_unseen(file: str, unseen: dict[str, str]) -> None:
    """Raise ``InvalidFile`` for a named field that no row has had."""
    for field, name in unseen.items():
        option = "--" + field.replace("_", "-")
        raise InvalidFile(f"{file}: no row has the field {name!r} that {option} names: correct it")
