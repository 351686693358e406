"""Queries: search, top, composite, similar."""

from __future__ import annotations

import click

from memstore.cli.names import complete_expression, complete_name
from memstore.cli.options import (
    diverse_option,
    half_life_option,
    json_option,
    k_option,
    read_neuron,
    reader,
    store_argument,
    varied,
    where_options,
    why_option,
)
from memstore.cli.output import print_hits
from memstore.hits import Hits
from memstore.options import By, Scoring
from memstore.view import Where


@click.command("search")
@store_argument
@click.argument("text")
@k_option
@diverse_option
@click.option(
    "--by",
    type=click.Choice(["dense", "trace", "hybrid", "words"]),
    default="dense",
    show_default=True,
    help="Nearness of meaning, of traces, of words, or all fused.",
)
@click.option(
    "--steer",
    metavar="EXPR",
    shell_complete=complete_expression,
    help="Neuron expression to add to the score.",
)
@click.option(
    "--idf/--no-idf", default=None, help="Let rare neurons count more (trace, hybrid: on)."
)
@half_life_option
@where_options
@why_option
@json_option
def search_command(
    store: str,
    text: str,
    k: int,
    diverse: bool,
    by: By,
    steer: str | None,
    idf: bool | None,
    half_life: str | None,
    where: Where | None,
    why: bool,
    as_json: bool,
) -> None:
    """Find the memories nearest to TEXT."""
    with reader(store) as opened:

        def ask(count: int) -> Hits:
            return opened.search(
                text, count, by=by, where=where, steer=steer, half_life=half_life, idf=idf
            )

        hits = varied(opened, ask, k, diverse)
    print_hits(hits, as_json=as_json, why=why)


@click.command("top")
@store_argument
@click.argument("neuron", shell_complete=complete_name)
@k_option
@diverse_option
@where_options
@why_option
@json_option
def top_command(
    store: str,
    neuron: str,
    k: int,
    diverse: bool,
    where: Where | None,
    why: bool,
    as_json: bool,
) -> None:
    """Find the memories for which NEURON (number or label) fires strongest."""
    ref = read_neuron(neuron)
    with reader(store) as opened:
        hits = varied(opened, lambda count: opened.top(ref, count, where=where), k, diverse)
    print_hits(hits, as_json=as_json, why=why)


# An expression may begin with a minus, which is no option here.
@click.command("composite", context_settings={"ignore_unknown_options": True})
@store_argument
@click.argument("expression", metavar="EXPR", shell_complete=complete_expression)
@k_option
@diverse_option
@click.option("--all", "everything", is_flag=True, help="Scores of 0 and below too.")
@click.option(
    "--by",
    type=click.Choice(["trace", "dense"]),
    help="What fired, or how far vectors point that way. Default: trace; a lens alone knows.",
)
@half_life_option
@where_options
@why_option
@json_option
def composite_command(
    store: str,
    expression: str,
    k: int,
    diverse: bool,
    everything: bool,
    by: Scoring | None,
    half_life: str | None,
    where: Where | None,
    why: bool,
    as_json: bool,
) -> None:
    """Find the memories that fit a neuron expression best: "+15 -5".

    Weights: "2*15 - 0.5*5". Conditions: "15 & 88>0.3 & !7". Labels and lenses: "+grief -routine".
    """
    with reader(store) as opened:
        least = None if everything else 0.0

        def ask(count: int) -> Hits:
            return opened.composite(
                expression, count, where=where, min_score=least, half_life=half_life, by=by
            )

        hits = varied(opened, ask, k, diverse)
    print_hits(hits, as_json=as_json, why=why)


@click.command("similar")
@store_argument
@click.argument("id", type=int)
@k_option
@diverse_option
@click.option(
    "--by",
    type=click.Choice(["dense", "trace"]),
    default="dense",
    show_default=True,
    help="Nearness of meaning or of traces.",
)
@click.option("--idf/--no-idf", default=None, help="Let rare neurons count more (trace: on).")
@half_life_option
@where_options
@why_option
@json_option
def similar_command(
    store: str,
    id: int,
    k: int,
    diverse: bool,
    by: By,
    idf: bool | None,
    half_life: str | None,
    where: Where | None,
    why: bool,
    as_json: bool,
) -> None:
    """Find the memories nearest to the memory with this ID."""
    with reader(store) as opened:

        def ask(count: int) -> Hits:
            return opened.similar(id, count, by=by, where=where, half_life=half_life, idf=idf)

        hits = varied(opened, ask, k, diverse)
    print_hits(hits, as_json=as_json, why=why)
