"""``memstore lens``: neuron expressions under names, saved by hand or learned from a category."""

from __future__ import annotations

import click

from memstore.cli.names import complete_expression, complete_name
from memstore.cli.options import changer, json_option, reader, store_argument
from memstore.cli.output import one_line, print_json, print_result, print_table
from memstore.core.expression import Expression
from memstore.errors import EncoderError, InvalidExpression
from memstore.lenses import LARGEST, SIZE
from memstore.options import Scoring
from memstore.store import MemoryStore
from memstore.types import Lens


@click.group("lens")
def lens_command() -> None:
    """Save neuron expressions under names, or learn one that tells a category.

    A lens makes a category of whatever fits it: `memstore composite STORE calm` ranks by it,
    `--holds calm` filters by it in every command that takes --where.
    """


@click.command("learn")
@store_argument
@click.argument("category")
@click.option("--name", help="What to call the lens. Default: the category's name.")
@click.option(
    "-n",
    "neurons",
    type=click.IntRange(1, LARGEST),
    default=SIZE,
    show_default=True,
    help="Neurons at most.",
)
@click.option(
    "--by",
    type=click.Choice(["dense", "trace"]),
    default="dense",
    show_default=True,
    help="Directions among vectors, or activations, which mix with other neurons.",
)
@click.option("--positive", is_flag=True, help="Only neurons that speak for the category.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Decides how memories are divided.",
)
@json_option
def learn_command(
    store: str,
    category: str,
    name: str | None,
    neurons: int,
    by: Scoring,
    positive: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Learn the few neurons of STORE that tell CATEGORY from all else, and save them as a lens.

    The grade is its AUC on memories that it was not learned from: the mean of five lenses learned
    alike, each without a fifth of the memories. 0.5 says nothing, 1.0 tells them all.
    """
    with changer(store) as opened:
        hidden = opened.lenses.hidden_by(category if name is None else name)
        lens = opened.lenses.learn(
            category, name=name, neurons=neurons, by=by, positive=positive, seed=seed
        )
        count = opened.count({"$holds": lens})
        names = opened.neurons.of([neuron for neuron, _ in terms_of(lens)])
    tell_hidden(lens, hidden)
    if as_json:
        print_json({**lens.to_dict(), "holds": count, "neurons": names})
        return
    click.echo(
        f"{one_line(lens.name)}: AUC {lens.grade:.3f}, by {lens.by}, holds for {count:,} memories"
    )
    rows = [
        [f"N{neuron}", f"{weight:+g}", names.get(neuron, "unclear")]
        for neuron, weight in terms_of(lens)
    ]
    print_table(["neuron", "weight", "label"], rows)


# An expression may begin with a minus, which is no option here.
@click.command("save", context_settings={"ignore_unknown_options": True})
@store_argument
@click.argument("name")
@click.argument("expression", metavar="EXPR", shell_complete=complete_expression)
@click.option(
    "--by",
    type=click.Choice(["trace", "dense"]),
    default="trace",
    show_default=True,
    help="What fired, or how far vectors point that way.",
)
@click.option("--threshold", type=float, default=0.0, help="It holds above this score. Default: 0.")
@json_option
def save_command(
    store: str, name: str, expression: str, by: Scoring, threshold: float, as_json: bool
) -> None:
    """Save EXPR in STORE under NAME."""
    with changer(store) as opened:
        hidden = opened.lenses.hidden_by(name)
        lens = opened.lenses.save(name, expression, by=by, threshold=threshold)
        count = opened.count({"$holds": lens})
    tell_hidden(lens, hidden)
    line = f"{one_line(lens.name)}: {lens.expression}, holds for {count:,} memories"
    print_result(line, {**lens.to_dict(), "holds": count}, as_json=as_json)


@click.command("list")
@store_argument
@json_option
def list_command(store: str, as_json: bool) -> None:
    """List the lenses of STORE and those that ship, with how many memories each holds for."""
    with reader(store) as opened:
        own = list(opened.lenses)
        known = {lens.name.casefold() for lens in own}
        shipped = [lens for lens in opened.lenses.shipped() if lens.name.casefold() not in known]
        listed = [(lens, held(opened, lens)) for lens in (*own, *shipped)]
    if as_json:
        print_json([{**lens.to_dict(), "holds": count} for lens, count in listed])
        return
    if not listed:
        click.echo("no lenses: `lens save` or `lens learn` makes one", err=True)
        return
    rows = [
        [
            one_line(lens.name),
            lens.by,
            "-" if lens.grade is None else f"{lens.grade:.3f}",
            "-" if count is None else f"{count:,}",
            one_line(lens.expression),
        ]
        for lens, count in listed
    ]
    print_table(["name", "by", "AUC", "holds", "expression"], rows)


def tell_hidden(lens: Lens, hidden: str | None) -> None:
    """Say on stderr what a lens has taken the name of."""
    if hidden is not None:
        name = one_line(lens.name)
        click.echo(f"memstore: {name!r} is this lens from now on, and hides {hidden}", err=True)


def held(store: MemoryStore, lens: Lens) -> int | None:
    """Return how many memories a lens holds for, None where it cannot be asked here."""
    try:
        return store.count({"$holds": lens})
    except (EncoderError, InvalidExpression):
        return None


@click.command("remove")
@store_argument
@click.argument("name", shell_complete=complete_name)
@json_option
def remove_command(store: str, name: str, as_json: bool) -> None:
    """Take the lens called NAME out of STORE; memories stay as they are."""
    with changer(store) as opened:
        opened.lenses.remove(name)
    print_result(f"{one_line(name)} is no lens now", {"removed": name}, as_json=as_json)


def terms_of(lens: Lens) -> list[tuple[int, float]]:
    """Return the (neuron, weight) pairs of a lens, as they are spelled."""
    return [(int(neuron), weight) for neuron, weight in Expression.of(lens.expression).terms]


for command in (learn_command, save_command, list_command, remove_command):
    lens_command.add_command(command)
