"""Ask a judge many things at once: remembered, limited in dollars, every fault told by its kind.

    with ReplyCache(path) as cache:
        judge = Judge(endpoint, cache)
        failures = judge.ask(requests, version=VERSION, check=parse, canary=…)
        reply = cache.get(key)

- What the cache knows is not asked. The rest is estimated and printed before anything is paid.
- A first request with a known answer is asked alone; a judge that fails it is asked nothing more.
- The OpenAI SDK retries what transport did wrong (408, 409, 429, 5xx, resets, time-outs). A reply
  that says something else than what was asked for is asked again twice, then it is a failure.
- A wrong key, an unknown model, no quota left or a server that is gone end the run at once, and so
  does the next request that could exceed the budget. Whatever was answered is kept.
- A lock beside the cache lets one process ask at a time: two would pay twice.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import openai
from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError
from tqdm import tqdm

from eval.judge import JudgeError
from eval.judge.cache import Body, Reply, ReplyCache, key
from heima.config import Price
from heima.measures import is_gpt4o

_ASKED_AGAIN = 2
_UNREACHABLE_IN_A_ROW = 10
_CHARACTERS_A_TOKEN = 4
_IMAGE_TOKENS = 85
"""What an image of low detail costs."""
_REPLY_TOKENS = 8
_BATCH_SHARE = 0.5
"""What a request through the Batch API costs of its price."""

Check = Callable[[str], object]
"""Raises `ValueError` for a reply that is not what was asked for."""


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is and how it may be asked; the fields of `heima.config.OpenAIJudge`.

    `identity` stands for the server in cache keys. `api_key` is only read when something is asked.
    """

    model: str
    identity: str
    base_url: str
    api_key: Callable[[], str]
    price: Price | None
    budget_usd: float | None
    mode: str
    workers: int
    timeout_seconds: float
    max_retries: int
    poll_seconds: float

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of that many tokens in this mode, in dollars."""
        if self.price is None:
            return 0.0
        share = _BATCH_SHARE if self.mode == "batch" else 1.0
        tokens = prompt_tokens * self.price.input + completion_tokens * self.price.output
        return share * tokens / 1e6


class Fault(Exception):
    """No usable reply; `reason` says why in one line, `usd` what was paid for it."""

    def __init__(self, reason: str, *, usd: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = " ".join(reason.split())[:300]
        self.usd = usd


class Unusable(Fault):
    """An answer that is not what was asked for: worth asking again."""


class Rejected(Fault):
    """The server takes this request for wrong: asking again gives the same."""


class Unreachable(Fault):
    """No answer, after the SDK's retries."""


