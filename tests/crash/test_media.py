"""Media that are full, read-only, forbidden, limited or elsewhere; and clocks that go back.

Whatever the medium does, a call ends in its result or in one ``MemstoreError`` fit for the cause;
what was acknowledged stays; and the same call works once the cause is gone.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import faiss
import media
import pytest
from media import INSERT, OPERATIONS, Kept, Operation, Scene, Volume, as_dicts, contents, lay, query
from results import record

from memstore import MemoryStore, layout, opening, view, writer
from memstore.errors import MemstoreError, StoreError, StoreFull, StoreOutOfDate, StoreReadOnly
from memstore.index import lists
from tests.conftest import make_encoder

SIZE = 8 << 20
FIGURES: dict[str, dict] = {}
NEED_FILES = {"backup", "export", "open", "read", "create"} | {f"upgrade 000{i}" for i in (1, 2, 3)}
every_operation = pytest.mark.parametrize("name", OPERATIONS)


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch):
    """Closing saves sooner; FAISS in one thread: a forked child would wait for any other."""
    monkeypatch.setattr(opening, "WORTH_SAVING", 500)
    with lists.one_thread(faiss):
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder with a store: labels, a saved index, and a little that came after it was saved."""
    path = tmp_path_factory.mktemp("template") / "store.db"
    rows = [(f"memory {i} of a day", f"c{i % 4}", f"key-{i}") for i in range(1, 301)]
    with MemoryStore.open(path, encoder=make_encoder()) as store:
        store.insert_many(as_dicts(rows))
        store.neurons.label(3, "three")
        store.optimize()
        store.delete(range(200, 230))
        store.insert_many(as_dicts([(f"later {i}", None, None) for i in range(40)]))
    return path.parent


@pytest.fixture
def volume():
    try:
        mounted = Volume(SIZE)
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"mounting is not permitted here: {error}")
    with mounted:
        yield mounted


def attempt(act: Callable[[Scene], object], scene: Scene) -> MemstoreError | None:
    """Return what a call raised; anything that is no ``MemstoreError`` fails the test."""
    try:
        act(scene)
    except MemstoreError as error:
        return error
    return None


def endure(scene: Scene, operation: Operation, cause: AbstractContextManager, closing=False):
    """Make a call while the medium fails, and again once it does not; return what it raised.

    ``closing``: the store is closed while the medium still fails.
    """
    if not operation.opens:
        scene.open()
        operation.prepare(scene)
    with cause:
        error = attempt(operation.act, scene)
        kept = operation.after(scene.kept, None if error is None else scene.acknowledged)
        if scene.store is not None:
            assert contents(scene.store) == kept.expected()
            if closing:
                scene.close()
    settle(scene, operation, error, kept)
    return error


def settle(scene: Scene, operation: Operation, error: MemstoreError | None, kept: Kept) -> None:
    """Find what must be there now that the cause is gone, and have the call go through."""
    if error is None:
        operation.prove(scene)
    elif operation.schema is None:
        scene.verify(kept)
    else:
        assert media.read_plainly(scene.path) == kept
        with pytest.raises(StoreOutOfDate, match=f"has schema {operation.schema}"):
            scene.open()
    # Where a new store could not be finished, what there is of it is finished by the next open.
    unfinished = {"new.db", "new.db-wal", "new.db-shm"} if operation.act is media.create else set()
    assert set(media.leftovers(scene.folder)) <= unfinished
    if error is not None:
        if scene.store is None and not operation.opens:
            scene.open()
        operation.act(scene)
        operation.prove(scene)
    kept = operation.after(scene.kept, None)
    scene.verify(kept)
    scene.close()
    scene.verify(kept)
    assert media.leftovers(scene.folder) == []
    for backup in scene.folder.glob("*.backup"):
        assert media.read_plainly(backup) == scene.kept


@every_operation
@pytest.mark.parametrize("amounts", [6, pytest.param(40, marks=pytest.mark.crash)])
def test_a_full_volume(name, amounts, volume, template, caplog):
    """With less space than the call needs: ``StoreFull``. Enough of it: the result."""
    operation, failed, worked = OPERATIONS[name], [], []
    for number, left in enumerate([*media.free_spaces(amounts), None]):
        caplog.clear()
        scene = lay(volume.folder, template, operation)
        if left is None:
            # A copy of the store fits, but not what SQLite needs to finish it.
            left = scene.path.stat().st_size + 10 * media.PAGE
        error = endure(scene, operation, volume.full(left), closing=number % 2 == 1)
        assert error is None or type(error) is StoreFull, repr(error)
        (failed if error or caplog.records else worked).append(left)
        volume.clear()
    assert failed[:1] == [0]
    assert worked
    if amounts == 40:
        FIGURES[name] = {"amounts": amounts, "failed": len(failed), "most": max(failed)}
        record("media", FIGURES)


