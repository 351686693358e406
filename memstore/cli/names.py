"""Completion of names: neurons' labels and lenses, as the shell asks for them."""

from __future__ import annotations

import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from memstore.errors import MemstoreError
from memstore.neurons.dictionary import Dictionary, shipped
from memstore.neurons.lens import lenses_of
from memstore.store import MemoryStore

#: Names offered at once.
OFFERED = 30
#: What comes before the name that is being typed, and the name.
LAST = re.compile(r"(\S*[-+&!*])?(\w*)$")


def complete_name(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of one neuron that may follow."""
    return completed(ctx, "", incomplete)


def complete_expression(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return expressions that what was typed may become: its last name, completed."""
    match = LAST.fullmatch(incomplete)
    return [] if match is None else completed(ctx, match[1] or "", match[2])


def completed(ctx: click.Context, before: str, typed: str) -> list[CompletionItem]:
    """Return names of one word that begin with what was typed, behind what came before.

    Shells put the candidates' common beginning in place of the word, and divide what they get at
    blanks: whatever does not begin with all that was typed, or has a blank, would take away.
    """
    names = [
        name
        for name in names_of(ctx.params.get("store"))
        if name.isidentifier() and name.casefold().startswith(typed.casefold())
    ]
    return [CompletionItem(before + typed + name[len(typed) :]) for name in names[:OFFERED]]


def names_of(store: object) -> list[str]:
    """Return the names that a store's expressions may use, sorted; what ships, where none is."""
    dictionary: Dictionary = shipped()
    own: list[str] = []
    fingerprint = dictionary.fingerprint
    if isinstance(store, str) and Path(store).exists():
        try:
            with MemoryStore.open(store, mode="r") as opened:
                own = opened.neurons.labels() + [lens.name for lens in opened.lenses]
                fingerprint = opened.stats()["fingerprint"]
        except MemstoreError:
            return []  # the command itself will say what is wrong with the store
    read = dictionary.names if fingerprint == dictionary.fingerprint else {}
    return sorted({*own, *read, *(lens.name for lens in lenses_of(fingerprint))})
