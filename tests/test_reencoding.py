"""Moving a store to another encoder: the same as if it had always been of that one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from memstore import Encoder, MemoryStore, layout
from memstore.catalog import neurons, reencoding
from memstore.embed.function import FunctionEmbedder
from memstore.errors import (
    EncoderMismatch,
    InvalidInput,
    InvalidVector,
    InvalidWeights,
    StoreReadOnly,
    UnknownNeuron,
)
from memstore.sae.encode import SAE
from tests.conftest import DIMENSION, ROOT, grid_vectors, make_encoder

OLD, NEW = make_encoder(), make_encoder(seed=1, neurons=14)


def other_embedder(size: int = 7, calls: list[int] | None = None) -> Encoder:
    """An encoder of other vectors, in another dimension; ``calls`` gets how many texts it saw."""

    def embed(texts):
        if calls is not None:
            calls.append(len(texts))
        return np.hstack([grid_vectors(texts) * 2 - 1, np.ones((len(texts), size - DIMENSION))])

    base = make_encoder(seed=3)
    config = replace(base.sae.config, dimension=size)
    random_ = np.random.default_rng(3)
    tensors = {n: random_.normal(size=s).astype(np.float32) for n, s in config.shapes().items()}
    embedder = FunctionEmbedder(embed, size, f"other {size}")
    return Encoder(embedder, SAE(config, tensors), "other", base.config)


OTHER = other_embedder()


def rows(count, first=0):
    return [{"text": f"entry {i}", "category": "ab"[i % 2]} for i in range(first, first + count)]


def contents(store):
    """Everything a query can see."""
    vectors = [found for _, found in store.iter_vectors()]
    return {
        "texts": [(m.id, m.text, m.category) for m in store],
        "traces": store.traces().to_dense().tolist(),
        "vectors": np.concatenate(vectors).tolist() if vectors else [],
        "top": [store.top(n, 5) for n in range(len(store.neurons))],
        "search": store.search("entry 12", 5),
        "hybrid": store.search("entry 12", 5, by="hybrid").ids,
        "problems": store.check(),
    }


@pytest.mark.parametrize("encoder", [NEW, OTHER], ids=["other SAE", "other embedder"])
def test_it_is_as_if_the_store_had_always_been_of_that_encoder(path, tmp_path, encoder):
    """Vectors, traces, hits of every kind; in the handle that moved, and opened anew."""
    with MemoryStore.open(tmp_path / "fresh.db", encoder=encoder) as fresh:
        fresh.insert_many(rows(300))
        expected = contents(fresh)
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(300))
        store.neurons.label(3, "three")
        store.lenses.save("calm", "3")
        store.search("entry 1")
        assert store.reencode(encoder, embed=True) == 300
        assert contents(store) == expected
        assert len(store.neurons) == encoder.neurons
        with pytest.raises(UnknownNeuron):
            store.composite("three")
        assert len(store.lenses) == 0
        store.insert("entry 301")
        assert store.check() == []
    with MemoryStore.open(path, encoder=encoder) as store:
        store.delete(301)
        assert contents(store) == expected
    with pytest.raises(EncoderMismatch):
        MemoryStore.open(path, encoder=OLD)


def test_vectors_stay_where_the_embedder_stays(path):
    """No text is embedded, and vectors that were handed in keep what they were."""
    calls: list[int] = []
    first = other_embedder(calls=calls)
    tensors = {name: values[::-1].copy() for name, values in first.sae.tensors.items()}
    second = replace(first, sae=SAE(first.sae.config, tensors))
    given = np.random.default_rng(0).normal(size=(40, 7))
    with MemoryStore.open(path, encoder=first) as store:
        store.insert_many(rows(40), vectors=given)
        before = np.concatenate([found for _, found in store.iter_vectors()])
        assert store.reencode(second) == 40
        assert calls == []
        after = np.concatenate([found for _, found in store.iter_vectors()])
        assert np.array_equal(before, after)
        expected = second.sae.encode(before).to_dense()
        assert np.array_equal(store.traces().to_dense(), expected)


def test_moving_back_brings_labels_and_lenses_back(path):
    """They are of an encoder's neurons, and stay with them."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(30))
        store.neurons.label(3, "three")
        store.lenses.save("calm", "3")
        before = contents(store)
        store.reencode(OTHER)
        store.reencode(OLD)
        assert contents(store) == before
        assert store.neurons["three"].id == 3
        assert store.lenses["calm"].expression == "+3"


