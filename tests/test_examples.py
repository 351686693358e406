"""Every example runs in a process of its own and says something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs(example, tmp_path):
    """No error, some output, nothing left behind."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 50
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_notebook_runs_and_draws(tmp_path):
    """Every cell in a Jupyter kernel of its own; figures come out as pictures."""
    pytest.importorskip("torch", reason="the notebook trains")
    nbclient = pytest.importorskip("nbclient", reason="only what runs notebooks can")
    nbformat = pytest.importorskip("nbformat", reason="only what runs notebooks can")
    notebook = nbformat.read(ROOT / "examples" / "07_laboratory.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not [output for output in outputs if output["output_type"] == "error"]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "AUC" in printed
    assert list(tmp_path.iterdir()) == []
