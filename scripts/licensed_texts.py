"""Collect the texts that may train weights which ship: ``shared/data`` -> two JSONL files.

A source is let in only where its stated licence allows commercial use of the *texts*. Rows under
a non-commercial licence, a "research use" note or no statement stay out of the training file; a
sample of them goes into a second file that only measures the SAE on texts it never saw.

    python scripts/licensed_texts.py ../shared/data --out build/texts
    # build/texts/train.jsonl  build/texts/unseen.jsonl
"""

import argparse
import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Left out on purpose although near: dreambank ("MIT (packaging)": says nothing of the dreams),
# happydb_claff, mr, cr, subj, sst, trec6, vaswani (none stated), dair_emotion, isear (research
# use), msc_personas, locomo, agnews_test, sts_pairs (non-commercial), tweeteval (Twitter's terms).
CORPUS = {
    "banking77",  # CC BY 4.0
    "clinc150",  # CC BY 3.0
    "clinc_wiki",  # CC BY 3.0, Wikipedia text CC BY-SA
    "counsel_chat",  # MIT
    "emobank",  # CC BY-SA 4.0
    "goemotions",  # Apache-2.0 / CC BY 4.0
    "memorybank",  # MIT
    "realmem",  # Apache-2.0
    "rwwd",  # GPL-3.0
    "stackoverflow_titles",  # CC BY-SA
}
GENERAL = {
    "biomed_abstracts_mtl",  # CC BY 4.0
    "csabstruct",  # Apache-2.0
    "ewt_answers",  # CC BY-SA 4.0
    "ewt_reviews",  # CC BY-SA 4.0
    "ewt_weblog_newsgroup",  # CC BY-SA 4.0
    "factbook",  # CC0
    "gnome_docs",  # CC BY-SA 3.0
    "jargon",  # public domain
    "masc_written",  # free, commercial use included
    "movie_reviews",  # CC BY 4.0
    "product_reviews",  # CC BY 4.0
    "pubmedqa",  # MIT
    "python_docs",  # PSF licence
    "recipes",  # Unlicense
    "scitldr",  # Apache-2.0
    "shakespeare",  # public domain
    "speeches",  # public domain
    "wiki_split",  # CC BY-SA 4.0
    "wordnet_definition",  # Princeton WordNet licence
    "wordnet_example",  # Princeton WordNet licence
}
# Memories are personal prose: no single source of reference texts may outweigh it.
GENERAL_ROWS_A_SOURCE = 8_000
UNSEEN_ROWS = 20_000
SEED = 20_261


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
    for row in read(arguments.data / "corpus" / "data.jsonl.gz"):
        (train if row["source"] in CORPUS else unseen).append(row)
    taken: Counter[str] = Counter()
    for row in read(arguments.data / "general" / "data.jsonl.gz"):
        if row["source"] in GENERAL and taken[row["source"]] < GENERAL_ROWS_A_SOURCE:
            taken[row["source"]] += 1
            train.append(row)
    shuffle.shuffle(train)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "train.jsonl", train)
    write(arguments.out / "unseen.jsonl", shuffle.sample(unseen, UNSEEN_ROWS))
    print(f"{len(train)} training texts, {UNSEEN_ROWS} of {len(unseen)} unseen ones")  # noqa: T201 - a script reports on stdout


if __name__ == "__main__":
    main()
