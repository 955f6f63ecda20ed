"""An OpenAI-compatible server on loopback that grades by a rule and fails on demand.

It answers the prompts of benchmarks by the embedded rules, and those of the similarity by `truth`.

As a program it is a judge of another process, for tests that kill or stop one:

    python -m tests.eval.judge_server LOG --seconds 0.05

prints its URL and appends a line to LOG for every request that it has answered.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eval import prompts, rules
from eval.judge import similarity

USAGE = {"prompt_tokens": 400, "completion_tokens": 8, "total_tokens": 408}

Fault = Callable[["_Handler", str], None]


def truth(body: Mapping[str, Any]) -> int:
    """The grade that this judge gives: by the words in common, whatever they are."""
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    texts = json.loads(text)
    left, right = (Counter(texts[name].split()) for name in ("original", "reconstruction"))
    share = 2 * (left & right).total() / max(1, left.total() + right.total())
    return 1 + round(4 * share)


def right_answer(body: Mapping[str, Any]) -> str:
    asked = prompts.recognise(text_of(body))
    return rules.answer(asked) if asked else json.dumps({"grade": truth(body)})


def completion(content: Any, **choice: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-2026-01-01",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": content},
                **choice,
            }
        ],
        "usage": USAGE,
    }


def _status(code: int, error: Mapping[str, Any] | None = None, **headers: str) -> Fault:
    def fault(handler: _Handler, _: str) -> None:
        body = {"error": {"message": "on purpose", **(error or {})}}
        handler.send(code, json.dumps(body).encode(), **headers)

    return fault


def _says(payload: Any) -> Fault:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return lambda handler, _: handler.send(200, data)


def _reset(handler: _Handler, _: str) -> None:
    # A socket that lingers for 0 s is reset, not closed.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def _half(handler: _Handler, right: str) -> None:
    data = json.dumps(completion(right)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def _slow(handler: _Handler, right: str) -> None:
    time.sleep(handler.server.slow_seconds)
    handler.send(200, json.dumps(completion(right)).encode())


TRANSPORT: dict[str, Fault] = {
    "429": _status(429, **{"retry-after-ms": "5"}),
    "429 for a second": _status(429, **{"Retry-After": "1"}),
    "500": _status(500, **{"retry-after-ms": "5"}),
    "503": _status(503, **{"retry-after-ms": "5"}),
    "reset": _reset,
    "half a body": _half,
    "slow": _slow,
}
"""What the SDK retries."""

CONTENT: dict[str, Fault] = {
    "broken JSON": _says(b'{"choices": [{"mess'),
    "HTML": _says(b"<html>Bad gateway</html>"),
    "prose": _says(completion("I would say 4 out of 5.")),
    "prose around it": _says(completion('Here you are: {"grade": 4}')),
    "no choices": _says({**completion(""), "choices": []}),
    "two choices": _says({**completion(""), "choices": 2 * completion('{"grade": 5}')["choices"]}),
    "wrong shape": _says({"choices": {"0": "5"}, "model": "m"}),
    "a list": _says([1, 2]),
    "null": _says(None),
    "a number": _says(completion("4")),
    "another field": _says(completion('{"score": 4}')),
    "two grades": _says(completion('{"grade": 4} or {"grade": 5}')),
    "a text": _says(completion('{"grade": "four"}')),
    "true": _says(completion('{"grade": true}')),
    "a fraction": _says(completion('{"grade": 4.5}')),
    "out of range": _says(completion('{"grade": 0}')),
    "six": _says(completion('{"grade": 6}')),
    "empty": _says(completion("")),
    "no content": _says(completion(None)),
    "a refusal": _says(
        completion(None, message={"role": "assistant", "content": None, "refusal": "I cannot"})
    ),
    "cut off": _says(completion('{"grade": 4}', finish_reason="length")),
}
"""What arrives as a 200 and is no grade."""

FATAL: dict[str, Fault] = {
    "key": _status(401),
    "permission": _status(403),
    "model": _status(404),
    "quota": _status(429, {"code": "insufficient_quota"}, **{"retry-after-ms": "1"}),
}

REJECTED: Fault = _status(400)


class JudgeServer(ThreadingHTTPServer):
    """`plan(body, attempt)` gives the fault of the n-th attempt (from 0) at a request, or None.

    `answered` counts the replies to each reconstruction; `batches` holds what was handed in.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.plan: Callable[[Mapping[str, Any], int], Fault | None] = lambda body, attempt: None
        self.seconds = 0.0
        self.slow_seconds = 5.0
        self.on_answer: Callable[[str], None] = lambda text: None
        self.on_request: Callable[[Mapping[str, str]], None] = lambda headers: None
        self.lock = threading.Lock()
        self.attempts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.model = "judge-2026-01-01"
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.batch_status = "completed"
        self.polls_until_done = 1

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Resets and half bodies are on purpose; clients see what becomes of them."""

    @property
    def requests(self) -> int:
        return self.attempts.total()

    def grade(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {**completion(right_answer(body)), "model": self.model}


def text_of(body: Mapping[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def send(self, code: int, data: bytes, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode())

    def do_POST(self) -> None:
        self.server.on_request(self.headers)
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/chat/completions"):
            self._chat(json.loads(data))
        elif self.path.endswith("/files"):
            self._json({"id": self._keep(_uploaded(data)), "object": "file", "bytes": 0,
                        "created_at": 0, "filename": "f", "purpose": "batch"})  # fmt: skip
        elif self.path.endswith("/batches"):
            self._json(self._create_batch(json.loads(data)))

    def _chat(self, body: Mapping[str, Any]) -> None:
        text = text_of(body)
        with self.server.lock:
            attempt = self.server.attempts[text]
            self.server.attempts[text] += 1
        time.sleep(self.server.seconds)
        right = self.server.grade(body)
        fault = self.server.plan(body, attempt)
        if fault is not None:
            fault(self, right["choices"][0]["message"]["content"])
            return
        with self.server.lock:
            self.server.answered[text] += 1
            self.server.on_answer(text)
        self._json(right)

    def _keep(self, data: bytes) -> str:
        name = f"file-{uuid.uuid4().hex[:8]}"
        self.server.files[name] = data
        return name

    def _create_batch(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch-{uuid.uuid4().hex[:8]}",
            "object": "batch",
            "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"],
            "completion_window": "24h",
            "status": "in_progress",
            "created_at": 0,
            "metadata": asked.get("metadata"),
            "polls": 0,
        }
        self.server.batches[batch["id"]] = batch
        return batch

    def do_GET(self) -> None:
        content = re.search(r"/files/([^/]+)/content", self.path)
        one = re.search(r"/batches/([^/?]+)", self.path)
        if content:
            self.send(200, self.server.files[content.group(1)])
        elif one:
            self._json(self._poll(self.server.batches[one.group(1)]))
        else:
            self._json({"object": "list", "data": list(self.server.batches.values()),
                        "has_more": False})  # fmt: skip

    def _poll(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["polls"] += 1
        lines = self.server.files[batch["input_file_id"]].decode().splitlines()
        done = batch["polls"] > self.server.polls_until_done
        if done and batch["status"] == "in_progress":
            batch["status"] = self.server.batch_status
            if batch["status"] == "failed":
                batch["errors"] = {"data": [{"message": "the file is too large"}]}
            else:
                outputs, errors = [], []
                for line in map(json.loads, lines):
                    reply, error = self._batched(line)
                    (errors if error else outputs).append(reply)
                for kind, rows in (("output_file_id", outputs), ("error_file_id", errors)):
                    if rows:
                        batch[kind] = self._keep(
                            "".join(json.dumps(r) + "\n" for r in rows).encode()
                        )
        batch["request_counts"] = {
            "total": len(lines), "completed": len(lines) if done else 0, "failed": 0,
        }  # fmt: skip
        return batch

    def _batched(self, line: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """A line of the output, and whether it belongs into the file of errors."""
        text = text_of(line["body"])
        attempt = self.server.attempts[text]
        self.server.attempts[text] += 1
        base = {"id": "r", "custom_id": line["custom_id"], "error": None}
        fault = self.server.plan(line["body"], attempt)
        if fault is None:
            self.server.answered[text] += 1
            response = {
                "status_code": 200,
                "request_id": "1",
                "body": self.server.grade(line["body"]),
            }
            return {**base, "response": response}, False
        if fault is CONTENT["prose"]:
            body = completion("I would say 4 out of 5.")
            return {
                **base,
                "response": {"status_code": 200, "request_id": "1", "body": body},
            }, False
        return {**base, "response": None, "error": {"code": "server_error", "message": "no"}}, True


def _uploaded(data: bytes) -> bytes:
    """The file in a multipart form."""
    found = re.search(
        rb'name="file"; filename=[^\r]*\r\n(?:[^\r]+\r\n)*\r\n(.*?)\r\n--', data, re.S
    )
    return found.group(1) if found else b""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with open(options.log, "a", encoding="utf-8") as log, JudgeServer(options.port) as server:
        server.seconds = options.seconds

        def note(text: str) -> None:
            log.write(json.dumps(text) + "\n")
            log.flush()

        server.on_answer = note
        print(server.url, flush=True)
        threading.Event().wait()


CANARY = text_of(similarity.canary("any"))

if __name__ == "__main__":
    main()
