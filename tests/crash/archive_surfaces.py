"""Surfaces to fuzz: backups and their manifests, damaged stores, encoded exports."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import mutate

from memstore import MemoryStore, backups
from memstore.catalog import salvage
from memstore.errors import StoreDamaged
from tests.conftest import make_encoder

ENCODER = make_encoder()


class Backups:
    """A backup's copy, its manifest, a WAL beside it: verified, and read page by page."""

    words = (
        b"null",
        b"[]",
        b"-1",
        b'"sha256"',
        b"{}",
        b"9" * 40,
        b"[" * 3000,
        b"SQLite format 3\0",
    )

    def __init__(self, folder: Path) -> None:
        self.copy = folder / "copy.db"
        with MemoryStore.open(folder / "store.db", encoder=ENCODER) as store:
            store.insert_many([f"memory {i} " + "word " * (i % 7 * 100) for i in range(60)])
            store.backup(self.copy)
            store.update(3, text="in the WAL")
            wal = (folder / "store.db-wal").read_bytes()
        manifest = backups.manifest_path(self.copy)
        self.files = {
            manifest: manifest.read_bytes(),
            self.copy: self.copy.read_bytes(),
            self.copy.with_name(self.copy.name + "-wal"): wal,
        }

    def make(self, dice: Random) -> Any:
        file = dice.choice(list(self.files))
        return file, mutate.mutated(dice, [self.files[file]], self.words)

    def attempt(self, made: Any) -> None:
        file, data = made
        manifest, copy, wal = self.files
        for path in (manifest, copy):
            mutate.replace(path, data if path == file else self.files[path])
        if file == wal:
            mutate.replace(wal, data)
        try:
            found, _ = salvage.read(copy)
            assert file != manifest or (len(found) == 60 and all(each.sound for each in found))
            if file != wal:  # SQLite would play it back, and remove it
                problems = backups.verify(copy)
                same = data == self.files[file]
                assert problems == [] or not same
                if problems:
                    raise StoreDamaged(problems[0])
                assert file == manifest or same, "a changed copy went unnoticed"
        finally:
            for end in ("-wal", "-shm", "-journal"):
                copy.with_name(copy.name + end).unlink(missing_ok=True)


class Exports:
    """Encoded exports of which a row, the heading or some bytes were changed."""

    def __init__(self, folder: Path) -> None:
        self.file, new = folder / "all.jsonl", folder / "new.db"
        with MemoryStore.open(folder / "store.db", encoder=ENCODER) as store:
            store.insert_many(
                {"text": f"memory {i}", "key": f"k{i}", "metadata": {"mood": i}} for i in range(6)
            )
            store.neurons.label(3, "three", grade=0.5)
            store.export(self.file, encoded=True)
        self.lines = [json.loads(line) for line in self.file.read_text("utf-8").splitlines()]
        self.whole = self.file.read_bytes()
        self.store = MemoryStore.open(new, encoder=ENCODER)

    def make(self, dice: Random) -> Any:
        if dice.random() < 0.3:
            return mutate.mutated(dice, [self.whole], (b"null", b"NaN", b"1e999", b"[]", b'"'))
        lines = [dict(line) for line in self.lines]
        changed = dice.choice(lines)
        field = dice.choice(list(changed))
        old = changed[field]
        if isinstance(old, list) and old and dice.random() < 0.7:
            changed[field] = [*old]
            changed[field][dice.randrange(len(old))] = mutate.jsonable(dice)
        else:
            changed[field] = mutate.jsonable(dice)
        return "\n".join(map(json.dumps, lines)).encode()

    def attempt(self, made: Any) -> None:
        mutate.replace(self.file, made)
        try:
            count = self.store.load(self.file)
            assert count == self.store.count()
            assert self.store.check() == []
        finally:
            self._make_new()

    def _make_new(self) -> None:
        with self.store._database.driver() as raw:
            for table in ("memory", "sqlite_sequence", "neuron", "category", "deletion"):
                raw.execute(f"DELETE FROM {table}")
            raw.execute("UPDATE store SET change = change + 1, log_floor = change + 1")
