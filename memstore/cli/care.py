"""Care: export, check, optimize, backup, verify, restore, recover, upgrade."""

from __future__ import annotations

from pathlib import Path

import click

from memstore import backups
from memstore.cli import INTERRUPTED
from memstore.cli.options import (
    encoder_options,
    json_option,
    reader,
    store_argument,
    where_options,
    writer,
)
from memstore.cli.output import print_json, print_result
from memstore.errors import StoreNotFound
from memstore.view import Where

BUSY_TIMEOUT = 5.0


def must_exist(store: str) -> None:
    """Raise unless there is a file: care never creates a store by a slip of the pen."""
    if not Path(store).exists():
        raise StoreNotFound(f"no store at {store}: check the path")


@click.command("export")
@store_argument
@click.argument("file", type=click.Path(dir_okay=False))
@where_options
@click.option(
    "--encoded", is_flag=True, help="With ids, vectors, traces and labels: the whole store."
)
@json_option
def export_command(
    store: str, file: str, where: Where | None, encoded: bool, as_json: bool
) -> None:
    """Write memories to FILE, which `memstore import` reads.

    JSON Lines; compressed where FILE ends in .gz, Parquet where it ends in .parquet.
    """
    with reader(store) as opened:
        count = opened.export(file, where, encoded=encoded)
    print_result(f"{count} memories in {file}", {"memories": count, "file": file}, as_json=as_json)


@click.command("check")
@store_argument
@click.option("--repair", is_flag=True, help="Rebuild everything derived from texts and traces.")
@json_option
def check_command(store: str, repair: bool, as_json: bool) -> None:
    """Look for damage; exits with 1 where there is any."""
    must_exist(store)
    with writer(store) as opened:
        problems = opened.repair() if repair else opened.check()
        count = opened.count()
    if as_json:
        print_json({"memories": count, "problems": problems})
    else:
        click.echo("\n".join(problems) or f"{count} memories, all well")
    if problems:
        raise SystemExit(1)


@click.command("optimize")
@store_argument
@json_option
def optimize_command(store: str, as_json: bool) -> None:
    """Remove the last of deleted memories, free space, save the index."""
    must_exist(store)
    with writer(store) as opened:
        before = opened.stats()["bytes"]
        opened.optimize()
        after = opened.stats()["bytes"]
    facts = {"bytes_before": before, "bytes": after}
    print_result(f"{before:,} -> {after:,} bytes", facts, as_json=as_json)


@click.command("reencode")
@store_argument
@encoder_options
@click.option("--embed", is_flag=True, help="Embed texts anew even where vectors could stay.")
@json_option
def reencode_command(
    store: str, sae: Path | None, embedder: str | None, embed: bool, as_json: bool
) -> None:
    """Move STORE to another encoder; the old one answers until all is done.

    Interrupted, the same command goes on where it stopped. Without options: to the shipped encoder,
    or, where STORE has that one, back from a move that was begun. `optimize` frees the space.
    """
    from memstore.encoder import Encoder

    must_exist(store)
    chosen = Encoder.of(embedder, sae)
    with writer(store) as opened:
        stayed = opened.stats()["fingerprint"] == chosen.fingerprint
        names = len(opened.neurons.labels()) + len(opened.lenses)
        try:
            count = opened.reencode(chosen, embed=embed, progress=True)
        except KeyboardInterrupt:
            moved = opened.stats()["fingerprint"] == chosen.fingerprint
            said = (
                f"{store} is of {chosen.name} now; the same command drops what is left of before"
                if moved
                else f"{store} is as it was; the same command goes on from there"
            )
            click.echo(f"memstore: {said}", err=True)
            raise SystemExit(INTERRUPTED) from None
    line = f"{count:,} memories encoded by {chosen.name}"
    if stayed:
        line = f"{store} is of {chosen.name} already; what was begun for another is given up"
    facts = {"encoded": count, "encoder": chosen.name}
    print_result(line, facts, as_json=as_json)
    if names and not stayed:
        click.echo(
            f"memstore: {names} labels and lenses are of the neurons of before, and count again if "
            "the store moves back",
            err=True,
        )


@click.command("backup")
@store_argument
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
def backup_command(store: str, file: str, as_json: bool) -> None:
    """Copy a live store to a new FILE, with a manifest beside it."""
    with reader(store) as opened:
        opened.backup(file)
    print_result(file, {"file": file}, as_json=as_json)


@click.command("verify")
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
def verify_command(file: str, as_json: bool) -> None:
    """Look at the backup FILE without restoring it; exits with 1 where anything is wrong."""
    problems = backups.verify(Path(file))
    if as_json:
        print_json({"file": file, "problems": problems})
    elif problems:
        click.echo("\n".join(problems))
    else:
        said = backups.read_manifest(backups.manifest_path(Path(file)))
        click.echo(f"{said['memories']} memories as of {said['made_at']}, all well")
    if problems:
        raise SystemExit(1)


@click.command("restore")
@click.argument("file", type=click.Path(dir_okay=False))
@store_argument
@json_option
def restore_command(file: str, store: str, as_json: bool) -> None:
    """Make a new STORE of the backup FILE, after looking whether all is well with it."""
    facts = backups.restore(Path(file), Path(store))
    print_result(
        f"{store}: {facts['memories']} memories", facts | {"store": store}, as_json=as_json
    )


@click.command("recover")
@store_argument
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
def recover_command(store: str, file: str, as_json: bool) -> None:
    """Write what can be read of a damaged STORE to FILE, which `memstore import` reads."""
    from memstore.recovery import recover

    found = recover(Path(store), Path(file))
    line = f"{found.memories} memories in {file}"
    if found.damaged:
        line += f", {found.damaged} of them marked as damaged (memstore_recovered)"
    print_result(line, found._asdict() | {"file": file}, as_json=as_json)


@click.command("upgrade")
@store_argument
@json_option
def upgrade_command(store: str, as_json: bool) -> None:
    """Bring a store of an older memstore up to date; makes a backup first."""
    from memstore.catalog import migrate

    must_exist(store)
    found, backup = migrate.upgrade(Path(store), BUSY_TIMEOUT)
    line = f"{store} is up to date (schema {found})"
    if backup is not None:
        line = f"{store}: schema {found} -> {migrate.HEAD}; the old store is {backup}"
    facts = {"from": found, "to": migrate.HEAD, "backup": backup and str(backup)}
    print_result(line, facts, as_json=as_json)
