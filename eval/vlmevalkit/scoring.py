"""Answers to scores under the protocol `vlmevalkit`: by rule, and by a judge what no rule can read.

An answer's score is 0 or 1 (MM-Vet: 0 to 1). A judge that does not answer never becomes a score:
`settle` raises `JudgeError` with every sample that it concerns. Behind our own gateway, which
records what it could not answer and whose stage then throws all scores away, it goes on instead, so
that the failing samples of all benchmarks are listed together.
"""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai

from eval.judge import JudgeError, replies
from eval.judge.connection import connect, proxy_for
from eval.vlmevalkit import cases, matching, questions
from eval.vlmevalkit.cases import Case
from heima.config.benchmarks import BENCHMARKS

Sample = MutableMapping[str, Any]

UNANSWERED = "unanswered"
"""The model name by which the gateway marks the empty reply in place of one."""

_REQUESTS_AT_ONCE = 32


def sample(case: Case, prediction: str) -> dict[str, Any]:
    """A sample to be scored: the case, the answer, and empty `score`, `right`, `verdict`, `by`."""
    empty = dict.fromkeys(("score", "right", "verdict", "by"))
    fields = {key: value for key, value in vars(case).items() if key != "prompt"}
    return {**fields, "prediction": prediction, **empty}


def settle(benchmark: str, samples: Sequence[Sample]) -> None:
    """Score samples in place; those that have a score keep it.

    Sets `verdict` (what the answer was read as), `by` (`rule`, `judge`, `empty` for an answer
    without text, or `rotation` where another rotation of the question is wrong already), `right`
    (whether this sample alone is right) and `score`: that of the whole question, which in MMBench
    is right only where all its rotations are.

    Raises `JudgeError` naming each sample whose reply is missing or unusable, unless the gateway
    has recorded that: then the sample counts as wrong, `unanswered` says why, and `best` is the
    score of its question if it is right after all.
    """
    facts = BENCHMARKS[benchmark]
    ways = _WAYS[facts.scoring.kind]
    pending = []
    for one in samples:
        if one["score"] is not None:
            continue
        answer = one["prediction"].strip()
        verdict = ways.rule(one, answer) if answer else ""
        if verdict is None:
            pending.append(one)
        else:
            _close(one, ways, "rule" if answer else "empty", verdict)
    if facts.dataset.rotation:
        # VLMEvalKit asks nothing either about a question that is lost.
        lost = {one["unit"] for one in samples if one["right"] == 0}
        for one in pending:
            if one["unit"] in lost:
                one.update(by="rotation", verdict="", right=0.0)
        pending = [one for one in pending if one["by"] is None]
    replied = _ask([ways.prompt(one, one["prediction"].strip()) for one in pending])
    faults = []
    for one, reply in zip(pending, replied, strict=True):
        if isinstance(reply, _Recorded):
            one.update(by="judge", verdict="", right=0.0, unanswered=reply.reason)
            continue
        verdict = None if isinstance(reply, _Fault) else ways.parse(one, reply)
        if verdict is None:
            why = reply.reason if isinstance(reply, _Fault) else f"unusable reply {reply!r:.100}"
            faults.append(f"  {benchmark} sample {one['index']}: {why}")
        else:
            _close(one, ways, "judge", verdict)
    if faults:
        raise JudgeError(
            f"the judge left {len(faults)} answers without a usable reply, so nothing was "
            f"scored:\n{cases.shortened(faults)}"
        )
    units: dict[str, float] = defaultdict(lambda: 1.0)
    best: dict[str, float] = defaultdict(lambda: 1.0)
    for one in samples:
        units[one["unit"]] = min(units[one["unit"]], one["right"])
        if "unanswered" not in one:
            best[one["unit"]] = min(best[one["unit"]], one["right"])
    for one in samples:
        one["score"] = units[one["unit"]]
        if "unanswered" in one:
            one["best"] = best[one["unit"]]


def accuracy(samples: Sequence[Sample]) -> float:
    """The share of right questions (MM-Vet: the mean grade) of settled samples."""
    return _mean({one["unit"]: one["score"] for one in samples}.values())


def figure_accuracy(samples: Sequence[Sample]) -> float:
    """HallusionBench's fAcc: the share of figures about which every question is right."""
    return _all_right(samples, "figure")


def question_accuracy(samples: Sequence[Sample]) -> float:
    """HallusionBench's qAcc: the share of questions that are right about every figure of a set."""
    return _all_right(samples, "pair")


def _all_right(samples: Sequence[Sample], group: str) -> float:
    groups: dict[str, float] = defaultdict(lambda: 1.0)
    for one in samples:
        groups[one[group]] = min(groups[one[group]], one["score"])
    return _mean(groups.values())


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


