"""Several processes and threads on one store file, and processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from memstore import MemoryStore
from memstore.errors import StoreClosed, StoreLocked

ROOT = Path(__file__).parent.parent
CHILD = """
import sys
from memstore import MemoryStore
from tests.conftest import make_encoder
path, script = sys.argv[1:3]
with MemoryStore.open(path, encoder=make_encoder(), busy_timeout=30) as store:
    exec(script)
"""


def child(path, script, **options):
    """Start a Python process that has ``store`` open and runs a script."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), script],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )


def run(path, script):
    process = child(path, script)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output


def test_an_open_store_finds_what_another_process_wrote(path, encoder):
    """Insert, update and delete elsewhere are seen by the next query of every kind."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("here first")
        neuron = int(store.trace(1).neurons[0])
        before = len(store.top(neuron, 100))
        run(path, "store.insert_many(['here first'] * 3)")
        assert len(store.top(neuron, 100)) == before + 3
        assert len(store.search("here first", 10)) == 4
        assert len(store.search("first", 10, by="words")) == 4
        run(path, "store.delete([2, 3]); store.update(4, text='changed elsewhere')")
        assert [hit.id for hit in store.search("changed elsewhere", 1)] == [4]
        assert [hit.id for hit in store.search("first", 10, by="words")] == [1]
        run(path, "store.optimize(); store.insert('after optimize')")
        assert store.search("after optimize", 1)[0].text == "after optimize"
        assert store.check() == []


def test_a_second_writer_waits_and_then_works(path, encoder):
    """While a transaction is open elsewhere a write waits; it succeeds once that ends."""
    with MemoryStore.open(path, encoder=encoder) as store:
        holder = child(
            path,
            "import time\n"
            "with store._database.write():\n"
            "    print('held', flush=True)\n"
            "    time.sleep(1.5)",
        )
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        store.insert("patient")
        assert time.monotonic() - began > 0.5
        holder.communicate(timeout=30)
        assert store.count() == 1


def test_a_writer_that_waits_too_long_gets_store_locked(path, encoder):
    """The wait is bounded, readers go on meanwhile, and nothing is half done."""
    with MemoryStore.open(path, encoder=encoder, busy_timeout=0.2) as store:
        store.insert("before")
        holder = child(
            path,
            "with store._database.write():\n    print('held', flush=True)\n    sys.stdin.read()",
        )
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked, match="try again"):
            store.insert("impatient")
        assert [hit.text for hit in store.search("before", 5)] == ["before"]
        holder.communicate(timeout=30)
        assert store.count() == 1


def test_killed_inserts_leave_whole_memories_and_can_be_repeated(path, encoder):
    """SIGKILL at any moment: what is there is complete, and the same call finishes the rest."""
    script = (
        "def rows():\n"
        "    for i in range(3000):\n"
        "        yield {'text': f'memory {i}', 'key': str(i), 'category': f'c{i % 7}'}\n"
        "store.insert_many(rows(), on_duplicate='skip',\n"
        "    progress=lambda done, _: print(done, flush=True))"
    )
    counts = []
    for kill_after in (1, 3, 2):
        process = child(path, script)
        acknowledged = [process.stdout.readline() for _ in range(kill_after)][-1]
        process.kill()
        process.communicate(timeout=30)
        with MemoryStore.open(path, mode="r", encoder=encoder) as store:
            counts.append(store.count())
            assert store.count() >= int(acknowledged)
            assert store.check() == []
    assert counts == sorted(counts)
    run(path, script)
    with MemoryStore.open(path, encoder=encoder) as store:
        assert [memory.key for memory in store.iter()] == [str(i) for i in range(3000)]
        assert store.check() == []
    whole = path.with_name("whole.db")
    run(whole, script)
    assert rows_of(whole) == rows_of(path)


def rows_of(path):
    """All that is stored, but for times and change numbers."""
    connection = sqlite3.connect(path)
    query = (
        'SELECT memory.id, text, category_id, name, "key", metadata, neurons, activations, vector '
        "FROM memory JOIN trace ON trace.memory_id = memory.id JOIN vector USING (memory_id) "
        "LEFT JOIN category ON category.id = category_id"
    )
    rows = connection.execute(query + " ORDER BY memory.id").fetchall()
    connection.close()
    return rows


def test_threads_share_one_store(path, encoder):
    """Writers and readers in threads: nothing lost, every hit whole."""
    problems = []

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - reported by the assertion below
            problems.append(error)

    with MemoryStore.open(path, encoder=encoder, busy_timeout=30) as store:
        neuron = int(store.trace(store.insert("seed")).neurons[0])

        def write(name):
            for i in range(40):
                store.insert(f"{name} {i}", key=f"{name}-{i}")

        def read():
            for _ in range(60):
                for hits in (store.top(neuron, 50), store.search("seed", 5)):
                    gaps = [abs(sum(hit.parts.values()) - hit.score) for hit in hits]
                    problems.extend(gap for gap in gaps if gap > 1e-9)

        threads = [threading.Thread(target=guarded, args=(write, n)) for n in "abc"]
        threads += [threading.Thread(target=guarded, args=(read,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert store.count() == 121
        assert store.check() == []


def test_a_thread_that_writes_batch_after_batch_starves_no_other(path, encoder):
    """SQLite's own waiting naps up to 0.1 s between tries, and would miss every gap."""
    with MemoryStore.open(path, encoder=encoder, busy_timeout=2.0) as store:
        done = threading.Event()

        def write_on_and_on():
            while not done.wait(0.002):
                with store._database.write():
                    time.sleep(0.2)

        busy = threading.Thread(target=write_on_and_on)
        busy.start()
        try:
            ids = [store.insert(f"in between {i}") for i in range(5)]
        finally:
            done.set()
            busy.join()
        assert [store.get(i).text for i in ids] == [f"in between {i}" for i in range(5)]


