"""The store's own promises: what each call does, read back through another connection."""

from __future__ import annotations

import sqlite3
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from memstore import MemoryStore, N
from memstore.errors import (
    DuplicateKey,
    InvalidFilter,
    InvalidInput,
    MemoryNotFound,
    MemstoreError,
    MissingExtra,
    StoreClosed,
    StoreDamaged,
    StoreError,
)
from memstore.hits import Hit, Hits
from tests.conftest import fill_lively, lively_encoder, make_encoder


def texts_on_disk(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        return [row[0] for row in connection.execute("SELECT text FROM memory ORDER BY id")]


def test_what_is_inserted_comes_back_whole(store):
    """Every field survives, times in UTC, metadata as it was."""
    moment = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)
    metadata = {"mood": 4, "tags": ["a", "b"], "nested": {"x": None}, "ü": "ß"}
    memory_id = store.insert(
        "We argued.", category="Strong Emotional", key="k1", metadata=metadata, occurred_at=moment
    )
    memory = store.get(memory_id)
    assert (memory.text, memory.category, memory.key) == ("We argued.", "Strong Emotional", "k1")
    assert memory.metadata == metadata
    assert memory.occurred_at == moment
    assert memory.created_at == memory.updated_at <= datetime.now(UTC)
    assert store.get(key="k1") == memory


def test_a_time_without_zone_is_utc_and_others_are_converted(store):
    """No guess about the machine's zone: the same row means the same moment everywhere."""
    first = store.insert("a", occurred_at="2024-05-01T09:30:00")
    second = store.insert("b", occurred_at="2024-05-01T11:30:00+02:00")
    expected = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)
    assert store.get(first).occurred_at == store.get(second).occurred_at == expected


