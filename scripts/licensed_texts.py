"""Collect the texts that may train weights which ship: ``shared/data`` -> three JSONL files.

A source is let in by its licence, as its SOURCE.md states it. What states none stays out, as does
what is restricted to research or to non-commercial use, also where that holds for a part of it. A
sample of what stayed out goes into a second file, which measures the SAE on sources it never saw.
The texts written for memstore (``scripts/written``) make a third.

    python scripts/licensed_texts.py ../shared/data --out build/texts
    # build/texts/train.jsonl  build/texts/unseen.jsonl  build/texts/written.jsonl
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

#: What each source that is let in states.
LICENSED = {
    "anarchist_faq": "GPL-2",
    "apt_descriptions": "as the packages of Debian",
    "asset_turk_wikipedia": "GPL-3.0, text CC BY-SA",
    "biomed_abstracts_mtl": "CC BY 4.0",
    "biomed_fulltext_mtl": "CC BY 4.0",
    "clinc_wiki": "CC BY 3.0, text CC BY-SA",
    "csabstruct": "Apache-2.0",
    "debian_docs": "GPL-2+",
    "devil_elements": "public domain, or as Debian's copyright file says",
    "dreambank": "MIT",
    "emobank": "CC BY-SA 4.0",
    "ewt_answers": "CC BY-SA 4.0",
    "ewt_reviews": "CC BY-SA 4.0",
    "ewt_weblog_newsgroup": "CC BY-SA 4.0",
    "factbook": "CC0",
    "foldoc": "GFDL",
    "fortunes": "as Debian's copyright file says",
    "gcide": "GPL",
    "gimp_gnucash_help": "GFDL",
    "gnome_docs": "CC BY-SA 3.0",
    "goemotions": "Apache-2.0",
    "jargon": "public domain",
    "libreoffice_help": "MPL-2.0",
    "man_pages": "free, as Debian's copyright file says",
    "masc_written": "free for any use, commercial included",
    "movie_reviews": "CC BY 4.0",
    "patient_leaflets": "distributed with permission",
    "product_reviews": "CC BY 4.0",
    "pubmedqa": "MIT",
    "python_docs": "PSF licence",
    "recipes": "Unlicense",
    "rwwd": "GPL-3.0",
    "scitldr": "Apache-2.0",
    "shakespeare": "public domain",
    "speeches": "public domain",
    "stackoverflow_titles": "CC BY-SA",
    "tweeteval": "Twitter's terms",
    "wiki_split": "CC BY-SA 4.0",
    "wordnet_definition": "WordNet 3.0 licence",
    "wordnet_example": "WordNet 3.0 licence",
}
WRITTEN = Path(__file__).parent / "written"
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
    for folder in ("corpus", "general"):
        for row in read(arguments.data / folder / "data.jsonl.gz"):
            (train if row["source"] in LICENSED else unseen).append(row)
    shuffle.shuffle(train)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "train.jsonl", train)
    write(arguments.out / "unseen.jsonl", shuffle.sample(unseen, UNSEEN_ROWS))
    written = [
        {"text": line, "source": path.stem}
        for path in sorted(WRITTEN.glob("*.txt"))
        for line in path.read_text("utf-8").splitlines()
    ]
    write(arguments.out / "written.jsonl", written)
    counts = f"{len(train)} and {len(written)} training texts"
    print(f"{counts}, {UNSEEN_ROWS} of {len(unseen)} unseen ones")  # noqa: T201 - a script reports on stdout


if __name__ == "__main__":
    main()
