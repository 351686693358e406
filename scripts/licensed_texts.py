"""Collect the texts that may train weights which ship: ``shared/data`` -> two JSONL files.

A source whose stated licence or note restricts it to research or to non-commercial use stays out of
the training file, also where that holds for a part of it only. A sample of what stayed out goes
into a second file, which measures the SAE on texts and kinds of text it never saw.

    python scripts/licensed_texts.py ../shared/data --out build/texts
    # build/texts/train.jsonl  build/texts/unseen.jsonl
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

#: Why a source is left out. A name that ends in "*" stands for all that begin so.
RESTRICTED = {
    "agnews_test": "research, non-commercial",
    "bbc_news": "a set for research use",
    "brown_*": "may be used for non-commercial purposes",
    "cr": "a research set",
    "dair_emotion": "research use",
    "gum_*": "partly CC BY-NC-SA",
    "isear": "research use",
    "locomo": "CC BY-NC 4.0",
    "mr": "a research set",
    "msc_personas": "CC BY-NC 4.0",
    "openstax_*": "CC BY-NC-SA 4.0",
    "sst": "a research set",
    "sts_pairs": "partly CC BY-NC-SA",
    "subj": "a research set",
    "wikihow_steps": "CC BY-NC-SA 3.0",
}
UNSEEN_ROWS = 20_000
SEED = 20_261


def is_restricted(source: str) -> bool:
    return source in RESTRICTED or f"{source.split('_')[0]}_*" in RESTRICTED


def read(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/texts"))
    arguments = parser.parse_args()
    shuffle = random.Random(SEED)
    train: list[dict[str, str]] = []
    unseen: list[dict[str, str]] = []
    for folder in ("corpus", "general"):
        for row in read(arguments.data / folder / "data.jsonl.gz"):
            (unseen if is_restricted(row["source"]) else train).append(row)
    shuffle.shuffle(train)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "train.jsonl", train)
    write(arguments.out / "unseen.jsonl", shuffle.sample(unseen, UNSEEN_ROWS))
    print(f"{len(train)} training texts, {UNSEEN_ROWS} of {len(unseen)} unseen ones")  # noqa: T201 - a script reports on stdout


if __name__ == "__main__":
    main()
