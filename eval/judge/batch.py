"""Ask a judge through OpenAI's Batch API: half the price, an answer within a day.

A batch is one JSONL file whose lines are the very requests that would be asked directly, each under
its cache key; so both modes fill the same cache. A batch is known to the cache by its id as soon as
it is handed in, and to the server by a digest of its keys, so that a run which is killed and
started again waits for what it handed in before, and hands nothing in twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import openai
from openai.types import Batch
from pydantic import BaseModel, ValidationError

from eval.judge import JudgeError
from eval.judge.cache import Body, Reply, ReplyCache
from eval.judge.endpoint import Check, Endpoint, Fault, Unusable, progress_bar, read_completion
from heima.results.files import atomic

_ROUNDS = 3
"""How often unusable replies are asked for, the first time included."""

_MOST_REQUESTS = 20_000
_MOST_BYTES = 150_000_000
"""Of one batch; OpenAI takes 50,000 requests and 200 MB."""

_ENDED = ("completed", "failed", "expired", "cancelled")
_DIGEST = "heima_keys"


class _Response(BaseModel):
    status_code: int
    body: dict[str, Any]


class _Line(BaseModel):
    """A line of a batch's output, or of its file of errors."""

    custom_id: str
    response: _Response | None = None
    error: dict[str, Any] | None = None


class Asking(Protocol):
    """What batches need of the judge that hands them in (`eval.judge.client.Judge`)."""

    endpoint: Endpoint
    cache: ReplyCache

    def key(self, version: str, body: Body) -> str: ...

    def say(self, text: str) -> None: ...

    def announce(self, requests: Mapping[str, Body], todo: Sequence[str]) -> None: ...

    def try_canary(self, one: str, body: Body, check: Check) -> None: ...

    def paid(self, reply: Reply, body: Body) -> float: ...


