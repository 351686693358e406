"""`memstore generate` from a plan to memories, over HTTP, when nothing goes wrong."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from local_api import KEY, plan_text

from memstore import MemoryStore
from memstore.embed.openai import OpenAIEmbedder


def test_a_plan_becomes_memories_that_know_their_requests(shell, api, job):
    """plan, submit, watch, fetch, check, process; then the store has them by category."""
    handed = shell.json("generate", "submit", "job", "--yes")
    assert [(part["part"], part["requests"]) for part in handed] == [(1, 10)]
    assert shell.json("generate", "watch", "job", "--every", "0.1")[0]["status"] == "completed"
    assert shell.json("generate", "fetch", "job") == {"answered": 10}
    found = shell.json("generate", "check", "job")
    assert found["usable"] == 10
    assert [row["usable"] for row in found["categories"]] == [6, 4]
    stored = shell.json("generate", "process", "job", "--store", "diary.db")
    assert stored == {"rows": 10, "new": 10, "memories": 10}
    assert len(api.paid) == len(set(api.paid)) == 10

    rows = json.loads((job / "narratives.json").read_text())
    by_request = {row["metadata"]["request"]: row for row in rows}
    assert set(by_request) == set(api.paid)
    with MemoryStore.open(shell.folder / "diary.db", mode="r") as store:
        for memory in map(store.get, range(1, 11)):
            row = by_request[memory.metadata["request"]]
            assert (memory.text, memory.category) == (row["text"], row["category"])
            assert memory.metadata["persona"] == row["metadata"]["persona"]
        assert store.stats()["categories"] == {"Strong Emotional": 6, "Routine": 4}

    # Every step once more: nothing is paid for, nothing is doubled.
    assert "planned before" in shell.run("generate", "plan", "job", "--plan", "plan.toml").stdout
    shell.run("generate", "submit", "job", "--yes")
    shell.run("generate", "watch", "job")
    shell.run("generate", "fetch", "job")
    again = shell.json("generate", "process", "job", "--store", "diary.db")
    assert again == {"rows": 10, "new": 0, "memories": 10}
    assert len(api.paid) == 10


def test_the_json_of_process_is_what_import_reads(shell, job):
    """`process --store` and `import` of its file make the same store."""
    for step in (("submit", "--yes"), ("watch", "--every", "0.1"), ("fetch",)):
        shell.run("generate", step[0], "job", *step[1:])
    shell.run("generate", "process", "job", "--store", "one.db")
    shell.run("import", "two.db", "job/narratives.json")
    one, two = shell.memories("one.db"), shell.memories("two.db")
    for memory in one + two:
        del memory["created_at"], memory["updated_at"]
    assert one == two
    assert len(one) == 10


def test_more_narratives_than_an_array_may_hold_are_stored_line_by_line(shell, job, monkeypatch):
    """Beyond what `import` reads as JSON, JSON Lines; the store is the same."""
    shell.run("generate", "direct", "job", "--yes")
    shell.run("generate", "process", "job", "--store", "one.db")
    monkeypatch.setattr("memstore.files.MAX_JSON", 1_000)
    told = shell.json("generate", "process", "job", "--store", "two.db")
    assert told == {"rows": 10, "new": 10, "memories": 10}
    assert (job / "narratives.jsonl").read_text().count("\n") == 10
    one, two = shell.memories("one.db"), shell.memories("two.db")
    assert [memory["key"] for memory in one] == [memory["key"] for memory in two]


def test_the_direct_mode_asks_one_by_one(shell, api, job):
    """The same answers without a batch; a batch handed in later has nothing left to ask."""
    assert shell.json("generate", "direct", "job", "--yes", "--at-once", "3") == {"answered": 10}
    assert len(api.paid) == len(set(api.prompts)) == 10
    shell.run("generate", "submit", "job", "--yes")
    shell.run("generate", "direct", "job", "--yes")
    assert len(api.paid) == 10
    assert shell.json("generate", "check", "job")["usable"] == 10


def test_requests_are_split_at_the_limit_and_each_is_asked_once(shell, api):
    """Ten requests, three a file: four batches."""
    (shell.folder / "plan.toml").write_text(plan_text())
    planned = shell.json("generate", "plan", "job", "--plan", "plan.toml", "--most-requests", "3")
    assert planned["requests"] == [3, 3, 3, 1]
    assert len(shell.json("generate", "submit", "job", "--yes")) == 4
    shell.run("generate", "watch", "job", "--every", "0.1")
    assert shell.json("generate", "fetch", "job") == {"answered": 10}
    assert len(api.paid) == len(set(api.paid)) == 10


def test_the_estimate_comes_before_anything_is_sent(shell, api, job):
    """Nobody at the terminal and no --yes: nothing is sent, and the cost has been said."""
    done = shell.run("generate", "submit", "job", code=1)
    assert "10 requests to gpt-4.1-nano" in done.stderr
    assert "$0." in done.stderr
    assert "--yes" in done.stderr
    assert api.ask("GET", "/files")["data"] == []
    # By hand: letters over four, 20 to 120 words at 4/3 tokens and 8 around, half price.
    letters = len((job / "requests-0001.jsonl").read_bytes())
    tokens = -(-letters // 4) * 0.10 + 10 * (round(70 * 4 / 3) + 8) * 0.40
    assert f"about ${tokens / 1e6 / 2:.4f}" in done.stderr


def test_a_check_says_what_to_leave_out_and_a_person_may_overrule(shell, job):
    """Words, language and near-duplicates, each with its reason; --keep lets them in."""
    lines = [json.loads(line) for line in (job / "requests-0001.jsonl").read_text().splitlines()]
    good = (
        "The ferry left without its ramp, and forty of us stood on the quay holding bicycles, "
        "watching it hang there like a tongue until the harbour master came out in his slippers."
    )
    german = (
        "Heute Morgen habe ich den Hund gefüttert, dann bin ich zur Arbeit gefahren und habe bis "
        "zum Mittag nur Formulare gestempelt, bevor wir alle zusammen in die Kantine gingen."
    )
    texts = [good, good.replace("forty", "fifty"), german, "Too short.", None]
    with (job / "direct.jsonl").open("w") as file:
        for line, text in zip(lines, texts, strict=False):
            content = json.dumps({"narrative": text})
            choice = {"message": {"content": content}, "finish_reason": "stop"}
            body = {"status_code": 200, "body": {"choices": [choice]}}
            file.write(json.dumps({"custom_id": line["custom_id"], "response": body}) + "\n")
    found = shell.json("generate", "check", "job")
    assert found["usable"] == 1
    assert found["reasons"] == {"near": 1, "language": 1, "words": 1, "schema": 1, "waiting": 5}
    report = (job / "report.md").read_text()
    for line in lines[1:]:
        assert f"`{line['custom_id']}`" in report
    checked = [json.loads(line) for line in (job / "check.jsonl").read_text().splitlines()]
    assert checked[1]["reasons"][0].startswith(f"near: {lines[0]['custom_id']} 0.9")
    kept = ("--keep", "near", "--keep", "language")
    assert shell.json("generate", "process", "job")["narratives"] == 1
    assert shell.json("generate", "process", "job", *kept)["narratives"] == 3


def test_texts_are_embedded_through_the_same_job(shell, api):
    """`memstore embed`: an array in the order of the file, equal to what the endpoint says."""
    texts = [f"text number {number}" for number in range(70)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (shell.folder / "texts.jsonl").write_text(rows)
    shell.run("embed", "plan", "texts.jsonl", "vectors", "--model", "m", "--price", "0.02")
    told = shell.run("embed", "process", "vectors", code=1).stderr
    assert "3 of 3 requests have no answer" in told
    for step in (("submit", "--yes"), ("watch", "--every", "0.1"), ("fetch",)):
        shell.run("embed", step[0], "vectors", *step[1:])
    assert shell.json("embed", "process", "vectors")["rows"] == 70
    found = np.load(shell.folder / "vectors" / "vectors.npy")
    for place in (0, 31, 32, 69):
        body = {"model": "m", "input": texts[place], "encoding_format": "base64"}
        answer = api.ask("POST", "/embeddings", body)["data"][0]["embedding"]
        expected = np.frombuffer(base64.b64decode(answer), "<f4")
        assert np.array_equal(found[place], expected)
    assert len([id for id in api.paid if id]) == 3


def test_the_embedder_waits_for_a_busy_server(api, monkeypatch):
    """A 429 with Retry-After and a 503 in the middle of a store's insert are waited for."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    embedder = OpenAIEmbedder("m", 64, base_url=api.url)
    expected = embedder.embed(["one", "two"])
    for status in (429, 503):
        api.fault(at="POST /embeddings", kind="status", status=status, retry_after=1)
    assert np.array_equal(embedder.embed(["one", "two"]), expected)


