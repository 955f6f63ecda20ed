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

A judge behind the OpenAI API is asked as `eval.judge.client` asks: out of the cache where the reply
is known, else within the dollar budget and with retries by the kind of fault. A task's own model
name, temperature and token limit do not matter, so the same question has the same reply and is
paid once.

What could not be answered gets an empty reply: lmms-eval then goes on at once, instead of sleeping
140 s a sample, and ends with a worthless score. So `failures` must be empty before one is kept.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from eval import lmms_start, prompts, rules
from eval.judge import JudgeError
from eval.judge.cache import Body, Reply, ReplyCache
from eval.judge.client import Judge
from eval.judge.endpoint import Endpoint, Fault, Rejected, Unusable
from heima.config import EmbeddedRules, OpenAIJudge
from heima.config.benchmarks import BENCHMARKS

VERSION = "benchmarks-1"
"""Of how a benchmark's prompt becomes a request; part of every cached reply's key."""

_HEARTBEAT_SECONDS = 5
_GONE_AFTER = 3
"""So many requests in a row without an answer end the asking: a task asks one after another, and
each has waited for its retries."""

_REFUSED_SECONDS, _REFUSED_BYTES = 1.0, 1 << 16
"""How long, and of how many bytes, a request without the key is listened to."""

_CLIENTS = 4
"""What lmms-eval starts by itself."""

_TASKS_THAT_KEEP_THE_URL = tuple(
    benchmark.judge_module for benchmark in BENCHMARKS.values() if benchmark.judge_module
)

Messages = tuple[tuple[str, str], ...]
"""The role and the text of each message of a request."""


@dataclass(frozen=True)
class Failure:
    """A prompt that got no usable reply, and why.

    `final`: the judge refuses this one or says nothing usable, so asking again gives the same.
    """

    prompt: str
    reason: str
    final: bool = False


class Backend(Protocol):
    """Who answers: `where` is for messages, `model` for results; `usd` is what was paid so far."""

    model: str
    where: str
    workers: int

    @property
    def usd(self) -> float: ...

    def reply(self, question: prompts.Question, messages: Messages) -> tuple[Reply, bool]:
        """The reply to a recognised prompt, and whether it was known before.

        From any thread, the same prompt once at a time. Raises `Fault` where there is no usable
        reply, `JudgeError` where there will be no other, either.
        """
        ...

    def stop(self) -> None:
        """Let what waits to be asked end at once."""
        ...

    def close(self) -> None:
        """Give back what is held, after the last reply."""
        ...


class RulesBackend:
    """Grades by `eval.rules`; uses no tokens and no cache."""

    model = rules.NAME
    where = "this process"
    workers = 32
    usd = 0.0

    def reply(self, question: prompts.Question, messages: Messages) -> tuple[Reply, bool]:
        try:
            content = rules.answer(question)
        except rules.Ungradable as error:
            raise Rejected(str(error)) from error
        return Reply(content, self.model, prompt_tokens=0, completion_tokens=0), False

    def stop(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""


class JudgeBackend:
    """Asks an OpenAI-compatible server, under the configured model's name, what its cache lacks.

    With the first such request it takes the cache's lock, which it holds until the end, and asks
    the canary. So a run whose replies are all known asks nothing and needs no key. Always asks
    directly: a benchmark cannot wait for a batch.
    """

    def __init__(self, judge: OpenAIJudge) -> None:
        self.model = judge.model
        self.where = judge.base_url
        self.workers = judge.workers
        self._held = ExitStack()
        self._cache = self._held.enter_context(ReplyCache(Path(judge.cache)))
        endpoint = replace(Endpoint.of(judge), mode="direct")
        self._judge = Judge(endpoint, self._cache, gone_after=_GONE_AFTER)
        self._beginning = threading.Lock()
        self._begun = False

    @property
    def usd(self) -> float:
        return self._judge.usd

    def reply(self, question: prompts.Question, messages: Messages) -> tuple[Reply, bool]:
        one, body = self._request(question.kind, messages)
        if (known := self._cache.get(one)) is None:
            self._begin()
            # Another process may have asked while this one waited for the lock.
            known = self._cache.get(one)
        if known is not None:
            return known, True
        return self._judge.answer(one, body, functools.partial(_check, question)), False

    def stop(self) -> None:
        self._judge.stop("the run ended")

    def close(self) -> None:
        self._held.close()

    def _request(self, kind: str, messages: Messages) -> tuple[str, Body]:
        """A request's key in the cache and its body."""
        body = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in messages],
            "temperature": 0,
            "max_tokens": prompts.MAX_TOKENS[kind],
        }
        return self._judge.key(VERSION, body), body

    def _begin(self) -> None:
        with self._beginning:
            if not self._begun:
                self._held.enter_context(self._judge.alone())
                one, body = self._request("hallusionbench", (("user", prompts.CANARY),))
                reason = self._judge.canary_fault(one, body, _check_canary)
                if reason is not None:
                    raise JudgeError(reason)
                self._begun = True