def test_insert_is_durable_when_it_returns(path, encoder):
    """Another connection sees the memory while the store is still open."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("first")
        assert texts_on_disk(path) == ["first"]


def test_ids_ascend_and_are_never_used_again(store):
    """An id that was deleted stays deleted, even the last one."""
    first, second = store.insert_many(["a", "b"])
    store.delete(second)
    third = store.insert("c")
    assert first < second < third


def test_update_changes_only_what_is_given(store):
    """Fields left out stay; None takes one away; a new text gets a new trace."""
    memory_id = store.insert("old text", category="A", key="k", metadata={"x": 1})
    store.update(memory_id, metadata={"y": 2})
    assert (store.get(memory_id).category, store.get(memory_id).metadata) == ("A", {"y": 2})
    store.update(memory_id, category=None, text="quite another text")
    memory = store.get(memory_id)
    assert (memory.text, memory.category, memory.key) == ("quite another text", None, "k")
    fresh = store.insert("quite another text")
    assert store.trace(memory_id).to_dict() == store.trace(fresh).to_dict()


def test_upsert_inserts_once_then_updates(store):
    """The key decides; fields left out of an update stay."""
    first = store.upsert(key="note-7", text="one", category="A")
    second = store.upsert(key="note-7", text="two")
    assert first == second
    assert store.count() == 1
    assert (store.get(first).text, store.get(first).category) == ("two", "A")


def test_duplicates_are_added_or_skipped_as_asked(store):
    """A text is known by its content, a row with a key by the key."""
    one = store.insert("same")
    assert store.insert("same") != one
    assert store.insert("same", on_duplicate="skip") == one
    ids = store.insert_many(["new", "new", "same"], on_duplicate="skip")
    assert ids[0] == ids[1] != ids[2] == one
    keyed = store.insert("same", key="k", on_duplicate="skip")
    assert keyed != one
    assert store.insert("other text", key="k", on_duplicate="skip") == keyed


def test_a_taken_key_is_refused_and_nothing_is_stored(store):
    """Also when the clash is inside one call."""
    store.insert("a", key="k")
    with pytest.raises(DuplicateKey, match="upsert"):
        store.insert("b", key="k")
    with pytest.raises(DuplicateKey, match="row 2"):
        store.insert_many([{"text": "c"}, {"text": "d", "key": "z"}, {"text": "e", "key": "z"}])
    other = store.insert("f", key="other")
    with pytest.raises(DuplicateKey):
        store.update(other, key="k")
    assert store.count() == 2


def test_a_stream_is_stored_batch_by_batch_and_goes_on_after_a_failure(store):
    """A generator that breaks leaves whole batches; repeating with skip completes them."""

    def rows(broken):
        for i in range(1000):
            if broken and i == 700:
                raise RuntimeError("the source broke")
            yield {"text": f"memory {i}", "key": str(i)}

    with pytest.raises(RuntimeError):
        store.insert_many(rows(broken=True), on_duplicate="skip")
    assert store.count() == 512
    ids = store.insert_many(rows(broken=False), on_duplicate="skip")
    assert len(set(ids)) == store.count() == 1000
    assert [store.get(i).key for i in (ids[0], ids[511], ids[999])] == ["0", "511", "999"]


def test_a_bad_row_in_a_list_leaves_the_store_as_it_was(store):
    """A list is checked whole first; the error names the row."""
    with pytest.raises(InvalidInput, match="row 600"):
        store.insert_many(["fine"] * 600 + [""])
    assert store.count() == 0


def test_progress_is_told_in_rows(store):
    """A callable gets (done, total); a stream has no total."""
    calls = []
    store.insert_many(["x"] * 300, progress=lambda done, total: calls.append((done, total)))
    store.insert_many(iter(["y"]), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(256, 300), (300, 300), (1, None)]


def test_given_vectors_skip_the_embedder(store, encoder):
    """They are brought to unit length, and the trace is theirs."""
    vectors = np.random.default_rng(1).normal(size=(300, 6)) * 50
    ids = store.insert_many([f"t{i}" for i in range(300)], vectors=vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = encoder.sae.encode(unit.astype(np.float32))
    assert np.array_equal(store.traces().to_dense(), expected.to_dense())
    stored = np.concatenate([page for _, page in store.iter_vectors()])
    assert np.allclose(stored, unit, atol=5e-4)  # stored as float16
    assert store.traces().ids.tolist() == ids


def test_delete_and_delete_where_say_how_many(store):
    """Unknown ids count nothing; an empty filter is refused."""
    ids = store.insert_many([{"text": str(i), "category": "AB"[i % 2]} for i in range(10)])
    assert store.delete([ids[0], ids[0], 10_000]) == 1
    assert store.delete_where({"category": "B"}) == 5
    with pytest.raises(InvalidFilter, match="everything"):
        store.delete_where({})
    assert store.count() == 4
    assert store.stats()["categories"] == {"A": 4}


def test_iter_pages_through_everything_once(store):
    """More than a page, ids ascending, while memories come and go."""
    store.insert_many([f"m{i}" for i in range(2500)])
    seen = []
    for memory in store.iter():
        if not seen:
            store.delete(2400)
        seen.append(memory.id)
    assert seen == sorted(set(seen))
    assert len(seen) == 2499


def test_missing_memories_have_one_error(store):
    """Each way of asking for one names what was asked."""
    for ask in (
        lambda: store.get(7),
        lambda: store.get(key="none"),
        lambda: store.trace(7),
        lambda: store.update(7, text="x"),
        lambda: store.similar(7),
    ):
        with pytest.raises(MemoryNotFound, match=r"id 7|key"):
            ask()


def test_a_closed_store_says_so(path, encoder):
    """Closing twice is harmless; using it afterwards is an error that names the remedy."""
    store = MemoryStore.open(path, encoder=encoder)
    store.close()
    store.close()
    with pytest.raises(StoreClosed, match="open it again"):
        store.count()
    with pytest.raises(StoreClosed):
        store.top(1)


def test_a_label_is_a_name_in_expressions(store):
    """Names work wherever numbers do, and why() says them."""
    ids = store.insert_many([f"memory {i}" for i in range(30)])
    neuron = int(store.trace(ids[0]).neurons[0])
    store.neurons.label(neuron, "first things", grade=0.8)
    assert store.top("first things", 3) == store.top(neuron, 3)
    assert store.composite("+'first things'", 3) == store.composite(N[neuron], 3)
    assert "'first things'" in store.top(neuron, 1)[0].why()
    known = store.neurons["first things"]
    assert (known.id, known.label, known.grade) == (neuron, "first things", 0.8)
    with pytest.raises(InvalidInput, match="did you mean 'first things'"):
        store.top("first thing")
    with pytest.raises(InvalidInput, match="already"):
        store.neurons.label((neuron + 1) % 10, "first things")
    store.neurons.label(neuron, None)
    assert store.neurons.labels() == []


def test_neuron_statistics_equal_those_of_the_dense_matrix(store):
    """Fires, mean, maximum, histogram and category AUC, against a pairwise count."""
    store.insert_many([{"text": f"m {i}", "category": "AB"[i % 3 == 0]} for i in range(60)])
    dense = store.traces().to_dense()
    inside = np.array([m.category == "B" for m in store.iter()])
    for number in range(10):
        column, known = dense[:, number], store.neurons[number]
        fired = column[column > 0]
        assert known.fires == len(fired)
        assert known.fire_rate == len(fired) / 60
        assert sum(known.histogram) == len(fired)
        if len(fired):
            assert known.mean == pytest.approx(fired.mean())
            assert known.maximum == fired.max()
        pairs = column[inside][:, None] - column[~inside][None, :]
        auc = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
        assert known.categories["B"] == pytest.approx(auc)
        assert [hit.score for hit in known.top] == sorted(fired, reverse=True)[:5]


def test_half_life_prefers_the_young(store):
    """Two equal texts: the newer first, its score about twice the one that is a half-life older."""
    now = datetime.now(UTC)
    old = store.insert("same words", occurred_at=now - timedelta(days=30))
    new = store.insert("same words", occurred_at=now)
    assert [hit.id for hit in store.search("same words", 2)] == [old, new]
    hits = store.search("same words", 2, half_life="30d")
    assert [hit.id for hit in hits] == [new, old]
    assert hits[1].score == pytest.approx(hits[0].score / 2, rel=1e-4)
    assert sum(hits[1].parts.values()) == pytest.approx(hits[1].score)
    assert "age" in hits[1].why()


def test_conditions_of_steer_hold_for_every_hit_of_a_hybrid(store):
    """On each side, words included."""
    store.insert_many([f"word {i}" for i in range(40)])
    for hit in store.search("word 7", 40, by="hybrid", steer="2 & 3>0.1 & !4"):
        trace = store.trace(hit.id).to_dict()
        assert trace.get(3, 0) > 0.1
        assert 4 not in trace


def test_a_weighted_hybrid_is_the_sum_of_its_sides(store):
    """Each side's score over its best, times its weight; sides of weight 0 stay out."""
    store.insert_many([f"word {i}" for i in range(12)] + ["quite different"])
    weights = {"dense": 2.0, "words": 0.5, "trace": 0}
    hits = store.search("word 3", 20, by="hybrid", weights=weights)
    dense = {h.id: h.score for h in store.search("word 3", 100)}
    words = {h.id: h.score for h in store.search("word 3", 100, by="words")}
    for hit in hits:
        expected = 2 * dense[hit.id] / max(dense.values())
        expected += 0.5 * words.get(hit.id, 0) / max(words.values())
        assert hit.score == pytest.approx(expected)
        assert set(hit.parts) <= {"dense", "words"}