def test_the_old_encoder_answers_until_the_switch(path):
    """Half way, every query is what it was; what others write meanwhile is encoded, too."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(600))
        before = contents(store)
        seen = []

        def meanwhile(done, total):
            if done == 256:
                assert contents(store) == before
                with MemoryStore.open(path, encoder=OLD) as other:
                    other.update(1, text="changed after it was encoded")
                    other.update(590, text="changed before it was encoded")
                    other.delete([2, 591])
                    seen.extend(other.insert_many(rows(100, 600)))

        store.reencode(OTHER, progress=meanwhile)
        assert len(seen) == 100
        after = contents(store)
    with MemoryStore.open(":memory:", encoder=OTHER) as fresh:
        fresh.insert_many([{"text": text, "category": c} for _, text, c in after["texts"]])
        assert fresh.traces().to_dense().tolist() == after["traces"]
        assert len(fresh) == 698
    assert after["problems"] == []


def test_interrupted_it_goes_on_where_it_stopped(path):
    """No text is embedded twice; queries answer from the old encoder in between."""
    calls: list[int] = []
    encoder = other_embedder(calls=calls)

    def stop(done, total):
        assert total >= done
        raise KeyboardInterrupt

    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(700))
        before = contents(store)
        with pytest.raises(KeyboardInterrupt):
            store.reencode(encoder, progress=stop)
        assert contents(store) == before
    with MemoryStore.open(path, encoder=OLD) as store:
        assert contents(store) == before
        assert store.reencode(encoder) == 700 - 256
    assert sum(calls) == 700


def test_an_encoder_is_found_where_it_lies_now(path, tmp_path):
    """Moved to once more, from another folder: the store does not look in the first."""
    with MemoryStore.open(path) as store:
        store.insert("entry 1")
        for place in ("here", "there"):
            shutil.copytree(layout.PACKAGE / "models" / "sae-3072-k64", tmp_path / place)
            store.reencode(Encoder.of(sae=tmp_path / place))
            store.reencode(Encoder.of())
        store.reencode(Encoder.of(sae=tmp_path / "there"))
    shutil.rmtree(tmp_path / "here")
    with MemoryStore.open(path, mode="r") as store:
        assert store.search("entry", 1)[0].id == 1
        assert store.stats()["encoder"].endswith("there")


def test_what_was_begun_can_be_given_up(path):
    """By moving to where the store is; nothing of it is left."""

    def stop(done, total):
        raise KeyboardInterrupt

    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(300))
        before = contents(store)
        with pytest.raises(KeyboardInterrupt):
            store.reencode(OTHER, progress=stop)
        assert store.reencode(OLD) == 0
        assert contents(store) == before
        with store._database.driver() as raw:
            for table in ("vector_next", "trace_next"):
                assert raw.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_reader_that_was_open_follows(path):
    """With an encoder it can load again; one that it cannot is asked for by name."""
    shipped, wide = Encoder.of(), Encoder.of(sae="sae-3072-k64")
    with (
        MemoryStore.open(path, encoder=shipped) as store,
        MemoryStore.open(path, mode="r") as reader,
    ):
        store.insert_many(["We argued in the rain.", "The bus was late again."])
        assert len(reader.trace(1)) == 32
        assert reader.search("a quarrel", 1)[0].id == 1
        store.reencode(wide)
        assert len(reader.trace(1)) == 64
        assert reader.search("a quarrel", 1, by="trace")[0].id == 1
        assert reader.search("a quarrel", 1).ids == store.search("a quarrel", 1).ids
        assert reader.stats()["encoder"].endswith("sae-3072-k64")


def moving_meanwhile(store, other, to):
    """Have ``other``'s next batch prepared just before ``store`` moves."""
    prepare, moved = other._writer._prepare, []

    def late(batch, skip):
        encoded = prepare(batch, skip)
        if not moved:
            moved.append(store.reencode(to))
            other._encoders[to.fingerprint] = to
        return encoded

    other._writer._prepare = late
    return moved


