"""What asking directly and in batches share: where a judge is, what it costs, what is a reply."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel, Field, ValidationError
from tqdm import tqdm

from eval.judge import JudgeError
from eval.judge.cache import Body, Reply
from eval.judge.connection import proxy_for
from heima.config import OpenAIJudge, Price
from heima.results.measures import is_gpt4o

CHARACTERS_A_TOKEN = 4
_IMAGE_TOKENS = 85
"""What an image of low detail costs."""

Check = Callable[[str], object]
"""Raises `ValueError` for a reply that is not what was asked for."""


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is and how it may be asked; the fields of `heima.config.OpenAIJudge`.

    `identity` stands for the server in cache keys. `api_key` (raises `JudgeError` where there is
    none) and `proxy` are those of the environment when the endpoint was made.
    """

    model: str
    identity: str
    base_url: str
    api_key: Callable[[], str]
    proxy: str | None
    price: Price | None
    budget_usd: float | None
    mode: str
    workers: int
    timeout_seconds: float
    max_retries: int
    poll_seconds: float

    @classmethod
    def of(
        cls, judge: OpenAIJudge, *, identity: str | None = None, api_key: str | None = None
    ) -> Endpoint:
        """The endpoint of a judge's parameters; by default its URL is its identity."""
        # lmms-eval is later sent to the gateway through the same variables.
        found = api_key or os.environ.get(judge.api_key_env)
        return cls(
            model=judge.model,
            identity=identity or judge.base_url.rstrip("/"),
            base_url=judge.base_url,
            api_key=lambda: found or _unset(judge.api_key_env),
            proxy=proxy_for(judge.base_url),
            price=judge.price,
            budget_usd=judge.budget_usd,
            mode=judge.mode,
            workers=judge.workers,
            timeout_seconds=judge.timeout_seconds,
            max_retries=judge.max_retries,
            poll_seconds=judge.poll_seconds,
        )

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of that many tokens in this mode, in dollars."""
        if self.price is None:
            return 0.0
        return self.price.usd(prompt_tokens, completion_tokens, mode=self.mode)


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


def read_completion(
    text: str | bytes, check: Check, endpoint: Endpoint, body: Body | None
) -> Reply:
    """The reply in the body of a 200 to the request `body` (None: one that is not known here).

    A usage that the request cannot have had is not booked: the reply counts as without one.

    Raises `Unusable` for anything but what was asked for, and `Refused` where another model than
    the one that was asked for has answered.
    """
    try:
        found = _Completion.model_validate_json(text)
    except ValidationError as error:
        shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
        raise Unusable(f"no chat completion ({_first(error)}): {shown[:80]!r}") from error
    usd = 0.0
    usage = found.usage
    if usage and not _possible(usage, body):
        print(
            f"judge {endpoint.model}: a usage is not booked, for no such request has that many "
            "tokens; they are estimated by characters",
            file=sys.stderr,
        )
        usage = None
    if usage:
        usd = endpoint.usd(usage.prompt_tokens, usage.completion_tokens)
    elif found.usage and body is not None:
        usd = endpoint.usd(estimated_tokens(body), body["max_tokens"])
    if not same_judge(endpoint.model, found.model):
        raise Refused(
            f"{endpoint.base_url} was asked for {endpoint.model} and answered as {found.model}; "
            "set judge.model to what it is, so that its grades have its name",
            usd=usd,
        )
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
    return Reply(
        content,
        found.model,
        found.system_fingerprint,
        usage.prompt_tokens if usage else None,
        usage.completion_tokens if usage else None,
    )


_FRAME_TOKENS = 1000
"""Of a request, besides its texts and images, at most."""
_LARGEST_IMAGE_TOKENS = 50_000
_LARGEST_REQUEST_TOKENS = 1_000_000


def _possible(usage: _Usage, body: Body | None) -> bool:
    """Whether a request can have had that many tokens: each is a byte at least."""
    if body is None:
        return max(usage.prompt_tokens, usage.completion_tokens) <= _LARGEST_REQUEST_TOKENS
    prompt = sum(
        len(part["text"].encode()) if "text" in part else _LARGEST_IMAGE_TOKENS
        for message in body["messages"]
        for part in _parts(message["content"])
    )
    return (
        usage.prompt_tokens <= _FRAME_TOKENS + prompt
        and usage.completion_tokens <= _FRAME_TOKENS + body["max_tokens"]
    )


def _parts(content: Any) -> Sequence[Mapping[str, Any]]:
    """A message's parts; a text is its only one."""
    return [{"text": content}] if isinstance(content, str) else content


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def estimated_tokens(body: Body) -> int:
    """Tokens of a request, by its characters: tokenizers are downloads."""
    tokens = 0.0
    for message in body["messages"]:
        for part in _parts(message["content"]):
            characters = len(part["text"].encode()) if "text" in part else 0
            tokens += characters / CHARACTERS_A_TOKEN if characters else _IMAGE_TOKENS
        tokens += 4
    return round(tokens)


def progress_bar(name: str, total: int | None) -> tqdm:
    """A bar on standard error; in a log it is a line every now and then."""
    seconds = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=name, unit="reply", file=sys.stderr, mininterval=seconds)


def same_judge(asked: str, answered: str) -> bool:
    """Whether a reply may stand under the name of the model that was asked for.

    Servers name their models freely, but gpt-4o's grades must be gpt-4o's.
    """
    return not is_gpt4o(asked) or is_gpt4o(answered)


def _unset(variable: str) -> NoReturn:
    raise JudgeError(
        f"judge.api_key_env names {variable}, which is not set; export it (any text for a "
        "local server), or set judge: {backend: embedded-rules}"
    )