def test_two_processes_may_create_the_same_store(path):
    """Both end with one schema and all memories."""
    first = child(path, "store.insert('one')")
    second = child(path, "store.insert('two')")
    assert first.wait(60) == second.wait(60) == 0
    first.stdout.close(), second.stdout.close()
    first.stdin.close(), second.stdin.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute("SELECT count(*) FROM memory").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM store").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM encoder").fetchone() == (1,)


def test_ctrl_c_in_an_import_is_one_line_and_the_next_run_goes_on(tmp_path):
    """SIGINT half way through `memstore import`: exit 130, no traceback, then no duplicates."""
    file, path = tmp_path / "rows.jsonl", tmp_path / "store.db"
    rows = [{"text": f"On day {i} the tram was {i % 60} minutes late."} for i in range(1500)]
    file.write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-m", "memstore", "import", str(path), str(file)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and counted(path) >= 256:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert "goes on from there" in errors
    assert "Traceback" not in errors
    stored = counted(path)
    assert 256 <= stored < 1500
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"1500 rows, {1500 - stored} new, 1500 memories\n"
    assert counted(path) == 1500


def counted(path):
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection, connection:
            return connection.execute("SELECT count(*) FROM memory").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_opening_a_store_twice_in_one_process_loses_nothing(path, encoder):
    """Opening the file beside SQLite would drop its locks, and another process the WAL."""
    first = MemoryStore.open(path, encoder=encoder)
    first.insert("ours 1")
    MemoryStore.open(path, encoder=encoder).close()
    MemoryStore.open(path, mode="r", encoder=encoder).close()
    run(path, "store.insert('theirs 1')")
    assert path.with_name(path.name + "-wal").exists()
    ids = first.insert_many([f"ours {i}" for i in range(2, 5)])
    printed = run(path, "print(store.insert_many([f'theirs {i}' for i in range(2, 5)]))")
    assert not set(ids) & set(json.loads(printed))
    first.close()
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.count() == 8
        assert store.check() == []


def forked(work) -> int:
    """Run ``work`` in a forked child, for a minute at most; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(60)
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_a_forked_child_opens_the_store_anew(path, encoder):
    """An inherited store refuses to work; a new one in the child does; the parent goes on."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("parent")

        def inherit():
            with pytest.raises(StoreClosed, match="before a fork"):
                store.insert("lost")
            store.close()

        def open_anew():
            with MemoryStore.open(path, encoder=encoder) as own:
                own.insert("child")

        assert forked(inherit) == 0
        assert forked(open_anew) == 0
        store.insert("parent again")
        assert [memory.text for memory in store.iter()] == ["parent", "child", "parent again"]
        assert store.check() == []


def test_a_forked_child_asks_for_meaning(path, encoder):
    """FAISS has threads in the parent that the child has not: it must not wait for them."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(3_000)])
        store.optimize()
        expected = store.search("memory 7", 3)
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.search("memory 7", 3) == expected  # loads the saved vectors, on all threads

        def ask():
            with MemoryStore.open(path, encoder=encoder) as own:
                assert own.search("memory 7", 3) == expected

        assert forked(ask) == 0
