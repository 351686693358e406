"""What is new about a text, which memory it repeats, and which hits say most between them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from memstore import MemoryStore, layout
from memstore.core.vectors import NEAR_COPY
from memstore.errors import InvalidFile, InvalidInput, InvalidQuery, InvalidText, MemoryNotFound
from memstore.hits import Hits
from tests.conftest import fill_lively, lively_encoder, make_encoder

SPOKEN = [
    "We argued in the rain and laughed later.",
    "The bus was late again.",
    "We argued in the rain, and laughed later!",
    "The plumber fixed the sink.",
    "the bus was late again",
]


# --- links -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """A store whose memories were inserted with links."""
    path = tmp_path_factory.mktemp("linked") / "linked.db"
    with MemoryStore.open(path) as store:
        store.insert_many([{"text": text} for text in SPOKEN], on_duplicate="link")
        store.insert("the plumber fixed the sink!", on_duplicate="link")
    return path


def test_links_are_the_nearest_earlier_memory(linked):
    """By brute force over the vectors: in a batch, and against what is stored."""
    with MemoryStore.open(linked, mode="r") as store:
        vectors = np.concatenate([found for _, found in store.iter_vectors()]).astype(np.float64)
        cosines = vectors @ vectors.T
        expected = {}
        for row in range(1, len(vectors)):
            nearest = int(cosines[row, :row].argmax())
            if cosines[row, nearest] >= NEAR_COPY:
                expected.setdefault(row + 1, []).append(nearest + 1)
                expected.setdefault(nearest + 1, []).append(row + 1)
        assert expected == {1: [3], 3: [1], 2: [5], 5: [2], 4: [6], 6: [4]}
        for memory in store:
            found = store.copies(memory.id)
            assert [both.other.id for both in found] == expected[memory.id]
            for both in found:
                assert both.one.id == memory.id
                exact = cosines[memory.id - 1, both.other.id - 1]
                assert both.cosine == pytest.approx(min(exact, 1.0), abs=1e-5)
                assert both.shared


def test_links_go_with_text_and_memory(path):
    """A new text repeats nothing until it is inserted so; a deleted memory is repeated no more."""
    with MemoryStore.open(path) as store:
        ids = store.insert_many([{"text": text} for text in SPOKEN], on_duplicate="link")
        store.update(ids[4], text="Nothing of the kind.")
        assert store.copies(ids[1]) == []
        store.delete(ids[0])
        assert store.copies(ids[2]) == []
        assert store.check() == []
        with pytest.raises(MemoryNotFound):
            store.copies(ids[0])


def test_links_travel_with_an_encoded_export(linked, tmp_path):
    """Between memories that both come along."""
    with MemoryStore.open(linked, mode="r") as store:
        store.export(tmp_path / "all.jsonl", encoded=True)
        store.export(tmp_path / "some.jsonl", {"id": {"$ne": 1}}, encoded=True)
        found = {memory.id: [both.other.id for both in store.copies(memory.id)] for memory in store}
    for name, expected in (("all", found), ("some", {**found, 3: []})):
        with MemoryStore.open(tmp_path / f"{name}.db") as other:
            other.load(tmp_path / f"{name}.jsonl")
            assert {m.id: [b.other.id for b in other.copies(m.id)] for m in other} == {
                memory_id: own
                for memory_id, own in expected.items()
                if name == "all" or memory_id != 1
            }


def test_the_nearest_is_linked_wherever_it_came_from(store):
    """In one batch as one by one: an earlier row that is nearer than what is stored."""
    near = np.array([[1, 0.3, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 0.02, 0, 0, 0, 0]])
    store.insert("stored", on_duplicate="link")
    first = store.insert_many(["s"], vectors=near[:1], on_duplicate="link")
    ids = store.insert_many(["a", "b"], vectors=near[1:], on_duplicate="link")
    assert [both.other.id for both in store.copies(ids[0])] == [first[0], ids[1]]
    assert [both.other.id for both in store.copies(ids[1])] == [ids[0]]


def test_the_same_text_again_keeps_its_links(store):
    """An upsert of what is there changes nothing."""
    store.insert("entry 1")
    twin = store.upsert(key="twin", text="entry 1")
    store.delete(twin)
    twin = store.insert("entry 1", key="twin", on_duplicate="link")
    store.upsert(key="twin", text="entry 1", category="x")
    assert len(store.copies(twin)) == 1
    store.upsert(key="twin", text="entry 2")
    assert store.copies(twin) == []


@pytest.mark.parametrize(
    "link", [(1, 2.0), (1, "x"), (1, None), (3, 0.99), ("1", 0.99), (-1, 0.99)]
)
def test_a_strange_link_is_refused(linked, tmp_path, link):
    """In an export that somebody wrote by hand: memory 3 is linked to what cannot be."""
    with MemoryStore.open(linked, mode="r") as store:
        store.export(tmp_path / "all.jsonl", encoded=True)
    lines = (tmp_path / "all.jsonl").read_text("utf-8").splitlines()
    row = json.loads(lines[3])
    assert row["id"] == 3
    row["link_id"], row["link_cosine"] = link
    lines[3] = json.dumps(row)
    (tmp_path / "all.jsonl").write_text("\n".join(lines), "utf-8")
    with MemoryStore.open(tmp_path / "new.db") as other, pytest.raises(InvalidFile):
        other.load(tmp_path / "all.jsonl")


def test_links_and_novelty_outlive_a_damaged_index(lively):
    """An index that names what is not there is built anew, as in a search."""
    lively.search_vector([1.0] * 6, 3)
    with lively._database.driver() as raw:
        raw.execute("DELETE FROM vector WHERE memory_id = 7")
    assert lively.insert("entry", on_duplicate="link")
    assert lively.novelty("entry").nearest is not None


def test_links_with_given_vectors(store):
    """Vectors decide, texts do not."""
    vectors = np.eye(6, dtype=np.float32)[[0, 1, 0, 1]]
    ids = store.insert_many(["a", "b", "c", "d"], vectors=vectors, on_duplicate="link")
    assert [[both.other.id for both in store.copies(i)] for i in ids] == [[3], [4], [1], [2]]
    with pytest.raises(InvalidInput, match="use 'add', 'skip' or 'link'"):
        store.insert("e", on_duplicate="merge")


# --- novelty ---------------------------------------------------------------------------------


def test_novelty_is_counted_by_hand():
    """Neurons silent in every stored trace; the variance left, from the weights file alone."""
    tensors = load_file(layout.SAE_FOLDER / "weights.safetensors")
    w, b = (tensors[f"decoder.{name}"].astype(np.float64) for name in ("weight", "bias"))
    rows = json.loads(layout.NARRATIVES.read_text("utf-8"))[:60]
    with MemoryStore.open(":memory:") as store:
        store.insert_many(rows)
        text = "The compiler complains about a missing semicolon in the header file."
        fired = set(np.flatnonzero(store.traces().to_dense().any(axis=0)).tolist())
        found = store.novelty(text)
        stored = store.insert(text)
        trace = store.trace(stored)
        assert {one.neuron for one in found.first} == set(trace.neurons.tolist()) - fired
        assert found.first
        assert all(one.fire_rate == 0 for one in found.first)
        ids, vectors = map(np.concatenate, zip(*store.iter_vectors(), strict=True))
        left = []
        for vector, own in zip(vectors.astype(np.float64), store.traces(), strict=True):
            given = w[:, own.neurons] @ own.activations + b
            left.append(((vector - given) ** 2).sum() / ((vector - b) ** 2).sum())
        assert found.unexplained == pytest.approx(left[-1], abs=2e-3)
        assert found.rank == pytest.approx(np.mean(np.array(left[:-1]) < left[-1]), abs=0.04)
        cosines = vectors[:-1].astype(np.float64) @ vectors[-1].astype(np.float64)
        assert found.nearest[0] == int(ids[:-1][cosines.argmax()])
        assert found.nearest[1] == pytest.approx(cosines.max(), abs=5e-3)


def test_nothing_is_new_of_a_text_that_is_there():
    """Its neurons fired, its nearest is itself; in an empty store all is new."""
    with MemoryStore.open(":memory:") as store:
        empty = store.novelty(SPOKEN[0])
        assert (empty.rank, empty.nearest, empty.badly_read) == (None, None, False)
        assert len(empty.first) == 32
        store.insert_many(SPOKEN)
        found = store.novelty(SPOKEN[0])
        assert found.first == ()
        assert found.nearest == (1, pytest.approx(1.0, abs=1e-4))
        with pytest.raises(InvalidText):
            store.novelty("  ")


# --- diverse recall --------------------------------------------------------------------------


@pytest.fixture
def lively():
    """A store in which every neuron fires now and then."""
    with MemoryStore.open(":memory:", encoder=lively_encoder()) as store:
        fill_lively(store, 200)
        yield store


def coverage(said, weights, chosen):
    """What a choice covers, written from the definition."""
    return (said[list(chosen)].max(axis=0) / said.max(axis=0) * weights).sum()


def test_diverse_hits_are_near_the_best_choice_there_is(lively):
    """Among all choices of three of twelve: at least 1 - 1/e of the best, mostly all of it."""
    hits = lively.composite("3 + 4", k=12)
    dense = lively.traces().to_dense()
    said = dense[[i - 1 for i in hits.ids]]
    concepts = said.any(axis=0)
    fires = (dense > 0).sum(axis=0)
    weights = (np.log((1 + len(dense)) / (1 + fires)) + 1)[concepts]
    scores = np.array(hits.scores)
    near = (scores - scores[-1]) / (scores[0] - scores[-1])
    said = said[:, concepts]
    alone = [hits.ids.index(i) for i in lively.diverse(hits, 3, cover=1.0).ids]
    most = coverage(said, weights, alone)
    choices = list(itertools.combinations(range(12), 3))
    assert most >= (1 - 1 / np.e) * max(coverage(said, weights, chosen) for chosen in choices)
    for cover in (0.2, 0.5, 0.8):

        def value(chosen, cover=cover):
            covered = coverage(said, weights, chosen) / most
            return (1 - cover) * near[list(chosen)].mean() + cover * covered

        found = lively.diverse(hits, 3, cover=cover)
        own = value([hits.ids.index(i) for i in found.ids])
        best = max(map(value, choices))
        assert best * (1 - 1 / np.e) <= own <= best + 1e-12
        assert own >= 0.95 * best


def test_diverse_by_nearness_alone_changes_nothing(lively):
    """And all hits are all hits; wrong numbers are refused."""
    hits = lively.top(3, k=20)
    assert lively.diverse(hits, 5, cover=0.0).ids == hits.ids[:5]
    assert sorted(lively.diverse(hits, 50).ids) == sorted(hits.ids)
    assert lively.diverse(Hits(), 5) == Hits()
    with pytest.raises(InvalidQuery, match="cover=2"):
        lively.diverse(hits, 5, cover=2)
    with pytest.raises(InvalidQuery, match="k is 0"):
        lively.diverse(hits, 0)
    for wrong in (list(hits), None, [1, 2]):
        with pytest.raises(InvalidQuery, match="hits of a query"):
            lively.diverse(wrong, 5)
    backwards = lively.diverse(hits[::-1], 3, cover=0.0)
    assert set(backwards.scores) == set(hits.scores[:3])


def test_what_was_deleted_meanwhile_says_nothing(lively):
    """Hits are of the moment they were found at."""
    hits = lively.top(3, k=20)
    lively.delete(hits.ids[4])
    assert len(lively.diverse(hits, 20)) == 20


def test_an_sae_without_directions_still_says_what_is_first(tmp_path):
    """The prototype's text SAE decodes a projection: no share of the vector is left to name."""
    encoder = make_encoder()
    with MemoryStore.open(tmp_path / "small.db", encoder=encoder) as store:
        assert store.novelty("entry").unexplained is not None