def test_a_job_is_one_process_s_at_a_time(shell, job):
    """A second process at work is refused; looking is allowed."""
    code = (
        "import sys, pathlib\nfrom memstore.jobs.job import Job\n"
        "with Job(pathlib.Path('job')).working():\n"
        "    print('held', flush=True)\n    sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=shell.folder,
        env=shell.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        for step in ("submit", "direct", "watch", "fetch"):
            done = shell.run("generate", step, "job", code=1)
            assert "another process is at work" in done.stderr
        assert shell.json("generate", "status", "job")["requests"] == {"waiting": 10}
    finally:
        holder.communicate(b"")


def test_wrong_use_is_one_line(shell, job, tmp_path):
    """No job, another plan, a job of another kind, a URL with a password, no key."""
    (tmp_path / "other.toml").write_text(plan_text(3, 3))
    (tmp_path / "broken.toml").write_text("name = 3")
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    shell.run("embed", "plan", "texts.jsonl", "vectors", "--model", "m")
    for arguments, says in [
        (("generate", "submit", "nothing"), "holds no job"),
        (("generate", "submit", "plan.toml"), "is a file"),
        (("generate", "plan", "job", "--plan", "other.toml"), "job of another plan"),
        (("generate", "plan", "new", "--plan", "broken.toml"), "name must be"),
        (("generate", "plan", "new", "--plan", "missing.toml"), "no such file"),
        (("generate", "check", "vectors"), "job of embeddings"),
        (("embed", "process", "job"), "job of narratives"),
        (("embed", "plan", "blank.jsonl", "blank", "--model", "m"), "no text"),
        (("embed", "plan", "texts.jsonl", "vectors", "--model", "m"), "holds a job already"),
        (("generate", "submit", "job", "--base-url", "http://me:pass@x/v1"), "password"),
        (("generate", "submit", "job", "--base-url", "ftp://x"), "no address"),
    ]:
        done = shell.run(*arguments, code=2 if says == "is a file" else 1)
        assert says in done.stderr, arguments
        assert done.stdout == ""
        assert "pass@" not in done.stderr
    done = shell.run("generate", "submit", "job", "--yes", code=1, OPENAI_API_KEY="")
    assert "set OPENAI_API_KEY" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_key_is_nowhere(shell, api, job):
    """Not in a file, a message, a traceback, the client's own log, or the list of processes."""
    api.fault(at="POST /batches", kind="status", status=401, message=f"no such key: {KEY}")
    shell.spawn("generate", "submit", "job", "--yes", code=1, OPENAI_LOG="debug")
    shell.spawn("generate", "submit", "job", "--yes", OPENAI_LOG="debug")
    watching = subprocess.Popen(
        [sys.executable, "-m", "memstore", "generate", "watch", "job", "--every", "0.1"],
        cwd=shell.folder,
        env=shell.environment(OPENAI_LOG="debug"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    listed = subprocess.run(
        ["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True
    )
    shell.said += [listed.stdout, *watching.communicate(timeout=60)]
    assert "generate watch" in listed.stdout
    api.fault(at="POST /chat/completions", kind="status", status=403, message=KEY, times=99)
    shell.spawn("generate", "fetch", "job", OPENAI_LOG="debug")
    shell.spawn("generate", "plan", "two", "--plan", "plan.toml")
    shell.spawn("generate", "direct", "two", "--yes", code=1, OPENAI_LOG="debug")
    shell.spawn("generate", "check", "job")
    shell.spawn("generate", "process", "job", "--store", "diary.db")
    code = (
        "import pathlib, traceback, logging\nlogging.basicConfig(level=0)\n"
        "from memstore.jobs.server import Server\n"
        "try:\n    Server().ask('/v1/chat/completions', {})\n"
        "except Exception:\n    logging.exception('it failed'); traceback.print_exc(); raise"
    )
    crashed = subprocess.run(
        [sys.executable, "-c", code],
        env=shell.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in crashed.stderr
    assert "ServerRefused" in crashed.stderr
    shell.said.append(crashed.stderr)
    assert not [text for text in shell.said if KEY in text]
    files = [path for path in shell.folder.rglob("*") if path.is_file()]
    assert len(files) > 12
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_ten_thousand_requests_take_no_more_memory_than_a_thousand(shell, api):
    """plan, submit, fetch: the peak grows by less than the requests weigh, twice over."""
    peaks, sizes = [], []
    for name, count in (("few", 1_000), ("many", 10_000)):
        (shell.folder / f"{name}.toml").write_text(plan_text(count // 2, count // 2))
        steps = [
            ("plan", name, "--plan", f"{name}.toml", "--most-requests", "4000"),
            ("submit", name, "--yes"),
            ("watch", name, "--every", "0.5"),
            ("fetch", name),
        ]
        for step in steps:
            peaks.append(peak_of(shell, "generate", *step))
        files = (shell.folder / name).glob("*.jsonl")
        sizes.append(sum(path.stat().st_size for path in files))
    assert sorted(
        len(p.read_text().splitlines()) for p in (shell.folder / "many").glob("req*")
    ) == [2000, 4000, 4000]
    assert len(api.paid) == len(set(api.paid)) + 1_000  # both plans name theirs alike
    growth = [many - few for few, many in zip(peaks[:4], peaks[4:], strict=True)]
    assert max(growth) < 24e6, (growth, sizes)


def peak_of(shell, *arguments):
    """Return the peak memory of a command, in bytes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "memstore", *arguments],
        cwd=shell.folder,
        env=shell.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    assert process.returncode == 0, said
    return usage.ru_maxrss * 1024
