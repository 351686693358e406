"""``memstore audit``: what a store is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import click

from memstore.audit import By, Told
from memstore.cli.options import json_option, reader, store_argument
from memstore.cli.output import one_line, print_json, print_table


@click.command("audit")
@store_argument
@click.option(
    "--by",
    type=click.Choice(get_args(By)),
    default="category",
    show_default=True,
    help="What to group memories by.",
)
@json_option
def audit_command(store: str, by: By, as_json: bool) -> None:
    """Say what STORE is about: what fires most, what sets groups apart, what is new, near-copies.

    Strong firings alone are counted. No model is asked.
    """
    with reader(store) as opened:
        found = opened.audit(by)
    if as_json:
        print_json(finite(found.to_dict()))
        return
    click.echo(f"{found.memories:,} memories")
    print_told("common", found.common, apart=False)
    for name, told in found.groups.items():
        print_told(one_line(name), told, apart=True)
    print_told("new: only in the tenth stored last", found.new, apart=False)
    if found.copies:
        click.echo("\n" + click.style("near-copies", bold=True))
        print_table(
            ["id", "of", "cosine"],
            [[str(other), str(one), f"{cosine:.4f}"] for one, other, cosine in found.copies],
        )


def print_told(title: str, told: Sequence[Told], *, apart: bool) -> None:
    """Print neurons under a title."""
    click.echo("\n" + click.style(title, bold=True))
    if not told:
        click.echo("nothing")
        return
    rows = []
    for one in told:
        lift = "only here" if math.isinf(one.lift) else f"{one.lift:.1f}x"
        cells = [f"N{one.neuron}", f"{one.rate:.1%}", *([lift] if apart else [])]
        rows.append([*cells, one.label or "-"])
    print_table(["neuron", "memories", *(["elsewhere"] if apart else []), "label"], rows)


def finite(value: object) -> object:
    """Return a value that JSON can hold."""
    if isinstance(value, dict):
        return {name: finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
