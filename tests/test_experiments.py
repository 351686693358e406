"""The experiments: each shows what the text beside its figure says."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from memstore import layout
from memstore.cli import cli
from memstore.encoder import Encoder

pytest.importorskip("torch", reason="experiments need the train extra")
pytest.importorskip("matplotlib", reason="experiments need the train extra")
from memstore.experiments import figures, prototype, sweep
from memstore.experiments.lab import Lab, write


@pytest.fixture(scope="module")
def texts():
    rows = json.loads(layout.NARRATIVES.read_text("utf-8"))
    vectors = Encoder.default().vectors([row["text"] for row in rows])
    return vectors, [row["category"] for row in rows]


@pytest.fixture
def lab(texts, tmp_path):
    return Lab(*texts, seed=0, folder=tmp_path)


def column(rows, name, **chosen):
    return [row[name] for row in rows if all(row[key] == value for key, value in chosen.items())]


def test_more_l1_fires_fewer_and_kl_pulls_means_not_counts(lab):
    result = prototype.sparsity(lab)
    firing = column(result.rows, "l0", penalty="L1")
    assert firing == sorted(firing, reverse=True)
    assert firing[0] > firing[-1] + 3
    means = np.array(column(result.rows, "mean activation", penalty="KL"))
    distance = np.abs(means - 0.05)
    assert distance[-1] < distance[0]
    assert min(column(result.rows, "l0", penalty="KL")) > 10


def test_more_l1_shrinks_the_traces_of_every_category(lab):
    result = prototype.l1(lab)
    for name in lab.names:
        norms = column(result.rows, "L1 norm", category=name)
        assert norms == sorted(norms, reverse=True)


def test_favoured_narratives_fire_more(lab):
    result = prototype.narratives(lab)
    favoured = lab.names[0]
    equal, more = column(result.rows, "L1 norm", category=favoured)
    assert more > 1.2 * equal
    # On the half they were not chosen by, where noise would have one half.
    assert np.mean(column(result.rows, "AUC")) > 0.6
    assert set(result.figures) == {"pca", "pca-neuron", "pca-category", "comparison", "fire-rates"}


def test_a_learned_target_has_the_lowest_error_because_it_varies_least(lab):
    rows = prototype.finetune(lab).rows
    error = {row["run"]: row["squared error"] for row in rows}
    varies = {row["run"]: row["target varies"] for row in rows}
    assert min(error, key=error.get) == min(varies, key=varies.get) == "learned target"
    assert varies["learned target"] < 0.3 * varies["from nothing"]


@pytest.mark.slow
def test_more_firing_explains_more_whatever_the_width(lab):
    rows = sweep.sweep(lab).rows
    for neurons in {row["neurons"] for row in rows}:
        unexplained = column(rows, "FVU", neurons=neurons)
        assert unexplained == sorted(unexplained, reverse=True)


def test_noise_tells_no_category_apart(lab):
    """The best of thirty columns, measured on texts that it was not chosen by."""
    noise = np.random.default_rng(1).random((len(lab.vectors), 30), dtype=np.float32)
    found = [auc for _, auc in prototype.separation(noise, lab).values()]
    assert abs(np.mean(found) - 0.5) < 0.06


def test_a_category_of_one_text_has_no_auc(lab):
    """It has none to be tested on; the others have theirs."""
    alone = replace(lab, categories=["alone", *lab.categories[1:]])
    noise = np.random.default_rng(1).random((len(lab.vectors), 30), dtype=np.float32)
    found = prototype.separation(noise, alone)
    assert found.pop("alone")[1] is None
    assert all(auc is not None for _, auc in found.values())


def test_results_are_a_page_a_table_and_images(lab, tmp_path):
    """PNG and SVG of every figure; the same SVG for the same figure."""
    result = prototype.l1(lab)
    paths = write(result, tmp_path / "out")
    assert [path.name for path in paths] == ["README.md", "table.json", "l1.png", "l1.svg"]
    assert json.loads(paths[1].read_text("utf-8")) == list(result.rows)
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert ElementTree.fromstring(paths[3].read_bytes()).tag.endswith("svg")
    again = figures.save(result.figures["l1"], tmp_path, "l1")
    assert again[1].read_bytes() == paths[3].read_bytes()
    assert result.text in paths[0].read_text("utf-8")


def test_from_the_shell(tmp_path):
    """A folder of results on stdout; categories that are missing are one clear error."""
    file = tmp_path / "rows.jsonl"
    rows = json.loads(layout.NARRATIVES.read_text("utf-8"))
    file.write_text("\n".join(json.dumps({"text": row["text"]}) for row in rows), "utf-8")
    options = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    refused = CliRunner().invoke(cli, ["experiment", "l1", str(file), *options])
    assert "name their field with --category" in str(refused.exception)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    refused = CliRunner().invoke(cli, ["experiment", "l1", *options])
    assert "holds other things" in str(refused.exception)
    (tmp_path / "out" / "README.md").unlink()
    done = CliRunner().invoke(cli, ["experiment", "l1", *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].endswith("README.md")
