"""A server that answers what no server should, and folders that somebody meddled with."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time

import pytest
from local_api import KEY, plan_text

BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file_1",
    "completion_window": "24h",
    "status": "completed",
    "created_at": 1,
    "metadata": None,
    "output_file_id": "file_2",
    "error_file_id": None,
    "request_counts": {"total": 10, "completed": 10, "failed": 0},
}


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers what ``answers`` has for "METHOD /path", in order; the last one stays."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.do_GET()

    def do_GET(self):
        self.server.heard.append((self.command, self.path, self.headers["Authorization"]))
        known = self.server.answers
        name = f"{self.command} {self.path.removeprefix('/v1').partition('?')[0]}"
        waiting = known.get(name, [{"error": {"message": f"nothing at {name}"}}])
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200 if name in known and answer != 404 else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def scripted():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.answers, server.heard = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def strange(shell, scripted, job, monkeypatch):
    """The shell at the scripted server, with ten requests planned."""
    monkeypatch.setattr("memstore.jobs.batches.SETTLE", 0.1)
    shell.url = scripted.url
    scripted.answers |= {
        "POST /files": [{"id": "file_1"}],
        "POST /batches": [BATCH],
        "GET /batches": [{"object": "list", "data": [], "has_more": False}],
        "GET /batches/batch_1": [BATCH],
    }
    return shell


def output(job, *ids, content='{"narrative": "It rained on the tin roof all night long."}'):
    """Return the output file of some requests."""
    lines = [json.loads(line) for line in (job / "requests-0001.jsonl").read_text().splitlines()]
    chosen = [line["custom_id"] for line in lines][slice(*ids)]
    message = {"content": content, "refusal": None}
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    rows = [
        {"custom_id": id, "response": {"status_code": 200, "body": body}, "error": None}
        for id in chosen
    ]
    return ("\n".join(map(json.dumps, rows)) + "\n").encode()


def test_a_key_with_a_line_end_is_the_key_without(shell, api, job):
    """As a file written elsewhere leaves it; and what is no key at all is refused unsaid."""
    done = shell.run("generate", "direct", "job", "--yes", OPENAI_API_KEY=KEY + "\r\n")
    assert done.stdout == "10 answered\n"
    shell.run("generate", "plan", "two", "--plan", "plan.toml")
    for bad in ("sk-ge\u00e4heim-12345678", "sk-two words-12345678"):
        done = shell.run("generate", "submit", "two", "--yes", code=1, OPENAI_API_KEY=bad)
        assert "characters that no key has" in done.stderr
        assert bad not in done.stderr


def test_what_a_server_echoes_is_kept_without_the_key(strange, scripted, job):
    """In answers, in errors, in refusals; files, messages and reports."""
    echo = f"I got {KEY} from you"
    refusing = {"choices": [{"message": {"content": None, "refusal": echo}}], "headers": KEY}
    scripted.answers["POST /chat/completions"] = [refusing]
    strange.run("generate", "direct", "job", "--yes")
    scripted.answers["GET /files/file_2/content"] = [
        output(job, 9) + json.dumps({"custom_id": "x", "error": {"message": echo}}).encode()
    ]
    strange.run("generate", "submit", "job", "--yes")
    strange.run("generate", "watch", "job")
    strange.run("generate", "fetch", "job")
    strange.run("generate", "check", "job")
    files = [path for path in strange.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [said for said in strange.said if KEY in said]


def test_a_folder_does_not_say_where_the_key_goes(strange, scripted, job, api):
    """A journal that names another server is asked about, not followed."""
    strange.run("generate", "submit", "job", "--yes")
    before = len(scripted.heard)
    strange.url = api.url
    for step in ("status", "watch", "fetch"):
        done = strange.run("generate", step, "job", code=1)
        assert f"add --base-url {scripted.url} if you trust it" in done.stderr
    assert len(scripted.heard) == before
    strange.run("generate", "status", "job", "--base-url", scripted.url)
    assert len(scripted.heard) > before


def test_a_part_begun_at_one_server_is_not_begun_at_another(strange, scripted, job, api):
    """Else its batch here would be paid for beside the one there."""
    scripted.answers["POST /batches"] = [b"<html>"]
    strange.run("generate", "submit", "job", "--yes", code=1)
    strange.url = api.url
    done = strange.run("generate", "submit", "job", "--yes", code=1)
    assert f"begun at {scripted.url}" in done.stderr
    assert api.ask("GET", "/batches")["data"] == []


@pytest.mark.parametrize(
    "listed",
    [
        [{**BATCH, "id": "old", "input_file_id": "other", "created_at": 1}, {**BATCH}],
        [{**BATCH, "metadata": None, "created_at": None}],
        [{**BATCH, "created_at": 99999999999}],
    ],
)
def test_a_batch_is_found_however_a_server_lists_it(strange, scripted, job, listed):
    """Oldest first, without marks, without times: by its file."""
    scripted.answers["POST /batches"] = [b"<html>"]
    scripted.answers["GET /batches"] = [{"object": "list", "data": listed, "has_more": False}]
    assert strange.json("generate", "submit", "job", "--yes")[0]["batch"] == "batch_1"
    assert [h[:2] for h in scripted.heard].count(("POST", "/v1/batches")) == 1


def test_a_batch_that_shows_late_is_waited_for(strange, scripted, job, monkeypatch):
    """Listed at the third look only."""
    monkeypatch.setattr("memstore.jobs.batches.SETTLE", 6.0)
    scripted.answers["POST /batches"] = [b"<html>"]
    empty = {"object": "list", "data": [], "has_more": False}
    scripted.answers["GET /batches"] = [empty, empty, {**empty, "data": [BATCH]}]
    assert strange.json("generate", "submit", "job", "--yes")[0]["batch"] == "batch_1"
    assert [h[:2] for h in scripted.heard].count(("POST", "/v1/batches")) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>busy</html>",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b'{"id": null}',
        b"1" * 5_000,
        b"[" * 50_000,
        b"null",
        b'"text"',
    ],
)
@pytest.mark.parametrize("at", ["POST /files", "POST /batches", "GET /batches/batch_1"])
def test_an_answer_of_another_form_is_one_line(strange, scripted, job, at, answer):
    """Whatever comes back with 200."""
    if at == "GET /batches/batch_1":
        strange.run("generate", "submit", "job", "--yes")
    scripted.answers[at] = [answer]
    step = ("watch",) if at.startswith("GET") else ("submit", "--yes")
    done = strange.run("generate", step[0], "job", *step[1:], code=1)
    assert done.stderr.strip().splitlines()[-1].startswith("memstore: http://127.0.0.1")


@pytest.mark.parametrize(
    "change",
    [
        {"request_counts": None},
        {"request_counts": {"total": None, "completed": None, "failed": None}},
        {"errors": {"data": [None]}, "status": "failed", "output_file_id": None},
        {"errors": {"data": None}, "error_file_id": ""},
        {"metadata": [1]},
    ],
)
def test_a_batch_of_another_form_ends_or_is_one_line(strange, scripted, job, change):
    """Nulls where numbers should be, lists where objects."""
    strange.run("generate", "submit", "job", "--yes")
    scripted.answers["GET /batches/batch_1"] = [{**BATCH, **change}]
    scripted.answers["GET /files/file_2/content"] = [output(job, 0, 10)]
    failed = "errors" in change and change["errors"]["data"] == [None]
    strange.run("generate", "fetch", "job", code=int(failed))
    if not failed:
        assert strange.json("generate", "fetch", "job") == {"answered": 10}


def test_answers_whose_file_is_still_to_come_are_waited_for(strange, scripted, job):
    """Completed, says the server, and names the file a second later."""
    strange.run("generate", "submit", "job", "--yes")
    late = {**BATCH, "output_file_id": None}
    scripted.answers["GET /batches/batch_1"] = [late, late, BATCH]
    scripted.answers["GET /files/file_2/content"] = [output(job, 0, 10)]
    strange.run("generate", "watch", "job", "--every", "0.1")
    assert strange.json("generate", "fetch", "job") == {"answered": 10}


def test_a_worse_download_does_not_replace_a_better_one(strange, scripted, job):
    """Nine answers of ten, then one, then nothing, then all."""
    strange.run("generate", "submit", "job", "--yes")
    scripted.answers["GET /files/file_2/content"] = [
        output(job, 0, 9) + b'{"custom',
        output(job, 0, 1) + b"\n".join([b"{"] * 9),
        b"",
        output(job, 0, 10),
    ]
    counts = [strange.json("generate", "fetch", "job").get("answered") for _ in range(4)]
    assert counts == [9, 9, 9, 10]


def test_what_the_server_deleted_does_not_stop_the_others(shell, scripted, tmp_path):
    """The file of part 1 is gone, the batch of part 2 forgotten: part 3 comes in."""
    shell.url = scripted.url
    (tmp_path / "plan.toml").write_text(plan_text(2, 1))
    shell.run("generate", "plan", "job", "--plan", "plan.toml", "--most-requests", "1")
    job = tmp_path / "job"
    ids = [{**BATCH, "id": f"b{n}", "output_file_id": f"f{n}"} for n in (1, 2, 3)]
    third = json.loads((job / "requests-0003.jsonl").read_text())["custom_id"]
    row = json.loads(output(job, 0, 1).decode()) | {"custom_id": third}
    scripted.answers |= {
        "POST /files": [{"id": "a"}, {"id": "b"}, {"id": "c"}],
        "POST /batches": list(ids),
        "GET /batches/b1": [
            {**ids[0], "request_counts": {"total": 1, "completed": 1, "failed": 0}}
        ],
        "GET /batches/b3": [
            {**ids[2], "request_counts": {"total": 1, "completed": 1, "failed": 0}}
        ],
        "GET /files/f3/content": [json.dumps(row).encode() + b"\n"],
    }
    shell.run("generate", "submit", "job", "--yes")
    found = shell.json("generate", "fetch", "job")
    assert found == {"lost": 1, "failed": 1, "answered": 1}
    assert shell.json("generate", "fetch", "job") == found


def test_a_batch_that_was_cancelled_costs_no_attempt(strange, scripted, job):
    """Four times: nothing was answered, so the fifth may still be."""
    gone = {**BATCH, "status": "cancelled", "output_file_id": None}
    gone["request_counts"] = {"total": 10, "completed": 0, "failed": 0}
    scripted.answers["GET /batches/batch_1"] = [gone]
    for _ in range(4):
        assert len(strange.json("generate", "submit", "job", "--yes")) == 1
        assert strange.json("generate", "fetch", "job") == {"failed": 10}


@pytest.mark.parametrize(
    "change",
    [{"error": {}}, {"response": {"status_code": "200"}}, {"response": {"status_code": None}}],
)
def test_a_good_body_counts_whatever_stands_around_it(strange, scripted, job, change):
    """An empty error, a status that is text or missing."""
    rows = [json.loads(line) for line in output(job, 0, 10).splitlines()]
    for row in rows:
        row |= {"error": change.get("error")}
        row["response"] |= change.get("response", {})
    scripted.answers["GET /files/file_2/content"] = [
        "\n".join(map(json.dumps, rows)).encode() + b"\n"
    ]
    strange.run("generate", "submit", "job", "--yes")
    assert strange.json("generate", "fetch", "job") == {"answered": 10}


def test_half_a_character_in_a_refusal_stops_nothing(strange, scripted, job):
    """A lone surrogate, and what commands a terminal."""
    message = {"content": None, "refusal": "no \ud800 \x1b]0;owned\x07"}
    scripted.answers["POST /chat/completions"] = [{"choices": [{"message": message}]}]
    done = strange.run("generate", "direct", "job", "--yes")
    assert "\x1b" not in done.stderr
    assert strange.json("generate", "check", "job")["reasons"] == {"refused": 10}


def test_ctrl_c_asks_nothing_that_waits_to_be_asked_again(shell, api, job):
    """Requests told to come back in 20 seconds are not asked after the Ctrl-C, nor waited for."""
    api.fault(at="POST /chat/completions", kind="status", status=429, retry_after=20, times=99)
    process = subprocess.Popen(
        [sys.executable, "-m", "memstore", "generate", "direct", "job", "--yes"],
        cwd=shell.folder,
        env=shell.environment(),
        stderr=subprocess.DEVNULL,
    )
    time.sleep(2.5)
    process.send_signal(2)
    began = time.monotonic()
    assert process.wait(30) == 130
    assert time.monotonic() - began < 5
    assert api.paid == []


def test_two_plans_at_once_make_one_job(shell, tmp_path):
    """The second is told to wait, and changes nothing."""
    for name, count in (("a", 20_000), ("b", 5)):
        (tmp_path / f"{name}.toml").write_text(plan_text(count, 5))
    first = subprocess.Popen(
        [sys.executable, "-m", "memstore", "generate", "plan", "job", "--plan", "a.toml"],
        cwd=tmp_path,
        env=shell.environment(),
        stdout=subprocess.DEVNULL,
    )
    while not (tmp_path / "job" / "journal.jsonl").exists():
        time.sleep(0.005)
    second = shell.run("generate", "plan", "job", "--plan", "b.toml", code=1)
    assert "another process" in second.stderr or "another plan" in second.stderr
    assert first.wait(60) == 0
    assert (tmp_path / "job" / "plan.toml").read_text() == plan_text(20_000, 5)
    assert json.loads((tmp_path / "job" / "job.json").read_text())["parts"] == [20_005]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("job.json", "[" * 100_000),
        ("job.json", '{"format": 1}'),
        ("job.json", "{}"),
        ("journal.jsonl", '{"part": "1", "event": "uploaded", "file": "x"}\n'),
        ("journal.jsonl", '{"part": null, "event": "uploaded", "file": "x"}\n'),
        ("journal.jsonl", '{"part": 1, "event": "ended"}\n'),
        ("journal.jsonl", "[1]\n"),
        ("journal.jsonl", "{\n"),
        ("requests-0001.jsonl", '{"custom_id": ["a"], "body": {}}\n'),
        ("requests-0001.jsonl", '{"custom_id": "a", "body": null}\n'),
        ("requests-0001.jsonl", "\x00\n"),
    ],
)
def test_a_folder_somebody_meddled_with_is_one_line(shell, job, file, content):
    """Damaged, or of types that nobody writes."""
    (job / file).write_text(content)
    for step in (("status",), ("fetch",), ("submit", "--yes"), ("direct", "--yes"), ("check",)):
        done = shell.run("generate", step[0], "job", *step[1:], code=1)
        assert done.stderr.count("\n") == 1, done.stderr


def test_requests_that_are_gone_are_not_called_usable(shell, job):
    """A truncated file of requests: the report says what the job lacks."""
    lines = (job / "requests-0001.jsonl").read_text().splitlines(keepends=True)
    (job / "requests-0001.jsonl").write_text("".join(lines[:3]))
    assert shell.json("generate", "check", "job")["reasons"] == {"waiting": 3, "absent": 7}


def test_a_damaged_cache_of_vectors_is_made_anew(shell, api, job):
    """Empty, cut, garbage: embedded again."""
    shell.run("generate", "direct", "job", "--yes")
    assert shell.json("generate", "check", "job")["usable"] == 10
    [cache] = (job / "vectors").rglob("*.npy")
    for content in (b"", cache.read_bytes()[:200], b"garbage"):
        cache.write_bytes(content)
        assert shell.json("generate", "check", "job")["usable"] == 10


@pytest.mark.parametrize(
    "arguments",
    [
        ("watch", "job", "--every", "nan"),
        ("watch", "job", "--every", "1e300"),
        ("submit", "job", "--base-url", "http://localhost:abc/v1"),
        ("submit", "job", "--base-url", "http://[::1"),
        ("submit", "job", "--base-url", "http://a..b/v1"),
        ("submit", "job", "--base-url", "http://\u2603/v1"),
    ],
)
def test_options_nobody_means_are_refused(shell, job, arguments):
    """Before anything is asked."""
    code = 2 if arguments[0] == "watch" else 1
    assert "Traceback" not in shell.run("generate", *arguments, code=code).stderr
