"""Damaged on purpose: what `recover` writes is true, and all that lay on sound pages is in it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from memstore import MemoryStore
from memstore.errors import MemstoreError, StoreDamaged, StoreError, StoreNotFound
from memstore.recovery import MARK, recover

ROOT = Path(__file__).parent.parent
PAGE = 4_096


@pytest.fixture
def filled(path, encoder):
    """Short and long texts, over hundreds of pages; returns the memories as exported."""
    dice = np.random.default_rng(1)
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many(
            {
                "text": f"memory {i} café " + "word " * int(dice.choice([0, 40, 900, 6_000])),
                "category": ["Routine", "Strong Emotional", None][i % 3],
                "key": f"key {i}" if i % 2 else None,
                "metadata": {"mood": i, "note": "x" * int(dice.choice([0, 3_000]))},
                "occurred_at": "1969-07-20T20:17:40+00:00" if i % 5 else None,
            }
            for i in range(400)
        )
        store.delete(list(range(3, 400, 11)))
        kept = {memory.id: memory.to_dict() for memory in store.iter()}
    assert path.stat().st_size // PAGE > 300
    return kept


def recovered(path, target):
    recover(path, target)
    rows = map(json.loads, target.read_text("utf-8").splitlines())
    return {row["id"]: row for row in rows}


def pages_of(path):
    """Which pages each memory lies on, as SQLite itself tells (dbstat), and all others."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT pageno, pagetype, path FROM dbstat WHERE name = ?"
        try:
            found = connection.execute(query, ("memory",)).fetchall()
        except sqlite3.OperationalError:
            pytest.skip("this SQLite has no dbstat")
        categories = {page for page, _, _ in connection.execute(query, ("category",))}
        ids = [i for (i,) in connection.execute("SELECT id FROM memory ORDER BY id")]
        cells = "SELECT path, pageno, ncell FROM dbstat WHERE name = 'memory' AND pagetype = 'leaf'"
        leaves = connection.execute(cells + " ORDER BY path").fetchall()
    owners, rest = {}, iter(ids)
    chains = [(p, page) for page, kind, p in found if kind == "overflow"]
    for place, page, count in leaves:
        for cell in range(count):
            mark = f"{place}{cell:03x}+"
            own = {page} | {number for p, number in chains if p.startswith(mark)}
            owners[next(rest)] = own
    assert next(rest, None) is None
    return owners, categories


def test_of_a_sound_file_everything_is_recovered(filled, path, tmp_path):
    """The same as an export: ids, times, categories, keys, metadata, the longest texts."""
    assert recovered(path, tmp_path / "all.jsonl") == filled


