"""Looking: neuron, show, list, stats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import click

from memstore.cli.names import complete_name
from memstore.cli.options import (
    changer,
    json_option,
    read_neuron,
    reader,
    store_argument,
    where_options,
)
from memstore.cli.output import (
    one_line,
    print_facts,
    print_hits,
    print_json,
    print_memories,
    print_result,
    print_table,
    printable,
    width,
)
from memstore.meaning import Fired
from memstore.types import Neuron
from memstore.view import Where

BARS = " ▁▂▃▄▅▆▇█"
SHOWN_NEURONS = 12
SHOWN_STRONG = 6
#: Months, and neighbours of either kind, shown of a neuron.
MONTHS, NEIGHBOURS = 12, 3


@click.command("neuron")
@store_argument
@click.argument("neuron", shell_complete=complete_name)
@click.option("--label", help="Name the neuron, so that expressions can use the name.")
@click.option("--unlabel", is_flag=True, help="Take its name away.")
@click.option("--alike", is_flag=True, help="Show whose directions are nearest; loads the SAE.")
@json_option
def neuron_command(
    store: str, neuron: str, label: str | None, unlabel: bool, alike: bool, as_json: bool
) -> None:
    """Show what is known of NEURON (number or label) in this store, or name it."""
    if label is not None and unlabel:
        raise click.UsageError("--label gives a name, --unlabel takes it away: choose one")
    ref = read_neuron(neuron)
    if label is not None or unlabel:
        with changer(store) as opened:
            opened.neurons.label(ref, None if unlabel else label)
        said = (
            f"{neuron} has no name of its own now" if unlabel else f"{neuron} is called {label!r}"
        )
        print_result(said, {"neuron": neuron, "label": label}, as_json=as_json)
        return
    with reader(store) as opened:
        known = opened.neurons[ref]
        near = opened.neurons.alike(ref, NEIGHBOURS) if alike else []
        others = [one.neuron for one in known.company]
        names = opened.neurons.of([*others, *(neuron for neuron, _ in near)])
    if as_json:
        print_json({**known.to_dict(), **({"alike": near} if alike else {})})
        return
    tell_neuron(known, names)
    for neuron_id, cosine in near:
        name = one_line(f"N{neuron_id} {names.get(neuron_id, '')}")
        click.echo(f"points like {name}: cosine {cosine:.2f}")


def tell_neuron(known: Neuron, names: Mapping[int, str]) -> None:
    """Print what is known of a neuron; ``names`` are those of its company."""
    highest = max(known.histogram, default=0) or 1
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // highest)] for count in known.histogram)
    print_facts(
        {
            "neuron": known.id,
            "label": labelled(known),
            "meaning": known.sentence or "-",
            "fires for": f"{known.fires} memories ({known.fire_rate:.1%})",
            "activation": f"mean {known.mean:.3f}, largest {known.maximum:.3f}",
            "histogram": f"0 |{bars}| {known.maximum:.3f}",
            "months": {month: str(n) for month, n in [*known.months.items()][-MONTHS:]},
            "fires with": {
                one_line(
                    f"N{one.neuron} {names.get(one.neuron, '')}"
                ): f"{one.lift:.1f} x by chance"
                for one in known.company[:NEIGHBOURS]
            },
        }
    )
    if known.tells:
        rows = [
            [
                one_line(one.category),
                f"{one.auc:.2f}",
                f"{one.lift:.2f}",
                f"{one.precision:.2f}",
                f"{one.adjusted_p:.1g}",
            ]
            for one in known.tells
        ]
        print_table(["category", "AUC", "lift", "precision@20", "adjusted p"], rows)
    for title, hits in (("strongest", known.top), ("one of each tenth", known.strata)):
        click.echo(click.style(title, bold=True))
        print_hits(hits, as_json=False, why=False)


def labelled(known: Neuron) -> str:
    """Return a neuron's label and its grade."""
    if known.label is None:
        return "-"
    return known.label if known.grade is None else f"{known.label} (grade {known.grade:.2f})"


