"""What strangers hand things in to: how an input is made for each, and what trying it means."""

from __future__ import annotations

import gzip
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import mutate
import numpy as np
from archive_surfaces import Backups, Exports
from index_surfaces import IndexOfStore, IndexReaders, filled
from safetensors import numpy as safetensors

from memstore import MemoryStore, interchange
from memstore.catalog.memories import from_microseconds
from memstore.cli.options import read_where
from memstore.core.expression import Expression
from memstore.core.parser import parse
from memstore.errors import MemstoreError, UnknownNeuron
from memstore.files import numbered_rows
from memstore.rows import check_half_life, check_row, check_time, pick
from memstore.sae import weights
from memstore.sae.config import SAEConfig
from tests.conftest import NEURONS, make_encoder

NAMES = {name: name for name in ("text", "category", "key", "occurred_at", "metadata")}
SAES = (
    {"architecture": "topk", "dimension": 4, "neurons": 8, "k": 2},
    {"architecture": "jump_relu", "dimension": 4, "neurons": 5, "k": 2},
    {"architecture": "matryoshka", "dimension": 4, "neurons": 8, "k": 2},
    {"architecture": "sparse_memory_text", "dimension": 4, "neurons": 6, "event_size": 3},
)


FORMATS = {
    "jsonl": (
        b'{"text": "a quarrel", "category": "Routine", "n": [1, {"a": null}]}\n"plain"\n',
        b'\xef\xbb\xbf{"text": "\\ud83d\\ude00", "occurred_at": "2026-05-01T09:30"}\r\n\n',
    ),
    "json": (b'[{"text": "a", "key": 1, "metadata": {"x": 1e3}}, "b"]', b'["a", "b"]'),
    "csv": (b'text,category,key\r\n"a, ""b""",c,1\r\nx,y,2\r\n', b"text\na\n\n'b'\n"),
    "text": (b"a quarrel\nrain again\n\n\xc3\xa9\n", b"one line"),
}


class Expressions:
    """Text and mappings, resolved; what is understood is spelled and understood again."""

    seeds = (
        "2*15 - 0.5*'routine' & 88>0.3 & !7",
        "+3 -5",
        'N4 >= 1e-3 & "a b"',
        "1\u22122\u00d73 \u2013 9",
    )
    words = (
        "&",
        "!",
        ">=",
        "<",
        "'",
        '"',
        "\\",
        "1e",
        "9" * 20,
        "N",
        "\u00d7",
        "\u2212",
        "٣",
        ".",
        "é",
        " ",
    )

    def __init__(self, folder: Path) -> None:
        self.store = filled(":memory:", 20)

    def make(self, dice: Random) -> Any:
        kind = dice.randrange(5)
        if kind == 0:
            return mutate.weights_of_neurons(dice)
        text = mutate.expression(dice) if kind < 3 else dice.choice(self.seeds)
        return text if kind == 1 else mutate.mutated_text(dice, [text or "1"], self.words)

    def attempt(self, made: Any) -> None:
        read = Expression.of(made)
        assert parse(str(read)) == read
        read.resolve(self.number, NEURONS)
        self.store.composite(made, 3)

    @staticmethod
    def number(name: str) -> int:
        if name != "grief":
            raise UnknownNeuron(name)
        return 7


class Filters:
    """Filters as Python values and as JSON; one and its opposite share the store between them."""

    words = ('"$ne"', '"$in"', "[", "{", "}", "null", "1e999", "-0", '"mood"', '"a.b"', "\\u0000")

    def __init__(self, folder: Path) -> None:
        self.store = filled(":memory:", 20)

    def make(self, dice: Random) -> Any:
        made = mutate.where(dice)
        if dice.random() < 0.7:
            return made
        try:
            text = json.dumps(made, default=repr, skipkeys=True)
        except (ValueError, RecursionError):  # longer or deeper than JSON is written
            return made
        return mutate.mutated_text(dice, [text], self.words)

    def attempt(self, made: Any) -> None:
        asked = read_where(made, None, None) if isinstance(made, str) else made
        passing = self.store.count(asked)
        found = self.store.composite("!9", 20, where=asked)
        silent = self.store.composite("9>0", 20, where=asked)
        assert len(found) + len(silent) == passing
        if asked:
            try:
                assert self.store.count({"$nor": [asked]}) == 20 - passing
            except MemstoreError:  # nested one deeper than it may be
                return


class Files:
    """Files to import: each row that comes out of one is checked as the command line does."""

    words = (b'"', b"\0", b"\xff", b"\r", b"\n", b"\xef\xbb\xbf", b"[" * 3000, b"1" * 5000)
    words += (
        b'{"text":',
        b"\\ud800",
        b"NaN",
        b"1e999",
        b",",
        b"text",
        b'"occurred_at":"0001-01-01"',
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, dice: Random) -> Any:
        kind = dice.choice(list(FORMATS))
        data = mutate.mutated(dice, FORMATS[kind], self.words)
        if dice.random() < 0.7:
            return f"x.{kind}", kind, data
        packed = gzip.compress(data, 1, mtime=0)
        if dice.random() < 0.7:
            packed = mutate.mutated(dice, [packed, packed + packed], self.words)
        return f"x.{kind}.gz", kind, packed

    def attempt(self, made: Any) -> None:
        name, kind, data = made
        file = self.folder / name
        mutate.replace(file, data)
        for _, row in numbered_rows(str(file), kind, "text"):
            check_row(pick(row, NAMES))


