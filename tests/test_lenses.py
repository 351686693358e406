"""Lenses: saved, learned, asked of traces and of vectors, and as filters; against brute force."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from memstore import MemoryStore, N, layout
from memstore.core.expression import Expression
from memstore.errors import (
    InvalidExpression,
    InvalidFile,
    InvalidFilter,
    InvalidInput,
    StoreReadOnly,
    UnknownNeuron,
)
from memstore.neurons import lens as learning
from tests.conftest import fill_lively, lively_encoder, make_encoder

CATEGORIES = ("Strong Emotional", "Complex/Chaotic", "Routine")


@pytest.fixture(scope="module")
def narratives(tmp_path_factory):
    """A store of the sample narratives, with a lens learned for each category."""
    path = tmp_path_factory.mktemp("narratives") / "narratives.db"
    with MemoryStore.open(path) as store:
        store.insert_many(json.loads(layout.NARRATIVES.read_text("utf-8")))
        for category in CATEGORIES:
            store.lenses.learn(category)
    return path


@pytest.fixture
def filled():
    """A small store with ties and categories."""
    with MemoryStore.open(":memory:", encoder=lively_encoder()) as store:
        fill_lively(store, 120)
        yield store


def candidates(store, terms, conditions=(), floor=0.0):
    """Ids of the memories that an expression finds, by brute force over dense activations."""
    dense, ids = store.traces().to_dense(), store.traces().ids
    weights = np.zeros(dense.shape[1])
    for neuron, weight in terms.items():
        weights[neuron] = weight
    scores = dense @ weights
    passing = np.ones(len(ids), dtype=bool)
    for condition in conditions:
        passing &= condition(dense)
    if (weights > 0).any():
        passing &= (dense[:, weights > 0] > 0).any(axis=1) & (scores > floor)
    return ids[passing].tolist()


# --- learning --------------------------------------------------------------------------------


def test_five_neurons_tell_each_sample_category(narratives):
    """AUC 0.9 or more on the fifths that five lenses learned alike had not seen."""
    with MemoryStore.open(narratives, mode="r") as store:
        for lens in store.lenses:
            terms = Expression.of(lens.expression).terms
            assert len(terms) <= 5
            assert max(abs(weight) for _, weight in terms) == 1
            assert lens.grade >= 0.9, lens
            assert (lens.by, lens.category) == ("dense", lens.name)


def test_a_lens_tells_narratives_it_never_saw(narratives):
    """Learned in a store of four fifths; what it scores for the rest is judged by scikit-learn.

    Every narrative is in the rest once: one fifth alone says as much of the draw as of the lenses.
    """
    rows = json.loads(layout.NARRATIVES.read_text("utf-8"))
    with MemoryStore.open(narratives, mode="r") as store:
        vectors = np.concatenate([part for _, part in store.iter_vectors()])
    found = []
    for apart in np.array_split(np.random.default_rng(5).permutation(len(rows)), 5):
        known = np.setdiff1d(np.arange(len(rows)), apart)
        with MemoryStore.open(":memory:") as store:
            for part in (known, apart):
                store.insert_many([rows[i] for i in part], vectors=vectors[part])
                if part is known:
                    for category in CATEGORIES:
                        store.lenses.learn(category)
            new = {"id": {"$gt": len(known)}}
            for category in CATEGORIES:
                hits = store.composite(category, k=len(apart), where=new, min_score=None)
                assert len(hits) == len(apart)
                inside = [hit.category == category for hit in hits]
                found.append(roc_auc_score(inside, hits.scores))
    assert np.mean(found) >= 0.9, found


def test_the_weights_are_scikit_learn_s():
    """One fit: logistic loss, both sides alike, an L2 penalty on unit-variance columns."""
    dice = np.random.default_rng(0)
    values = dice.normal(size=(300, 4))
    inside = values @ [1.0, -2.0, 0.5, 0.0] + dice.normal(size=300) > 0.4
    fitted = learning.learn(values, inside, 4)
    columns = (values - values.mean(axis=0)) / values.std(axis=0)
    # scikit-learn sums the losses of classes weighed to n / 2 each: C is 1 / (penalty n).
    model = LogisticRegression(
        C=1 / (learning.PENALTY * 300), class_weight="balanced", tol=1e-10, max_iter=1000
    ).fit(columns, inside)
    expected = model.coef_[0] / values.std(axis=0)
    expected = expected / np.abs(expected).max()
    found = np.zeros(4)
    found[list(fitted.neurons)] = fitted.weights
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_neurons_that_matter_are_found():
    """Three of two hundred columns carry the category; nothing else comes first."""
    dice = np.random.default_rng(1)
    values = np.abs(dice.normal(size=(800, 200)))
    inside = values[:, [7, 70]].sum(axis=1) - values[:, 170] > 0.8
    fitted = learning.learn(values, inside, 3)
    assert set(fitted.neurons) == {7, 70, 170}
    assert dict(zip(fitted.neurons, fitted.weights, strict=True))[170] < 0
    only = learning.learn(values, inside, 3, positive=True)
    assert {7, 70} <= set(only.neurons)
    assert min(only.weights) > 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_the_threshold_is_the_best_there_is(pairs):
    """No cut between two scores tells the sides better (Youden's index, by brute force)."""
    scores = np.array([float(score) for score, _ in pairs])
    inside = np.array([own for _, own in pairs])
    if inside.all() or not inside.any():
        return

    def youden(cut):
        return (scores[inside] > cut).mean() - (scores[~inside] > cut).mean()

    cuts = [score + 0.5 for score in [min(scores) - 1, *scores]]
    assert youden(learning.threshold(scores, inside)) == pytest.approx(max(map(youden, cuts)))


def test_what_cannot_be_learned_is_said(filled):
    """Too few memories, too many neurons, a bad kind; nothing is saved."""
    with pytest.raises(InvalidInput, match="0 memories of 'nobody': a lens is learned from 20"):
        filled.lenses.learn("nobody")
    with pytest.raises(InvalidInput, match="neurons=0: a lens has 1 to 100"):
        filled.lenses.learn("a", neurons=0)
    with pytest.raises(InvalidInput, match="by='words'"):
        filled.lenses.learn("a", by="words")
    assert len(filled.lenses) == 0


# --- names -----------------------------------------------------------------------------------


def test_a_lens_is_a_name_in_expressions(filled):
    """Weighed like a neuron, conditions and all; the same hits as what it stands for."""
    filled.lenses.save("Calm", "2*3 - 5 & 7<0.9")
    assert filled.composite("calm - 0.5*4", k=120) == filled.composite(
        "2*3 - 5 - 0.5*4 & 7<0.9", k=120
    )
    assert filled.composite(N["CALM"], k=5) == filled.composite("calm", k=5)
    assert filled.search("entry 3", steer="0.1*calm") == filled.search(
        "entry 3", steer="0.2*3 - 0.1*5 & 7<0.9"
    )
    assert filled.lenses["calm"].expression == "+2.0*3 -5 & 7<0.9"


def test_names_in_a_lens_are_those_of_the_day_it_was_saved(filled):
    """A label that moves to another neuron does not move the lens."""
    filled.neurons.label(3, "joy")
    filled.lenses.save("glee", "joy - 5")
    filled.neurons.label(3, None)
    filled.neurons.label(4, "joy")
    assert filled.lenses["glee"].expression == "+3 -5"


def test_names_do_not_collide(filled):
    """A label and a lens of one name would leave it open which is meant."""
    filled.lenses.save("calm", "3")
    with pytest.raises(InvalidInput, match="a lens is called 'calm' already"):
        filled.neurons.label(4, "calm")
    filled.neurons.label(4, "storm")
    with pytest.raises(InvalidInput, match="neuron 4 is called 'storm' already"):
        filled.lenses.save("storm", "3")
    with pytest.raises(InvalidInput, match="would be read as the number of a neuron"):
        filled.lenses.save("N7", "3")
    with pytest.raises(UnknownNeuron, match="'calm' is a lens, not a neuron"):
        filled.neurons["calm"]
    with pytest.raises(InvalidExpression, match="is a lens, and a condition bounds one neuron"):
        filled.composite("3 & calm>0.2")


@pytest.mark.parametrize("name", ["self-care", "R&D", "+16 -17", "3>0.5", "!x", "'quoted'"])
def test_a_name_that_reads_as_an_expression_is_refused(filled, name):
    """It would be asked as that, and the lens never be found."""
    with pytest.raises(InvalidInput, match="reads as an expression"):
        filled.lenses.save(name, "3")
    assert len(filled.lenses) == 0


def test_names_may_have_blanks_and_any_capitals(filled):
    """A category's name works as it is; labels, too."""
    filled.lenses.save("Strong  Emotional", "3")
    assert filled.lenses["strong emotional"].name == "Strong Emotional"
    assert filled.composite("STRONG EMOTIONAL", k=3) == filled.top(3, 3)
    assert filled.count({"$holds": "Strong Emotional"}) == filled.count({"$holds": "3"})
    filled.lenses.remove("strong   emotional")
    filled.neurons.label(4, "Übermut")
    filled.neurons.label(5, "Grief")
    assert filled.top("übermut", 3) == filled.top(4, 3)
    assert filled.top("grief", 3) == filled.top(5, 3)
    with pytest.raises(InvalidInput, match="neuron 5 is called 'grief' already"):
        filled.lenses.save("grief", "3")


def test_imported_labels_do_not_take_a_lens_s_name(filled, tmp_path):
    """Nothing would say that the lens is another neuron now."""
    filled.neurons.label(4, "calm")
    filled.neurons.export_labels(tmp_path / "labels.jsonl")
    filled.neurons.label(4, None)
    filled.lenses.save("Calm", "3")
    with pytest.raises(InvalidInput, match="a lens is called 'calm' already"):
        filled.neurons.import_labels(tmp_path / "labels.jsonl")
    assert filled.count({"$holds": "calm"}) == filled.count({"$holds": "3"})


@pytest.mark.parametrize(
    ("expression", "by", "message"),
    [
        ("3 - 3", "trace", "cancel out"),
        ("3 - 3", "dense", "cancel out"),
        (N[3] & (N[5] > np.float64(0.3)), "trace", None),
        ({3: np.float32(0.1)}, "trace", None),
        ({i % 10: 1e-9 * i for i in range(9)}, "trace", None),
    ],
)
def test_what_is_saved_can_be_read_back(filled, expression, by, message):
    """Or it is not saved."""
    if message is not None:
        with pytest.raises(InvalidExpression, match=message):
            filled.lenses.save("it", expression, by=by)
        assert len(filled.lenses) == 0
        return
    filled.lenses.save("it", expression, by=by)
    assert filled.composite("it", k=5) == filled.composite(expression, k=5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"expression": "'grief'"}, {"expression": {"15": 1}}, {"expression": ""},
        {"expression": "3 - 3"}, {"expression": "99"}, {"expression": "3 & 4>0.1", "by": "dense"},
        {"by": "words"}, {"threshold": 10**400}, {"threshold": float("nan")}, {"threshold": True},
        {"threshold": None}, {"name": None}, {"name": "self-care"}, {"name": 5}, {"grade": 2},
        {"created_at": "yesterday"}, {"more": 1}, {"category": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_strange_export_is_refused(filled, tmp_path, wrong):
    """As `InvalidFile`, and the store stays new."""
    filled.lenses.save("much", "3 - 0.5*5", threshold=0.4)
    filled.export(tmp_path / "all.jsonl", encoded=True)
    heading, *rows = (tmp_path / "all.jsonl").read_text("utf-8").splitlines()
    told = json.loads(heading)
    told["lenses"][0].update(wrong)
    (tmp_path / "all.jsonl").write_text("\n".join([json.dumps(told), *rows]), "utf-8")
    with MemoryStore.open(tmp_path / "new.db", encoder=lively_encoder()) as other:
        with pytest.raises(InvalidFile):
            other.load(tmp_path / "all.jsonl")
        assert len(other.lenses) == len(other) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"neurons": True}, {"neurons": 101}, {"seed": -1}, {"seed": "a"}, {"seed": 1.5},
        {"seed": None}, {"name": ""}, {"name": 5},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_of_learn(filled, arguments):
    """One typed error, before any work."""
    with pytest.raises(InvalidInput):
        filled.lenses.learn("a", **arguments)
    for wrong in (None, 5, b"x"):
        with pytest.raises((InvalidInput, UnknownNeuron)):
            filled.lenses[wrong]


def test_a_reader_learns_and_saves_nothing(narratives):
    """It says so before it begins."""
    with MemoryStore.open(narratives, mode="r") as store:
        for write in (lambda: store.lenses.learn("Routine"), lambda: store.lenses.save("x", "3")):
            with pytest.raises(StoreReadOnly):
                write()


def test_learning_where_vectors_are_lost(filled):
    """What is there is learned from; `check` says what is not."""
    with filled._database.driver() as raw:
        raw.execute("DELETE FROM vector WHERE memory_id = 7")
        raw.execute("DELETE FROM trace WHERE memory_id = 8")
    for by in ("dense", "trace"):
        assert filled.lenses.learn("a", by=by).grade is not None


def test_equal_texts_teach_nothing():
    """What a mean loses to rounding is no signal."""
    with MemoryStore.open(":memory:", encoder=lively_encoder()) as store:
        rows = [{"text": "same", "category": "ab"[i % 2]} for i in range(60)]
        store.insert_many(rows)
        for by in ("dense", "trace"):
            with pytest.raises(InvalidInput, match="nothing tells"):
                store.lenses.learn("a", by=by)


def test_saving_again_replaces_and_removing_removes(filled):
    """By name, capitals aside."""
    filled.lenses.save("calm", "3")
    filled.lenses.save("Calm", "4", threshold=0.5)
    assert [(lens.name, lens.expression) for lens in filled.lenses] == [("Calm", "+4")]
    assert "CALM" in filled.lenses
    filled.lenses.remove("calm")
    assert len(filled.lenses) == 0
    with pytest.raises(UnknownNeuron, match="no lens is called 'calm'"):
        filled.lenses.remove("calm")
    with pytest.raises(UnknownNeuron, match="no neuron is called 'calm'"):
        filled.composite("calm")


def test_a_bare_name_with_blanks_is_a_name(filled):
    """Of a neuron as of a lens, wherever an expression may stand."""
    filled.neurons.label(3, "rain on roofs")
    assert filled.composite("rain on roofs", k=3) == filled.top(3, 3)
    assert filled.count({"$holds": "Rain  on roofs"}) == filled.count({"$holds": "3"})
    with pytest.raises(InvalidExpression, match="between neurons"):
        filled.composite("rain on rooftops")
    assert filled.composite("n3 - N5", k=3) == filled.composite("3 - 5", k=3)
    for wrong in ([3], {}, None, slice(1, 3)):
        with pytest.raises(InvalidInput):
            filled.top(wrong)
        with pytest.raises(InvalidInput):
            filled.neurons[wrong]


def test_lenses_that_ship_are_found_and_stay(narratives):
    """By name, not in the list; one that is saved under their name says what it hides."""
    with MemoryStore.open(":memory:") as store:
        assert store.lenses["Routine"].category == "Routine"
        assert "routine" in store.lenses
        assert len(store.lenses) == 0
        with pytest.raises(InvalidInput, match="'routine' ships with the encoder"):
            store.lenses.remove("routine")
        assert store.lenses.hidden_by("routine") == "a lens that ships"
        assert store.lenses.hidden_by("grief") == "N104"
        assert store.lenses.hidden_by("nothing of the kind") is None
        store.lenses.save("routine", "3")
        assert store.lenses.hidden_by("Routine") == "the lens saved before"
        store.lenses.remove("routine")
        assert store.lenses["routine"].category == "Routine"
    with (
        MemoryStore.open(narratives) as store,
        pytest.raises(InvalidInput, match="did you mean 'Routine'"),
    ):
        store.lenses.learn("routine")


def test_a_near_name_is_offered(filled):
    """Lenses too are what one may have meant."""
    filled.lenses.save("homesick", "3")
    with pytest.raises(UnknownNeuron, match="did you mean 'homesick'"):
        filled.composite("homesik")


def test_out_of_the_box_grief_less_routine_means_something(narratives):
    """A label of the dictionary and a lens that ships, in one expression; an own lens is before."""
    texts = ["After the funeral I could not stop crying.", "I ironed the shirts and folded them."]
    with MemoryStore.open(":memory:") as store:
        store.insert_many(texts)
        [routine] = [lens for lens in store.lenses.shipped() if lens.name == "routine"]
        hits = store.composite("+grief -routine", k=2)
        assert hits.ids[0] == 1
        assert hits == store.composite(N["grief"] - Expression.of(routine.expression), k=2)
        assert store.composite("routine", k=1, min_score=None).ids == (2,)
    with (
        MemoryStore.open(narratives, mode="r") as store,
        pytest.raises(InvalidExpression, match="'routine' is a lens by='dense'"),
    ):
        store.composite("+grief -routine")


# --- by vectors ------------------------------------------------------------------------------


def test_by_dense_is_the_cosine_to_the_neurons_directions(narratives):
    """Every score from the weights file and the stored vectors alone; parts sum to it."""
    tensors = load_file(layout.SAE_FOLDER / "weights.safetensors")
    columns = tensors["decoder.weight"].astype(np.float64).T
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    direction = columns[104] - 0.5 * columns[2362]
    direction /= np.linalg.norm(direction)
    with MemoryStore.open(narratives, mode="r") as store:
        ids, vectors = map(np.concatenate, zip(*store.iter_vectors(), strict=True))
        cosines = vectors.astype(np.float64) @ direction / np.linalg.norm(vectors, axis=1)
        hits = store.composite("104 - 0.5*2362", k=450, by="dense", min_score=None)
        expected = dict(zip(ids.tolist(), cosines.tolist(), strict=True))
        assert sorted(hits.ids) == sorted(expected)
        assert hits.scores == pytest.approx([expected[i] for i in hits.ids], abs=2e-6)
        for hit in hits[:20]:
            assert sum(hit.parts.values()) == pytest.approx(hit.score, abs=1e-12)
            own = vectors[hit.id - 1].astype(np.float64)
            assert hit.parts["N104"] == pytest.approx(
                columns[104] @ own / np.linalg.norm(columns[104] - 0.5 * columns[2362]), abs=1e-4
            )
        assert store.composite("104 - 0.5*2362", k=450, by="dense") == hits
        above = store.composite("104 - 0.5*2362", k=450, by="dense", min_score=0.05)
        assert len(above) == sum(score > 0.05 for score in hits.scores)
        assert "'death and dying', how far the vector points its way" in hits[0].why()


def test_by_dense_filters_and_fades(narratives):
    """Like every other query."""
    with MemoryStore.open(narratives, mode="r") as store:
        hits = store.composite("104", k=5, by="dense", where={"category": "Routine"})
        assert {hit.category for hit in hits} == {"Routine"}
        faded = store.composite("104", k=5, by="dense", half_life="365d")
        assert sum(faded[0].parts.values()) == pytest.approx(faded[0].score)


def test_what_has_no_direction_is_refused(filled):
    """Conditions bound activations, weights may cancel out, and lenses say what they are for."""
    with pytest.raises(InvalidExpression, match="a condition bounds what fired"):
        filled.composite("3 & 4>0.1", by="dense")
    with pytest.raises(InvalidExpression, match="cancel out"):
        filled.composite("3 - 3", by="dense")
    with pytest.raises(InvalidInput, match="composites go by 'trace' or 'dense'"):
        filled.composite("3", by="words")
    filled.lenses.save("way", "3 - 4", by="dense", threshold=0.2)
    with pytest.raises(InvalidExpression, match="'way' is a lens by='dense'"):
        filled.composite("way + 5")
    filled.lenses.save("fired", "3")
    with pytest.raises(InvalidExpression, match="'fired' is a lens by='trace'"):
        filled.composite("way + fired", by="dense")
    assert filled.composite("way") == filled.composite("3 - 4", by="dense")


# --- as filters ------------------------------------------------------------------------------


def test_holds_is_what_a_composite_finds(filled):
    """In every place of a filter, and in every method that takes one."""
    own = candidates(filled, {3: 1.0, 5: -0.5}, [lambda dense: dense[:, 7] <= 0])
    where = {"$holds": "3 - 0.5*5 & !7"}
    assert own
    assert sorted(filled.composite("3 - 0.5*5 & !7", k=120).ids) == own
    assert [memory.id for memory in filled.iter(where)] == own
    assert filled.count(where) == len(own)
    assert filled.traces(where).ids.tolist() == own
    assert filled.count({"$not": where}) == 120 - len(own)
    some = {"$or": [where, {"id": {"$lte": 5}}]}
    assert [m.id for m in filled.iter(some)] == sorted({*own, 1, 2, 3, 4, 5})
    both = {"$and": [where, {"category": "a"}]}
    assert set(filled.top(4, k=120, where=both).ids) <= set(own)
    assert filled.count({"$holds": {3: 1, 5: -0.5}}) == len(candidates(filled, {3: 1, 5: -0.5}))
    quiet = candidates(filled, {5: -1.0}, [lambda dense: dense[:, 3] <= 0])
    assert [memory.id for memory in filled.iter({"$holds": "-5 & !3"})] == quiet
    assert filled.count({"$holds": N[3]}) == len(candidates(filled, {3: 1}))
    silent = candidates(filled, {}, [lambda dense: dense[:, 7] <= 0])
    assert [m.id for m in filled.iter({"$holds": "!7"})] == silent


def test_a_lens_holds_above_its_threshold(filled):
    """By traces and by vectors."""
    filled.lenses.save("much", "3 - 0.5*5", threshold=0.4)
    assert [m.id for m in filled.iter({"$holds": "much"})] == candidates(
        filled, {3: 1.0, 5: -0.5}, floor=0.4
    )
    filled.lenses.save("far", "3 - 0.5*5", by="dense", threshold=0.3)
    hits = filled.composite("far", k=120, min_score=None)
    over = sorted(i for i, score in zip(hits.ids, hits.scores, strict=True) if score > 0.3)
    assert 0 < len(over) < 120
    assert [m.id for m in filled.iter({"$holds": "far"})] == over


def holding(store, terms, conditions=(), threshold=0.0):
    """Ids of the memories that score above a threshold, silent ones among them, by brute force."""
    dense, ids = store.traces().to_dense(), store.traces().ids
    scores = sum(weight * dense[:, neuron] for neuron, weight in terms.items())
    passing = np.ones(len(ids), dtype=bool)
    for condition in conditions:
        passing &= condition(dense)
    return ids[passing & (scores + np.zeros(len(ids)) > threshold)].tolist()


@pytest.mark.parametrize("threshold", [-1.5, -0.05, 0.0, 0.05, 0.5])
@pytest.mark.parametrize(
    ("expression", "terms", "conditions"),
    [
        ("-3", {3: -1.0}, []),
        ("3 - 2*5", {3: 1.0, 5: -2.0}, []),
        ("3>0.1 & !5", {}, [lambda dense: dense[:, 3] > 0.1, lambda dense: dense[:, 5] <= 0]),
        ("3 - 4 & 5<0.4", {3: 1.0, 4: -1.0}, [lambda dense: dense[:, 5] < 0.4]),
    ],
)
def test_a_lens_holds_for_exactly_what_scores_above(
    filled, expression, terms, conditions, threshold
):
    """Whatever its signs and its threshold: nothing more is ever deleted by it."""
    filled.lenses.save("it", expression, threshold=threshold)
    expected = holding(filled, terms, conditions, threshold)
    assert [m.id for m in filled.iter({"$holds": "it"})] == expected
    assert filled.delete_where({"$holds": "it"}) == len(expected)


def test_a_dense_lens_holds_for_what_its_composite_scores_above(filled):
    """To the last bit: at every score as the threshold."""
    hits = filled.composite("3 - 0.5*5", k=120, by="dense", min_score=None)
    for score in hits.scores[::7]:
        filled.lenses.save("far", "3 - 0.5*5", by="dense", threshold=score)
        over = {i for i, own in zip(hits.ids, hits.scores, strict=True) if own > score}
        assert {m.id for m in filled.iter({"$holds": "far"})} == over


def test_a_dense_lens_alone_ranks_everything(filled):
    """A cosine of 0 is nothing special: no hit is cut off there."""
    filled.lenses.save("far", "3", by="dense", threshold=-0.5)
    assert len(filled.composite("far", k=120)) == 120


def test_a_lens_is_live(filled):
    """What is stored later counts at the next question."""
    filled.lenses.save("much", "3")
    before = filled.count({"$holds": "much"})
    ids, vectors = map(np.concatenate, zip(*filled.iter_vectors(), strict=True))
    fitting = vectors[np.isin(ids, [m.id for m in filled.iter({"$holds": "much"})])][:3]
    # Asked once as a filter of a query, which remembers filters while nobody writes.
    assert len(filled.composite("3", k=120, where={"$holds": "much"})) == before
    filled.insert_many(["x", "y", "z"], vectors=fitting)
    assert filled.count({"$holds": "much"}) == before + 3
    assert len(filled.composite("3", k=150, where={"$holds": "much"})) == before + 3


def test_export_and_delete_where_an_expression_holds(filled, tmp_path):
    """Govern by concept: what is exported is what is then gone, and nothing else."""
    own = candidates(filled, {3: 1.0})
    assert filled.export(tmp_path / "own.jsonl", {"$holds": "3"}) == len(own)
    lines = (tmp_path / "own.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == own
    assert filled.delete_where({"$holds": "3"}) == len(own)
    assert filled.count({"$holds": "3"}) == 0
    assert len(filled) == 120 - len(own)


def test_what_is_written_between_question_and_deletion_is_asked_again(path):
    """A memory that comes in meanwhile, and fits, goes too: as if nobody else had written."""
    encoder = lively_encoder()
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"entry {i}" for i in range(40)])
        fitting = next(store.iter({"$holds": "3"})).text
        asked, condition = [], store._searcher.condition

        def late(where, changes=None):
            found = condition(where, changes)
            if not asked:
                with MemoryStore.open(path, encoder=encoder) as other:
                    asked.append(other.insert(fitting))
            return found

        store._searcher.condition = late
        store.delete_where({"$holds": "3"})
        assert asked
        assert store.count({"$holds": "3"}) == 0
        assert not store.count({"id": asked[0]})


