"""Media that fail: small volumes, children without rights; and what a store must still hold."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from memstore import MemoryStore, opening
from memstore.catalog import migrate
from memstore.types import Trace
from tests.conftest import grid_vectors, make_encoder

NOBODY = 65534
PAGE = 4_096
#: It fires for most of the small encoder's texts, at different strengths.
NEURON = 1
KNOWN = re.compile(r"store\.db(-wal|-shm|-index(/(lock|\w+-\w+\.idx))?|\..*\.backup)?")
Row = tuple[str, str | None, str | None]
ROWS: list[Row] = [(f"entry {i}: the tram was late", f"c{i % 3}", f"new-{i}") for i in range(600)]
GIVEN: list[Row] = [(f"given {i}", None, None) for i in range(600)]


class Volume:
    """A tmpfs of its own. Raises ``PermissionError`` where mounting is not permitted."""

    def __init__(self, size: int, at: Path | None = None) -> None:
        self.folder = at or Path(tempfile.mkdtemp(prefix="memstore-media-"))
        self.made = at is None
        options = f"size={size},nr_inodes=1000,mode=0777"
        self._run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder))

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PermissionError(f"{' '.join(command)}: {done.stderr.strip()}")

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, *_: object) -> None:
        # Lazily: index files that garbage still maps would keep it busy.
        self._run("umount", "-l", str(self.folder))
        if self.made:
            self.folder.rmdir()

    def clear(self) -> None:
        """Delete everything on it."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def full(self, left: int) -> Iterator[None]:
        """Leave so many bytes free, whole pages, until the block ends."""
        found = os.statvfs(self.folder)
        ballast = self.folder / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - left)
        assert os.statvfs(self.folder).f_bavail * PAGE == left
        yield
        ballast.unlink()

    @contextmanager
    def out_of_names(self) -> Iterator[None]:
        """Let no new file be made until the block ends; there is space in those that exist."""
        ballast = [self.folder / f"ballast-{i}" for i in range(os.statvfs(self.folder).f_ffree)]
        for file in ballast:
            file.touch()
        yield
        for file in ballast:
            file.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Mount it read-only until the block ends; no file may be open for writing."""
        self._run("mount", "-o", "remount,ro", str(self.folder))
        yield
        self._run("mount", "-o", "remount,rw", str(self.folder))


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Take away the right to write to a folder and to all that is in it."""
    everything = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in everything}
    for path in reversed(everything):
        path.chmod(0o500 if path.is_dir() else 0o400)
    yield
    for path in everything:
        if path.exists():
            path.chmod(modes[path])


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let this process grow no file beyond so many bytes (EFBIG; Python ignores SIGXFSZ)."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def in_child(work: Callable[[], None], *, as_nobody: bool = False) -> None:
    """Run ``work`` in a forked child; whatever it raises fails the test here."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        report = ""
        try:
            signal.alarm(120)  # a child that takes longer hangs
            if as_nobody:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work()
        except BaseException:  # noqa: BLE001 - the parent raises it
            report = traceback.format_exc()
        finally:
            os.write(sending, report[-4_000:].encode())
            os._exit(bool(report))
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        report = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, report or "the child was killed"


def give_to_nobody(folder: Path) -> None:
    """Make everything in a folder the property of the user that ``in_child`` becomes."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


@dataclass(frozen=True)
class Kept:
    """What a store must hold: (text, category, key) by id, labels by name, the next id."""

    rows: dict[int, Row]
    labels: list[str]
    next_id: int

    def plus(self, rows: list[Row]) -> Kept:
        """Return it with rows added, ids in order."""
        added = dict(enumerate(rows, self.next_id))
        return replace(self, rows=self.rows | added, next_id=self.next_id + len(rows))

    def but(self, done: int | None, rows: Mapping[int, Row | None]) -> Kept:
        """Return it with rows changed (None: deleted), if that was done (None) and not refused."""
        changed = self.rows | rows if done is None else self.rows
        return replace(self, rows={i: row for i, row in changed.items() if row is not None})

    def expected(self) -> tuple:
        """Return what ``contents`` of the store must be equal to."""
        texts = {i: (*self.rows[i], trace_of(self.rows[i][0])) for i in sorted(self.rows)}
        firing = [(-dict(row[3]).get(NEURON, 0.0), i) for i, row in texts.items()]
        return texts, self.labels, [i for strength, i in sorted(firing) if strength < 0]


@cache
def trace_of(text: str) -> tuple[tuple[int, float], ...]:
    """Return the trace that a text must have, as the encoder alone gives it."""
    encoder = make_encoder()
    return pairs(encoder.traces(encoder.vectors([text]))[0])


def pairs(trace: Trace) -> tuple[tuple[int, float], ...]:
    return tuple(zip(trace.neurons.tolist(), trace.activations.tolist(), strict=True))


def contents(store: MemoryStore) -> tuple:
    """Return all that a store holds, by id; its labels; and what one neuron finds, best first."""
    traces = store.traces()
    fired = dict(zip(traces.ids.tolist(), map(pairs, traces), strict=True))
    texts = {m.id: (m.text, m.category, m.key, fired[m.id]) for m in store.iter()}
    return texts, store.neurons.labels(), [hit.id for hit in store.top(NEURON, 1_000_000)]


def read_plainly(path: Path) -> Kept:
    """Return what a store of any schema holds, read by SQL alone."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT memory.id, text, name, key FROM memory "
            "LEFT JOIN category ON category.id = category_id"
        ).fetchall()
        labels = connection.execute("SELECT label FROM neuron WHERE label IS NOT NULL")
        (last,) = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'memory'")
        return Kept({i: tuple(row) for i, *row in found}, [name for (name,) in labels], last[0] + 1)


def leftovers(folder: Path) -> list[str]:
    """Return the files in a folder that no store, and no finished call, would leave there."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]
    return [name for name in names if not KNOWN.fullmatch(name)]


