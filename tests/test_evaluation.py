"""Measures of an SAE against scikit-learn, brute force, and data whose answer is known."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner

from memstore import training
from memstore.cli import cli
from memstore.cli.evaluation import read_judged
from memstore.errors import InvalidFile
from memstore.evaluation import Labelled, evaluate
from memstore.neurons.cohesion import TEXTS, cohesion
from memstore.neurons.match import match
from memstore.sae import probing, weights
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE
from memstore.sae.measure import nearest_directions
from memstore.sae.retrieval import judged, ndcg, retrieval
from memstore.tables import markdown

pytest.importorskip("sklearn", reason="evaluating needs the train extra")
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ndcg_score

D, N, K = 12, 30, 4


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def random_unit(count, d=D, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, d))).astype(np.float32)


def random_sae(seed=0, dimension=D):
    rng = np.random.default_rng(seed)
    config = SAEConfig("topk", dimension, N, k=K)
    tensors = {name: rng.normal(size=shape) for name, shape in config.shapes().items()}
    return SAE(config, {name: value.astype(np.float32) for name, value in tensors.items()})


# --- retrieval -----------------------------------------------------------------------------


def test_ndcg_is_scikit_learns():
    rng = np.random.default_rng(1)
    for _ in range(50):
        scores = rng.permutation(40).astype(float)
        right = frozenset(rng.choice(40, rng.integers(1, 15), replace=False).tolist())
        gains = [[float(row in right) for row in range(40)]]
        ranking = np.argsort(-scores).tolist()
        assert ndcg(ranking, right) == pytest.approx(ndcg_score(gains, [scores], k=10))


def test_every_scoring_is_what_its_formula_says():
    """Cosines in float64, a loop a question; IDF and reconstruction written out again."""
    sae, texts, queries = random_sae(), random_unit(60), random_unit(9, seed=5)
    answers = {q: frozenset({q, q + 20, q + 40}) for q in range(9)}
    found = retrieval(sae, judged(texts, queries, answers))
    a, b = (sae.activations(v).astype(np.float16).astype(np.float64) for v in (texts, queries))
    idf = np.log((1 + 60) / (1 + (a > 0).sum(axis=0))) + 1
    decoder = sae.tensors["decoder.weight"].astype(np.float64)
    centred = (queries - sae.tensors["decoder.bias"]).astype(np.float64)
    wide = np.maximum(centred @ sae.tensors["encoder.weight"].T + sae.tensors["encoder.bias"], 0)
    wide[wide < np.sort(wide, axis=1)[:, -3 * K, None]] = 0
    bias = sae.tensors["decoder.bias"]
    pairs = {
        "dense": (queries, texts),
        "cosine": (b, a),
        "IDF": (b * idf, a * idf),
        "affinity": (b, np.sqrt(a)),
        "affinity, IDF": (b * idf, np.sqrt(a)),
        "wide affinity": (wide, np.sqrt(a)),
        "wide, IDF": (wide * idf, np.sqrt(a)),
        "reconstructed": (b @ decoder.T, a @ decoder.T),
        "asymmetric": (queries - bias, a @ decoder.T),
    }
    assert set(found) == set(pairs)
    for name, (left, right) in pairs.items():
        cosines = unit(left) @ unit(right).T
        gains = [[float(t in answers[q]) for t in range(60)] for q in range(9)]
        assert found[name] == pytest.approx(ndcg_score(gains, cosines, k=10), abs=1e-6), name


def test_a_question_stays_in_its_group():
    """The nearest text of another group is no hit; a question without an answer is left out."""
    texts = np.repeat(np.eye(3, D, dtype=np.float32), 2, axis=0)
    queries = np.eye(3, D, dtype=np.float32)
    groups = ["a", "b"] * 3
    asked = judged(
        texts,
        queries,
        {0: frozenset({1}), 1: frozenset({2}), 2: frozenset({4})},
        groups,
        list("bab"),
    )
    assert [q for q, _, _ in asked.questions] == [0, 1]
    assert retrieval(random_sae(), asked)["dense"] == 1.0


# --- probing -------------------------------------------------------------------------------


def labelled(seed=2, count=600):
    rng = np.random.default_rng(seed)
    has = rng.random(count) < 0.3
    values = rng.normal(size=(count, N)).astype(np.float32)
    values[:, 7] += 6 * has  # one column tells, nearly always
    values[:, 11] -= 2 * has  # one tells less, and by being low
    return values, [frozenset({"x"} if one else {"y"}) for one in has]


def test_a_probe_finds_the_column_that_tells():
    values, labels = labelled()
    asked = list(probing.tasks(labels))
    assert [task.label for task in asked] == ["x", "y"]
    for task in asked:
        assert probing.strongest(values[task.train], task.has[task.train], 2).tolist() == [7, 11]
        assert not set(task.train.tolist()) & set(task.test.tolist())
        for rows in (task.train, task.test):
            assert task.has[rows].mean() == 0.5
    assert probing.probing(values, asked)["1"] > 0.98
    told = probing.separation(values, asked[0])
    assert (told.column, round(told.auc, 1)) == (7, 1.0)
    silent = np.delete(values, [7, 11], axis=1)
    assert 0.4 < probing.probing(silent, asked)["1"] < 0.6
    low = np.delete(values, 7, axis=1)
    assert probing.separation(low, asked[0]).auc > 0.85


def test_an_evaluation_takes_the_mean_of_six_splits():
    """Of one dimension, on which scikit-learn's threshold is found by a plain regression."""
    values, labels = labelled(count=400)
    one = values[:, :D] * (np.arange(D) == 11)  # tells, and errs, in each split otherwise
    found = evaluate({"sae": random_sae()}, random_unit(200), {"t": Labelled(one, labels)})
    accuracies = []
    for seed in range(6):
        for task in probing.tasks(labels, seed):
            train, test = one[task.train, 11], one[task.test, 11]
            scale = train.std()
            model = LogisticRegression().fit(train[:, None] / scale, task.has[task.train])
            accuracies.append(model.score(test[:, None] / scale, task.has[task.test]))
    assert len(accuracies) == 12
    assert np.std(accuracies) > 0
    assert found.probes["t"]["raw dimensions"]["1"] == pytest.approx(np.mean(accuracies), abs=2e-3)


