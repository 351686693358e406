"""Writing: init, insert, delete."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import click

from memstore.cli.options import (
    encoder_options,
    json_option,
    reader,
    store_argument,
    where_options,
    writer,
)
from memstore.cli.output import one_line, print_json, print_memories, print_result
from memstore.errors import InvalidMetadata, StoreError
from memstore.novelty import Novelty
from memstore.store import MemoryStore
from memstore.view import Where

#: Memories shown of those that would be deleted.
SHOWN = 10


@click.command("init")
@store_argument
@encoder_options
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
@click.option("--novelty", is_flag=True, help="Say what is new about it to the store.")
@json_option
def insert_command(
    store: str,
    text: str,
    category: str | None,
    key: str | None,
    metadata: str | None,
    occurred_at: str | None,
    novelty: bool,
    as_json: bool,
) -> None:
    """Store TEXT ("-" reads stdin) and print its id."""
    try:
        facts = None if metadata is None else json.loads(metadata)
    except (ValueError, RecursionError) as error:
        raise InvalidMetadata(f"--metadata is not JSON ({error}): quote it in the shell") from error
    narrative = sys.stdin.read().strip() if text == "-" else text
    with writer(store) as opened:
        found = opened.novelty(narrative) if novelty else None
        memory_id = opened.insert(
            narrative, category=category, key=key, metadata=facts, occurred_at=occurred_at
        )
    if found is None:
        print_result(str(memory_id), {"id": memory_id}, as_json=as_json)
    elif as_json:
        print_json({"id": memory_id, "novelty": found.to_dict()})
    else:
        click.echo(str(memory_id))
        tell_novelty(found)


def tell_novelty(found: Novelty) -> None:
    """Print what is new about a text."""
    strong = [one for one in found.first if one.strong]
    for one in strong:
        name = one_line(one.label or "(no label)")
        click.echo(f"first time: N{one.neuron} {name}, {one.share:.0%} of its strongest")
    if weak := len(found.first) - len(strong):
        click.echo(f"first time, weakly: {weak} more (--json names them)")
    if found.unexplained is not None:
        click.echo(f"not in its neurons: {found.unexplained:.0%} of its meaning", nl=False)
        beyond = "" if found.rank is None else f" ({found.rank:.0%} of the newest leave less)"
        click.echo(beyond)
    if found.nearest is not None:
        memory_id, cosine = found.nearest
        click.echo(f"nearest: memory {memory_id}, cosine {cosine:.2f}")


@click.command("delete")
@store_argument
@click.argument("ids", type=int, nargs=-1)
@where_options
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting by filter.")
@json_option
def delete_command(
    store: str,
    ids: tuple[int, ...],
    where: Where | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete memories by IDS, or by --where, --holds or --category."""
    if bool(ids) == (where is not None):
        raise click.UsageError("name either ids or a filter (--where, --holds, --category)")
    if not Path(store).exists():
        raise StoreError(f"no store at {store}: check the path")
    wanted = {"id": {"$in": list(ids)}} if where is None else where
    if dry_run:
        with reader(store) as opened:
            show_doomed(opened, wanted, as_json)
        return
    with writer(store) as opened:
        if where is None:
            removed = opened.delete(ids)
        else:
            if not yes:
                click.confirm(f"Delete {opened.count(where)} memories?", abort=True, err=True)
            removed = opened.delete_where(where)
    print_result(f"{removed} deleted", {"deleted": removed}, as_json=as_json)


def show_doomed(store: MemoryStore, where: Where, as_json: bool) -> None:
    """Print how many memories a deletion would take, and the first of them."""
    count, first = store.count(where), list(islice(store.iter(where), SHOWN))
    if as_json:
        print_json({"would_delete": count, "first": [memory.to_dict() for memory in first]})
        return
    click.echo(f"{count} would be deleted" + (", these first:" if count > len(first) else ""))
    if first:
        print_memories(first)