@dataclass(frozen=True)
class _Ways:
    """How answers of a kind are read.

    `rule` gives a verdict, or None for the judge; `prompt` is what the judge is asked, `parse`
    the verdict of its reply, None for an unusable one; `right` is a verdict's score.
    """

    rule: Callable[[Sample, str], str | None]
    prompt: Callable[[Sample, str], str]
    parse: Callable[[Sample, str], str | None]
    right: Callable[[Sample, str], float]


def _close(one: Sample, ways: _Ways, by: str, verdict: str) -> None:
    one.update(by=by, verdict=verdict, right=ways.right(one, verdict) if verdict else 0.0)


def _equal(one: Sample, verdict: str) -> float:
    return float(verdict == one["answer"])


def _letter(one: Sample, reply: str) -> str | None:
    return replies.chosen(reply, (matching.NONE, *one["options"]))


def _mathvista_rule(one: Sample, answer: str) -> str | None:
    if one["options"]:
        return matching.option(answer, one["options"])
    if one["answer_type"] in ("integer", "float"):
        # A bare number needs no extraction.
        return None if matching.number(answer, one["answer_type"]) is None else answer
    return None


def _mathvista_reply(one: Sample, reply: str) -> str:
    # An answer may hold nothing to extract; then it is wrong.
    extracted = reply.strip()
    if extracted and one["options"]:
        return matching.option(extracted, one["options"]) or matching.NONE
    return extracted


def _mathvista_right(one: Sample, verdict: str) -> float:
    kind = one["answer_type"]
    if one["options"] or kind not in ("integer", "float"):
        return float(verdict == one["answer"])
    said = matching.number(verdict, kind)
    # An integer may stand as 14.0 in a table.
    right = float(one["answer"])
    return float(said is not None and said == (int(right) if kind == "integer" else right))


_WAYS: dict[str, _Ways] = {
    "choice": _Ways(
        rule=lambda one, answer: matching.option(answer, one["options"]),
        prompt=lambda one, answer: questions.choice_prompt(one["question"], one["options"], answer),
        parse=_letter,
        right=_equal,
    ),
    "graded": _Ways(
        rule=lambda one, answer: None,
        prompt=lambda one, answer: questions.mmvet_prompt(one["question"], one["answer"], answer),
        parse=lambda one, reply: replies.grade(reply),
        right=lambda one, verdict: float(verdict),
    ),
    "extracted": _Ways(
        rule=_mathvista_rule,
        prompt=lambda one, answer: questions.mathvista_prompt(one["question"], answer),
        parse=_mathvista_reply,
        right=_mathvista_right,
    ),
    "yes-no": _Ways(
        rule=lambda one, answer: matching.yes_no(answer),
        prompt=lambda one, answer: questions.yes_no_prompt(one["question"], answer),
        parse=lambda one, reply: replies.said(reply),
        right=_equal,
    ),
}
"""What is answered (`heima.config.benchmarks.Scoring.kind`) -> how."""


@dataclass(frozen=True)
class _Fault:
    """Why a prompt has no reply."""

    reason: str


class _Recorded(_Fault):
    """A fault that the gateway has on its list."""


def _ask(prompts: Sequence[str]) -> list[str | _Fault]:
    """The judge's replies, in order; each prompt is asked once, several at a time.

    The judge is that of the environment, as for lmms-eval's tasks: the base URL in
    `OPENAI_API_URL`, the key in `OPENAI_API_KEY`, the model in `MODEL_VERSION`.
    """
    if not prompts:
        return []
    url, key = (os.environ.get(name) for name in ("OPENAI_API_URL", "OPENAI_API_KEY"))
    if not url or not key:
        raise JudgeError(
            f"{len(prompts)} answers need a judge, but OPENAI_API_URL and OPENAI_API_KEY do not "
            "name one; score within eval.gateway.Gateway, or set both"
        )
    model = os.environ.get("MODEL_VERSION", "judge")
    different = list(dict.fromkeys(prompts))
    client = _client(url, key)
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        found = list(pool.map(lambda prompt: _reply(client, model, prompt), different))
    known: Mapping[str, str | _Fault] = dict(zip(different, found, strict=True))
    return [known[prompt] for prompt in prompts]


@functools.cache
def _client(url: str, key: str) -> openai.OpenAI:
    """One a judge: making one reads all certificates (30 ms)."""
    return connect(url, key, proxy=proxy_for(url))


def _reply(client: openai.OpenAI, model: str, prompt: str) -> str | _Fault:
    try:
        found = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=256,
        )
    # A 200 with broken JSON is no OpenAIError but a ValueError.
    except (openai.OpenAIError, ValueError) as error:
        return _Fault(f"{type(error).__name__}: {error}")
    try:
        model, message = found.model, found.choices[0].message
        content, refusal = message.content, message.refusal
    # A 200 with HTML comes back as a str, one with another shape with absent fields.
    except (AttributeError, LookupError, TypeError):
        return _Fault(f"the reply holds no text: {found!r:.100}")
    if model == UNANSWERED:
        return _Recorded(refusal or "the gateway has no reply")
    return _Fault("no text") if content is None else content