def test_a_writer_that_was_encoding_encodes_again(path):
    """A batch made by the old encoder is not stored under the new one."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(30))
        with MemoryStore.open(path, encoder=OLD) as other:
            moved = moving_meanwhile(store, other, NEW)
            added = other.insert_many(rows(20, 30))
        assert moved == [30]
        assert len(added) == 20
        assert store.check() == []
        with MemoryStore.open(":memory:", encoder=NEW) as fresh:
            fresh.insert_many(rows(50))
            assert fresh.traces().to_dense().tolist() == store.traces().to_dense().tolist()


def test_a_batch_with_links_is_encoded_again(path):
    """Its near-copies are those among the new vectors."""
    with MemoryStore.open(path, encoder=OLD) as store, MemoryStore.open(path) as other:
        store.insert_many(rows(30))
        other._encoders[OLD.fingerprint] = OLD
        moved = moving_meanwhile(store, other, OTHER)
        ids = other.insert_many(["entry 3", "entry 3"], on_duplicate="link")
        assert moved == [30]
        assert [len(store.copies(memory_id)) > 0 for memory_id in ids] == [True, True]
        assert store.check() == []


def test_handed_in_vectors_of_the_old_embedder_are_refused(path):
    """In one dimension they would look right, and mean nothing."""
    same_size = other_embedder(DIMENSION)
    with MemoryStore.open(path, encoder=OLD) as store, MemoryStore.open(path) as other:
        store.insert_many(rows(10))
        other._encoders[OLD.fingerprint] = OLD
        moving_meanwhile(store, other, same_size)
        with pytest.raises(InvalidVector, match="has moved to other meanwhile"):
            other.insert_many(["x", "y"], vectors=np.eye(DIMENSION)[:2])
        assert len(store) == 10
        assert store.check() == []


def test_a_handle_from_before_the_move_hands_in_no_vectors(path):
    """It does not know that the store wants others now; opened again, it does."""
    same_size = other_embedder(DIMENSION)
    with MemoryStore.open(path, encoder=OLD) as store, MemoryStore.open(path, encoder=OLD) as other:
        store.insert_many(["a"], vectors=np.eye(DIMENSION)[:1])
        store.reencode(same_size)
        other._encoders[same_size.fingerprint] = same_size
        with pytest.raises(InvalidVector, match="since it was opened: open it again"):
            other.insert_many(["x"], vectors=np.eye(DIMENSION)[:1])
        assert other.insert("a text is embedded by whatever encoder there is")
        store.insert_many(["b"], vectors=np.eye(DIMENSION)[1:2])
    with MemoryStore.open(path, encoder=same_size) as store:
        store.insert_many(["c"], vectors=np.eye(DIMENSION)[2:3])
        assert store.check() == []


def test_vectors_of_an_unknown_embedder_are_not_embedded_over_unasked(path):
    """Opened without the object that embeds, nothing says whether the new one is the same."""
    calls: list[int] = []
    first = other_embedder(calls=calls)
    with MemoryStore.open(path, encoder=first) as store:
        store.insert_many(rows(5), vectors=np.random.default_rng(0).normal(size=(5, 7)))
    tensors = {name: values[::-1].copy() for name, values in first.sae.tensors.items()}
    second = replace(first, sae=SAE(first.sae.config, tensors))
    with MemoryStore.open(path) as store:
        with pytest.raises(InvalidInput, match="embed=True"):
            store.reencode(second)
        assert calls == []
        assert store.reencode(second, embed=True) == 5
    assert sum(calls) == 5


def test_nothing_is_left_aside(path):
    """Not after a move, not after one that was beaten to it, not after one that was killed."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(600))
        done = []

        def meanwhile(count, total):
            if not done:
                with MemoryStore.open(path, encoder=OLD) as other:
                    done.append(other.reencode(OTHER))

        store.reencode(OTHER, progress=meanwhile)
        assert store.stats()["aside"] == 0
        before = reencoding.clear
        reencoding.clear = lambda *_: sys.exit("killed")
        try:
            with pytest.raises(SystemExit):
                store.reencode(OLD)
        finally:
            reencoding.clear = before
        assert store.stats()["aside"] == 600
        assert store.stats()["fingerprint"] == OLD.fingerprint
        assert store.reencode(OLD) == 0
        assert store.stats()["aside"] == 0
        assert store.check() == []