class Batches:
    """The batches of one judge."""

    def __init__(self, judge: Asking, client: openai.OpenAI) -> None:
        self._judge = judge
        self._cache = judge.cache
        self._client = client
        self._identity = judge.endpoint.identity

    def ask(
        self,
        requests: Mapping[str, Body],
        *,
        check: Check,
        canary: Body,
        check_canary: Check,
    ) -> dict[str, str]:
        """Like `Judge.ask`, whose lock is held. Waits for batches of earlier runs first."""
        try:
            open_ones = [i for i, how in self._cache.batches(self._identity).items() if how is None]
            failures = self._collect(open_ones, requests, check)
            for number in range(_ROUNDS):
                todo = self._cache.missing(requests)
                if not todo:
                    return {}
                self._judge.announce(requests, todo)
                if number == 0:
                    one = self._judge.key("canary", canary)
                    self._judge.try_canary(one, canary, check_canary)
                failures = self._collect(list(self._hand_in(requests, todo)), requests, check)
        except openai.OpenAIError as error:
            raise JudgeError(
                f"the Batch API of {self._judge.endpoint.base_url} failed: {error}. Batches that "
                "were handed in are waited for by the next run; set judge.mode: direct to do "
                "without it"
            ) from error
        return {
            one: failures.get(one, "the batch ended without it")
            for one in self._cache.missing(requests)
        }

    def _hand_in(self, requests: Mapping[str, Body], todo: Sequence[str]) -> Iterator[str]:
        """The ids of batches that hold `todo`, handed in now or by a run that was killed there."""
        for keys in _parts(requests, todo):
            digest = hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:32]
            batch = self._handed_in_before(digest) or self._create(digest, keys, requests)
            self._cache.add_batch(batch.id, self._identity, len(keys))
            yield batch.id

    def _handed_in_before(self, digest: str) -> Batch | None:
        known = self._cache.batches(self._identity)
        for batch in self._client.batches.list(limit=100):
            if (batch.metadata or {}).get(_DIGEST) != digest or batch.id in known:
                continue
            if batch.status in ("validating", "in_progress", "finalizing", "completed"):
                return batch
        return None

    def _create(self, digest: str, keys: Sequence[str], requests: Mapping[str, Body]) -> Batch:
        path = self._cache.path.with_name("judge-batches") / f"{digest}.jsonl"
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(one, requests[one]) for one in keys)
        with path.open("rb") as file:
            uploaded = self._client.files.create(file=file, purpose="batch")
        batch = self._client.batches.create(
            input_file_id=uploaded.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={_DIGEST: digest},
        )
        self._judge.say(f"handed in {len(keys)} requests ({path}) as {batch.id}")
        return batch

    def _collect(
        self, ids: Sequence[str], requests: Mapping[str, Body], check: Check
    ) -> dict[str, str]:
        """Wait for batches and keep their replies; key -> reason of those without a usable one."""
        failures: dict[str, str] = {}
        for identity in ids:
            batch = self._wait(identity)
            for file_id in (batch.output_file_id, batch.error_file_id):
                if file_id:
                    text = self._client.files.content(file_id).text
                    # A text within JSON may hold other separators of lines.
                    lines = filter(None, text.split("\n"))
                    for number, line in enumerate(lines, start=1):
                        self._ingest(f"{file_id}, line {number}", line, requests, check, failures)
            # Only now: a run killed before reads the files again.
            self._cache.end_batch(identity, batch.status)
            if batch.status == "failed":
                reasons = "; ".join(
                    str(one.message) for one in (batch.errors and batch.errors.data) or []
                )
                raise JudgeError(
                    f"{self._judge.endpoint.base_url} took no request of the batch {identity}: "
                    f"{reasons or 'no reason given'}. Nothing was paid for it"
                )
        return failures

    def _wait(self, identity: str) -> Batch:
        bar = None
        while True:
            batch = self._client.batches.retrieve(identity)
            counts = batch.request_counts
            if bar is None:
                name = f"{self._judge.endpoint.model} {identity}"
                bar = progress_bar(name, counts.total if counts else None)
            if counts:
                bar.total = counts.total or bar.total
                bar.update(counts.completed + counts.failed - bar.n)
            bar.set_postfix_str(batch.status, refresh=False)
            if batch.status in _ENDED:
                bar.close()
                return batch
            time.sleep(self._judge.endpoint.poll_seconds)

    def _ingest(
        self,
        where: str,
        line: str,
        requests: Mapping[str, Body],
        check: Check,
        failures: dict[str, str],
    ) -> None:
        """Keep one reply of a batch, or why there is none."""
        try:
            found = _Line.model_validate_json(line)
        except ValidationError as error:
            raise JudgeError(f"the batch's {where} cannot be read: {line[:200]!r}") from error
        one = found.custom_id
        try:
            if found.response is None or found.response.status_code != 200:
                raise Unusable(f"the batch reports {found.error or found.response}")
            text = json.dumps(found.response.body)
            reply = read_completion(text, check, self._judge.endpoint, requests.get(one))
        except Fault as fault:
            failures[one] = fault.reason
            if fault.usd:
                self._cache.charge(one, self._identity, "unusable", fault.usd)
            return
        # A killed run may have read a part of this file before.
        if self._cache.get(one) is None:
            # An earlier run may have handed in what is not wanted now; it is paid all the same.
            body = requests.get(one, {"messages": ()})
            self._cache.add(one, self._identity, reply, self._judge.paid(reply, body))


def _line(one: str, body: Body) -> str:
    request = {"custom_id": one, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request, ensure_ascii=False) + "\n"


def _parts(requests: Mapping[str, Body], todo: Sequence[str]) -> Iterator[list[str]]:
    """The keys in parts that a batch can hold."""
    part: list[str] = []
    size = 0
    for one in todo:
        length = len(_line(one, requests[one]).encode())
        if part and (len(part) == _MOST_REQUESTS or size + length > _MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(one)
        size += length
    if part:
        yield part