def test_similar_by_trace_needs_no_encoder(path, encoder):
    """The stored trace is the question: an embedder that cannot be found is not missed."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"word {i}" for i in range(12)])
        expected = store.similar(3, by="trace")
    with MemoryStore.open(path, mode="r") as store:
        assert store.similar(3, by="trace") == expected
        assert len(store.similar(3)) == 10


def test_hits_looked_at_later_show_the_moment_of_the_query(path, encoder):
    """Texts, parts and reasons of every kind of query, after a change and after closing."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(30)])
        neuron = int(store.trace(1).neurons[0])
        store.neurons.label(neuron, "before")
        asked = [
            lambda: store.top(neuron, 3),
            lambda: store.search("memory 1", 3, steer={neuron: 1.0}),
            lambda: store.search("memory 1", 3, by="trace"),
            lambda: store.search("memory 1", 3, by="words"),
            lambda: store.search("memory 1", 3, by="hybrid"),
        ]
        at_once = [[(hit.text, dict(hit.parts), hit.why()) for hit in ask()] for ask in asked]
        later = [ask() for ask in asked]
        assert [list(hits.ids) for hits in later] == [[hit.id for hit in ask()] for ask in asked]
        store.neurons.label(neuron, "after")
        for i in range(1, 31):
            store.update(i, text="something else")
    for hits, expected in zip(later, at_once, strict=True):
        assert [(hit.text, dict(hit.parts), hit.why()) for hit in hits] == expected
        assert list(hits.scores) == [hit.score for hit in hits]
    assert "'before'" in later[0][0].why()


@pytest.mark.parametrize("line", range(4))
def test_hits_that_another_thread_makes_meanwhile_are_whole(line):
    """Before each line of making them, another look comes in between and finishes."""

    def between(frame, event, _):
        if frame.f_code is not Hits._all.__code__:
            return None
        if event == "line":
            passed.append(frame.f_lineno)
            if len(passed) == line + 1:
                assert len(hits[:]) == 2
        return between

    hits = Hits.later(
        (1, 2), (0.5, 0.25), lambda: [Hit(i, None, "t", None, 0.5, {}) for i in (1, 2)]
    )
    passed, before = [], sys.gettrace()
    sys.settrace(between)
    try:
        seen = [hit.id for hit in hits]
    finally:
        sys.settrace(before)
    assert passed
    assert seen == [1, 2]