def test_labels_of_few_texts_are_left_out():
    labels = [frozenset({"rare"} if row < 20 else {"common", str(row % 2)}) for row in range(400)]
    assert [task.label for task in probing.tasks(labels)] == ["0", "1"]


# --- neurons -------------------------------------------------------------------------------


def test_matching_finds_a_permutation_and_the_best_sum():
    """A shuffled copy is found whole; five random ones as all 120 orders tried out say."""
    encoder, decoder = random_unit(N, seed=1), random_unit(N, seed=2)
    order = np.random.default_rng(3).permutation(N)
    found = match(encoder, decoder, encoder[order], decoder[order])
    assert np.array_equal(order[found.right], found.left)
    assert found.share == 1.0
    a, b, c, d = (random_unit(5, seed=seed) for seed in range(4))
    cosines = (a @ c.T + b @ d.T) / 2
    best = max(
        sum(cosines[i, j] for i, j in enumerate(way)) for way in itertools.permutations(range(5))
    )
    assert match(a, b, c, d).cosines.sum() == pytest.approx(best, abs=1e-6)


def test_cohesion_is_the_mean_over_pairs():
    vectors = random_unit(200)
    activations = np.maximum(np.random.default_rng(4).normal(size=(200, 6)), 0).astype(np.float32)
    activations[:, 5] = 0
    activations[3, 5] = 1.0
    found = cohesion(activations, vectors)
    for neuron in range(5):
        strongest = np.argsort(-activations[:, neuron], kind="stable")[:TEXTS]
        pairs = [float(vectors[i] @ vectors[j]) for i, j in itertools.combinations(strongest, 2)]
        assert found.means[neuron] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert np.isnan(found.means[5])
    everything = vectors @ vectors.T
    apart = everything[~np.eye(200, dtype=bool)]
    assert found.random == pytest.approx(apart.mean(), abs=0.01)
    assert found.bar == pytest.approx(np.quantile(apart, 0.99), abs=0.03)


def test_a_double_neuron_is_seen():
    rows = random_unit(20)
    rows[4] = 2 * rows[9]
    found = nearest_directions(rows)
    assert found[[4, 9]] == pytest.approx([1.0, 1.0])
    others = np.delete(np.arange(20), [4, 9])
    units = unit(rows)
    for row in others:
        assert found[row] == pytest.approx(
            max(units[row] @ units[other] for other in range(20) if other != row), abs=1e-6
        )


# --- from the shell ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Vectors of the shipped embedder, made once."""
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture
def run(workplace, cache):
    def evaluate(*arguments):
        given = ["evaluate", *map(str, arguments), "--cache", str(cache)]
        return CliRunner().invoke(cli, given)

    return evaluate


@pytest.fixture
def workplace(tmp_path):
    """Two small SAEs, labelled texts, and a retrieval set whose questions are its texts."""
    for number in (1, 2):
        sae = random_sae(number, dimension=384)
        weights.save(tmp_path / f"sae-{number}", sae.config, sae.tensors)
    rows = [{"text": f"{kind} number {i}", "kind": kind} for i in range(80) for kind in ("a", "b")]
    lay(tmp_path / "texts.jsonl", rows)
    folder = tmp_path / "questions"
    folder.mkdir()
    passages = [{"_id": f"d{i}", "text": f"passage {i}", "title": "on"} for i in range(30)]
    lay(folder / "corpus.jsonl", passages)
    lay(folder / "queries.jsonl", [{"_id": "q", "text": "on passage 7"}])
    (folder / "qrels.tsv").write_text("query\tcorpus\tscore\nq\td7\t1\n")
    return tmp_path


