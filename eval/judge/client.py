"""Ask a judge many things at once: remembered, limited in dollars, every fault told by its kind.

    with ReplyCache(path) as cache:
        judge = Judge(Endpoint.of(params.judge), cache)
        failures = judge.ask(requests, check=parse, canary=…)
        reply = cache.get(key)

or, where the requests come one after another, from any number of threads (`eval.gateway`):

        with judge.alone():
            judge.canary_fault(…)
            reply = judge.answer(key, body, parse)

- What the cache knows is not asked. The rest is estimated and printed before anything is paid.
- A first request with a known answer is asked alone; a judge that fails it is asked nothing more.
- The OpenAI SDK retries what transport did wrong (408, 409, 429, 5xx, resets, time-outs). A reply
  that says something else than what was asked for is asked again twice, then it is a failure.
- A wrong key, an unknown model, no quota left or a server that is gone end the run at once, and so
  does the next request that could exceed the budget. Whatever was answered is kept.
- A lock beside the cache lets one process ask at a time: two would pay twice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace

import openai
from filelock import FileLock, Timeout

from eval.judge import JudgeError
from eval.judge.batch import Batches
from eval.judge.cache import Body, Reply, ReplyCache, key
from eval.judge.connection import Endless, Misdirected, connect
from eval.judge.endpoint import (
    CHARACTERS_A_TOKEN,
    Check,
    Endpoint,
    Fault,
    Refused,
    Rejected,
    Unreachable,
    Unusable,
    estimated_tokens,
    progress_bar,
    read_completion,
)

_ASKED_AGAIN = 2
_REPLY_TOKENS = 8


class Stopped(JudgeError):
    """The judge is asked nothing more: it refuses, it is gone, or the budget is reached."""


class _CacheLock(FileLock):
    """A class of our own: lmms-eval makes every FileLock of one path, however relative, the same
    object, which then locks nobody else of this process out."""


class Judge:
    """A judge behind a cache.

    `gone_after`: so many requests in a row without an answer, each after its retries, mean that
    the server is gone. `usd` is what this object has paid, for everything.
    """

    def __init__(self, endpoint: Endpoint, cache: ReplyCache, *, gone_after: int = 10) -> None:
        self.endpoint = endpoint
        self.cache = cache
        self.usd = 0.0
        self._gone_after = gone_after
        # Whoever asks from another thread than it began in must be able to end it.
        self._lock = _CacheLock(f"{cache.path}.lock", thread_local=False)
        # Guards what follows, and is told when a request has ended.
        self._changed = threading.Condition()
        self._client: openai.OpenAI | None = None
        # Characters are a rough measure of tokens; a server that bills more widens the margin.
        self._margin = 1.5
        self._under_way = 0
        self._reserved_usd = 0.0
        self._unreachable_in_a_row = 0
        self._stopped: str | None = None

    def key(self, version: str, body: Body) -> str:
        return key(version, self.endpoint.identity, body)

    def ask(
        self,
        requests: Mapping[str, Body],
        *,
        check: Check,
        canary: Body,
        check_canary: Check,
    ) -> dict[str, str]:
        """Have a reply to every request in the cache; return key -> reason of those without.

        `requests` maps `key`s to bodies, which may be made when they are read. Raises `JudgeError`
        where the run was stopped: by a judge that cannot be used, or by the budget. What was
        answered before is in the cache.
        """
        if not self.cache.missing(requests):
            self.say(f"all {len(requests)} replies are known, nothing is asked")
            return {}
        with self.alone():
            if self.endpoint.mode == "batch":
                return Batches(self, self.client()).ask(
                    requests, check=check, canary=canary, check_canary=check_canary
                )
            todo = self.cache.missing(requests)
            if not todo:
                return {}
            self.announce(requests, todo)
            self.try_canary(self.key("canary", canary), canary, check_canary)
            return self._ask_all(requests, todo, check)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the cache; says so where another process has it, and waits.

        Raises `Stopped` where nothing is to be asked.
        """
        self._check_going()
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self.say(f"another process is asking with {self.cache.path}; waiting for it to end")
            try:
                self._lock.acquire(cancel_check=lambda: self._stopped is not None)
            except Timeout:
                self._check_going()
                raise
        try:
            yield
        finally:
            self._lock.release()

    def client(self) -> openai.OpenAI:
        """The SDK's client; raises `JudgeError` where its key is not set, or a proxy unusable."""
        with self._changed:
            if self._client is None:
                self._client = connect(
                    self.endpoint.base_url,
                    self.endpoint.api_key(),
                    proxy=self.endpoint.proxy,
                    timeout_seconds=self.endpoint.timeout_seconds,
                    max_retries=self.endpoint.max_retries,
                )
            return self._client

    def say(self, text: str) -> None:
        print(f"judge {self.endpoint.model} at {self.endpoint.identity}: {text}", flush=True)

    def announce(self, requests: Mapping[str, Body], todo: Sequence[str]) -> None:
        """Print what is about to be asked and paid; raise `JudgeError` where the budget forbids."""
        wanted = len(requests)
        prompt = sum(estimated_tokens(requests[one]) for one in todo)
        usd = self.endpoint.usd(prompt, _REPLY_TOKENS * len(todo))
        spent = self.cache.spent()
        line = (
            f"{wanted} replies wanted, {wanted - len(todo)} known, {len(todo)} to ask in mode "
            f"{self.endpoint.mode}: about {prompt:,} tokens in and {_REPLY_TOKENS * len(todo):,} "
            "out"
        )
        if self.endpoint.price is not None:
            line += f", about ${usd:.2f}; ${spent:.2f} spent so far"
        budget = self.endpoint.budget_usd
        if budget is not None:
            line += f" of a budget of ${budget:.2f}"
        self.say(line)
        if budget is not None and spent + usd > budget:
            raise JudgeError(
                f"the budget does not suffice: about ${usd:.2f} are needed, ${budget - spent:.2f} "
                f"of judge.budget_usd = {budget:g} are left. Nothing was asked; raise it, or judge "
                "fewer controls (similarity.judged)"
            )

    def try_canary(self, one: str, body: Body, check: Check) -> None:
        """Ask the canary (`canary_fault`); raises `JudgeError` where that fails."""
        if (reason := self.canary_fault(one, body, check)) is not None:
            raise JudgeError(
                f"the judge {self.endpoint.model} at {self.endpoint.base_url} cannot be used, so "
                f"nothing more was asked: {reason}. Correct `judge` in the parameters and run the "
                "stage again"
            )

    def canary_fault(self, one: str, body: Body, check: Check) -> str | None:
        """Ask the question with the known answer, past the cache, and keep the reply as `one`.

        Directly in every mode, so at the full price. Returns why the judge cannot be used; nothing
        more is asked then.
        """
        direct = self
        if self.endpoint.mode != "direct":
            direct = Judge(replace(self.endpoint, mode="direct"), self.cache)
        try:
            direct._ask_and_keep(one, body, check, "canary")
        except Fault as fault:
            reason = fault.reason
        except Stopped as stopped:
            reason = str(stopped)
        else:
            return None
        self.stop(reason)
        return reason

    def _ask_all(
        self, requests: Mapping[str, Body], todo: Sequence[str], check: Check
    ) -> dict[str, str]:
        failures: dict[str, str] = {}
        waiting = deque(todo)
        pending: dict[Future[Reply], str] = {}
        bar = progress_bar(self.endpoint.model, len(todo))
        with bar, ThreadPoolExecutor(self.endpoint.workers) as pool:
            try:
                while self._stopped is None and (waiting or pending):
                    # Bodies hold images, so only as many as are soon asked are made.
                    while waiting and len(pending) < 2 * self.endpoint.workers:
                        one = waiting.popleft()
                        pending[pool.submit(self.answer, one, requests[one], check)] = one
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        one, fault = pending.pop(future), future.exception()
                        if isinstance(fault, Fault):
                            failures[one] = fault.reason
                        elif fault is not None and not isinstance(fault, Stopped):
                            raise fault
                        bar.update()
                    if self.endpoint.price is not None:
                        bar.set_postfix_str(f"${self.cache.spent():.2f}", refresh=False)
            except BaseException:
                self.stop("the run ended")
                raise
            finally:
                # Also on Ctrl-C: what has been sent is paid, so it is waited for and kept.
                pool.shutdown(wait=True, cancel_futures=True)
        if self._stopped is not None:
            raise JudgeError(
                f"{self._stopped}. {len(self.cache.missing(todo))} of {len(todo)} replies are "
                "missing; the others are kept, and the next run asks for the missing ones only"
            )
        return failures

    def answer(self, one: str, body: Body, check: Check) -> Reply:
        """The reply to one request, known or asked for and then kept under its key `one`.

        From any thread, under the lock (`alone`) and after the canary; a key is to be asked for
        once at a time. Waits where requests under way may use up the budget. Raises the `Fault` of
        this request, or `Stopped` where it and all others are asked nothing more.
        """
        known = self.cache.get(one)
        return known or self._ask_and_keep(one, body, check, "reply")

    def _ask_and_keep(self, one: str, body: Body, check: Check, what: str) -> Reply:
        for _ in range(_ASKED_AGAIN):
            try:
                return self._ask_once(one, body, check, what)
            except Unusable:
                pass
        return self._ask_once(one, body, check, what)

    def _ask_once(self, one: str, body: Body, check: Check, what: str) -> Reply:
        dearest = self.endpoint.usd(estimated_tokens(body), body["max_tokens"])
        with self._reserve(dearest):
            try:
                reply = self._send(body, check)
            except Fault as fault:
                if fault.usd:
                    self._note_price(fault.usd, dearest)
                    self.cache.charge(one, self.endpoint.identity, "unusable", fault.usd)
                self._heed(fault)
                raise
            usd = self.paid(reply, body)
            self._note_price(usd, dearest)
            self.cache.add(one, self.endpoint.identity, reply, usd, what)
            self._heed(None)
            return reply

    @contextmanager
    def _reserve(self, dearest: float) -> Iterator[None]:
        """Put the worst price of a request aside while it is under way; waits for the budget."""
        budget = self.endpoint.budget_usd
        with self._changed:
            while True:
                self._check_going()
                reserved = self._margin * dearest
                if budget is None:
                    break
                spent = self.cache.spent()
                if spent + self._reserved_usd + reserved <= budget:
                    break
                # What is under way may turn out cheaper than its worst case.
                if self._under_way == 0:
                    raise self._stop(
                        f"judge.budget_usd = {budget:g} is reached: ${spent:.4f} are spent, and "
                        f"the next request may cost ${reserved:.4f}"
                    )
                self._changed.wait()
            self._under_way += 1
            self._reserved_usd += reserved
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._reserved_usd -= reserved
                self._changed.notify_all()

    def _note_price(self, usd: float, expected: float) -> None:
        with self._changed:
            self.usd += usd
            if expected:
                self._margin = max(self._margin, 1.1 * usd / expected)

    def _heed(self, fault: Fault | None) -> None:
        """Stop where a fault says that the next request would have no answer, either."""
        with self._changed:
            if isinstance(fault, Refused):
                self._stop(f"the judge refuses to go on: {fault.reason}")
            elif isinstance(fault, Unreachable):
                self._unreachable_in_a_row += 1
                if self._unreachable_in_a_row >= self._gone_after:
                    self._stop(
                        f"the judge at {self.endpoint.base_url} is gone, {self._gone_after} "
                        f"requests in a row had no answer: {fault.reason}"
                    )
            else:
                self._unreachable_in_a_row = 0

    def stop(self, reason: str) -> None:
        """Ask nothing from now on, and end whatever waits for the budget or the lock."""
        with self._changed:
            self._stop(reason)

    def _stop(self, reason: str) -> Stopped:
        # The first reason is the one that is told.
        self._stopped = self._stopped or reason
        self._changed.notify_all()
        return Stopped(reason)

    def _check_going(self) -> None:
        if self._stopped is not None:
            raise Stopped(f"not asked, because before: {self._stopped}")

    def paid(self, reply: Reply, body: Body) -> float:
        """The price of a reply, by its characters where the server reports no tokens."""
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        if prompt is None or completion is None:
            written = round(len(reply.content.encode()) / CHARACTERS_A_TOKEN)
            prompt, completion = estimated_tokens(body), max(_REPLY_TOKENS, written)
        return self.endpoint.usd(prompt, completion)

    def _send(self, body: Body, check: Check) -> Reply:
        try:
            response = self.client().chat.completions.with_raw_response.create(**body)
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
            Misdirected,
        ) as error:
            raise Refused(_reason(error)) from error
        except openai.RateLimitError as error:
            kind = Refused if error.code == "insufficient_quota" else Unreachable
            raise kind(_reason(error)) from error
        except (openai.BadRequestError, openai.UnprocessableEntityError, Endless) as error:
            raise Rejected(_reason(error)) from error
        except openai.APIError as error:
            raise Unreachable(_reason(error)) from error
        # A reset in the middle of a body is the SDK's to retry; what arrives whole is read here.
        return read_completion(response.http_response.content, check, self.endpoint, body)


def _reason(error: openai.OpenAIError) -> str:
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return f"{type(error).__name__}: {error}{cause}"
