"""Writing: init, insert, delete."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from memstore.cli.options import json_option, read_where, store_argument, where_options, writer
from memstore.cli.output import print_result
from memstore.errors import InvalidMetadata, StoreError
from memstore.store import MemoryStore


@click.command("init")
@store_argument
@click.option(
    "--sae",
    type=click.Path(path_type=Path),
    help="Weights folder of another SAE, or the name of a shipped one: sae-3072-k64.",
)
@click.option("--embedder", help="Name or folder of a sentence-transformers model.")
@json_option
def init_command(store: str, sae: Path | None, embedder: str | None, as_json: bool) -> None:
    """Create an empty store, with the shipped encoder or another."""
    from memstore.encoder import Encoder

    if Path(store).exists() and Path(store).stat().st_size:
        raise StoreError(f"{store} exists: choose another path")
    with MemoryStore.open(store, encoder=Encoder.of(embedder, sae)) as opened:
        encoder = opened.stats()["encoder"]
    print_result(f"{store}: {encoder}", {"store": store, "encoder": encoder}, as_json=as_json)


@click.command("insert")
@store_argument
@click.argument("text")
@click.option("--category")
@click.option("--key", help="A name of your own, unique in the store.")
@click.option("--metadata", metavar="JSON", help="""More facts, e.g. '{"mood": 4}'.""")
@click.option("--occurred-at", metavar="TIME", help="When it happened, ISO 8601; UTC by default.")
@json_option
def insert_command(
    store: str,
    text: str,
    category: str | None,
    key: str | None,
    metadata: str | None,
    occurred_at: str | None,
    as_json: bool,
) -> None:
    """Store TEXT ("-" reads stdin) and print its id."""
    try:
        facts = None if metadata is None else json.loads(metadata)
    except (ValueError, RecursionError) as error:
        raise InvalidMetadata(f"--metadata is not JSON ({error}): quote it in the shell") from error
    narrative = sys.stdin.read().strip() if text == "-" else text
    with writer(store) as opened:
        memory_id = opened.insert(
            narrative, category=category, key=key, metadata=facts, occurred_at=occurred_at
        )
    print_result(str(memory_id), {"id": memory_id}, as_json=as_json)


@click.command("delete")
@store_argument
@click.argument("ids", type=int, nargs=-1)
@where_options
@click.option("--yes", is_flag=True, help="Do not ask before deleting by filter.")
@json_option
def delete_command(
    store: str,
    ids: tuple[int, ...],
    category: str | None,
    where: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete memories by IDS, or by --where or --category."""
    condition = read_where(where, category)
    if bool(ids) == (condition is not None):
        raise click.UsageError("name either ids or a filter (--where, --category)")
    if not Path(store).exists():
        raise StoreError(f"no store at {store}: check the path")
    with writer(store) as opened:
        if condition is None:
            removed = opened.delete(ids)
        else:
            if not yes:
                click.confirm(f"Delete {opened.count(condition)} memories?", abort=True, err=True)
            removed = opened.delete_where(condition)
    print_result(f"{removed} deleted", {"deleted": removed}, as_json=as_json)
