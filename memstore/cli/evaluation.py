"""Evaluating SAEs: measures on held-out texts, probing, retrieval, stability."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from memstore.cli.lab import (
    cache_option,
    embed,
    embedder_option,
    field_option,
    read_texts,
    text_of,
)
from memstore.cli.options import json_option
from memstore.cli.output import print_facts, print_json
from memstore.errors import InvalidFile, InvalidInput, MissingExtra, brief
from memstore.files import read_rows
from memstore.sae.encode import SAE
from memstore.sae.retrieval import Judged, judged
from memstore.tables import markdown, shown
from memstore.training import held_out_of, require_folder, require_same_split, text_digest

if TYPE_CHECKING:
    from memstore.evaluation import Evaluation, Labelled

T = TypeVar("T")
PAGE, FIGURES = "evaluation.md", "evaluation.json"


@click.command("evaluate")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("files", nargs=-1, required=True)
@click.option("--held-out", is_flag=True, help="Only the rows its training held out.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path, file_okay=False),
    multiple=True,
    help="Another weights folder to measure beside it; also says which neurons are the same.",
)
@click.option(
    "--labelled",
    multiple=True,
    metavar="FILE:FIELD",
    help="Texts with labels (one, or a list), for k-sparse probing.",
)
@click.option(
    "--retrieval",
    type=click.Path(path_type=Path, file_okay=False),
    multiple=True,
    help="Folder with corpus.jsonl, queries.jsonl and qrels.tsv, as BEIR lays them out.",
)
@click.option("--out", type=click.Path(path_type=Path), help=f"Folder for {PAGE} and {FIGURES}.")
@field_option
@embedder_option
@cache_option
@json_option
def evaluate_command(
    folder: Path,
    files: tuple[str, ...],
    held_out: bool,
    beside: tuple[Path, ...],
    labelled: tuple[str, ...],
    retrieval: tuple[Path, ...],
    out: Path | None,
    text: str,
    embedder: str | None,
    cache: Path,
    as_json: bool,
) -> None:
    """Measure the SAE in FOLDER on the texts of FILES.

    Prints FVU, L0, dead neurons, fire rates, decoder cosines and the cohesion of each neuron's
    texts; with --labelled what few neurons know of a label, beside raw dimensions and PCA; with
    --retrieval nDCG@10 of traces beside vectors. A --beside of the same sizes is matched with it
    neuron by neuron.
    """
    if labelled or beside:
        require_scikit_learn()
    from memstore.evaluation import evaluate

    if out is not None:
        require_folder(out)
    saes = by_name(
        "weights folder", ((path.resolve().name, SAE.load(path)) for path in (folder, *beside))
    )
    texts, _ = read_texts(files, text, text)
    vectors = embed(texts, embedder, cache)
    for name, sae in saes.items():
        if sae.config.dimension != vectors.shape[1]:
            raise InvalidInput(
                f"{name} is for vectors of {sae.config.dimension} dimensions, these have "
                f"{vectors.shape[1]}: name the --embedder it was trained on"
            )
    if held_out:
        require_same_split(folder, beside)
        vectors = vectors[held_out_of(folder, vectors, text_digest(texts))]

    def embedded(more: list[str]) -> Any:
        return embed(more, embedder, cache)

    found = evaluate(
        saes,
        vectors,
        by_name("--labelled", (read_labelled(given, text, embedded) for given in labelled)),
        by_name("--retrieval", ((p.resolve().name, read_judged(p, embedded)) for p in retrieval)),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        print_tables(found)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / PAGE).write_text(page(found), "utf-8")
        (out / FIGURES).write_text(json.dumps(found.to_dict(), indent=2) + "\n", "utf-8")


def by_name(what: str, given: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return what is given by its name in the tables. Raises ``InvalidInput`` for a name twice."""
    from memstore.evaluation import PCA, RAW

    found: dict[str, T] = {}
    for name, one in given:
        if name in found or name in (RAW, PCA):
            raise InvalidInput(f"{what}: two have the same name, {name!r}: rename one")
        found[name] = one
    return found