@every_operation
def test_no_more_files(name, volume, template):
    """Space is left but not one inode: what needs no new file works, the rest says so."""
    operation = OPERATIONS[name]
    scene = lay(volume.folder, template, operation)
    error = endure(scene, operation, volume.out_of_names())
    assert error is None or isinstance(error, StoreError), repr(error)
    assert (error is None) == (name not in NEED_FILES)


@every_operation
def test_read_only_media(name, volume, template):
    """Reading works; whatever writes is ``StoreReadOnly``; nothing is lost."""
    operation, scene = OPERATIONS[name], lay(volume.folder, template, OPERATIONS[name])
    with volume.read_only():
        if not operation.opens:
            assert contents(scene.open("r")) == scene.kept.expected()
            assert scene.store.check() == []
        error = attempt(operation.act, scene)
    assert type(error) is (type(None) if name in ("read", "close") else StoreReadOnly)
    scene.close()
    settle(scene, operation, error, scene.kept)


def test_a_wal_on_read_only_media(volume, template):
    """What a killed writer left in the WAL is shown or the store refused, never left out."""
    scene = lay(volume.folder, template, INSERT)
    media.in_child(lambda: scene.open() and INSERT.act(scene))
    scene.kept = INSERT.after(scene.kept, None)
    assert (volume.folder / "store.db-wal").stat().st_size > 0
    (volume.folder / "store.db-shm").unlink()
    with volume.read_only():
        error = attempt(OPERATIONS["read"].act, scene)
    assert error is None or type(error) is StoreReadOnly
    scene.verify(scene.kept)


@every_operation
def test_permission_lost_while_open(name, volume, template):
    """A connection that is open may go on writing; what opens or makes a file may not."""
    operation, scene = OPERATIONS[name], lay(volume.folder, template, OPERATIONS[name])
    media.give_to_nobody(volume.folder)

    def work():
        error = endure(scene, operation, media.without_rights(volume.folder))
        assert type(error) in (StoreReadOnly, type(None)), repr(error)
        assert error is not None or name not in NEED_FILES

    media.in_child(work, as_nobody=True)


@pytest.mark.parametrize("mode", ["rw", "r"])
@pytest.mark.parametrize("rights", [0o000, 0o400, 0o500], ids=oct)
@pytest.mark.parametrize("what", [".", "store.db", "store.db-index"])
def test_permission_lost_before_opening(what, rights, mode, volume, template):
    """Either all is there, or the error says that it cannot be read or written."""
    scene = lay(volume.folder, template, INSERT)
    media.give_to_nobody(volume.folder)
    (volume.folder / what).chmod(rights)
    # A file that may only be read can be opened for both; the first write to it would raise.
    needed = (what == "." and mode == "rw") or (what != "store.db-index" and rights == 0)

    def work():
        error = attempt(query(mode), scene)
        assert error is None or isinstance(error, StoreError)
        assert error is not None or not needed

    media.in_child(work, as_nobody=True)
    (volume.folder / what).chmod(0o700)
    scene.verify(scene.kept)


@every_operation
@pytest.mark.parametrize("amounts", [4, pytest.param(40, marks=pytest.mark.crash)])
def test_a_limit_on_the_size_of_files(name, amounts, volume, template):
    """EFBIG is one ``StoreError`` like any other failure to write."""
    operation = OPERATIONS[name]

    def work():
        errors = []
        for number, size in enumerate(media.free_spaces(amounts)):
            scene = lay(volume.folder, template, operation)
            errors.append(endure(scene, operation, media.small_files(size), number % 2 == 1))
            volume.clear()
        assert errors[-1] is None
        assert all(error is None or isinstance(error, StoreError) for error in errors)
        assert isinstance(errors[0], StoreError) or name == "close"

    media.in_child(work)


