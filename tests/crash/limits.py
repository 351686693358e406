"""Things far too large to be taken in: each prepares a file or a call, and returns the attempt."""

from __future__ import annotations

import gzip
import json

import mutate
import numpy as np
from index_surfaces import filled
from safetensors import numpy as safetensors

from memstore import MemoryStore, interchange
from memstore.cli.options import read_where
from memstore.core.expression import Expression
from memstore.core.parser import MAX_LENGTH
from memstore.files import numbered_rows
from memstore.index import files
from memstore.rows import check_row
from tests.conftest import make_encoder


def sparse(kind):
    """Two gigabytes of nothing, which take no space: a line without an end."""

    def prepare(folder, _):
        file = folder / f"x.{kind}"
        with file.open("wb") as made:
            made.truncate(2 << 30)
        return lambda: sum(1 for _ in numbered_rows(str(file), kind, "text"))

    return prepare


def bomb(kind, piece, first=b""):
    """A gzip file of so many MiB that repeats a piece: itself a few kilobytes a gigabyte."""

    def prepare(folder, size):
        file = folder / f"x.{kind}.gz"
        block = piece * (16 * 2**20 // len(piece))
        file.write_bytes(gzip.compress(first) + gzip.compress(block, 6) * (size // 16))
        return lambda: sum(1 for _ in numbered_rows(str(file), kind, "text"))

    return prepare


def asked(question):
    """A question to a store of a few memories."""

    def prepare(folder, _):
        store = filled(":memory:", 20)
        store.neurons.label(1, "grief")
        return lambda: question(store)

    return prepare


def longest(piece, last="", first=""):
    """The longest expression there may be, of one piece again and again."""
    count = (MAX_LENGTH - len(first + last)) // len(piece)
    return asked(lambda s: s.composite(first + piece * count + last))


def shared(levels):
    """Return lists in lists in which each stands ten times: small, and endless to walk."""
    value = [1]
    for _ in range(levels):
        value = [value] * 10
    return value


def categories(folder, size):
    store = MemoryStore.open(folder / "store.db", encoder=make_encoder())

    def insert():
        rows = ({"text": f"memory {i}", "category": f"c{i}"} for i in range(size))
        assert len(store.insert_many(rows)) == len(store.stats()["categories"]) == size
        assert store.count({"category": f"c{size - 1}"}) == 1
        store.close()

    return insert


def index_header(items):
    """An index file that claims an array of so many items."""

    def prepare(folder, _):
        files.write(folder / "x.idx", "neurons", {}, {"a": np.zeros(3, np.uint8)})
        raw = (folder / "x.idx").read_bytes()
        header = json.loads(raw[16 : 16 + int.from_bytes(raw[8:12], "little")])
        header["arrays"][0]["shape"] = [items]
        (folder / "x.idx").write_bytes(mutate.sealed(raw, json.dumps(header).encode()))
        return lambda: files.read(folder / "x.idx", "neurons")

    return prepare


def multiplying_weights(folder, _):
    """A megabyte of SAELens weights whose shapes, put together, make a matrix of 40 GB."""
    n = 100_000
    tensors = {"W_enc": np.ones((n, 1)), "W_dec": np.ones((n, 1)), "b_enc": np.ones(1)}
    tensors = {name: t.astype(np.float32) for name, t in {**tensors, "b_dec": np.ones(n)}.items()}
    safetensors.save_file(tensors, folder / "sae_weights.safetensors")
    settings = {"architecture": "topk", "k": 1, "rescale_acts_by_decoder_norm": True}
    (folder / "cfg.json").write_text(json.dumps(settings))
    return lambda: interchange.read(folder)


DEEP = mutate.deep(10_000, {"x": 1}, lists=False)
#: Name -> what prepares the attempt, from (folder, size).
LIMITS = {
    **{f"a line of 2 GB of {kind}": sparse(kind) for kind in ("jsonl", "text", "csv", "json")},
    "a gzip bomb of one line": bomb("jsonl", b" "),
    "a gzip bomb of long lines": bomb("jsonl", b" " * (2**20 - 1) + b"\n"),
    "a gzip bomb of a JSON array": bomb("json", b" "),
    "a JSON line of many values": bomb("jsonl", b'[{"":0},' * 2**17 + b"\n"),
    "a CSV row of gigabytes in short lines": bomb("csv", b'xy","\n', first=b'"\n'),
    "a filter nested 10,000 deep": asked(lambda s: s.count({"x": DEEP})),
    "a filter of 10,000 $not": asked(lambda s: s.count(mutate.deep(10_000, {}, lists=False))),
    "a filter of 10,000 lists": asked(lambda s: s.count({"x": mutate.deep(10_000, 1, lists=True)})),
    "a filter nested 10,000 deep, in a query": asked(lambda s: s.top(1, where={"x": DEEP})),
    "a filter nested 10,000 deep, as JSON": asked(
        lambda s: s.count(read_where('{"a":' * 10_000 + "1" + "}" * 10_000, None, None))
    ),
    "a filter that names one list without end": asked(lambda s: s.count({"x": shared(30)})),
    "metadata that names one list without end": asked(
        lambda s: s.insert("a", metadata={"x": shared(30)})
    ),
    "metadata nested 100,000 deep": asked(
        lambda s: check_row({"text": "a", "metadata": mutate.deep(100_000, {}, lists=False)})
    ),
    "an expression of 1 MB": asked(lambda s: s.composite("1+" * 499_999 + "1")),
    "an expression of terms": longest("1+", "1"),
    "an expression of conditions": longest("1&", "1"),
    "an expression of silent neurons": longest("!1&", "!1"),
    "an expression of signs": longest("-"),
    "an expression of one name": longest("x"),
    "an expression of one quote": longest("\\", first="'"),
    "an expression of one digit": longest("1", "*2"),
    "an expression of one label": longest("grief+", "grief"),
    "an expression of 100,000 times one label": asked(
        lambda s: s.composite(Expression((("grief", 1.0),) * 100_000))
    ),
    "an index of 2**60 items": index_header(2**60),
    "an index of 2**70 items": index_header(2**70),
    "weights that multiply": multiplying_weights,
    "categories": categories,
}