def test_no_text_is_embedded_under_the_lock(path):
    """Others write while the embedder thinks, in the smallest store, too."""
    held = []

    def embed(texts):
        held.append(store._database._writing.locked())
        return grid_vectors(texts)

    slow = replace(NEW, embedder=FunctionEmbedder(embed, DIMENSION, "slow"))
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(10))
        assert store.reencode(slow) == 10
    assert held == [False]


def test_two_may_move_it_to_one_place(path):
    """The second finds it done; vectors that were handed in are not embedded over."""
    calls: list[int] = []
    first = other_embedder(calls=calls)
    tensors = {name: values[::-1].copy() for name, values in first.sae.tensors.items()}
    second = replace(first, sae=SAE(first.sae.config, tensors))
    given = np.random.default_rng(0).normal(size=(200, 7))
    with (
        MemoryStore.open(path, encoder=first) as store,
        MemoryStore.open(path, encoder=first) as other,
    ):
        store.insert_many(rows(200), vectors=given)
        before = np.concatenate([found for _, found in store.iter_vectors()])
        done = []

        def meanwhile(count, total):
            if not done:
                done.append(other.reencode(second))

        store.reencode(second, progress=meanwhile)
        assert done
        assert calls == []
        assert np.array_equal(before, np.concatenate([v for _, v in store.iter_vectors()]))
        assert store.check() == []


def test_two_that_move_it_to_two_places_do_not_mix(path):
    """The slower one is told, and the store is of one encoder."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(400))
        done = []

        def meanwhile(count, total):
            if not done:
                with MemoryStore.open(path, encoder=OLD) as other:
                    done.append(other.reencode(NEW))

        with pytest.raises(EncoderMismatch, match="has moved to small meanwhile"):
            store.reencode(OTHER, progress=meanwhile)
        store._encoders[NEW.fingerprint] = NEW
        assert store.stats()["fingerprint"] == NEW.fingerprint
        assert store.check() == []


@pytest.mark.parametrize("other_goal", [OLD, NEW], ids=["gives it up", "begins another"])
def test_what_another_drops_under_way_is_made_again(path, other_goal):
    """No memory is left without a vector: not even one whose page was done long before."""

    def stop(count, total):
        raise KeyboardInterrupt

    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(600))
        done = []

        def meanwhile(count, total):
            if count == total and not done:  # the last page is made
                with MemoryStore.open(path, encoder=OLD) as other:
                    done.append(True)
                    try:
                        other.reencode(other_goal, progress=stop)
                    except KeyboardInterrupt:
                        done.append(True)

        store.reencode(OTHER, progress=meanwhile)
        assert done
        assert store.check() == []
        expected = OTHER.traces(OTHER.vectors([memory.text for memory in store])).to_dense()
        assert np.array_equal(store.traces().to_dense(), expected)
        assert store.stats()["aside"] == 0


def test_pages_of_vectors_are_of_one_encoder(path):
    """What an SAE is trained on does not change under way."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(9_000), vectors=np.random.default_rng(0).normal(size=(9_000, 6)))
        pages = store.iter_vectors()
        next(pages)
        store.reencode(NEW)
        with pytest.raises(EncoderMismatch, match="meanwhile"):
            next(pages)


def test_mending_does_not_bring_an_old_text_back(path):
    """Changed or deleted between reading and writing: read again."""
    with MemoryStore.open(path, encoder=OLD) as store, MemoryStore.open(path, encoder=OLD) as other:
        store.insert_many(rows(10))
        encode, seen = store._writer._encode, []

        def late(batch, wanted):
            encoded = encode(batch, wanted)
            if not seen:
                seen.append(other.update(3, text="of other words"))
                other.delete(5)
            return encoded

        store._writer._encode = late
        store._writer.mend([3, 4, 5])
        assert store.check() == []
        expected = OLD.traces(OLD.vectors(["of other words"])).to_dense()
        assert np.array_equal(store.traces({"id": 3}).to_dense(), expected)
        assert 5 not in {memory.id for memory in store}