def test_deleting_goes_on_beside_a_busy_writer(path):
    """Two threads write; what the expression holds for at the end came after the deletion."""
    encoder = lively_encoder()
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([{"text": f"entry {i}"} for i in range(60)])
        stop = threading.Event()

        def write():
            with MemoryStore.open(path, encoder=encoder) as other:
                while not stop.wait(0.02):
                    other.insert("something else")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            doomed = [memory.id for memory in store.iter({"$holds": "3"})]
            assert store.delete_where({"$holds": "3"}) >= len(doomed)
        finally:
            stop.set()
            writer.join()
        assert not store.count({"id": {"$in": doomed}})
        assert store.check() == []


def test_what_cannot_hold_is_said(filled):
    """The expression's own errors, and where it may not stand."""
    with pytest.raises(InvalidExpression, match="expected a neuron"):
        filled.count({"$holds": "3 +"})
    with pytest.raises(InvalidExpression, match="everything passes: what never fires"):
        filled.delete_where({"$holds": "-3"})
    assert len(filled) == 120
    with pytest.raises(UnknownNeuron, match="neuron 99 does not exist"):
        filled.count({"$holds": "99"})
    with pytest.raises(InvalidFilter, match=r"unknown operator '\$hold'.*\$holds"):
        filled.count({"$hold": "3"})
    with pytest.raises(InvalidFilter, match=r"category: unknown operator '\$holds'"):
        filled.count({"category": {"$holds": "3"}})


def test_lenses_travel_with_an_encoded_export(filled, tmp_path):
    """And come back as they were."""
    filled.lenses.save("much", "3 - 0.5*5", threshold=0.4)
    filled.lenses.save("far", "3", by="dense", threshold=0.1)
    filled.export(tmp_path / "all.jsonl", encoded=True)
    with MemoryStore.open(tmp_path / "new.db", encoder=lively_encoder()) as other:
        other.load(tmp_path / "all.jsonl")
        assert list(other.lenses) == list(filled.lenses)
        assert other.count({"$holds": "far"}) == filled.count({"$holds": "far"})


def test_lenses_are_of_one_encoder_s_neurons():
    """Those that ship say nothing under another encoder."""
    with MemoryStore.open(":memory:", encoder=make_encoder()) as store:
        assert store.lenses.shipped() == []
        with pytest.raises(UnknownNeuron, match="no neuron is called 'routine'"):
            store.composite("routine")
