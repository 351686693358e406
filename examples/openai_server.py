"""A local stand-in for the OpenAI API: files, batches, chat completions and embeddings.

It costs nothing, takes any key (or only ``OPENAI_SERVER_KEY``), and gives the same request the same
answer. ``GET /v1/_ledger`` tells what would have cost money; ``POST /v1/_faults`` takes
``{"faults": [{"at": "POST /chat", "kind": "status", "status": 429, "times": 2, "match": "a"}]}``.
``at`` is "batch", or a pattern that method and path begin with: "GET /files/.*/content". ``match``
stands in the request, in a batch's input or its line, or in the name of the file sent.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import re
import secrets
import signal
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
ROWS = json.loads((ROOT / "memstore" / "samples" / "narratives.json").read_text("utf-8"))
SENTENCES = [part for row in ROWS for part in re.split(r"(?<=[.!?])\s+", row["text"])]
NARRATIVE = {"schema": {"type": "object", "properties": {"narrative": {"type": "string"}}}}
# Of a call: refused, not done, done but not answered, late, broken off, broken in a few lines.
CALL_FAULTS = {"status", "cut", "cut_after", "slow", "cut_body", "malformed"}
# Of a line in a batch, or of a direct call of a model. A lost one is paid for, and nowhere.
LINE_FAULTS = {"fail_line", "refuse", "length", "lose_line", "malformed_line", "wrong_schema"}
BATCH_FAULTS = {"expire", "fail_batch"}
FAULT: Json = {"kind": "", "times": 1, "match": "", "status": 500, "code": None, "after": 0}
FAULT |= {"message": "A scripted fault.", "seconds": 0, "lines": 1, "retry_after": None}
ENDS = ("completed", "failed", "expired", "cancelled")
# What Python says of a request that lacks something.
WRONG = (AttributeError, LookupError, TypeError, ValueError)


class Refused(ValueError):
    """The API answers with an error: a status, a message and a code."""


def refusal(error: Exception) -> tuple[int, Json]:
    """Return the status and the body that tell of an error."""
    known = error.args if isinstance(error, Refused) else (400, f"Invalid: {error!r}", None)
    status, message, code = known
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = {"insufficient_quota": code, "rate_limit_exceeded": "requests"}.get(code, kind)
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def filled(schema: Json, text: str, dice: random.Random) -> Any:
    """Return a value that a JSON schema allows. Its strings are the text, in lists short ones."""
    kind, items = schema.get("type"), schema.get("items", {})
    if "enum" in schema:
        return dice.choice(schema["enum"])
    if kind == "object":
        short = " ".join(text.split()[:3])
        return {
            name: filled(inner, short if name == "label" else text, dice)
            for name, inner in schema["properties"].items()
        }
    if kind == "array":
        items = items | {"type": "integer"} if items.get("type") == "number" else items
        shorts = [" ".join(dice.choice(SENTENCES).split()[:3]) for _ in range(3)]
        return [filled(items, short, dice) for short in shorts]
    whole = dice.randint(schema.get("minimum", 0), schema.get("maximum", 9))
    plain = {"number": round(dice.random(), 3), "integer": whole, "boolean": whole % 2 == 0}
    return plain.get(str(kind), text)


def chat(body: Json, kind: str) -> Json:
    """Return a chat completion, the same for the same messages, model and seed."""
    if not body["messages"] or not body["model"]:
        raise Refused(400, "A request needs messages and a model.", "invalid_value")
    asked = json.dumps([body["messages"], body["model"], body.get("seed")], sort_keys=True)
    dice, text = random.Random(hashlib.sha256(asked.encode()).digest()), ""
    while not 40 <= len(text.split()) <= 90:
        text = " ".join(dice.sample(SENTENCES, dice.randint(3, 5)))
    form = body.get("response_format") or {"type": "text"}
    if form["type"] != "text" and kind != "wrong_schema":
        value = filled(form.get("json_schema", NARRATIVE)["schema"], text, dice)
        text = json.dumps(value, ensure_ascii=False)
    text, finish = (text[: len(text) // 2], "length") if kind == "length" else (text, "stop")
    sorry = "I'm sorry, I can't help with that." if kind == "refuse" else None
    message = {"role": "assistant", "content": None if sorry else text, "refusal": sorry}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    read, written = len(asked) // 4, len(text) // 4
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    answer: Json = {"id": f"chatcmpl-{secrets.token_hex(14)}", "object": "chat.completion"}
    answer |= {"created": int(time.time()), "model": body["model"]}
    return answer | {"choices": [choice], "usage": usage}


def embeddings(body: Json, _: str) -> Json:
    """Return a unit vector for each text, the last one first."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    if not texts or not all(texts):
        raise Refused(400, "'$.input' is invalid.", "invalid_value")
    size, coded, data = body.get("dimensions") or 64, body.get("encoding_format") == "base64", []
    for index, text in enumerate(texts):
        dice = random.Random(hashlib.sha256(str(text).encode()).digest())
        numbers = [dice.gauss(0, 1) for _ in range(size)]
        length = sum(number**2 for number in numbers) ** 0.5
        raw = struct.pack(f"<{size}f", *(number / length for number in numbers))
        vector = base64.b64encode(raw).decode() if coded else struct.unpack(f"<{size}f", raw)
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = dict.fromkeys(("prompt_tokens", "total_tokens"), len(str(texts)) // 4)
    return {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}


MODELS = {"/v1/chat/completions": chat, "/v1/embeddings": embeddings}


class Server(ThreadingHTTPServer):
    """The API at ``url``, from its making until ``close()`` or the end of a ``with``."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, port: int = 0, ledger: str = "", seconds: float = 0.2, **most: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.ledger, self.seconds = ledger, seconds
        self.most = {"most_requests": 50_000, "most_bytes": 200_000_000} | most
        self.kept: dict[str, dict[str, Json]] = {"files": {}, "batches": {}}
        self.contents: dict[str, bytes] = {}
        self.faults, self.paid = list[Json](), list[Json]()
        self.lock, self.closing = threading.RLock(), threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop, and forget everything but the ledger."""
        self.closing.set()
        self.shutdown()
        self.server_close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle_error(self, *whose: Any) -> None:
        """Say nothing of a client that has gone away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*whose)

    def take(self, where: str, kinds: set[str], text: bytes) -> Json:
        """Return a fault that waits here, now one time fewer, or one of no kind."""
        with self.lock:
            for fault in self.faults:
                here = fault["kind"] in kinds and re.match(fault["at"], where)
                if here and fault["match"].encode() in text:
                    fault["times"] -= 1
                    self.faults = [other for other in self.faults if other["times"] > 0]
                    return fault
        return FAULT

    def answer(self, path: str, body: Json, fault: Json, **whose: str) -> Json:
        """Return what a model answers, and write it on the bill. Raises one of ``WRONG``."""
        if fault["kind"] == "fail_line":
            raise Refused(fault["status"], fault["message"], fault["code"])
        answer = MODELS[path](body, fault["kind"])
        prompt = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        line: Json = {"kind": path.split("/")[2], "id": None, "batch": None, "prompt": prompt}
        with self.lock:
            self.paid.append(line | whose)
            if self.ledger:
                with open(self.ledger, "a") as file:
                    file.write(json.dumps(line | whose) + "\n")
        return answer

    def store(self, name: str, purpose: str, data: bytes) -> Json:
        """Keep a file and return its record."""
        record: Json = {"id": f"file-{secrets.token_hex(11)}", "object": "file", "filename": name}
        record |= {"purpose": purpose, "bytes": len(data), "created_at": int(time.time())}
        self.contents[record["id"]] = data
        return self.kept["files"].setdefault(record["id"], record | {"status": "processed"})

    def move(self, batch: Json, status: str, **fields: Any) -> None:
        """Bring a batch into its next state; what is being cancelled goes its own way."""
        with self.lock:
            if batch["status"] == "cancelling" and status != "failed":
                status = "cancelled" if status in ENDS else "cancelling"
            batch.update(fields, status=status)
            batch[f"{status}_at"] = batch[f"{status}_at"] or int(time.time())

    def work(self, batch: Json, source: bytes) -> None:
        """Take a batch from its validation to its end."""
        self.closing.wait(self.seconds / 10)
        lines = source.splitlines()
        if errors := self.problems(batch, source, lines):
            return self.move(batch, "failed", errors={"object": "list", "data": errors})
        self.move(batch, "in_progress")
        expire, start = self.take("batch", {"expire"}, source), time.monotonic()
        made: dict[str, list[str]] = {"output": [], "error": [], "lost": []}
        for done, line in enumerate(lines):
            self.answer_line(batch, line, made, bool(expire["kind"]) and done >= expire["after"])
            counts = {"total": len(lines), "failed": len(made["error"])}
            batch["request_counts"] = counts | {"completed": done + 1 - counts["failed"]}
            due = start + self.seconds * done / len(lines)
            if self.closing.wait(max(due - time.monotonic(), 0)):
                return
        self.move(batch, "finalizing")
        self.closing.wait(self.seconds / 10)
        for name in ("output", "error"):
            if made[name]:  # backwards: the API keeps no order
                data = "".join(made[name][::-1]).encode()
                file = self.store(f"{batch['id']}_{name}.jsonl", "batch_output", data)
                batch[f"{name}_file_id"] = file["id"]
        self.move(batch, "expired" if expire["kind"] else "completed")

    def problems(self, batch: Json, source: bytes, lines: list[bytes]) -> list[Json]:
        """Return what the API has against a batch's input."""
        fault, seen = self.take("batch", {"fail_batch"}, source), set()
        wrongs = {"empty_file": not lines, fault["code"]: fault["kind"] != ""}
        wrongs["file_too_large"] = len(source) > self.most["most_bytes"]
        wrongs["too_many_tasks"] = len(lines) > self.most["most_requests"]
        found = [(0, code) for code, wrong in wrongs.items() if wrong]
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not isinstance(row["custom_id"], str) or not isinstance(row["body"], dict):
                    raise TypeError
                if (row["method"], row["url"]) != ("POST", batch["endpoint"]):
                    found.append((number, "url_mismatch"))
                if row["custom_id"] in seen:
                    found.append((number, "duplicate_custom_id"))
                seen.add(row["custom_id"])
            except WRONG:
                found.append((number, "invalid_json_line"))
        told = fault["message"] if fault["kind"] else "The API does not take this input."
        error = {"message": told, "param": None}
        return [error | {"code": code, "line": number or None} for number, code in found]

    def answer_line(self, batch: Json, raw: bytes, made: dict[str, list[str]], late: bool) -> None:
        """Answer a line of a batch, unless it is too late, into the file where that belongs."""
        row, token = json.loads(raw), secrets.token_hex(12)
        entry = {"id": f"batch_req_{token}", "custom_id": row["custom_id"], "response": None}
        fault, place = FAULT, "error"
        if late or batch["cancelling_at"]:
            code = "batch_expired" if late else "batch_cancelled"
            entry["error"] = {"code": code, "message": "This request was not executed in time."}
        else:
            fault = self.take("batch", LINE_FAULTS, raw)
            whose = {"kind": "batch", "id": row["custom_id"], "batch": batch["id"]}
            try:
                status, body = 200, self.answer(batch["endpoint"], row["body"], fault, **whose)
                place = "lost" if fault["kind"] == "lose_line" else "output"
            except WRONG as error:
                status, body = refusal(error)
            response = {"status_code": status, "request_id": f"req_{token}", "body": body}
            entry |= {"response": response, "error": None}
        text = json.dumps(entry, ensure_ascii=False)
        text = text[: len(text) // 2] if fault["kind"] == "malformed_line" else text
        made[place].append(text + "\n")


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for a ``Server``."""

    protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, 1 << 16
    server: Server

    def log_message(self, *_: Any) -> None:
        """Say nothing: standard output has the address alone."""

    def do_GET(self) -> None:
        """Answer one request, as far as the faults let it."""
        size, (path, _, query) = self.headers.get("Content-Length"), self.path.partition("?")
        body, fault = self.rfile.read(int(size or 0)), FAULT
        if len(body) < int(size or 0):
            raise ConnectionAbortedError
        try:
            fault = self._fault(path, body)
            self.server.closing.wait(fault["seconds"])
            if fault["kind"] == "status":
                raise Refused(fault["status"], fault["message"], fault["code"])
            status, answer = 200, fault["kind"] != "cut" and self._route(path, query, body, fault)
        except WRONG as error:
            status, answer = refusal(error)
        if fault["kind"] in ("cut", "cut_after", "lose_line") or self.server.closing.is_set():
            self.close_connection = True
        else:
            self._send(status, answer, fault)

    do_POST = do_DELETE = do_GET  # noqa: N815  # the names that http.server looks for

    def _fault(self, path: str, body: bytes) -> Json:
        """Return the fault that a request meets, if its key is right. Raises ``Refused``."""
        if path.startswith("/v1/_"):
            return FAULT
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not key or key != os.environ.get("OPENAI_SERVER_KEY", key):
            raise Refused(401, f"Incorrect API key provided: {key}.", "invalid_api_key")
        kinds = CALL_FAULTS | (LINE_FAULTS if path in MODELS else set())
        if path.endswith("/content"):
            name = self.server.kept["files"].get(path.split("/")[3], {}).get("filename", "")
            body, kinds = name.encode(), kinds - (set() if "_output." in name else {"malformed"})
        return self.server.take(f"{self.command} {path.removeprefix('/v1')}", kinds, body)

    def _send(self, status: int, answer: Any, fault: Json) -> None:
        """Write the answer, or what the fault leaves of it."""
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if fault["kind"] == "malformed":  # the dot ends where the line does
            data = re.sub(rb'"response".*', b"", data, count=fault["lines"])
        if fault["kind"] == "malformed_line":
            data = data[: len(data) // 2]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("x-request-id", f"req_{secrets.token_hex(12)}")
        if fault["retry_after"] is not None:
            self.send_header("Retry-After", str(fault["retry_after"]))
        self.end_headers()
        if fault["kind"] == "cut_body":
            data, self.close_connection = data[: len(data) // 2], True
        self.wfile.write(data)

    def _route(self, path: str, query: str, body: bytes, fault: Json) -> Any:
        """Do what is asked, and return the answer. Raises one of ``WRONG``."""
        server, parts = self.server, path.split("/")[2:]
        if len(parts) > 1 and parts[1] not in server.kept.get(parts[0], parts):
            raise Refused(404, f"No such object: {parts[1]}", None)
        match [self.command, *parts]:
            case ["GET", "files" | "batches"]:
                return self._page(parts[0], dict(re.findall(r"(\w+)=([^&]+)", query)))
            case ["GET", "files" | "batches", name]:
                return dict(server.kept[parts[0]][name])
            case ["GET", "files", name, "content"]:
                return server.contents[name]
            case ["DELETE", "files", name]:
                del server.kept["files"][name], server.contents[name]
                return {"id": name, "object": "file", "deleted": True}
            case ["POST", *_] if path in MODELS:
                return server.answer(path, json.loads(body), fault)
            case ["POST", "files"]:
                return self._upload(body)
            case ["POST", "batches"]:
                return self._create(json.loads(body))
        with server.lock:
            return self._control(parts, body)

    def _control(self, parts: list[str], body: bytes) -> Json:
        """Cancel a batch, tell of the ledger, or take or forget faults."""
        server = self.server
        match [self.command, *parts]:
            case ["POST", "batches", name, "cancel"]:
                if (status := server.kept["batches"][name]["status"]) in ENDS:
                    raise Refused(409, f"Cannot cancel a batch with status '{status}'.", None)
                server.move(server.kept["batches"][name], "cancelling")
                return dict(server.kept["batches"][name])
            case ["GET", "_ledger"]:
                return {"lines": list(server.paid)}
            case ["DELETE", "_faults"]:
                server.faults = []
                return {"faults": []}
            case ["POST", "_faults"]:
                added = [FAULT | one for one in json.loads(body)["faults"]]
                if {one["kind"] for one in added} - CALL_FAULTS - LINE_FAULTS - BATCH_FAULTS:
                    raise Refused(400, "There is no such kind of fault.", None)
                server.faults = [*server.faults, *added]
                return {"faults": server.faults}
        raise Refused(404, f"Invalid URL ({self.command} {self.path})", None)

    def _page(self, sort: str, asked: dict[str, str]) -> Json:
        """Return the part of a list that was asked for, the newest first."""
        most, usual = (10_000, 10_000) if sort == "files" else (100, 20)
        if not 1 <= (limit := int(asked.get("limit", usual))) <= most:
            raise Refused(400, f"Invalid 'limit': it must be 1 to {most}.", "invalid_value")
        rows, purpose = list(self.server.kept[sort].values()), asked.get("purpose")
        rows = [row for row in rows if purpose in (None, row.get("purpose"))]
        rows = rows if asked.get("order") == "asc" else rows[::-1]
        if "after" in asked:
            rows = rows[[row["id"] for row in rows].index(asked["after"]) + 1 :]
        return {"object": "list", "data": rows[:limit], "has_more": len(rows) > limit}

    def _upload(self, body: bytes) -> Json:
        """Keep the file of a form. It is looked for, not parsed: it may have 200 MB."""
        mark, fields, at = f"\r\n--{self.headers.get_boundary('')}".encode(), {}, 0
        while (start := body.find(b"\r\n\r\n", at) + 4) > 3:
            head = dict(re.findall(r'\b(name|filename)="([^"]*)"', body[at:start].decode()))
            at = body.find(mark, start)
            fields[head["name"]] = head.get("filename", ""), body[start:at]
        name, data = fields["file"]
        return self.server.store(name, fields["purpose"][1].decode(), data)

    def _create(self, asked: Json) -> Json:
        """Begin a batch."""
        server, begun = self.server, int(time.time())
        file, window = server.kept["files"][asked["input_file_id"]], asked["completion_window"]
        if (window, file["purpose"]) != ("24h", "batch") or asked["endpoint"] not in MODELS:
            raise Refused(400, "Invalid endpoint, completion_window or purpose.", "invalid_value")
        stamps = [f"{state}_at" for state in ("in_progress", "finalizing", "cancelling", *ENDS)]
        empty = ["errors", "output_file_id", "error_file_id", "metadata", *stamps]
        batch: Json = dict.fromkeys(empty) | asked | {"object": "batch", "status": "validating"}
        batch |= {"id": f"batch_{secrets.token_hex(16)}", "created_at": begun}
        batch |= {"request_counts": {"total": 0, "completed": 0, "failed": 0}}
        batch["expires_at"] = begun + 86_400
        server.kept["batches"][batch["id"]] = batch
        work = (batch, server.contents[asked["input_file_id"]])
        threading.Thread(target=server.work, args=work, daemon=True).start()
        return dict(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description="A local stand-in for the OpenAI API.")
    for name, kind, usual in (("port", int, 0), ("ledger", str, ""), ("seconds", float, 0.2)):
        parser.add_argument(f"--{name}", type=kind, default=usual)
    parser.add_argument("--most-requests", type=int, default=50_000)
    parser.add_argument("--most-bytes", type=int, default=200_000_000)
    asked, ends = parser.parse_args(), (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    server = Server(**vars(asked))
    print(server.url, flush=True)
    signal.sigwait(ends)
    server.close()


if __name__ == "__main__":
    main()