class Scene:
    """A store on a medium, what it must hold, and how far a call got."""

    def __init__(self, folder: Path, kept: Kept) -> None:
        self.folder, self.path, self.kept = folder, folder / "store.db", kept
        self.store: MemoryStore | None = None
        self.acknowledged = 0

    def open(self, mode: str = "rw") -> MemoryStore:
        self.store = MemoryStore.open(self.path, mode=mode, encoder=make_encoder())
        return self.store

    def close(self) -> None:
        store, self.store = self.store, None
        if store is not None:
            store.close()

    def progress(self, done: int, _: int | None) -> None:
        self.acknowledged = done

    def verify(self, kept: Kept) -> None:
        """Look at everything, through the store that is open or a new one."""
        store = self.store or MemoryStore.open(self.path, encoder=make_encoder())
        with store if self.store is None else nullcontext():
            assert contents(store) == kept.expected()
            assert store.check() == []
            assert store.stats()["memories"] == len(kept.rows)


def free_spaces(amounts: int) -> list[int]:
    """Return so many sizes in bytes from nothing to 1 MiB, each a few times the one before."""
    growth, pages = 256 ** (1 / (amounts - 2)), [0]
    for power in range(amounts - 1):
        pages.append(max(pages[-1] + 1, round(growth**power)))
    return [count * PAGE for count in pages]


@dataclass(frozen=True)
class Operation:
    """A call; ``after``: what is kept once it is done, or as many of its rows as were.

    ``schema``: it begins with a frozen store of that schema. ``opens``: it needs no open store.
    """

    act: Callable[[Scene], object]
    after: Callable[[Kept, int | None], Kept] = lambda kept, done: kept
    prove: Callable[[Scene], object] = lambda scene: None
    prepare: Callable[[Scene], object] = lambda scene: None
    opens: bool = False
    schema: str | None = None


def as_dicts(rows: list[Row]) -> list[dict]:
    return [dict(zip(("text", "category", "key"), row, strict=True)) for row in rows]


def insert_given(scene: Scene) -> None:
    scene.store.insert_many(as_dicts(GIVEN), vectors=grid_vectors([row[0] for row in GIVEN]))


def insert_unsaved(scene: Scene) -> None:
    texts = [f"unsaved {i}" for i in range(opening.WORTH_SAVING)]
    scene.store.insert_many(texts, vectors=grid_vectors(texts))
    scene.kept = scene.kept.plus([(text, None, None) for text in texts])


def prove_new(scene: Scene, kept: Kept) -> None:
    with MemoryStore.open(scene.folder / "new.db", mode="r", encoder=make_encoder()) as store:
        assert contents(store) == kept.expected()
        assert store.check() == []
    for file in scene.folder.glob("new.db*"):
        file.unlink()


def prove_export(scene: Scene) -> None:
    file = scene.folder / "all.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert {r["id"]: (r["text"], r["category"], r["key"]) for r in rows} == scene.kept.rows
    file.unlink()


def create(scene: Scene) -> None:
    MemoryStore.open(scene.folder / "new.db", encoder=make_encoder()).close()


def query(mode: str) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        with MemoryStore.open(scene.path, mode=mode, encoder=make_encoder()) as store:
            assert contents(store) == scene.kept.expected()

    return act


OPERATIONS = {
    "insert": Operation(
        lambda scene: scene.store.insert("one more", category="c", key="one"),
        lambda kept, done: kept.plus([("one more", "c", "one")][:done]),
    ),
    "insert_many": Operation(
        lambda scene: scene.store.insert_many(
            as_dicts(ROWS), on_duplicate="skip", progress=scene.progress
        ),
        lambda kept, done: kept.plus(ROWS[:done]),
    ),
    "insert_given": Operation(insert_given, lambda kept, done: kept.plus(GIVEN[:done])),
    "update": Operation(
        lambda scene: scene.store.update(7, text="changed " * 500, category="changed"),
        lambda kept, done: kept.but(done, {7: ("changed " * 500, "changed", "key-7")}),
    ),
    "delete": Operation(
        lambda scene: scene.store.delete(range(20, 60)),
        lambda kept, done: kept.but(done, dict.fromkeys(range(20, 60))),
    ),
    "optimize": Operation(lambda scene: scene.store.optimize()),
    "repair": Operation(lambda scene: scene.store.repair()),
    "backup": Operation(
        lambda scene: scene.store.backup(scene.folder / "new.db"),
        prove=lambda scene: prove_new(scene, scene.kept),
    ),
    "export": Operation(
        lambda scene: scene.store.export(scene.folder / "all.jsonl"), prove=prove_export
    ),
    "close": Operation(Scene.close, prepare=insert_unsaved),
    "open": Operation(query("rw"), opens=True),
    "read": Operation(query("r"), opens=True),
    "create": Operation(create, prove=lambda scene: prove_new(scene, Kept({}, [], 1)), opens=True),
} | {
    f"upgrade {schema}": Operation(
        lambda scene: migrate.upgrade(scene.path, 5.0), opens=True, schema=schema
    )
    for schema in ("0001", "0002", "0003")
}
INSERT = OPERATIONS["insert"]


def lay(folder: Path, template: Path, operation: Operation) -> Scene:
    """Put the store that an operation begins with into an empty folder."""
    if operation.schema is not None:
        frozen = Path(__file__).parents[1] / "fixtures" / f"store-{operation.schema}.db"
        shutil.copy(frozen, folder / "store.db")
    else:
        shutil.copytree(template, folder, dirs_exist_ok=True)
    return Scene(folder, read_plainly(folder / "store.db"))