@pytest.mark.parametrize("seed", range(6))
def test_what_lies_on_sound_pages_is_recovered(filled, path, tmp_path, seed):
    """Pages at random overwritten: nothing untrue without a mark, nothing left behind."""
    dice, (owners, categories) = np.random.default_rng(seed), pages_of(path)
    content = bytearray(path.read_bytes())
    pages = len(content) // PAGE
    gone = set(dice.choice(np.arange(2, pages + 1), pages // 12, replace=False).tolist())
    gone = gone - categories | {1}
    for page in gone:
        content[(page - 1) * PAGE : page * PAGE] = [dice.bytes(PAGE), bytes(PAGE)][page % 2]
    path.write_bytes(content)
    found = recovered(path, tmp_path / "all.jsonl")
    unmarked = {i: row for i, row in found.items() if MARK not in row["metadata"]}
    assert all(row == filled[i] for i, row in unmarked.items())
    sound = {i for i, own in owners.items() if not own & gone}
    assert sound <= unmarked.keys()
    assert 100 < len(sound) < len(filled)
    with pytest.raises(MemstoreError):
        MemoryStore.open(path, mode="r").close()


def test_a_changed_text_is_marked(filled, path, tmp_path):
    """A letter overwritten in place: SQLite sees nothing wrong, the checksum does."""
    content = path.read_bytes()
    place = content.index("memory 42 café".encode())
    path.write_bytes(content[:place] + b"M" + content[place + 1 :])
    found = recovered(path, tmp_path / "all.jsonl")
    marked = [i for i, row in found.items() if MARK in row["metadata"]]
    assert [found[i]["text"][:9] for i in marked] == ["Memory 42"]
    assert len(found) == len(filled)


def test_a_file_cut_short_or_half_overwritten(filled, path, tmp_path):
    """The end lost, the beginning lost, neither a header nor a size to go by."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + 100])
    first = recovered(path, tmp_path / "first.jsonl")
    path.write_bytes(bytes(20 * PAGE) + content[20 * PAGE :])
    second = recovered(path, tmp_path / "second.jsonl")
    for found in (first, second):
        assert len(found) > 100
        for i, row in found.items():
            assert MARK in row["metadata"] or row["text"] == filled[i]["text"]


def test_a_lost_category_keeps_its_memories_together(filled, path, tmp_path):
    """Its number stands for its name."""
    _, categories = pages_of(path)
    content = bytearray(path.read_bytes())
    for page in categories:
        content[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    found = recovered(path, tmp_path / "all.jsonl")
    names = {(row["category"], filled[i]["category"]) for i, row in found.items()}
    assert names == {
        (None, None), ("lost category 1", "Routine"), ("lost category 2", "Strong Emotional")
    }  # fmt: skip


def test_what_is_in_the_wal_alone_is_recovered(path, tmp_path, encoder):
    """A process killed before its last transactions got into the file; half a frame at the end."""
    code = (
        "import sys\n"
        "from memstore import MemoryStore\n"
        "from tests.conftest import make_encoder\n"
        "store = MemoryStore.open(sys.argv[1], encoder=make_encoder())\n"
        "store.insert_many([f'memory {i} ' + 'word ' * 900 for i in range(50)])\n"
        "store.update(7, text='changed in the WAL')\n"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "done\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    wal = path.with_name(path.name + "-wal")
    assert wal.stat().st_size > 50 * PAGE
    with wal.open("ab") as file:
        file.write(os.urandom(PAGE // 2))
    found = recovered(path, tmp_path / "all.jsonl")
    assert len(found) == 50
    assert found[7]["text"] == "changed in the WAL"
    with MemoryStore.open(path, mode="r", encoder=encoder) as store:
        assert found == {memory.id: memory.to_dict() for memory in store.iter()}


def test_deleted_memories_stay_deleted(path, tmp_path, encoder):
    """What was erased is not dug up again."""
    with MemoryStore.open(path, encoder=encoder) as store:
        ids = store.insert_many([f"memory {i}" for i in range(300)])
        store.delete(ids[:250])
        store.update(ids[260], text="changed")
        kept = {memory.id: memory.to_dict() for memory in store.iter()}
    assert recovered(path, tmp_path / "all.jsonl") == kept


@pytest.mark.parametrize("content", [b"", b"text", bytes(50 * PAGE), b"SQLite format 3\0" * 600])
def test_where_there_is_nothing_to_recover(path, tmp_path, content):
    """One typed error, and no file is made."""
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match="restore a backup"):
        recover(path, tmp_path / "all.jsonl")
    with pytest.raises(StoreNotFound):
        recover(tmp_path / "nobody.db", tmp_path / "all.jsonl")
    (tmp_path / "there.jsonl").touch()
    with pytest.raises(StoreError, match="exists"):
        recover(path, tmp_path / "there.jsonl")
    assert not (tmp_path / "all.jsonl").exists()


@pytest.mark.parametrize("seed", range(4))
def test_noise_ends_in_an_answer_or_one_error(filled, path, tmp_path, seed):
    """Bytes flipped by the thousand, lengths and pointers among them."""
    dice, content = np.random.default_rng(seed), bytearray(path.read_bytes())
    for place in dice.integers(len(content), size=20_000).tolist():
        content[place] = int(dice.integers(256))
    path.write_bytes(content)
    found = recovered(path, tmp_path / "all.jsonl")
    for i, row in found.items():
        if MARK not in row["metadata"] and i in filled:
            assert row["text"] == filled[i]["text"]


def test_the_command_writes_what_import_reads(filled, path, tmp_path):
    """`memstore recover`, then `memstore import` into a new store of the shipped encoder."""
    path.write_bytes(bytes(PAGE) + path.read_bytes()[PAGE:])
    out, command = tmp_path / "out.jsonl", [sys.executable, "-m", "memstore"]
    done = subprocess.run(
        [*command, "recover", path, out], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{len(filled)} memories in {out}\n"
    lines = [line for line in out.read_text("utf-8").splitlines() if len(line) < 2_000][:20]
    out.write_text("\n".join(lines), "utf-8")
    done = subprocess.run(
        [*command, "import", tmp_path / "new.db", out], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"{len(lines)} rows, {len(lines)} new"), done.stderr


@pytest.mark.parametrize("seed", range(5))
def test_check_diagnoses_a_damaged_file(filled, path, tmp_path, seed):
    """A sentence or more, exit 1, no traceback; the remedy it names works."""
    dice, content = np.random.default_rng(seed), bytearray(path.read_bytes())
    for page in dice.choice(np.arange(1, len(content) // PAGE), 30, replace=False).tolist():
        content[page * PAGE : (page + 1) * PAGE] = dice.bytes(PAGE)
    path.write_bytes(content)
    command = [sys.executable, "-m", "memstore"]
    done = subprocess.run([*command, "check", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = done.stdout + done.stderr
    assert "memstore recover" in said, said
    out = tmp_path / "out.jsonl"
    subprocess.run([*command, "recover", path, out], cwd=ROOT, check=True, capture_output=True)
    assert len(out.read_text("utf-8").splitlines()) > 200


def killed_with_a_wal(path, more):
    """A process that writes and is killed before its WAL is folded into the file."""
    code = (
        "import os, signal, sys\n"
        "from memstore import MemoryStore\n"
        "from tests.conftest import make_encoder\n"
        "store = MemoryStore.open(sys.argv[1], encoder=make_encoder())\n"
        f"{more}\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    return path.with_name(path.name + "-wal")


@pytest.mark.parametrize("place", ["page", "number", "size"])
def test_a_torn_wal_counts_as_far_as_its_checksums_hold(path, tmp_path, encoder, place):
    """As SQLite has it: a frame that is not whole, and all after it, never happened."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(20)])
    wal = killed_with_a_wal(path, "store.insert('one more'); store.insert('torn')")
    content = bytearray(wal.read_bytes())
    last = (len(content) - 32) // (PAGE + 24) - 1
    at = 32 + last * (PAGE + 24) + {"page": 24 + 99, "number": 0, "size": 4}[place]
    content[at] ^= 0x7F
    wal.write_bytes(content)
    found = recovered(path, tmp_path / "all.jsonl")
    assert [row["text"] for row in found.values()] == [
        *(f"memory {i}" for i in range(20)), "one more"
    ]  # fmt: skip
    with MemoryStore.open(path, mode="r", encoder=encoder) as store:
        assert found == {memory.id: memory.to_dict() for memory in store.iter()}


def test_pages_that_the_wal_cut_off_are_not_dug_up(path, tmp_path, encoder):
    """VACUUM made the file shorter, in the WAL alone: what lies behind its end is gone."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i} " + "word " * 500 for i in range(300)])
        store.delete(list(range(1, 250)))
    killed_with_a_wal(
        path,
        "store._database.engine.dispose()\n"
        "with store._database.driver() as raw:\n"
        "    raw.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "    raw.execute('VACUUM')\n"
        "    raw.execute('DELETE FROM memory WHERE id = 280')\n",
    )
    found = recovered(path, tmp_path / "all.jsonl")
    with MemoryStore.open(path, mode="r", encoder=encoder) as store:
        assert found == {memory.id: memory.to_dict() for memory in store.iter()}
        assert 280 not in found


@pytest.mark.parametrize("file", sorted((ROOT / "tests" / "fixtures").glob("*.db")), ids=str)
def test_stores_of_every_schema_can_be_recovered(file, tmp_path):
    """Their texts match their checksums, old ones and new."""
    found = recover(file, tmp_path / "all.jsonl")
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        count = connection.execute("SELECT count(*) FROM memory").fetchone()[0]
    assert found == (count, 0)


BROKEN = {
    "zeros in the text": "UPDATE memory SET text = text || char(0) || 'x' WHERE id = 2",
    "nothing but blanks": "UPDATE memory SET text = '  ' WHERE id = 2",
    "metadata that is not JSON": """UPDATE memory SET metadata = '{"a": NaN}' WHERE id = 2""",
    "metadata cut short": """UPDATE memory SET metadata = '{"a": ' WHERE id = 2""",
    "metadata without end": "UPDATE memory SET metadata = printf('{\"a\":%.*c', 90000, '[')"
    " WHERE id = 2",
    "a key of blanks": "UPDATE memory SET key = ' ' WHERE id = 2",
    "a time beyond all years": f"UPDATE memory SET occurred_at = {2**62} WHERE id = 2",
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_no_store_would_take_is_let_go_and_marked(path, tmp_path, encoder, how):
    """The rest can be imported; check names what is wrong."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many(["one", "two", "three"])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(BROKEN[how])
        connection.commit()
    found = recovered(path, tmp_path / "all.jsonl")
    assert [i for i, row in found.items() if MARK in row["metadata"]] == [2]
    fields = ("text", "category", "key", "metadata", "occurred_at")
    with MemoryStore.open(tmp_path / "new.db", encoder=encoder) as store:
        rows = ({name: row[name] for name in fields} for row in found.values())
        assert store.insert_many(rows) == [1, 2, 3]
    if "text" in how or "JSON" in how or "short" in how:
        with MemoryStore.open(path, encoder=encoder) as store:
            assert any("differs from its checksum" in problem for problem in store.check())
            if "metadata" in how and "JSON" not in how:
                with pytest.raises(StoreDamaged, match="metadata"):
                    store.get(2)