class Rows:
    """Rows of any Python values; what is accepted is stored as it was given."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore.open(":memory:", encoder=make_encoder())

    def make(self, dice: Random) -> Any:
        return mutate.row(dice)

    def attempt(self, made: Any) -> None:
        row = check_row(made)
        assert isinstance(json.loads(row.metadata), dict)
        if len(row.text) > 90:  # one in some, as storing takes longer than all else
            stored = self.store.get(self.store.insert_many([made])[0])
            self.store.delete(stored.id)
            assert (stored.text, stored.category, stored.key) == (row.text, row.category, row.key)
            given = None if isinstance(made, str) else made.get("metadata")
            assert stored.metadata == json.loads(json.dumps(given or {}))


class Times:
    """Times and half-lives; what is read as a time is the one that Python reads."""

    seeds = ("2026-05-01T09:30", "2026-05-01T09:30:00.123456+02:00", "20260501T0930Z", "2026-W18-5")
    words = (
        "T",
        "Z",
        "+14:00",
        "-23:59",
        "0001-01-01",
        "9999-12-31",
        "24:00",
        "٣",
        "\0",
        "y",
        "min",
    )
    spans = ("90d", "12.5 h", " 3 min ", "1w", "0.0001s", "30000y")

    def __init__(self, folder: Path) -> None:
        self.filters = Filters(folder)

    def make(self, dice: Random) -> Any:
        kind = dice.randrange(8)
        if kind == 0:
            return mutate.value(dice)
        return mutate.mutated_text(dice, self.seeds if kind < 5 else self.spans, self.words)

    def attempt(self, made: Any) -> None:
        refused = 0
        for tried in (self.time, self.half_life, self.filter):
            try:
                tried(made)
            except MemstoreError as error:
                refused, last = refused + 1, error
        if refused == 3:
            raise last

    def time(self, made: Any) -> None:
        read = check_time(made)
        if isinstance(made, str):
            expected = datetime.fromisoformat(made)
            expected = expected if expected.tzinfo else expected.replace(tzinfo=UTC)
            assert from_microseconds(read) == expected

    @staticmethod
    def half_life(made: Any) -> None:
        assert made is None or 0 < check_half_life(made) < 1e12

    def filter(self, made: Any) -> None:
        self.filters.store.count({"occurred_at": {"$gt": made}})


class Weights:
    """Folders of weights of every kind; what can be loaded can encode."""

    words = (
        b"null",
        b"-1",
        b"[]",
        b"{}",
        b"1e99",
        b"true",
        b'"relu"',
        b'"F64"',
        b'"BF16"',
        b"[4,1]",
    )
    words += (b'"shape":[]', b'"topk"', b"[" * 3000, b"\0", b'"../x"', b"16777217", b'"BOOL"')

    def __init__(self, folder: Path) -> None:
        self.vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        logging.disable(logging.WARNING)
        self.whole = {}
        for number, fields in enumerate(SAES):
            config = SAEConfig(**fields)
            weights.save(folder / str(number), config, tensors_of(config.shapes()))
        foreign(folder)
        for file in folder.rglob("*.*"):
            if file.is_file():
                self.whole[file] = file.read_bytes()

    def make(self, dice: Random) -> Any:
        file = dice.choice(sorted(self.whole))
        if file.suffix == ".json" or dice.random() < 0.2:
            return file, mutate.mutated(dice, [self.whole[file]], self.words)
        if dice.random() < 0.4:
            return file, mutate.relabelled(dice, self.whole[file], self.words)
        tensors = safetensors.load(self.whole[file])
        mutate.forged(dice, {}, tensors)
        return file, safetensors.save({n: np.ascontiguousarray(t) for n, t in tensors.items()})

    def attempt(self, made: Any) -> None:
        file, data = made
        mutate.replace(file, data)
        folder = file.parent.parent if file.parent.name == "sae" else file.parent
        try:
            sae = interchange.read(folder)
            vectors = np.resize(self.vectors, (3, sae.config.dimension))
            assert len(sae.encode(vectors)) == 3
            assert sae.fingerprint
        finally:
            mutate.replace(file, self.whole[file])


def tensors_of(shapes: Any) -> dict[str, Any]:
    dice = np.random.default_rng(1)
    return {
        name: np.abs(dice.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()
    }


def foreign(folder: Path) -> None:
    """Write a SparseEncoder's folder and one of SAELens."""
    (folder / "sparse" / "sae").mkdir(parents=True)
    modules = [{"idx": 0, "path": "sae", "type": "x.SparseAutoEncoder"}]
    (folder / "sparse" / "modules.json").write_text(json.dumps(modules))
    settings = {"input_dim": 4, "hidden_dim": 8, "k": 2, "normalize": False}
    (folder / "sparse" / "sae" / "config.json").write_text(json.dumps(settings))
    shapes = {"encoder.weight": (8, 4), "latent_bias": (8,), "pre_bias": (4,)}
    safetensors.save_file(tensors_of(shapes), folder / "sparse" / "sae" / "model.safetensors")
    (folder / "lens").mkdir()
    settings = {"architecture": "topk", "k": 2, "apply_b_dec_to_input": False}
    settings |= {"activation_fn_kwargs": {"k": 2}, "rescale_acts_by_decoder_norm": True}
    (folder / "lens" / "cfg.json").write_text(json.dumps(settings))
    shapes = {"W_enc": (4, 8), "W_dec": (8, 4), "b_enc": (8,), "b_dec": (4,)}
    safetensors.save_file(tensors_of(shapes), folder / "lens" / "sae_weights.safetensors")


SURFACES = {
    "expressions": Expressions,
    "filters": Filters,
    "files": Files,
    "rows": Rows,
    "times": Times,
    "index": IndexReaders,
    "store": IndexOfStore,
    "weights": Weights,
    "backups": Backups,
    "exports": Exports,
}
