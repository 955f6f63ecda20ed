"""The one door to the judge: a small OpenAI-compatible server on a free loopback port.

lmms-eval's judged tasks hard-code model names, read one environment variable as a base URL in two
tasks and as a full endpoint in two others, and turn a judge's fault into a score. The gateway
takes every path and every model name, asks the configured judge, hands on only replies that the
asking task can read, and remembers what could not be answered:

    with Gateway(params.judge) as gateway:
        gateway.probe()
        gateway.route_lmms_eval()     # before lmms-eval imports its tasks
        ...                           # score
        if gateway.failures: ...      # throw the scores away

What it could not answer gets an empty reply: lmms-eval then goes on at once, instead of sleeping
140 s a sample, and ends with a worthless score. So `failures` must be empty before one is kept.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import openai

from eval import prompts, rules
from eval.judge import JudgeError
from heima.config import EmbeddedRules, OpenAIJudge

_REQUESTS_AT_ONCE = 32
_HEARTBEAT_SECONDS = 5
_TASKS_THAT_KEEP_THE_URL = (
    "lmms_eval.tasks.mathvista.mathvista_evals",
    "lmms_eval.tasks.hallusion_bench.utils",
    "lmms_eval.tasks.mmbench.en_utils",
)


class Unanswered(Exception):
    """A backend has no usable reply to one request; `fatal` if it will have none to the next."""

    def __init__(self, reason: str, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal


@dataclass(frozen=True)
class Failure:
    """A prompt that got no usable reply, and why."""

    prompt: str
    reason: str


@dataclass(frozen=True)
class Reply:
    """A judge's text, the model that wrote it as the server names it, and its token usage."""

    content: str
    model: str
    usage: Mapping[str, int]


class Backend(Protocol):
    """Who answers: `where` is for messages, `model` for results."""

    model: str
    where: str

    def reply(self, asked: prompts.Question, body: Mapping[str, Any]) -> Reply:
        """Answer a recognised prompt; `body` is the whole request. Raises `Unanswered`."""
        ...


class RulesBackend:
    """Grades by `eval.rules`; uses no tokens."""

    model = rules.NAME
    where = "this process"

    def reply(self, asked: prompts.Question, body: Mapping[str, Any]) -> Reply:
        try:
            content = rules.answer(asked)
        except rules.Ungradable as error:
            raise Unanswered(str(error)) from error
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return Reply(content, self.model, usage)


class OpenAIBackend:
    """Forwards to an OpenAI-compatible server, under the configured model's name.

    Raises `JudgeError` where the key's environment variable is not set.
    """

    def __init__(self, judge: OpenAIJudge) -> None:
        key = os.environ.get(judge.api_key_env)
        if not key:
            raise JudgeError(
                f"judge.api_key_env names {judge.api_key_env}, which is not set; "
                "export it (any text for a local server), or set judge: {backend: embedded-rules}"
            )
        self.model = judge.model
        self.where = judge.base_url
        self._client = openai.OpenAI(base_url=judge.base_url, api_key=key, timeout=60)

    def reply(self, asked: prompts.Question, body: Mapping[str, Any]) -> Reply:
        try:
            found = self._client.chat.completions.create(**{**body, "model": self.model})
        except (
            openai.APIConnectionError,
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
            openai.RateLimitError,
        ) as error:
            raise Unanswered(f"{type(error).__name__}: {error}", fatal=True) from error
        # A 200 with broken JSON is no OpenAIError but a ValueError.
        except (openai.OpenAIError, ValueError) as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        # A 200 with HTML comes back as a str, one with another shape with absent fields.
        choices = getattr(found, "choices", None)
        content = choices[0].message.content if choices else None
        if not isinstance(content, str):
            raise Unanswered(f"the reply holds no text: {found!r:.200}")
        usage = found.usage.model_dump(exclude_none=True) if found.usage else {}
        return Reply(content, found.model, usage)