def test_hits_become_dicts_frames_and_tables(store):
    """The same rows in each form."""
    store.insert_many([{"text": f"m {i}", "metadata": {"i": i}} for i in range(5)])
    hits = store.search("m 1", 3)
    assert [row["id"] for row in hits.to_dicts()] == [hit.id for hit in hits]
    assert hits.to_pandas()["score"].tolist() == [hit.score for hit in hits]
    assert hits.to_arrow().column("text").to_pylist() == [hit.text for hit in hits]
    assert hits[1:].to_dicts() == hits.to_dicts()[1:]


def test_traces_become_a_scipy_matrix(store):
    """CSR arrays are what scipy expects."""
    store.insert_many([f"m {i}" for i in range(20)])
    traces = store.traces()
    assert np.array_equal(traces.to_scipy().toarray(), traces.to_dense())
    assert len(traces) == 20
    assert traces[3].to_dict() == store.trace(int(traces.ids[3])).to_dict()


def test_a_missing_extra_names_it(store, monkeypatch):
    """Without pandas the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    store.insert("x")
    with pytest.raises(MissingExtra, match=r"memstore-sae\[data\]"):
        store.search("x", 1).to_pandas()


def test_export_is_what_import_reads(store, path, tmp_path):
    """Every memory a line, and the file appears whole."""
    from memstore.files import read_rows

    store.insert_many([{"text": f"m {i}", "category": "A", "key": str(i)} for i in range(5)])
    assert store.export(tmp_path / "out.jsonl") == 5
    rows = list(read_rows(str(tmp_path / "out.jsonl"), None, "text"))
    assert [row["text"] for row in rows] == [memory.text for memory in store.iter()]
    assert not list(tmp_path.glob("*.part"))


def test_a_backup_of_a_live_store_is_a_store(path, tmp_path, encoder):
    """It opens, holds the same, and an existing file is not overwritten."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"m {i}" for i in range(50)])
        store.backup(tmp_path / "copy.db")
        with pytest.raises(Exception, match="exists"):
            store.backup(tmp_path / "copy.db")
        with MemoryStore.open(tmp_path / "copy.db", mode="r", encoder=encoder) as copy:
            assert list(copy.iter()) == list(store.iter())
            assert copy.check() == []


def test_check_finds_what_repair_mends(path, encoder):
    """A word list that lost a text is found and rebuilt."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"unique{i}" for i in range(20)])
        assert store.check() == []
        with store._database.driver() as raw:
            raw.execute("INSERT INTO memory_words (memory_words) VALUES ('delete-all')")
        assert len(store.search("unique3", by="words")) == 0
        assert any("word lists" in problem for problem in store.check())
        assert store.repair() == []
        assert len(store.search("unique3", by="words")) == 1


def test_two_encoders_give_other_fingerprints():
    """One changed weight is another encoder."""
    assert make_encoder(0).fingerprint == make_encoder(0).fingerprint
    assert make_encoder(0).fingerprint != make_encoder(1).fingerprint


def test_an_export_never_writes_over_a_file(path, tmp_path, encoder):
    """Least of all over the store itself."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert("precious")
        for target in (path, tmp_path / "there.jsonl"):
            target.touch()
            with pytest.raises(StoreError, match="exists"):
                store.export(target)
        assert store.count() == 1


def test_upsert_is_one_transaction_among_threads(path, encoder):
    """Several threads with the same keys: one memory a key, no error."""
    failures = []
    with MemoryStore.open(path, encoder=encoder, busy_timeout=30) as store:

        def work(name):
            try:
                for i in range(20):
                    store.upsert(key=f"k{i}", text=f"{name} {i}")
            except MemstoreError as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.count() == 20
        assert store.check() == []


def test_batches_do_not_change_what_is_a_duplicate(store):
    """Rows of one call come out as if each had been inserted alone."""
    rows = [
        {"text": "a", "key": "k1"},
        "a",
        {"text": "b", "key": "k1"},
        "b",
        {"text": "b", "key": "k2"},
        "b",
    ]
    together = store.insert_many(rows, on_duplicate="skip")
    with MemoryStore.open(":memory:", encoder=make_encoder()) as other:
        alone = [other.insert_many([row], on_duplicate="skip")[0] for row in rows]
    assert together == alone


