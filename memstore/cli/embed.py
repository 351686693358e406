"""``memstore embed``: vectors from an OpenAI-compatible server, in batches."""

from __future__ import annotations

from pathlib import Path

import click

from memstore.cli import jobs
from memstore.cli.options import Finite, json_option
from memstore.cli.output import print_result
from memstore.embed import batch
from memstore.errors import InvalidFile
from memstore.files import FORMATS, Format, read_rows
from memstore.jobs.job import Facts, Job
from memstore.rows import refuse_unstorable


@click.group("embed")
def embed_command() -> None:
    """Have a server embed many texts at the price of a batch.

    plan, submit, watch, fetch, process; or plan, direct, process. `process` writes an array for
    `store.insert_many(rows, vectors=...)`. The key comes from OPENAI_API_KEY.
    """


@click.command("plan")
@click.argument("file", type=click.Path(dir_okay=False))
@jobs.folder_argument
@click.option("--model", required=True, help="Such as text-embedding-3-small.")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Default: by the file's name.")
@click.option("--text", default="text", show_default=True, help="Field with the text.")
@click.option("--price", type=Finite(0), help="US dollars per million tokens.")
@json_option
def plan_command(
    file: str,
    folder: Path,
    model: str,
    kind: Format | None,
    text: str,
    price: float | None,
    as_json: bool,
) -> None:
    """Write the requests that embed the texts of FILE into FOLDER; nothing is sent."""

    def checked(row: object) -> str:
        if not isinstance(row, str) or not row.strip():
            raise InvalidFile(f"{file}: a row has no text in {text!r}: a server embeds none")
        refuse_unstorable(text, row, InvalidFile)
        return row

    prices = None if price is None else {"input": price, "output": 0.0, "batch": 0.5}
    facts = Facts(batch.KIND, batch.ENDPOINT, model, price=prices)
    texts = (checked(row[text]) for row in read_rows(file, kind, text))
    job = Job.create(folder, facts, batch.requests(texts, model))
    count = sum(job.facts.parts)
    result = {"folder": str(folder), "requests": list(job.facts.parts)}
    print_result(f"{count:,} requests of up to {batch.TEXTS} texts", result, as_json=as_json)


@click.command("process")
@jobs.folder_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Where the array goes. Default: FOLDER/{batch.VECTORS}.",
)
@json_option
def process_command(folder: Path, out: Path | None, as_json: bool) -> None:
    """Write the vectors in FOLDER as a NumPy array, a row a text, in the order of the file."""
    path, (rows, dimension) = batch.write_vectors(Job(folder), out)
    facts = {"file": str(path), "rows": rows, "dimension": dimension}
    print_result(f"{rows:,} vectors of {dimension} in {path}", facts, as_json=as_json)


for command in (
    plan_command,
    *jobs.STEPS,
    process_command,
):
    embed_command.add_command(command)
