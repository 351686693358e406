"""A plan for a domain of your own, written by a language model, into a store that is then asked.

Needs the extra ``openai``. The model here is the local stand-in beside this file, which needs no
key and costs nothing; with OPENAI_API_KEY set and OPENAI_BASE_URL not, the same commands ask
OpenAI.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PLAN = """
name = "allotment"
prompt = "Write {fewest} to {most} words in {language}: {who} in an allotment, {category}, {what}."
words = [20, 120]

[variation]
who = ["a retired tram driver", "two sisters", "a schoolboy", "the new treasurer"]

[[category]]
name = "Harvest"
count = 8
[category.variation]
what = ["too many courgettes", "the first pear", "a stolen pumpkin"]

[[category]]
name = "Quarrel"
count = 8
[category.variation]
what = ["over the hose", "over a hedge", "over nothing"]
"""
STEPS = (
    "generate plan job --plan plan.toml",
    "generate submit job --yes",
    "generate watch job --every 0.2",
    "generate fetch job",
    "generate check job",
    "generate process job --store allotment.db",
    "generate process job --store allotment.db",  # once more: nothing is doubled
    "search allotment.db water -k 2",
    "stats allotment.db",
)

stand_in = [sys.executable, str(Path(__file__).with_name("openai_server.py"))]
with (
    tempfile.TemporaryDirectory() as folder,
    subprocess.Popen(stand_in, stdout=subprocess.PIPE, text=True) as server,
):
    try:
        (Path(folder) / "plan.toml").write_text(PLAN)
        url = next(iter(server.stdout or [])).strip()
        where = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none-needed"}
        for step in STEPS:
            print("$ memstore", step, flush=True)
            command = [sys.executable, "-m", "memstore", *step.split()]
            subprocess.run(command, cwd=folder, env=where, stderr=subprocess.STDOUT, check=True)
    finally:
        server.terminate()