class Refused(Fault):
    """The server will answer nothing more: key, quota or model are wrong."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _Completion(BaseModel):
    """What is read of a chat completion; the SDK itself takes any shape."""

    model: str
    choices: list[_Choice]
    usage: _Usage | None = None
    system_fingerprint: str | None = None


def read_completion(text: str | bytes, check: Check, endpoint: Endpoint) -> Reply:
    """The reply in the body of a 200; raises `Unusable` for anything but what was asked for."""
    try:
        found = _Completion.model_validate_json(text)
    except ValidationError as error:
        shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
        raise Unusable(f"no chat completion ({_first(error)}): {shown[:80]!r}") from error
    usd = 0.0
    if found.usage:
        usd = endpoint.usd(found.usage.prompt_tokens, found.usage.completion_tokens)
    if len(found.choices) != 1:
        raise Unusable(f"{len(found.choices)} choices instead of one", usd=usd)
    choice = found.choices[0]
    if choice.message.refusal:
        raise Unusable(f"refused: {choice.message.refusal}", usd=usd)
    if choice.finish_reason == "length":
        raise Unusable("cut off at max_tokens", usd=usd)
    content = choice.message.content
    if content is None:
        raise Unusable("no text", usd=usd)
    try:
        check(content)
    except ValueError as error:
        reason = _first(error) if isinstance(error, ValidationError) else str(error)
        raise Unusable(f"not what was asked for ({reason}): {content[:80]!r}", usd=usd) from error
    usage = found.usage
    return Reply(
        content,
        found.model,
        found.system_fingerprint,
        usage.prompt_tokens if usage else None,
        usage.completion_tokens if usage else None,
    )


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def estimated_tokens(body: Body) -> int:
    """Tokens of a request, by its characters: tokenizers are downloads."""
    tokens = 0.0
    for message in body["messages"]:
        content = message["content"]
        for part in [{"text": content}] if isinstance(content, str) else content:
            characters = len(part["text"].encode()) if "text" in part else 0
            tokens += characters / _CHARACTERS_A_TOKEN if characters else _IMAGE_TOKENS
        tokens += 4
    return round(tokens)


@dataclass
class _Outcome:
    """What came of one request: a reply with its price or the last fault, and what was wasted."""

    expected_usd: float
    reply: Reply | None = None
    usd: float = 0.0
    fault: Fault | None = None
    wasted_usd: float = 0.0


@dataclass
class _Progress:
    """A run under way."""

    bar: tqdm
    failures: dict[str, str] = field(default_factory=dict)
    unreachable_in_a_row: int = 0


def progress_bar(name: str, total: int | None) -> tqdm:
    """A bar on standard error; in a log it is a line every now and then."""
    seconds = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=name, unit="reply", file=sys.stderr, mininterval=seconds)


class Judge:
    """A judge behind a cache."""

    def __init__(self, endpoint: Endpoint, cache: ReplyCache) -> None:
        self.endpoint = endpoint
        self.cache = cache
        # Characters are a rough measure of tokens; a server that bills more widens the margin.
        self._margin = 1.5

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
        with self._alone():
            if self.endpoint.mode == "batch":
                from eval.judge.batch import Batches

                return Batches(self, self._client()).ask(
                    requests, check=check, canary=canary, check_canary=check_canary
                )
            todo = self.cache.missing(requests)
            if not todo:
                return {}
            self.announce(requests, todo)
            client = self._client()
            self.try_canary(client, canary, check_canary)
            return self._ask_all(client, requests, todo, check)

    def _alone(self) -> AcquireReturnProxy:
        """The lock of the cache, taken; says so where another process has it."""
        lock = FileLock(f"{self.cache.path}.lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            self.say(f"another process is asking with {self.cache.path}; waiting for it to end")
            return lock.acquire()

    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key(),
            timeout=self.endpoint.timeout_seconds,
            max_retries=self.endpoint.max_retries,
        )

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

    def try_canary(self, client: openai.OpenAI, canary: Body, check: Check) -> None:
        """Ask the question with the known answer, past the cache; raises `JudgeError`.

        Directly in every mode, so at the full price.
        """
        direct = Judge(replace(self.endpoint, mode="direct"), self.cache)
        outcome = direct._ask_one(client, canary, check)
        self._pay(self.key("canary", canary), outcome, "canary")
        if outcome.fault is not None:
            raise JudgeError(
                f"the judge {self.endpoint.model} at {self.endpoint.base_url} cannot be used, so "
                f"nothing more was asked: {outcome.fault.reason}. Correct `judge` in the "
                "parameters and run the stage again"
            )
        if outcome.reply is not None and not same_judge(self.endpoint.model, outcome.reply.model):
            raise JudgeError(
                f"{self.endpoint.base_url} was asked for {self.endpoint.model} and answered as "
                f"{outcome.reply.model}; set judge.model to what it is, so that its grades have "
                "its name. Nothing more was asked"
            )

    def _ask_all(
        self,
        client: openai.OpenAI,
        requests: Mapping[str, Body],
        todo: Sequence[str],
        check: Check,
    ) -> dict[str, str]:
        waiting = deque(todo)
        pending: dict[Future[_Outcome], tuple[str, float]] = {}
        run = _Progress(progress_bar(self.endpoint.model, len(todo)))
        stopped: str | None = None
        with run.bar, ThreadPoolExecutor(self.endpoint.workers) as pool:
            try:
                while stopped is None:
                    while waiting and len(pending) < 2 * self.endpoint.workers:
                        one = waiting[0]
                        body = requests[one]
                        reserved = self._margin * self._dearest(body)
                        if self._over_budget(reserved + sum(r for _, r in pending.values())):
                            # What is under way may turn out cheaper than its worst case.
                            if not pending:
                                stopped = self._budget_reached(len(waiting))
                            break
                        waiting.popleft()
                        future = pool.submit(self._ask_one, client, body, check)
                        pending[future] = one, reserved
                    if not pending:
                        break
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        one, _ = pending.pop(future)
                        stopped = self._record(one, future.result(), run) or stopped
            finally:
                # Also on Ctrl-C: what has been sent is paid, so it is waited for and kept.
                pool.shutdown(wait=True, cancel_futures=True)
                for future, (one, _) in pending.items():
                    if not future.cancelled():
                        self._record(one, future.result(), run)
        if stopped is not None:
            raise JudgeError(
                f"{stopped} {len(self.cache.missing(todo))} of {len(todo)} replies are missing; "
                "the others are kept, and the next run asks for the missing ones only"
            )
        return run.failures

    def _dearest(self, body: Body) -> float:
        """The estimated price of a request whose reply is as long as it may be."""
        return self.endpoint.usd(estimated_tokens(body), body["max_tokens"])

    def _over_budget(self, reserved: float) -> bool:
        budget = self.endpoint.budget_usd
        return budget is not None and self.cache.spent() + reserved > budget

    def _budget_reached(self, left: int) -> str:
        return (
            f"judge.budget_usd = {self.endpoint.budget_usd:g} is reached: "
            f"${self.cache.spent():.4f} are spent, and {left} replies were still to come."
        )

    def _record(self, one: str, outcome: _Outcome, run: _Progress) -> str | None:
        """Keep an outcome; return why the run has to stop, if it has to."""
        self._pay(one, outcome, "reply")
        run.bar.update()
        if self.endpoint.price is not None:
            run.bar.set_postfix_str(f"${self.cache.spent():.2f}", refresh=False)
        fault = outcome.fault
        if fault is None:
            run.unreachable_in_a_row = 0
            return None
        run.failures[one] = fault.reason
        if isinstance(fault, Refused):
            return f"the judge refuses to go on: {fault.reason}."
        if isinstance(fault, Unreachable):
            run.unreachable_in_a_row += 1
            if run.unreachable_in_a_row >= _UNREACHABLE_IN_A_ROW:
                return (
                    f"the judge at {self.endpoint.base_url} is gone, {run.unreachable_in_a_row} "
                    f"requests in a row had no answer: {fault.reason}."
                )
        return None

    def _pay(self, one: str, outcome: _Outcome, what: str) -> None:
        """Write down a reply and what everything cost."""
        if outcome.expected_usd:
            paid = outcome.usd + outcome.wasted_usd
            self._margin = max(self._margin, 1.1 * paid / outcome.expected_usd)
        if outcome.wasted_usd:
            self.cache.charge(one, self.endpoint.identity, "unusable", outcome.wasted_usd)
        if outcome.reply is not None and what == "reply":
            self.cache.add(one, self.endpoint.identity, outcome.reply, outcome.usd)
        elif outcome.reply is not None:
            self.cache.charge(one, self.endpoint.identity, what, outcome.usd)

    def _ask_one(self, client: openai.OpenAI, body: Body, check: Check) -> _Outcome:
        """Runs in a thread: touches neither cache nor progress."""
        outcome = _Outcome(expected_usd=self._dearest(body))
        for _ in range(1 + _ASKED_AGAIN):
            try:
                outcome.reply = self._send(client, body, check)
            except Unusable as fault:
                outcome.wasted_usd += fault.usd
                outcome.fault = fault
            except Fault as fault:
                outcome.fault = fault
                return outcome
            else:
                outcome.fault, outcome.usd = None, self.paid(outcome.reply, body)
                return outcome
        return outcome

    def paid(self, reply: Reply, body: Body) -> float:
        """The price of a reply, by its characters where the server reports no tokens."""
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        if prompt is None or completion is None:
            prompt, completion = estimated_tokens(body), _REPLY_TOKENS
        return self.endpoint.usd(prompt, completion)

    def _send(self, client: openai.OpenAI, body: Body, check: Check) -> Reply:
        try:
            response = client.chat.completions.with_raw_response.create(**body)
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise Refused(_reason(error)) from error
        except openai.RateLimitError as error:
            kind = Refused if error.code == "insufficient_quota" else Unreachable
            raise kind(_reason(error)) from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise Rejected(_reason(error)) from error
        except openai.APIError as error:
            raise Unreachable(_reason(error)) from error
        # A reset in the middle of a body is the SDK's to retry; what arrives whole is read here.
        return read_completion(response.http_response.content, check, self.endpoint)


def _reason(error: openai.APIError) -> str:
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return f"{type(error).__name__}: {error}{cause}"


def same_judge(asked: str, answered: str) -> bool:
    """Whether a reply may stand under the name of the model that was asked for.

    Servers name their models freely, but gpt-4o's grades must be gpt-4o's.
    """
    return not is_gpt4o(asked) or is_gpt4o(answered)


def api_key_of(variable: str) -> str:
    """The key in an environment variable; raises `JudgeError` where it is not set."""
    found = os.environ.get(variable)
    if not found:
        raise JudgeError(
            f"judge.api_key_env names {variable}, which is not set; export it (any text for a "
            "local server), or set judge: {backend: embedded-rules}"
        )
    return found
