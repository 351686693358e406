"""Lay the retrieval sets of ``shared/data`` out as BEIR's, as ``memstore evaluate`` reads them.

LoCoMo's observations are the memories; each question is asked within its own conversation, and an
observation answers it where their evidence meets. Adversarial questions, which have no answer as
asked, make a set of their own. SciFact: the test questions over titles and abstracts.

    python scripts/retrieval_sets.py ../shared/data --out build/retrieval
    # build/retrieval/{locomo,locomo-adversarial,scifact}/{corpus.jsonl,queries.jsonl,qrels.tsv}
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def pairs(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text("utf-8").splitlines()[1:]
    return [(fields[0], fields[1]) for fields in (line.split("\t") for line in lines)]


def write(folder: Path, corpus: list[Row], queries: list[Row], qrels: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    found = "".join(f"{line}\t1\n" for line in qrels)
    (folder / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{found}", "utf-8")


def locomo(source: Path, out: Path) -> None:
    observations = read(source / "observations.jsonl")
    corpus = [
        {"_id": row["id"], "text": row["text"], "group": row["conversation"]}
        for row in observations
    ]
    evidence: dict[str, set[str]] = {}
    for question, turn in pairs(source / "qrels.tsv"):
        evidence.setdefault(question, set()).add(turn)
    for name, adversarial in (("locomo", False), ("locomo-adversarial", True)):
        queries, qrels = [], []
        for row in read(source / "queries.jsonl"):
            if (row["category"] == "adversarial") is not adversarial:
                continue
            queries.append({"_id": row["id"], "text": row["text"], "group": row["conversation"]})
            qrels += [
                f"{row['id']}\t{observation['id']}"
                for observation in observations
                if observation["conversation"] == row["conversation"]
                and evidence.get(row["id"], set()) & set(observation["evidence"])
            ]
        write(out / name, corpus, queries, qrels)


def scifact(source: Path, out: Path) -> None:
    write(
        out / "scifact",
        [{"_id": row.pop("id"), **row} for row in read(source / "corpus.jsonl")],
        [{"_id": row.pop("id"), **row} for row in read(source / "queries.jsonl")],
        ("\t".join(pair) for pair in pairs(source / "qrels.tsv")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/retrieval"))
    arguments = parser.parse_args()
    locomo(arguments.data / "locomo", arguments.out)
    scifact(arguments.data / "scifact", arguments.out)


if __name__ == "__main__":
    main()
