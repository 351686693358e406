"""Index files are copies: used when they can be believed, ignored otherwise, never fatal."""

from __future__ import annotations

import shutil
import threading
import time
from collections import UserDict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memstore import MemoryStore, layout, upkeep
from memstore.core import traces as packed
from memstore.core.expression import NeuronQuery
from memstore.errors import IndexDamaged
from memstore.index import dense, files, lists, native, scan, storing
from memstore.index.blocks import Block
from memstore.index.postings import NeuronIndex


@pytest.fixture
def saved(path, encoder):
    """A store with a saved index; returns its path and the index folder."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(300)])
        store.delete([5, 6])
        store.optimize()
    return path, layout.index_folder(path)


def answers(path, encoder):
    with MemoryStore.open(path, mode="r", encoder=encoder) as store:
        return [
            [(hit.id, hit.score) for hit in hits]
            for hits in (
                store.top(3, 20),
                store.composite("3 - 0.5*4 + 2", 20),
                store.search("memory 7", 20),
                store.search("memory 7", 20, by="trace"),
            )
        ]


def test_a_saved_index_is_used_and_answers_the_same(saved, encoder, monkeypatch):
    """With the files the catalog's traces are not read; without them the answers are equal."""
    path, folder = saved
    read = []
    original = NeuronIndex.apply

    def apply(self, *arguments):
        read.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(NeuronIndex, "apply", apply)
    with_files = answers(path, encoder)
    assert read == []
    shutil.rmtree(folder)
    assert answers(path, encoder) == with_files
    assert read == [1]


def test_changes_after_saving_are_replayed(saved, encoder):
    """Insert, update and delete since the files were written show in the next query."""
    path, folder = saved
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete([7, 8])
        store.update(9, text="memory 7")
        store.insert("memory 7")
    replayed = answers(path, encoder)
    shutil.rmtree(folder)
    assert answers(path, encoder) == replayed


