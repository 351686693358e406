"""What goes wrong at the server, each time with the state it leaves and the command that mends it.

docs/generate.md has the table that these tests hold to.
"""

from __future__ import annotations

import json
import time

import pytest


def steps(shell, *names):
    """Run steps; returns where the requests stand after the last."""
    arguments = {"submit": ("--yes",), "watch": ("--every", "0.1")}
    for name in names:
        found = shell.json("generate", name, "job", *arguments.get(name, ()))
    return found


def finish(shell, api, answered=10):
    """Bring the job to its end with the same commands as ever."""
    assert steps(shell, "submit", "watch", "fetch") == {"answered": answered}


def failed(job):
    """Return ``{request: (state, why)}`` of the job's error report."""
    lines = [json.loads(line) for line in (job / "failed.jsonl").read_text().splitlines()]
    return {line["request"]: (line["state"], line["why"]) for line in lines}


def test_requests_that_fail_are_named_and_asked_again_alone(shell, api, job):
    """Three lines of a batch fail; the second batch holds these three."""
    api.fault(at="batch", kind="fail_line", status=500, code="server_error", times=3)
    assert steps(shell, "submit", "watch", "fetch") == {"answered": 7, "failed": 3}
    report = failed(job)
    assert len(report) == 3
    assert not set(report) & set(api.paid)
    assert {state for state, _ in report.values()} == {"failed"}
    assert all("server_error" in why for _, why in report.values())
    done = shell.run("generate", "fetch", "job")
    assert all(id in done.stderr for id in report)
    finish(shell, api)
    assert len(api.paid) == len(set(api.paid)) == 10
    assert failed(job) == {}


def test_an_expired_batch_keeps_its_answers_and_the_rest_is_asked_again(shell, api, job):
    """Four were answered, and paid for, before the batch ran out of time."""
    api.fault(at="batch", kind="expire", after=4)
    assert steps(shell, "submit", "watch")[0]["status"] == "expired"
    assert steps(shell, "fetch") == {"answered": 4, "failed": 6}
    assert all("batch_expired" in why for _, why in failed(job).values())
    finish(shell, api)
    assert len(api.paid) == len(set(api.paid)) == 10


def test_a_batch_that_is_not_taken_costs_nothing_and_is_handed_in_again(shell, api, job):
    """Validation fails: the reason is said."""
    api.fault(at="batch", kind="fail_batch", code="token_limit_exceeded", message="too many tokens")
    found = steps(shell, "submit", "watch")
    assert found == [{"part": 1, "status": "failed", "why": "too many tokens"}]
    assert steps(shell, "fetch") == {"failed": 10}
    assert all("too many tokens" in why for _, why in failed(job).values())
    assert api.paid == []
    finish(shell, api)
    assert len(api.paid) == 10


