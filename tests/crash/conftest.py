"""Libraries in C that the children of these tests are started with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def built(source: str, folder: Path) -> Path:
    """Return a library built of a C file beside this one; skip where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    library = folder / source.replace(".c", ".so")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, HERE / source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def layer(tmp_path_factory) -> Path:
    """The file layer that dies on demand."""
    return built("layer.c", tmp_path_factory.mktemp("layer"))


@pytest.fixture(scope="session")
def offline(tmp_path_factory) -> Path:
    """The library that ends whoever asks for a socket."""
    return built("offline.c", tmp_path_factory.mktemp("offline"))