def lay(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_evaluate_writes_every_table(workplace, run):
    done = run(
        workplace / "sae-1",
        workplace / "texts.jsonl",
        *("--beside", workplace / "sae-2"),
        *("--labelled", f"{workplace / 'texts.jsonl'}:kind"),
        *("--retrieval", workplace / "questions"),
        *("--out", workplace / "out", "--json"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads((workplace / "out" / "evaluation.json").read_text())
    assert set(found["measures"]) == {"sae-1", "sae-2"}
    assert set(found["probes"]["texts"]) == {"sae-1", "sae-2", "raw dimensions", "PCA"}
    assert set(found["probes"]["texts"]["raw dimensions"]) == {"1", "2", "5", "all"}
    assert found["retrieval"]["questions"]["sae-1"]["dense"] == 1.0
    assert 0 <= found["stability"]["sae-2"]["share of neurons with cosine 0.7"] < 0.2
    page = (workplace / "out" / "evaluation.md").read_text()
    for title in ("Measures", "k-sparse probing", "Retrieval", "Cohesion", "The same neuron"):
        assert f"## {title}" in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--labelled", "texts.jsonl"), "write it like"),
        (("--labelled", "texts.jsonl:mood"), "no row has a field"),
        (("--retrieval", "nowhere"), "check the path"),
        (("--beside", "sae-1"), "same name"),
        (("--beside", "nowhere"), "no weights at"),
    ],
)
def test_evaluate_says_what_is_wrong(workplace, run, monkeypatch, wrong, says):
    option, value = wrong
    monkeypatch.chdir(workplace)
    done = run("sae-1", "texts.jsonl", option, value)
    assert done.exit_code != 0
    assert says in str(done.exception)


def test_a_qrel_that_names_nothing_is_refused(workplace, run):
    (workplace / "questions" / "qrels.tsv").write_text("heads\nq\tnobody\t1\n")
    done = run(
        workplace / "sae-1",
        workplace / "texts.jsonl",
        *("--retrieval", workplace / "questions"),
    )
    assert "line 2" in str(done.exception)


def test_a_group_for_some_is_refused(workplace, run):
    lay(workplace / "questions" / "queries.jsonl", [{"_id": "q", "text": "passage", "group": "a"}])
    folder = ("--retrieval", workplace / "questions")
    done = run(workplace / "sae-1", workplace / "texts.jsonl", *folder)
    assert "or none of them" in str(done.exception)


def test_held_out_rows_are_those_of_the_training_files(workplace, run):
    """By place: the same texts in another order, or another split beside, are refused."""
    lines = (workplace / "texts.jsonl").read_text().splitlines()
    digest = training.text_digest([json.loads(line)["text"] for line in lines])
    for seed in (1, 2):
        split = {"share": 0.4, "near": 0.9999, "seed": seed}
        settings = json.dumps({"split": split, "texts": digest})
        (workplace / f"sae-{seed}" / training.TRAINING).write_text(settings)
    texts = workplace / "texts.jsonl"
    done = run(workplace / "sae-1", texts, "--held-out", "--json")
    assert 0 < json.loads(done.stdout)["measures"]["sae-1"]["rows"] < 0.6 * len(lines)
    both = run(workplace / "sae-1", texts, "--held-out", "--beside", workplace / "sae-2")
    assert "held out other rows" in str(both.exception)
    (workplace / "turned.jsonl").write_text("\n".join(reversed(lines)))
    turned = run(workplace / "sae-1", workplace / "turned.jsonl", "--held-out")
    assert "was not trained on these texts" in str(turned.exception)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jsonl", "", "no text in it"),
        ("null.jsonl", '{"text": null}\n', "is no text"),
        ("one.jsonl", '{"text": "alone"}\n', "needs two that differ"),
    ],
)
def test_texts_that_nothing_can_be_measured_on_are_refused(workplace, run, name, content, says):
    (workplace / name).write_text(content)
    assert says in str(run(workplace / "sae-1", workplace / name).exception)


def test_an_sae_of_other_dimensions_is_refused(workplace, run):
    other = random_sae(dimension=D + 1)
    weights.save(workplace / "wide", other.config, other.tensors)
    done = run(workplace / "wide", workplace / "texts.jsonl")
    assert f"for vectors of {D + 1} dimensions" in str(done.exception)


def test_answers_without_a_line_of_heads_are_read_from_the_first(tmp_path):
    """And an id that two texts have is refused, not overwritten."""
    rows = [{"_id": f"t{i}", "text": f"text {i}"} for i in range(4)]
    lay(tmp_path / "corpus.jsonl", rows)
    lay(tmp_path / "queries.jsonl", [{"_id": "q", "text": "question"}])
    (tmp_path / "qrels.tsv").write_text("q\tt3\t1\nq\tt1\t1\n\n")
    found = read_judged(tmp_path, lambda texts: random_unit(len(texts)))
    assert [set(right) for _, _, right in found.questions] == [{1, 3}]
    lay(tmp_path / "corpus.jsonl", [*rows, rows[0]])
    with pytest.raises(InvalidFile, match="two rows"):
        read_judged(tmp_path, lambda texts: random_unit(len(texts)))


def test_a_table_holds_any_name():
    assert markdown([{"SAE": "a|b\nc", "rows": 2}]).splitlines()[-1] == "| a\\|b c | 2 |"