@pytest.mark.parametrize("at", ["POST /files", "GET /batches/", "GET /files/"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_is_waited_for(shell, api, job, at, status):
    """429 and 5xx where nothing is paid: asked again by itself, as long as Retry-After says."""
    api.fault(at=at, kind="status", status=status, retry_after=1, times=2)
    began = time.monotonic()
    finish(shell, api)
    assert time.monotonic() - began > 2
    assert len(api.paid) == len(set(api.paid)) == 10


@pytest.mark.parametrize("fault", ["status", "cut", "cut_after", "slow"])
def test_the_creation_of_a_batch_that_goes_wrong_creates_no_second_one(shell, api, job, fault):
    """No answer, a 500, or an answer cut off after it was done: whatever the server has, counts."""
    api.fault(at="POST /batches", kind=fault, status=500, seconds=1)
    done = shell.run("generate", "submit", "job", "--yes", code=int(fault in ("status", "cut")))
    if fault in ("status", "cut"):
        assert "run the same again" in done.stderr
    finish(shell, api)
    assert len(api.ask("GET", "/batches")["data"]) == 1
    assert len(api.paid) == len(set(api.paid)) == 10


def test_a_429_at_creation_says_when_to_come_back(shell, api, job):
    """A batch is asked for once; the message has the server's Retry-After."""
    api.fault(at="POST /batches", kind="status", status=429, retry_after=7)
    done = shell.run("generate", "submit", "job", "--yes", code=1)
    assert "run the same again in 7 s" in done.stderr
    finish(shell, api)


def test_a_batch_the_server_refuses_is_uploaded_anew(shell, api, job):
    """The file was taken, and then was not good enough."""
    api.fault(at="POST /batches", kind="status", status=400, message="no such file")
    assert "no such file" in shell.run("generate", "submit", "job", "--yes", code=1).stderr
    finish(shell, api)
    assert len(api.paid) == 10


@pytest.mark.parametrize("fault", ["cut", "cut_body"])
def test_a_download_that_is_cut_off_leaves_nothing_half(shell, api, job, fault):
    """The connection ends before, or in the middle of, the file."""
    steps(shell, "submit", "watch")
    api.fault(at="GET /files/", kind=fault)
    done = shell.run("generate", "fetch", "job", code=int(fault == "cut_body"))
    if fault == "cut_body":
        assert "run the same again" in done.stderr
        assert not (job / "output-0001.jsonl").exists()
    finish(shell, api)
    assert len(api.paid) == len(set(api.paid)) == 10


def test_a_line_broken_on_its_way_is_fetched_again(shell, api, job):
    """The server's file is whole: the same command mends ours, and nothing is asked again."""
    api.fault(at="GET /files/", kind="malformed", lines=2)
    steps(shell, "submit", "watch")
    done = shell.run("generate", "fetch", "job")
    assert "2 lines that cannot be read: fetch again" in done.stderr
    assert done.stdout == "8 answered, 2 lost\n"
    assert {state for state, _ in failed(job).values()} == {"lost"}
    assert steps(shell, "fetch") == {"answered": 10}
    finish(shell, api)
    assert len(api.paid) == 10


@pytest.mark.parametrize("fault", ["malformed_line", "lose_line"])
def test_a_line_the_server_itself_lost_is_asked_again(shell, api, job, fault):
    """Its output stays broken, or lacks it: paid for, but nobody has it."""
    api.fault(at="batch", kind=fault, times=2)
    steps(shell, "submit", "watch", "fetch")
    assert steps(shell, "fetch") == {"answered": 8, "lost": 2}
    lost = set(failed(job))
    finish(shell, api)
    assert len(api.paid) == 12
    assert {id for id in api.paid if api.paid.count(id) == 2} == lost


@pytest.mark.parametrize(
    ("fault", "why"),
    [("refuse", "refused"), ("wrong_schema", "schema"), ("length", "cut off")],
)
def test_an_answer_of_no_use_is_asked_again_so_often(shell, api, job, fault, why):
    """Refused, not in the form asked for, cut off: named, asked again, given up after three."""
    api.fault(at="batch", kind=fault, times=1, match=fourth(job))
    assert steps(shell, "submit", "watch", "fetch") == {"answered": 9, "unusable": 1}
    [(id, (_, reason))] = failed(job).items()
    assert reason.startswith(why)
    assert shell.json("generate", "check", "job")["reasons"] == {why: 1}
    finish(shell, api)
    assert api.paid.count(id) == 2
    api.fault(at="batch", kind=fault, times=99, match=fourth(job))
    shell.run("generate", "plan", "two", "--plan", "plan.toml")
    for _ in range(4):
        for step in (("submit", "--yes"), ("watch", "--every", "0.1"), ("fetch",)):
            done = shell.run("generate", step[0], "two", *step[1:])
            if step[0] == "submit":
                last = done
    assert "answered in vain 3 times" in last.stderr
    assert api.paid.count(id) == 2 + 3


def test_a_wrong_key_and_no_money_stop_at_once(shell, api, job):
    """401 and an empty account: nothing was paid for, and the right key goes on."""
    done = shell.run("generate", "submit", "job", "--yes", code=1, OPENAI_API_KEY="sk-wrong")
    assert "401" in done.stderr
    assert "set OPENAI_API_KEY" in done.stderr
    assert "sk-wrong" not in done.stderr
    began = time.monotonic()
    poor = {"kind": "status", "status": 429, "code": "insufficient_quota", "message": "no money"}
    api.fault(at="POST /batches", **poor)
    assert "add credit" in shell.run("generate", "submit", "job", "--yes", code=1).stderr
    assert time.monotonic() - began < 20
    finish(shell, api)
    assert len(api.paid) == len(set(api.paid)) == 10


def fourth(job):
    """Return the prompt of one request, which no other has."""
    line = (job / "requests-0001.jsonl").read_text().splitlines()[3]
    return json.loads(line)["body"]["messages"][0]["content"]


# --- the direct mode -----------------------------------------------------------------------------


def direct(shell, code=0):
    return shell.run("generate", "direct", "job", "--yes", "--at-once", "2", code=code)


@pytest.mark.parametrize("status", [429, 500])
def test_the_direct_mode_waits_as_it_is_told(shell, api, job, status):
    """Retry-After, a second, three times over."""
    fault = {"kind": "status", "status": status, "retry_after": 1, "times": 3}
    api.fault(at="POST /chat/completions", **fault)
    began = time.monotonic()
    assert direct(shell).stdout == "10 answered\n"
    assert time.monotonic() - began > 1.5
    assert len(api.paid) == len(set(api.prompts)) == 10


def test_a_wait_too_long_is_said_and_not_waited_for(shell, api, job):
    """Five minutes: what was answered is kept, and the message has the time."""
    api.fault(at="POST /chat/completions", kind="status", status=429, retry_after=300, times=99)
    done = direct(shell, code=1)
    assert "run the same again in 300 s" in done.stderr
    api.heal()
    assert direct(shell).stdout == "10 answered\n"
    assert len(set(api.prompts)) == 10


@pytest.mark.parametrize("fault", [pytest.param("cut", marks=pytest.mark.slow), "slow"])
def test_a_connection_that_is_cut_is_made_anew(shell, api, job, fault):
    """Before the server did anything."""
    api.fault(at="POST /chat/completions", kind=fault, seconds=1, times=3)
    assert direct(shell).stdout == "10 answered\n"
    assert len(api.paid) == 10


def test_one_bad_request_does_not_stop_the_others(shell, api, job):
    """A 400 is that request's own; it is named, and asked again by the same command."""
    bad = {"kind": "status", "status": 400, "message": "bad prompt", "match": fourth(job)}
    api.fault(at="POST /chat/completions", **bad)
    assert direct(shell).stdout == "9 answered, 1 failed\n"
    assert "bad prompt" in next(iter(failed(job).values()))[1]
    assert direct(shell).stdout == "10 answered\n"
    assert len(api.paid) == len(set(api.prompts)) == 10


@pytest.mark.parametrize(("fault", "why"), [("refuse", "refused"), ("length", "cut off")])
def test_the_direct_mode_asks_what_is_of_no_use_again(shell, api, job, fault, why):
    """As a batch does."""
    api.fault(at="POST /chat/completions", kind=fault, match=fourth(job))
    assert direct(shell).stdout == "9 answered, 1 unusable\n"
    assert next(iter(failed(job).values()))[1].startswith(why)
    assert direct(shell).stdout == "10 answered\n"
    assert len(api.paid) == 11