def _check(asked: prompts.Question, content: str) -> None:
    """Raise `ValueError` for a reply that the task cannot read."""
    if prompts.read(asked, content) is None:
        raise ValueError(f"{asked.kind} cannot read it")


def _check_canary(content: str) -> None:
    _check(prompts.Question("hallusionbench", "", "", ""), content)
    if "incorrect" in content.lower() or "correct" not in content.lower():
        raise ValueError("it takes an answer that agrees with the reference for wrong")


class Gateway:
    """The server, as a context manager. `url` is its base URL, `failures` what it could not answer.

    Any process of this machine and any web page can send a request here, so only those with `key`,
    another one each time, are answered and counted; `guarded` False answers all.

    `max_missing` is the share of a benchmark's answers that may stay without a usable reply.
    `identity` names the judge in results. lmms-eval should ask from `clients` threads: they wait
    for a server together, but rules answer at once. `port` 0 is a free one; each reply takes at
    least `delay_seconds`, so that a test or a trial can see a slow one. Raises `JudgeError` where
    the judge's cache cannot be used.
    """

    def __init__(
        self,
        judge: EmbeddedRules | OpenAIJudge,
        *,
        port: int = 0,
        delay_seconds: float = 0.0,
        guarded: bool = True,
    ) -> None:
        self.key = secrets.token_urlsafe(32)
        self._guarded = guarded
        self._environment: dict[str, str | None] = {}
        self._backend: Backend = (
            RulesBackend() if judge.backend == "embedded-rules" else JudgeBackend(judge)
        )
        self.identity = {"backend": judge.backend, "model": self._backend.model}
        self.max_missing = 0.0 if judge.backend == "embedded-rules" else judge.max_missing
        self.clients = 1 if judge.backend == "embedded-rules" else _CLIENTS
        self.failures: list[Failure] = []
        self._models: set[str] = set()
        self._counts = {"known": 0, "asked": 0}
        # Guards what follows: the same question is asked once, also by two threads.
        self._lock = threading.Lock()
        self._known: dict[Messages, Future[Reply | Failure]] = {}
        self._pool = ThreadPoolExecutor(self._backend.workers)
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
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        # What has been sent is paid, so it is waited for and kept.
        self._backend.stop()
        self._pool.shutdown(cancel_futures=True)
        self._backend.close()

    def usage(self) -> dict[str, Any]:
        """What has answered so far, for a result's provenance.

        {models, replies, known, asked, usd}: the models as the server names them, the questions
        that were answered, how many of them the cache knew and how many were asked for, and the US
        dollars paid in this run. Models and replies are the same when a run is repeated.
        """
        with self._lock:
            return {
                "models": sorted(self._models),
                "replies": sum(self._counts.values()),
                **self._counts,
                "usd": self._backend.usd,
            }

    def route_lmms_eval(self) -> None:
        """Send lmms-eval's judged tasks here, through the environment that they read on import.

        Neither a proxy nor a password of ~/.netrc stands there meanwhile; the end of the gateway
        brings the environment back. Raises `RuntimeError` where a task was imported with another
        URL: it keeps that one.
        """
        stale = [name for name in _TASKS_THAT_KEEP_THE_URL if name in sys.modules]
        if stale and os.environ.get("OPENAI_API_URL") != self.url:
            raise RuntimeError(f"{stale} were imported before the gateway's URL was set")
        routes = {
            "API_TYPE": "openai",
            "OPENAI_API_URL": self.url,
            # The judge's own key stays with the backend.
            "OPENAI_API_KEY": self.key,
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
            "NETRC": os.devnull,
        }
        for name in (*routes, *lmms_start.PROXIES):
            self._environment.setdefault(name, os.environ.get(name))
        lmms_start.without_proxies()
        os.environ |= routes

    def admits(self, authorization: str) -> bool:
        """Whether a request with this header is of this run."""
        expected = f"Bearer {self.key}"
        return not self._guarded or secrets.compare_digest(
            authorization.encode(), expected.encode()
        )

    def probe(self) -> None:
        """Ask one short question through the door; raises `JudgeError` where that fails.

        A judge whose cache knows the answer is not asked before something else must be.
        """
        body = {"model": "probe", "messages": [{"role": "user", "content": prompts.CANARY}]}
        request = urllib.request.Request(
            f"{self.url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"},
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
        """Answer a chat request in the background; the same messages are asked once."""
        messages = _messages(body)
        with self._lock:
            if messages not in self._known:
                self._known[messages] = self._pool.submit(self._answer, messages)
            return self._known[messages]

    def _answer(self, messages: Messages) -> Reply | Failure:
        prompt = "\n".join(text for _, text in messages)
        try:
            reply, known = self._ask(prompt, messages)
        except (Fault, JudgeError) as error:
            reason = error.reason if isinstance(error, Fault) else str(error)
            failure = Failure(prompt, reason, final=isinstance(error, Rejected | Unusable))
            self.failures.append(failure)
            return failure
        if prompt != prompts.CANARY:
            with self._lock:
                self._models.add(reply.model)
                self._counts["known" if known else "asked"] += 1
        return reply

    def _ask(self, prompt: str, messages: Messages) -> tuple[Reply, bool]:
        question = prompts.recognise(prompt)
        if question is None:
            raise Rejected("no judge prompt of the benchmarks' tasks")
        time.sleep(self._delay_seconds)
        reply, known = self._backend.reply(question, messages)
        content = prompts.read(question, reply.content)
        if content is None:
            raise Unusable(f"{question.kind} cannot read the reply {reply.content!r:.200}")
        return replace(reply, content=content), known


