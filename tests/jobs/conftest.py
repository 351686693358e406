"""A real server in a process of its own, and a job to be done at it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from local_api import KEY, ROOT, Api, Shell, plan_text


@pytest.fixture
def api():
    """A fresh server that knows one key."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "openai_server.py"), "--seconds", "0.05"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENAI_SERVER_KEY": KEY},
    )
    try:
        yield Api(server.stdout.readline().strip())
    finally:
        server.terminate()
        assert server.wait(20) == 0
        server.stdout.close()


@pytest.fixture
def shell(tmp_path, api, monkeypatch):
    # The local server shows at once what it did.
    monkeypatch.setattr("memstore.jobs.batches.SETTLE", 1.0)
    return Shell(tmp_path, api.url)


@pytest.fixture
def job(shell):
    """A job of ten requests, planned."""
    (shell.folder / "plan.toml").write_text(plan_text())
    shell.run("generate", "plan", "job", "--plan", "plan.toml")
    return shell.folder / "job"