def test_a_list_with_a_key_twice_is_refused_whole(store):
    """Also where the second lies in a later batch."""
    rows = [{"text": f"t{i}", "key": f"k{i % 300}"} for i in range(301)]
    with pytest.raises(DuplicateKey, match="row 300"):
        store.insert_many(rows)
    assert store.count() == 0


def test_broken_vectors_and_traces_are_found_and_mended(path, encoder):
    """Half a blob, a lost row, a wrong size: check names them, queries are typed, repair mends."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(10)])
        expected = store.traces().to_dense(), store.search("memory 3", 10)
        with store._database.exclusive() as connection:
            connection.exec_driver_sql("UPDATE trace SET neurons = x'01' WHERE memory_id = 2")
            connection.exec_driver_sql("UPDATE vector SET vector = x'01' WHERE memory_id = 3")
            connection.exec_driver_sql("DELETE FROM trace WHERE memory_id = 5")
            connection.exec_driver_sql("DELETE FROM vector WHERE memory_id = 6")
    with MemoryStore.open(path, encoder=encoder) as store:
        assert len(store.check()) == 1
        assert "4 memories" in store.check()[0]
        with pytest.raises(StoreDamaged, match="--repair"):
            store.top(1)
        with pytest.raises(StoreDamaged, match="--repair"):
            store.search("memory 3")
        assert store.repair() == []
        assert np.array_equal(store.traces().to_dense(), expected[0])
        assert store.search("memory 3", 10) == expected[1]


def test_an_interrupted_index_update_never_answers(path, encoder, monkeypatch):
    """Cut short between vectors and ids, the index is built anew, not used."""
    from memstore.index import dense

    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(50)])
        store.search("memory 1")
        store.insert_many(["A", "B"])

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(dense.np, "concatenate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.search("memory 1")
        monkeypatch.undo()
        store.insert_many(["C", "D"])
        with MemoryStore.open(path, mode="r", encoder=encoder) as fresh:
            assert store.search("C", 60) == fresh.search("C", 60)
        assert store.check() == []


# --- ids and scores alone -------------------------------------------------------------------------


@pytest.mark.parametrize("where", [None, {"id": {"$lte": 20}}], ids=["search", "filter first"])
def test_unfetched_hits_are_the_same_once_looked_at(where):
    """Ids and scores at once; texts, parts and reasons later."""
    with MemoryStore.open(":memory:", encoder=lively_encoder()) as store:
        fill_lively(store, 60)
        for query in ("3", "3 - 0.5*5", "3 & 4>0.1"):
            plain = store.composite(query, 7, where=where)
            later = store.composite(query, 7, where=where, fetch=False)
            assert (later.ids, later.scores) == (plain.ids, plain.scores)
            assert later == plain
            assert [hit.why() for hit in later] == [hit.why() for hit in plain]
        assert store.top(3, 5, fetch=False) == store.top(3, 5)
        for steer in (None, "3 - 0.5*5"):
            plain = store.search_vector([1.0] * 6, 7, where=where, steer=steer)
            later = store.search_vector([1.0] * 6, 7, where=where, steer=steer, fetch=False)
            assert (later.ids, later.scores) == (plain.ids, plain.scores)
            assert [hit.why() for hit in later] == [hit.why() for hit in plain]
            assert later == plain


def test_unfetched_hits_that_an_index_made_up():
    """Said once, not blamed on a deletion; asked again, the index is another one."""
    with MemoryStore.open(":memory:", encoder=lively_encoder()) as store:
        fill_lively(store, 60)
        right = store.search_vector([1.0] * 6, 3)
        index = store._indices._dense
        index.ids = np.where(index.ids == right.ids[0], 9_999, index.ids)
        with pytest.raises(MemoryNotFound, match="built anew"):
            list(store.search_vector([1.0] * 6, 3, fetch=False))
        assert store.search_vector([1.0] * 6, 3, fetch=False) == right


@pytest.mark.parametrize("where", [None, {"id": {"$lte": 20}}], ids=["search", "filter first"])
def test_unfetched_hits_of_memories_that_changed(where):
    """A new text stands beside why the old one was found; what is gone is said to be."""
    with MemoryStore.open(":memory:", encoder=lively_encoder()) as store:
        fill_lively(store, 60)
        before = store.top(3, 3, where=where)
        why = before[0].why()
        later = store.top(3, 3, where=where, fetch=False)
        store.update(before.ids[0], text="entry of other words")
        assert later[0].text == "entry of other words"
        assert later[0].why() == why
        gone = store.top(3, 3, where=where, fetch=False)
        store.delete(gone.ids[1])
        assert len(gone.ids) == 3
        with pytest.raises(MemoryNotFound, match="deleted since"):
            list(gone)