def bypass_proxies() -> None:
    """Let no proxy of the environment stand between this process and the gateway."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, ["127.0.0.1", os.environ.get(name)]))


class Gateway:
    """The server, as a context manager. `url` is its base URL, `failures` what it could not answer.

    `identity` names the judge in results. `port` 0 is a free one; each reply of the judge takes at
    least `delay_seconds`, so that a test or a trial can see a slow one.
    """

    def __init__(
        self, judge: EmbeddedRules | OpenAIJudge, *, port: int = 0, delay_seconds: float = 0.0
    ) -> None:
        self._backend: Backend = (
            RulesBackend() if judge.backend == "embedded-rules" else OpenAIBackend(judge)
        )
        self.identity = {"backend": judge.backend, "model": self._backend.model}
        self.failures: list[Failure] = []
        self._known: dict[str, Reply | Failure] = {}
        self._gone: str | None = None
        self._pool = ThreadPoolExecutor(_REQUESTS_AT_ONCE)
        self._delay_seconds = delay_seconds
        self._server = _Server(self, port)
        # 0.05 s is how long closing waits at most.
        serve = functools.partial(self._server.serve_forever, 0.05)
        self._thread = threading.Thread(target=serve, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Gateway:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._pool.shutdown(cancel_futures=True)

    def route_lmms_eval(self) -> None:
        """Send lmms-eval's judged tasks here, through the environment that they read on import.

        Raises `RuntimeError` where a task was imported with another URL: it keeps that one.
        """
        stale = [name for name in _TASKS_THAT_KEEP_THE_URL if name in sys.modules]
        if stale and os.environ.get("OPENAI_API_URL") != self.url:
            raise RuntimeError(f"{stale} were imported before the gateway's URL was set")
        os.environ |= {
            "API_TYPE": "openai",
            "OPENAI_API_URL": self.url,
            # The judge's own key stays with the backend.
            "OPENAI_API_KEY": "gateway",
        }
        bypass_proxies()

    def probe(self) -> None:
        """Ask one short question through the door; raises `JudgeError` where that fails."""
        body = {"model": "probe", "messages": [{"role": "user", "content": prompts.CANARY}]}
        request = urllib.request.Request(
            f"{self.url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request) as response:
            response.read()
        if self.failures:
            raise JudgeError(
                f"the judge {self._backend.model} at {self._backend.where} does not answer, so "
                f"nothing was scored: {self.failures[0].reason}\nStart it, or correct `judge` in "
                "the parameters, and run the stage again; predictions are kept."
            )

    def submit(self, body: Mapping[str, Any]) -> Future[Reply | Failure]:
        """Answer a chat request in the background."""
        return self._pool.submit(self._answer, body)

    def _answer(self, body: Mapping[str, Any]) -> Reply | Failure:
        """The same prompt is asked once, whatever model and temperature the task names."""
        prompt = _prompt(body)
        if prompt not in self._known:
            self._known[prompt] = known = self._ask(prompt, body)
            if isinstance(known, Failure):
                self.failures.append(known)
        return self._known[prompt]

    def _ask(self, prompt: str, body: Mapping[str, Any]) -> Reply | Failure:
        if self._gone is not None:
            return Failure(prompt, f"not asked, because before: {self._gone}")
        asked = prompts.recognise(prompt)
        if asked is None:
            return Failure(prompt, "no judge prompt of lmms-eval's tasks")
        time.sleep(self._delay_seconds)
        try:
            reply = self._backend.reply(asked, body)
        except Unanswered as fault:
            if fault.fatal:
                self._gone = str(fault)
            return Failure(prompt, str(fault))
        if not prompts.usable(asked.kind, reply.content):
            return Failure(prompt, f"{asked.kind} cannot read the reply {reply.content!r:.200}")
        return reply


def _prompt(body: Mapping[str, Any]) -> str:
    """All text of the messages; a prompt in parts is joined."""
    texts = []
    for message in body["messages"]:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        texts += [part["text"] for part in parts if "text" in part]
    return "\n".join(texts)


def _completion(reply: Reply | Failure) -> dict[str, Any]:
    """The reply in the shape of OpenAI's chat completions; a failure is empty and says why."""
    failed = isinstance(reply, Failure)
    return {
        "id": "chatcmpl-gateway",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": "unanswered" if failed else reply.model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": "" if failed else reply.content,
                    "refusal": reply.reason if failed else None,
                },
            }
        ],
        "usage": None if failed else dict(reply.usage),
    }


class _Server(ThreadingHTTPServer):
    """Serves one gateway; a request that breaks off is a failure, not just a missing score."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.gateway = gateway

    def handle_error(self, request: object, client_address: object) -> None:
        fault = sys.exc_info()[1]
        self.gateway.failures.append(
            Failure("", f"a request broke off: {type(fault).__name__}: {fault}")
        )


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # One packet a response: header and body apart would wait for a delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pending = self.server.gateway.submit(body)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        # Two tasks give up after 30 s without a byte, and then score the sample as unclear or by a
        # random letter. JSON may begin with blanks, so a slow judge is waited for.
        while not wait([pending], timeout=_HEARTBEAT_SECONDS).done:
            self._chunk(b" ")
            self.wfile.flush()
        self._chunk(json.dumps(_completion(pending.result())).encode())
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:
        """No line a request: a benchmark has thousands."""