@click.command("show")
@store_argument
@click.argument("id", type=int)
@json_option
def show_command(store: str, id: int, as_json: bool) -> None:
    """Show one memory and its trace."""
    with reader(store) as opened:
        memory = opened.get(id)
        trace = opened.trace(id).to_dict()
        labels = opened.neurons.of(list(trace))
        near = {both.other.id: both.cosine for both in opened.copies(id)}
    if as_json:
        facts = {**memory.to_dict(), "trace": {str(n): a for n, a in trace.items()}}
        print_json({**facts, "copies": [list(pair) for pair in near.items()]})
        return
    facts = {name: value for name, value in memory.to_dict().items() if name != "text"}
    print_facts({name: "-" if value is None else value for name, value in facts.items()})
    click.echo("\n" + click.wrap_text(printable(memory.text), width()) + "\n")
    for other, cosine in near.items():
        click.echo(f"near-copy of memory {other} (cosine {cosine:.3f}; `memstore diff` says how)\n")
    rows = [
        [f"N{neuron}", f"{activation:.4f}", labels.get(neuron, "-")]
        for neuron, activation in islice(trace.items(), SHOWN_NEURONS)
    ]
    print_table(["neuron", "activation", "label"], rows)
    if len(trace) > SHOWN_NEURONS:
        click.echo(f"and {len(trace) - SHOWN_NEURONS} more (--json shows all)")


@click.command("explain")
@store_argument
@click.argument("id", type=int)
@json_option
def explain_command(store: str, id: int, as_json: bool) -> None:
    """Say what one memory means: the neurons that fire for it, the most telling first.

    Share is of the neuron's largest activation, in this store or where the dictionary was written.
    No model is asked.
    """
    with reader(store) as opened:
        found = opened.explain(id)
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(click.wrap_text(printable(found.memory.text), width()) + "\n")
    count = max(sum(fired.strong for fired in found.fires), SHOWN_STRONG)
    print_fired(found.fires[:count])
    if count < len(found.fires):
        click.echo(f"and {len(found.fires) - count} that fire weakly (--json shows all)")


@click.command("diff")
@store_argument
@click.argument("one", type=int)
@click.argument("other", type=int)
@json_option
def diff_command(store: str, one: int, other: int, as_json: bool) -> None:
    """Say what two memories share and what each has alone, in neurons. No model is asked."""
    with reader(store) as opened:
        found = opened.diff(one, other)
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(f"cosine {found.cosine:.4f}")
    both = [min(pair, key=lambda fired: fired.share) for pair in found.shared]
    for title, fires in (
        ("both", both),
        (f"only {one}", found.only_one),
        (f"only {other}", found.only_other),
    ):
        click.echo("\n" + click.style(title, bold=True))
        if fires:
            print_fired(fires[:SHOWN_STRONG])
        else:
            click.echo("nothing")


def print_fired(fires: Sequence[Fired]) -> None:
    """Print neurons that fire, one a row."""
    rows = [
        [
            f"N{f.neuron}",
            f"{f.activation:.4f}",
            f"{f.share:.0%}",
            f"{f.fire_rate:.1%}",
            f.label or "-",
        ]
        for f in fires
    ]
    print_table(["neuron", "activation", "share", "fires for", "label"], rows)


@click.command("list")
@store_argument
@where_options
@click.option(
    "-n", "count", type=click.IntRange(0), default=20, show_default=True, help="How many; 0: all."
)
@json_option
def list_command(store: str, where: Where | None, count: int, as_json: bool) -> None:
    """List memories by id."""
    with reader(store) as opened:
        found = opened.iter(where)
        memories = list(found if count == 0 else islice(found, count))
    if as_json:
        print_json([memory.to_dict() for memory in memories])
        return
    if not memories:
        click.echo("no memories", err=True)
        return
    print_memories(memories)


@click.command("stats")
@store_argument
@json_option
def stats_command(store: str, as_json: bool) -> None:
    """Show counts, categories, encoder and sizes."""
    with reader(store) as opened:
        facts = opened.stats()
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)