def _messages(body: Mapping[str, Any]) -> Messages:
    """A request's messages without what differs between clients; parts of a text are joined."""
    found = []
    for message in body["messages"]:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        text = "\n".join(part["text"] for part in parts if "text" in part)
        found.append((message["role"], text))
    return tuple(found)


def _completion(reply: Reply | Failure) -> dict[str, Any]:
    """The reply in the shape of OpenAI's chat completions; a failure is empty and says why."""
    model, content, refusal, usage = "unanswered", "", None, None
    if isinstance(reply, Failure):
        refusal = reply.reason
    else:
        model, content, usage = reply.model, reply.content, _usage(reply)
    return {
        "id": "chatcmpl-gateway",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": content,
                    "refusal": refusal,
                },
            }
        ],
        "usage": usage,
    }


def _usage(reply: Reply) -> dict[str, int] | None:
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    if prompt is None or completion is None:
        return None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


class _Server(ThreadingHTTPServer):
    """Serves one gateway; a request that breaks off is a failure, not just a missing score.

    `admitted` are the connections over which a request with the key has come.
    """

    # A client that cannot connect would score by itself, and leave no failure here.
    request_queue_size = 1024

    def __init__(self, gateway: Gateway, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.gateway = gateway
        self.admitted: set[object] = set()

    def shutdown_request(self, request: Any) -> None:
        self.admitted.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        if request not in self.admitted:
            return
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
        if not self.server.gateway.admits(self.headers.get("Authorization", "")):
            self._refuse()
            return
        self.server.admitted.add(self.connection)
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

    def _refuse(self) -> None:
        """A 401; as much of the body is read as lets the sender see it."""
        self.close_connection = True
        self.connection.settimeout(_REFUSED_SECONDS)
        self.rfile.read(min(int(self.headers.get("Content-Length", 0)), _REFUSED_BYTES))
        self.send_error(401, "not a request of this run")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:
        """No line a request: a benchmark has thousands."""
