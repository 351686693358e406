"""``memstore import``: JSON Lines, JSON, CSV or lines of text, from files or stdin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from memstore.cli.options import json_option, store_argument, writer
from memstore.cli.output import print_json
from memstore.files import FORMATS, Format, count_rows, read_rows
from memstore.progress import Progress
from memstore.rows import pick
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
    type=click.Choice(["skip", "add"]),
    default="skip",
    show_default=True,
    help="What to do with a key, or else a text, that is there already.",
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

    Fields that are not named become metadata.
    """
    names = {
        "text": text,
        "category": category,
        "key": key,
        "occurred_at": occurred_at,
        "metadata": "metadata",
    }
    total = count_rows(file, kind)
    progress = Progress("rows")
    with writer(store) as opened:
        before = opened.count()
        try:
            ids = opened.insert_many(
                picked(file, kind, names),
                on_duplicate=on_duplicate,
                progress=lambda done, _: progress(done, total),
            )
        except KeyboardInterrupt:
            progress.close()
            click.echo(
                f"memstore: {opened.count() - before} new memories are stored; the same command "
                "goes on from there",
                err=True,
            )
            raise
        progress.close()
        after = opened.count()
    if as_json:
        print_json({"rows": len(ids), "new": after - before, "memories": after})
    else:
        click.echo(f"{len(ids)} rows, {after - before} new, {after} memories")


def picked(file: str, kind: Format | None, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file under memstore's names."""
    for row in read_rows(file, kind, names["text"]):
        if set(row) == EXPORTED:
            row = {name: row[name] for name in names}
        yield pick(row, names)
