"""Completion of names: neurons' labels and lenses, as the shell asks for them."""

from __future__ import annotations

import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from memstore.core.expression import spell
from memstore.errors import MemstoreError
from memstore.neurons.dictionary import Dictionary, shipped
from memstore.neurons.lens import lenses_of
from memstore.store import MemoryStore

#: Names offered at once.
OFFERED = 30
#: What comes before the name that is being typed, and the name, perhaps in quotes.
LAST = re.compile(r"(.*?[-+&!*]\s*)?(['\"]?)([^-+&!*'\"]*)$", re.DOTALL)


def complete_name(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names that may follow: of one neuron."""
    typed = incomplete.strip("'\"")
    return [CompletionItem(name) for name in starting(names_of(ctx.params.get("store")), typed)]


def complete_expression(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return expressions that what was typed may become: its last name, completed."""
    match = LAST.match(incomplete)
    if match is None:
        return []
    before, typed = match[1] or "", match[3]
    found = starting(names_of(ctx.params.get("store")), typed)
    return [CompletionItem(before + (n if n.isidentifier() else spell(n))) for n in found]


def starting(names: list[str], typed: str) -> list[str]:
    """Return the names that begin so, then those of which a word does."""
    wanted = typed.casefold()
    first = [name for name in names if name.casefold().startswith(wanted)]
    then = [name for name in names if f" {wanted}" in name.casefold() and name not in first]
    return [*first, *then][:OFFERED]


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