def require_scikit_learn() -> None:
    """Raise ``MissingExtra`` without what fits probes and matches neurons: before hours of work."""
    try:
        import scipy  # noqa: F401 - asked for, not used here
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train", "probing and matching") from error


def print_tables(found: Evaluation) -> None:
    """Print every table: figures by name, a block a row."""
    for number, (title, rows) in enumerate(found.tables()):
        click.echo(("\n" if number else "") + click.style(title, bold=True))
        for row in rows:
            print_facts(shown(row))


def page(found: Evaluation) -> str:
    """Return the tables in Markdown."""
    return "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in found.tables()) + "\n"


def read_labelled(given: str, text: str, embedded: Any) -> tuple[str, Labelled]:
    """Return the name and the labelled texts of a FILE:FIELD option."""
    from memstore.evaluation import Labelled

    file, colon, name = given.rpartition(":")
    if not colon or not file or not name:
        raise InvalidInput(f"--labelled {given!r}: write it like --labelled notes.jsonl:label")
    texts, labels, known = [], [], set()
    for row in read_rows(file, None, text):
        own, given_text = row.get(name), text_of(file, row, text)
        # A text once more, in the other part of a split, would be known there.
        words = " ".join(given_text.casefold().split())
        if own is None or own == "" or words in known:
            continue
        known.add(words)
        texts.append(given_text)
        labels.append(frozenset(map(str, own if isinstance(own, list) else [own])))
    if not texts:
        raise InvalidFile(f"{file}: no row has a field {name!r}: name the one with the label")
    path = Path(file)
    title = path.parent.resolve().name if path.name.startswith("data.") else path.stem
    return title, Labelled(embedded(texts), labels)


def read_judged(folder: Path, embedded: Any) -> Judged:
    """Return the questions of a folder laid out as BEIR's.

    ``corpus.jsonl`` and ``queries.jsonl`` hold ``_id`` (or ``id``), ``text``, a ``title`` before
    it, and a ``group`` where a question is only asked within its own; ``qrels.tsv`` (or
    ``qrels/test.tsv``) holds query, text, score, perhaps under a line of heads.
    """
    corpus, queries = (read_named(folder / name) for name in ("corpus.jsonl", "queries.jsonl"))
    path = folder / "qrels.tsv"
    path = path if path.exists() else folder / "qrels" / "test.tsv"
    answers: dict[int, set[int]] = {}
    at, asked = ({row: place for place, row in enumerate(rows)} for rows in (corpus, queries))
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror}: check the path") from error
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path} is not UTF-8: convert it first") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if not line.strip() or (number == 1 and not is_number(fields[-1])):
            continue
        try:
            query, text, score = asked[fields[0]], at[fields[1]], float(fields[2])
        except (IndexError, KeyError, ValueError) as error:
            raise InvalidFile(f"{path} line {number}: {error} is not in the folder") from error
        if score > 0:
            answers.setdefault(query, set()).add(text)
    if not answers:
        raise InvalidFile(f"{path} names no answers")
    grouped = ["group" in row for rows in (corpus, queries) for row in rows.values()]
    if any(grouped) and not all(grouped):
        raise InvalidFile(f"{folder}: give every text and every question a group, or none of them")
    names = [[str(r["group"]) for r in rows.values()] for rows in (corpus, queries) if any(grouped)]
    return judged(
        embedded([passage(row) for row in corpus.values()]),
        embedded([passage(row) for row in queries.values()]),
        {query: frozenset(texts) for query, texts in answers.items()},
        *names,
    )


def is_number(value: str) -> bool:
    """Return whether a field is a score, not the head of a column of them."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def read_named(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a JSON Lines file by their id."""
    rows = {}
    for row in read_rows(str(path), None, "text"):
        name = row.get("_id", row.get("id"))
        if name is None:
            raise InvalidFile(f"{path}: a row has no _id")
        if str(name) in rows:
            raise InvalidFile(f"{path}: two rows have the _id {brief(name)}: give each its own")
        rows[str(name)] = row
    return rows


def passage(row: dict[str, Any]) -> str:
    """Return title and text, as BEIR has them embedded."""
    return f"{row.get('title') or ''} {row['text']}".strip()