def test_a_question_of_the_old_encoder_is_asked_anew(path):
    """Vectors of two encoders never meet, not even in a query that was under way."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(60))
        ask, moved = store._searcher._question, []

        def late(text, by):
            question = ask(text, by)
            if not moved:
                moved.append(store.reencode(OTHER))
            return question

        store._searcher._question = late
        found = store.search("entry 12", 5)
        assert moved == [60]
        with MemoryStore.open(":memory:", encoder=OTHER) as fresh:
            fresh.insert_many(rows(60))
            assert fresh.search("entry 12", 5) == found


def test_labels_for_the_old_neurons_are_not_given_to_new_ones(path):
    """The name was for a neuron that the store no longer has."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(5))
        with store._database.read() as connection:
            record = neurons.require_encoder(connection)
        store.reencode(NEW)
        with (
            pytest.raises(EncoderMismatch, match="has moved to small meanwhile"),
            store._database.read() as connection,
        ):
            neurons.require_still(connection, record)


def test_what_is_no_encoder_is_refused(path):
    """The name of one is not one."""
    with MemoryStore.open(path, encoder=OLD) as store:
        for wrong in ("sae-3072-k64", None, 5, Encoder):
            with pytest.raises(InvalidInput, match=r"Encoder.of\(sae="):
                store.reencode(wrong)
    for wrong in ({"sae": 5}, {"embedder": 5}):
        with pytest.raises(InvalidWeights):
            Encoder.of(**wrong)


def test_an_empty_store_and_a_reader(path):
    """Nothing to encode is no error; a reader moves nothing."""
    with MemoryStore.open(path, encoder=OLD) as store:
        assert store.reencode(OTHER) == 0
        store.insert("entry 1")
        assert store.check() == []
    with MemoryStore.open(path, mode="r") as store, pytest.raises(StoreReadOnly):
        store.reencode(OLD)


def test_writers_may_go_on_all_the_while(path):
    """Two threads insert and update until the switch and after; nothing is of the old encoder."""
    encoder = OTHER
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(400))
        stop = threading.Event()
        failed = []

        def write(number):
            try:
                while not stop.is_set():
                    store.insert(f"more of {number}")
                    store.update(1 + number, text=f"changed {time.monotonic()}")
            except Exception as error:  # noqa: BLE001 - told below
                failed.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        store.reencode(encoder)
        time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()
        assert failed == []
        assert store.check() == []
        texts = [memory.text for memory in store]
        expected = encoder.traces(encoder.vectors(texts)).to_dense()
        assert np.array_equal(store.traces().to_dense(), expected)


KILLED = """
    import sys
    from memstore import MemoryStore
    from tests.test_reencoding import OLD, OTHER
    with MemoryStore.open(sys.argv[1], encoder=OLD) as store:
        print("ready", flush=True)
        store.reencode(OTHER)
"""


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_store_is_of_one_encoder(path, kills):
    """Of the old one whole, or of the new one whole; the same call ends it."""
    with MemoryStore.open(path, encoder=OLD) as store:
        store.insert_many(rows(2_000))
        texts = [memory.text for memory in store]
    expected = {
        encoder.fingerprint: encoder.traces(encoder.vectors(texts)).to_dense()
        for encoder in (OLD, OTHER)
    }
    dice, found = random.Random(1), set()
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        process.stdout.readline()
        time.sleep(dice.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with MemoryStore.open(path, mode="r") as store:
            fingerprint = store.stats()["fingerprint"]
            found.add(fingerprint)
            assert np.array_equal(store.traces().to_dense(), expected[fingerprint])
            assert store.check() == []
        if fingerprint == OTHER.fingerprint:
            break
    with MemoryStore.open(path, encoder=OLD if found == {OLD.fingerprint} else OTHER) as store:
        store.reencode(OTHER)
        assert np.array_equal(store.traces().to_dense(), expected[OTHER.fingerprint])
        assert store.check() == []


def test_in_the_shell(narrative_store, tmp_path):
    """memstore reencode, and back."""
    path = tmp_path / "copy.db"
    path.write_bytes(narrative_store.read_bytes())

    def memstore(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "memstore", *map(str, arguments)],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        return done.stdout

    before = memstore("top", path, "104", "--json")
    moved = json.loads(memstore("reencode", path, "--sae", "sae-3072-k64", "--json"))
    assert moved["encoded"] == len(json.loads(memstore("list", path, "-n", "0", "--json")))
    assert memstore("top", path, "104", "--json") != before
    assert "memories encoded by minilm-l6-v2 + sae-3072-k32" in memstore("reencode", path)
    assert "is of minilm-l6-v2 + sae-3072-k32 already" in memstore("reencode", path)
    assert memstore("check", path).endswith("all well\n")