@pytest.mark.parametrize("kind", ["manifest", "neurons", "traces", "vectors"])
def test_damaged_files_are_ignored(saved, encoder, kind):
    """Flipped bytes, truncation, rubbish and nothing at all: the same answers every time."""
    path, folder = saved
    expected = answers(path, encoder)
    (file,) = folder.glob(f"{kind}-*.idx")
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(25):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        assert answers(path, encoder) == expected
    for size in (0, 5, 20, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert answers(path, encoder) == expected
    file.write_bytes(random.bytes(5000))
    assert answers(path, encoder) == expected


def test_files_of_another_store_or_encoder_are_ignored(saved, encoder, tmp_path):
    """A folder copied beside another store is not believed."""
    _, folder = saved
    other = tmp_path / "other.db"
    with MemoryStore.open(other, encoder=encoder) as store:
        store.insert_many([f"quite other {i}" for i in range(20)])
    expected = answers(other, encoder)
    shutil.copytree(folder, layout.index_folder(other))
    assert answers(other, encoder) == expected
    token = next(folder.glob("manifest-*.idx")).stem.removeprefix("manifest-")
    stamp = storing.Stamp(token, "another encoder", 10**9)
    with pytest.raises(IndexDamaged, match="another encoder"):
        storing.read_manifest(folder, stamp)


def test_a_restored_older_store_does_not_believe_newer_files(saved, encoder, tmp_path):
    """A backup put back under a newer index folder: the index is from a future that never came."""
    path, folder = saved
    shutil.copy(path, tmp_path / "old.db")
    before = answers(path, encoder)
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete([1, 2, 3, 4])
        store.insert("a future that is undone")
        store.optimize()
    assert answers(path, encoder) != before
    shutil.copy(tmp_path / "old.db", path)
    assert answers(path, encoder) == before
    # Writing goes on to the very change number that the foreign index shows.
    with MemoryStore.open(path, encoder=encoder) as store:
        for i in range(3):
            store.insert(f"another future {i}")
    with_folder = answers(path, encoder)
    shutil.rmtree(folder)
    assert answers(path, encoder) == with_folder


def test_a_filter_that_hides_what_it_holds_is_not_mistaken_for_another(store):
    """Filters are remembered by their text; a Mapping of one's own may print the same for all."""

    class Mine(UserDict):
        def __repr__(self):
            return "mine"

    store.insert_many([{"text": f"m {i}", "category": "AB"[i % 2]} for i in range(10)])
    for category in "AB":
        hits = store.search("m 1", 20, where=Mine(category=category))
        assert [hit.category for hit in hits] == [category] * 5


def test_optimize_waits_for_a_save_under_way(path, encoder):
    """The background thread, or another process, is saving: optimize still drops every dead row."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete(store.insert_many([f"memory {i}" for i in range(600)])[:300])
        with upkeep.alone(make(layout.index_folder(path)), 0.0):
            threading.Timer(0.3, store._upkeep.start).start()
            thread = threading.Thread(target=store.optimize)
            thread.start()
            time.sleep(0.5)
        thread.join()
    (manifest,) = layout.index_folder(path).glob("manifest-*.idx")
    assert not files.read(manifest, "manifest").arrays
    (block,) = layout.index_folder(path).glob("traces-*.idx")
    assert files.read(block, "traces").fields["rows"] == 300


def test_a_save_that_another_process_holds_up_says_so(path, encoder, caplog):
    """Bounded by the busy timeout, then a warning and no more: the catalog has everything."""
    with MemoryStore.open(path, encoder=encoder, busy_timeout=0.1) as store:
        store.insert_many([f"memory {i}" for i in range(300)])
        with upkeep.alone(make(layout.index_folder(path)), 0.0):
            store.optimize()
        assert "being saved by another process" in caplog.text
        assert store.check() == []


def make(folder):
    folder.mkdir(exist_ok=True)
    return folder


def test_closing_after_many_inserts_saves_the_index(path, encoder):
    """A large import is not replayed by the next process, and nothing is left lying about."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(2_500)])
    kinds = [file.name.split("-")[0] for file in sorted(layout.index_folder(path).glob("*.idx"))]
    assert kinds == ["manifest", "traces", "vectors"]


rows = st.dictionaries(st.integers(0, 9), st.sampled_from([0.25, 0.5, 1.0, 1.5]), max_size=4)


def as_traces(items):
    ids = sorted(items)
    dense = np.zeros((len(ids), 10))
    for place, i in enumerate(ids):
        for neuron, value in items[i].items():
            dense[place, neuron] = value
    return packed.from_dense(dense, np.array(ids, dtype=np.int64))


HISTORIES = st.lists(
    st.tuples(
        st.dictionaries(st.integers(1, 60), rows),
        st.sets(st.integers(1, 60)),
        st.sampled_from([None, None, "compact", "compact everything", "late"]),
    )
)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(HISTORIES)
def test_any_history_of_writes_leaves_exactly_the_last_state(path_taken, history):
    """Blocks built, merged and compacted in any order hold what a plain dict holds."""
    index, truth, late = NeuronIndex(10), {}, None
    for change, (written, deleted, then) in enumerate(history, 1):
        deleted = deleted - set(written)
        for i in deleted:
            truth.pop(i, None)
        truth.update(written)
        index = index.apply(sorted(deleted), [as_traces(written)] if written else [], change)
        if late is not None:  # a compaction that began before this change and ends after it
            index, late = index.caught_up(*late), None
        if then == "late":
            late = (index, index.compacted())
        elif then:
            index = index.compacted(everything=then == "compact everything")
        assert len(index) == len(truth)
        query = NeuronQuery(((3, 1.0), (7, -0.5)))
        expected = {
            i: t.get(3, 0) - 0.5 * t.get(7, 0)
            for i, t in truth.items()
            if 3 in t and t.get(3, 0) - 0.5 * t.get(7, 0) > 0
        }
        assert dict(index.candidates(query).pairs()) == expected
        order = sorted(expected.items(), key=lambda item: (-item[1], item[0]))[:5]
        assert index.composite(query, 5).ranked.pairs() == order
    held = index.traces()
    assert {int(i): t.to_dict() for i, t in zip(held.ids, held, strict=True)} == {
        i: dict(sorted(t.items(), key=lambda item: (-item[1], item[0]))) for i, t in truth.items()
    }


def test_blocks_stay_few_however_memories_come():
    """One by one: small blocks merge, and compaction leaves one."""
    index = NeuronIndex(10)
    for i in range(1, 3_001):
        index = index.apply([], [as_traces({i: {i % 10: 0.5, (i + 1) % 10: 0.25}})], i)
    assert len(index.blocks) <= 13
    assert len(index.compacted(everything=True).blocks) == 1


def test_codes_are_bounds_and_checksums_agree():
    """Code x scale is at least the activation; norms are bounds; C and numpy sum alike."""
    dice = np.random.default_rng(0)
    dense = dice.exponential(size=(3_000, 50)) * (dice.random((3_000, 50)) < 0.2)
    traces = packed.from_dense(dense * 10.0 ** dice.integers(-6, 4, size=(3_000, 1)))
    block = Block.build(traces)
    exact = traces.to_dense()
    for neuron in range(50):
        rows, bounds = block.runs.run(neuron)
        assert (bounds >= exact[rows, neuron]).all()
        assert (np.diff(exact[rows, neuron]) <= 0).all()
        assert set(rows.tolist()) == set(np.flatnonzero(exact[:, neuron]).tolist())
    norms = np.sqrt(exact.sum(axis=1))
    assert (block.norm_codes * block.norm_scale <= norms).all()


def test_a_block_that_changes_on_disk_is_found_out(saved, encoder, path_taken):
    """A bit flipped after the file was mapped: the part is checked when it is first read."""
    path, folder = saved
    expected = answers(path, encoder)
    (file,) = folder.glob("traces-*.idx")
    whole = bytearray(file.read_bytes())
    for place in range(len(whole) - 8_000, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        assert answers(path, encoder) == expected


def test_numpy_and_c_write_the_same_checksums(saved):
    """What numpy summed when it wrote a block, C accepts when it reads every part of it."""
    if native.load() is None:
        pytest.skip("no C kernel was built here")
    _, folder = saved
    (file,) = folder.glob("traces-*.idx")
    index = NeuronIndex(10, 1, (storing.load_block(folder, file.name),))
    index.composite(NeuronQuery(tuple((n, 1.0) for n in range(10))), 1_000)
    sums = index.blocks[0].sums
    assert sums.rows_checked.all()
    assert sums.runs_checked.all()
    assert scan.sums(index.blocks[0])[1].tolist() == sums.rows.tolist()


def test_beyond_the_exact_size_lists_answer_nearly_the_same(path, encoder, monkeypatch):
    """Codes, refined from the catalog: scores are exact, k hits come back, changes are followed."""
    monkeypatch.setattr(dense, "EXACT", 1_500)
    monkeypatch.setattr(lists, "ONE_LIST", 2_000)
    monkeypatch.setattr(dense, "FEW", 50)
    vectors = np.random.default_rng(5).normal(size=(4_000, 6))
    rows = [{"text": f"m {i}", "metadata": {"even": i % 2 == 0}} for i in range(4_000)]
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many(rows, vectors=vectors)
        store.optimize()
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete([1, 2, 3])
        kept = np.concatenate([page for _, page in store.iter_vectors()]).astype(np.float64)
        kept /= np.linalg.norm(kept, axis=1, keepdims=True)
        ids = np.arange(4, 4_001)
        found = 0
        for query in vectors[:20] + 0.1:
            cosines = kept @ (query / np.linalg.norm(query))
            hits = store.search_vector(query, 10)
            assert len(hits) == 10
            for hit in hits:
                assert hit.score == pytest.approx(cosines[hit.id - 4], abs=1e-6)
            best = set(ids[np.argsort(-cosines)[:10]].tolist())
            found += len(best & {hit.id for hit in hits})
            even = store.search_vector(query, 300, where={"even": True})
            assert len(even) == 300
            assert all(hit.id % 2 == 1 for hit in even)
        assert found > 180
        explained = store.explain_query(vector=vectors[7], where={"even": True})
        assert [step.name for step in explained.steps] == ["filter", "dense"]
        assert "lists" in explained.steps[1].plan
        assert store.check() == []


def test_a_filter_asked_again_and_again_is_answered_exactly(path, encoder, monkeypatch):
    """By an index of its own rows, which nobody asks once something was written."""
    monkeypatch.setattr(dense, "EXACT", 1_000)
    monkeypatch.setattr(dense, "FEW", 50)
    dice = np.random.default_rng(6)
    vectors = dice.normal(size=(4_000, 6))
    rows = [{"text": f"m {i}", "metadata": {"fifth": i % 5 == 0}} for i in range(4_000)]
    fifth = {"fifth": True}
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many(rows, vectors=vectors)
        kept = np.concatenate([page for _, page in store.iter_vectors()])[::5].astype(np.float64)
        kept /= np.linalg.norm(kept, axis=1, keepdims=True)
        plans = set()
        for query in vectors[:40] + 0.1:
            explained = store.explain_query(vector=query, where=fifth)
            plans.add(explained.steps[1].plan)
        assert len(plans) == 2
        for query in vectors[:6]:  # selections that nobody brings again
            store.search_vector(query, where=fifth, steer="1 & 2>=0")
        assert store.explain_query(vector=vectors[0], where=fifth).steps[1].plan == "every vector"
        for query in vectors[:20] - 0.1:
            order = np.argsort(-(kept @ query), kind="stable")[:10]
            ids = tuple((5 * order + 1).tolist())
            assert store.search_vector(query, where=fifth).ids == ids
        best = store.search_vector(vectors[0], 2, where=fifth).ids
        store.delete(best[0])
        assert store.search_vector(vectors[0], 1, where=fifth).ids == (best[1],)
        near = [{"text": "near", "metadata": fifth}]
        store.insert_many(near, vectors=vectors[:1])
        assert store.search_vector(vectors[0], 1, where=fifth)[0].text == "near"


def test_lists_of_another_version_are_made_anew(path, encoder, monkeypatch, caplog):
    """A number of lists that nobody knows how to read: built from the catalog, and answered."""
    monkeypatch.setattr(dense, "EXACT", 1_500)
    vectors = np.random.default_rng(5).normal(size=(2_500, 6))
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"m {i}" for i in range(2_500)], vectors=vectors)
        store.optimize()
        expected = store.search_vector(vectors[9], 5)
    monkeypatch.setattr(lists, "READING", {512: lists.READING[512]})
    monkeypatch.setattr(dense, "list_count", lambda _: 512)
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.search_vector(vectors[9], 5)[0] == expected[0]
        assert "1 lists" in caplog.text


def test_damage_is_not_saved_under_fresh_checksums(path, encoder, caplog):
    """Blocks are merged from what matches its checksums, else from the catalog."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(400)])
        store.optimize()
    file = next(layout.index_folder(path).glob("traces-*.idx"))
    content = bytearray(file.read_bytes())
    rows = files.read(file, "traces").arrays["activations"]
    place = content.index(rows.tobytes())
    content[place + 40] ^= 0x10
    file.write_bytes(content)
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete([300])
        store._upkeep.save(everything=True)
        assert store.check() == []
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.check() == []
    assert "rebuilding the neuron index" in caplog.text