@pytest.mark.parametrize(
    "target",
    ["sealed/new.db", "blind/new.db", "file/new.db", "gone/new.db", "loop/new.db", "n" * 300],
    ids=lambda target: target[:6],
)
@pytest.mark.parametrize("call", ["backup", "export", "create"])
def test_targets_that_cannot_be(call, target, volume, template):
    """A folder that may not be searched, or is none: one error, and nothing was written."""
    scene = lay(volume.folder, template, INSERT)
    for folder in ("sealed", "blind"):
        (volume.folder / folder).mkdir()
    (volume.folder / "file").touch()
    (volume.folder / "loop").symlink_to("loop")
    media.give_to_nobody(volume.folder)
    (volume.folder / "sealed").chmod(0o000)
    (volume.folder / "blind").chmod(0o600)
    before = sorted(volume.folder.rglob("*"))

    def work():
        path = scene.folder / target
        with scene.open() as store:
            calls = {"backup": store.backup, "export": store.export, "create": MemoryStore.open}
            assert isinstance(attempt(calls[call], path), StoreError)

    media.in_child(work, as_nobody=True)
    assert sorted(volume.folder.rglob("*")) == before


@contextmanager
def elsewhere(index: Path, how: str):
    """Have the index on another device, by a link or a mount, which is full or read-only."""
    state, way = how.split(" by ")
    with Volume(SIZE, index if way == "mount" else None) as other:
        if way == "link":
            shutil.move(index, other.folder / "index")
            index.symlink_to(other.folder / "index")
            media.give_to_nobody(other.folder)
        with other.full(0) if state == "full" else other.read_only():
            yield
        if way == "link":
            index.unlink()
            shutil.move(other.folder / "index", index)


@contextmanager
def spoilt(index: Path, how: str):
    """Have something else, or something without rights, where the index is."""
    aside = index.with_name("aside")
    if how in ("file", "dangling"):
        index.rename(aside)
        index.touch() if how == "file" else index.symlink_to("nowhere")
        yield
        index.unlink()
        aside.rename(index)
    else:
        index.chmod(0o000 if how == "unreadable" else 0o500)
        yield
        index.chmod(0o700)


@pytest.mark.parametrize("name", ["insert_many", "optimize", "repair", "close", "open", "read"])
@pytest.mark.parametrize(
    "how",
    [f"{state} by {way}" for state in ("full", "read-only") for way in ("link", "mount")]
    + ["file", "dangling", "unreadable", "unwritable"],
)
def test_an_index_that_cannot_be_kept(name, how, volume, template, caplog):
    """The store works all the same and says so in the log; later the index is saved again."""
    operation, scene = OPERATIONS[name], lay(volume.folder, template, OPERATIONS[name])
    media.give_to_nobody(volume.folder)

    def work():
        if not operation.opens:
            scene.open()
            operation.prepare(scene)
        operation.act(scene)
        for _ in range(2):
            scene.verify(operation.after(scene.kept, None))
            scene.close()

    index = layout.index_folder(scene.path)
    with (elsewhere if " by " in how else spoilt)(index, how):
        media.in_child(work, as_nobody=True)
    with MemoryStore.open(scene.path, encoder=make_encoder()) as store:
        store.optimize()
        assert store.stats()["index_bytes"] > 0
        assert store.check() == []
    assert media.leftovers(scene.folder) == []
    assert [line for line in caplog.messages if "not saved" in line] == []


@pytest.mark.parametrize("step", [0, -1, -3_600_000_000, -(10**15)])
def test_a_clock_that_goes_back(step, path, monkeypatch):
    """Times may be wrong; ids, change numbers, order and what a second reader sees are not."""
    clock = itertools.count(1_800_000_000_000_000, step)
    for module in (writer, view):
        monkeypatch.setattr(module, "now", lambda: next(clock))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 1_000)
    scene, kept, changes = Scene(path.parent, Kept({}, [], 1)), Kept({}, [], 1), []
    scene.open()
    with MemoryStore.open(path, mode="r", encoder=make_encoder()) as reader:
        for number in range(8):
            assert scene.store.insert(f"note {number}") == number + 1
            scene.store.update(number // 2 + 1, text=f"later {number}")
            kept = kept.plus([(f"note {number}", None, None)])
            kept = kept.but(None, {number // 2 + 1: (f"later {number}", None, None)})
            if number == 5:
                scene.store.delete(6)
                kept = kept.but(None, {6: None})
            changes.append(reader.stats()["change"])
            assert contents(reader) == contents(scene.store) == kept.expected()
            assert reader.search(f"later {number}", 10, by="words", half_life="1d")[0].score > 0
    assert changes == sorted(set(changes))
    scene.store.optimize()
    scene.verify(kept)
    scene.close()
    scene.verify(kept)
