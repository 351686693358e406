"""What is built and installed works: the wheel has models, samples and migrations."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_models_samples_and_migrations(wheel):
    """And nothing of tests or caches; below PyPI's 100 MB."""
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "memstore/models/minilm-l6-v2/model.onnx",
        "memstore/models/sae-3072-k32/weights.safetensors",
        "memstore/samples/narratives.json",
        "memstore/migrations/env.py",
        "memstore/migrations/versions/0001_first_schema.py",
        "memstore/py.typed",
    ):
        assert needed in names
    assert not [name for name in names if "test" in name or "__pycache__" in name]
    assert wheel.stat().st_size < 60_000_000


@pytest.mark.slow
def test_the_wheel_has_the_kernel_and_is_of_one_platform(wheel):
    """No compiler at the user's, and any Python version."""
    assert "memstore/index/_kernel.so" in zipfile.ZipFile(wheel).namelist()
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", wheel.name)


@pytest.mark.slow
def test_without_a_compiler_the_package_builds_all_the_same(tmp_path):
    """CC that does not exist: a pure wheel, whose queries run in numpy."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".venv*", ".git", "build", "*.so", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, source]
    environment = {**os.environ, "CC": "no-such-compiler"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (built,) = tmp_path.glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(built).namelist() if name.endswith(".so")]


@pytest.mark.slow
def test_a_bare_install_of_the_wheel_works(wheel, tmp_path):
    """A venv with the core dependencies alone: a store is made, filled, asked and checked."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True)
    command = tmp_path / "venv" / "bin" / "memstore"

    def memstore(*arguments):
        return subprocess.run(
            [command, *arguments], check=True, capture_output=True, text=True, cwd=tmp_path
        ).stdout

    assert memstore("--help")
    assert memstore("insert", "diary.db", "A quiet morning by the lake.") == "1\n"
    assert "lake" in memstore("search", "diary.db", "calm water")
    assert memstore("check", "diary.db") == "1 memories, all well\n"
    missing = subprocess.run(
        [command, "train", "x.jsonl", "--out", "o"], capture_output=True, text=True, cwd=tmp_path
    )
    assert missing.returncode == 1
    assert "pip install 'memstore-sae[train]'" in missing.stderr
