"""The local server as tests see it, and the command line that talks to it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memstore.cli import main

ROOT = Path(__file__).parents[2]
KEY = "sk-test-4e1b8c5d0a97f3326d2c"

PLAN = """
name = "small"
prompt = "{{persona}} tells of {{event}} as {{category}}."
seed = 3
words = [20, 120]

[price]
input = 0.10
output = 0.40
batch = 0.5

[variation]
persona = [{personas}]

[[category]]
name = "Strong Emotional"
count = {emotional}
[category.variation]
event = ["a loss", "a win", "a theft"]

[[category]]
name = "Routine"
count = {routine}
[category.variation]
event = ["a bus ride", "a shift"]
"""


def plan_text(emotional=6, routine=4):
    """Return a plan whose prompts all differ."""
    personas = ", ".join(f'"person {number}"' for number in range(emotional + routine))
    return PLAN.format(personas=personas, emotional=emotional, routine=routine)


@dataclass
class Api:
    """The local server, as tests see it."""

    url: str

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"{}")

    def fault(self, **fault):
        """Make the server fail."""
        self.ask("POST", "/_faults", {"faults": [fault]})

    def heal(self):
        """Forget all faults."""
        self.ask("DELETE", "/_faults")

    @property
    def paid(self):
        """Ids of requests that cost money, in order."""
        return [line["id"] for line in self.ask("GET", "/_ledger")["lines"]]

    @property
    def prompts(self):
        """Hashes of what cost money."""
        return [line["prompt"] for line in self.ask("GET", "/_ledger")["lines"]]


@dataclass
class Shell:
    """The command line in a folder, and all it ever said."""

    folder: Path
    url: str
    said: list[str] = field(default_factory=list)

    def environment(self, **more):
        return {
            **os.environ,
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": self.url,
            "PYTHONPATH": str(ROOT),
            **more,
        }

    def run(self, *arguments, code=0, **environment):
        """Run a command in this process; its exit status must be ``code``."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["memstore", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.StringIO())
            for name, value in self.environment(**environment).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        done = subprocess.CompletedProcess(
            arguments, ended.value.code, out.getvalue(), err.getvalue()
        )
        return self.heard(done, code)

    def spawn(self, *arguments, code=0, **environment):
        """Run a command in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "memstore", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return self.heard(done, code)

    def heard(self, done, code):
        """Keep what a command said. None says a traceback."""
        self.said += [done.stdout, done.stderr]
        assert done.returncode == code, (done.args, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments, **environment):
        """Return what a command says as JSON."""
        return json.loads(self.run(*arguments, "--json", **environment).stdout)

    def memories(self, store):
        """Return the memories of a store as an export has them."""
        file = self.folder / f"{store}.{len(self.said)}.jsonl"
        self.run("export", store, file)
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
