"""Queries: search, top, composite, similar."""

from __future__ import annotations

import click

from memstore.cli.options import (
    half_life_option,
    json_option,
    k_option,
    read_neuron,
    read_where,
    reader,
    store_argument,
    where_options,
    why_option,
)
from memstore.cli.output import print_hits
from memstore.search import By


@click.command("search")
@store_argument
@click.argument("text")
@k_option
@click.option(
    "--by",
    type=click.Choice(["dense", "trace", "hybrid", "words"]),
    default="dense",
    show_default=True,
    help="Nearness of meaning, of traces, of words, or all fused.",
)
@click.option("--steer", metavar="EXPR", help="Neuron expression to add to the score.")
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
    by: By,
    steer: str | None,
    idf: bool | None,
    half_life: str | None,
    category: str | None,
    where: str | None,
    why: bool,
    as_json: bool,
) -> None:
    """Find the memories nearest to TEXT."""
    with reader(store) as opened:
        hits = opened.search(
            text,
            k,
            by=by,
            where=read_where(where, category),
            steer=steer,
            half_life=half_life,
            idf=idf,
        )
    print_hits(hits, as_json=as_json, why=why)


@click.command("top")
@store_argument
@click.argument("neuron")
@k_option
@where_options
@why_option
@json_option
def top_command(
    store: str,
    neuron: str,
    k: int,
    category: str | None,
    where: str | None,
    why: bool,
    as_json: bool,
) -> None:
    """Find the memories for which NEURON (number or label) fires strongest."""
    ref = read_neuron(neuron)
    with reader(store) as opened:
        hits = opened.top(ref, k, where=read_where(where, category))
    print_hits(hits, as_json=as_json, why=why)


# An expression may begin with a minus, which is no option here.
@click.command("composite", context_settings={"ignore_unknown_options": True})
@store_argument
@click.argument("expression", metavar="EXPR")
@k_option
@click.option("--all", "everything", is_flag=True, help="Scores of 0 and below too.")
@half_life_option
@where_options
@why_option
@json_option
def composite_command(
    store: str,
    expression: str,
    k: int,
    everything: bool,
    half_life: str | None,
    category: str | None,
    where: str | None,
    why: bool,
    as_json: bool,
) -> None:
    """Find the memories that fit a neuron expression best: "+15 -5".

    Weights: "2*15 - 0.5*5". Conditions: "15 & 88>0.3 & !7". Labels: "+grief -'first day'".
    """
    with reader(store) as opened:
        hits = opened.composite(
            expression,
            k,
            where=read_where(where, category),
            min_score=None if everything else 0.0,
            half_life=half_life,
        )
    print_hits(hits, as_json=as_json, why=why)


@click.command("similar")
@store_argument
@click.argument("id", type=int)
@k_option
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
    by: By,
    idf: bool | None,
    half_life: str | None,
    category: str | None,
    where: str | None,
    why: bool,
    as_json: bool,
) -> None:
    """Find the memories nearest to the memory with this ID."""
    with reader(store) as opened:
        hits = opened.similar(
            id, k, by=by, where=read_where(where, category), half_life=half_life, idf=idf
        )
    print_hits(hits, as_json=as_json, why=why)
