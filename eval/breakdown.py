"""How each task's number breaks down to samples, units, strata and chance."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.vlmevalkit import cases
from heima.config.benchmarks import BENCHMARKS, Benchmark, Scoring

Docs = Sequence[Mapping[str, Any]]
Samples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Rules:
    """How a task's number breaks down.

    `metric` is the task's own, multiplied by `scale` to percent.
    `scores` maps lmms-eval's samples (with the documents in the same order) to one score from 0 to
    1 each. `unit` names what one score belongs to (by default the sample itself), `stratum` the
    groups whose means lmms-eval averages. `guess` is the chance of a right guess of each sample,
    or of the whole unit.
    """

    metric: str
    scale: float
    scores: Callable[[Samples], list[float]]
    guess: Callable[[Docs], list[float]]
    unit: Callable[[Mapping[str, Any]], int] | None = None
    stratum: Callable[[Mapping[str, Any]], str] | None = None


class _Table(list[Mapping[str, Any]]):
    """As much of a pandas table as lmms-eval's evaluator reads; making hundreds takes seconds."""

    @property
    def iloc(self) -> _Table:
        return self


def _rotations_right(samples: Samples) -> list[float]:
    """MMBench's hit of each question, for every one of its rotations.

    Asks lmms-eval's own evaluator about one question at a time; its aggregate does not say which
    questions were right. The gateway knows the replies already.
    """
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    rows = [sample["gpt_eval_score"] for sample in samples]
    units = [cases.question_number("mmbench", row["index"]) for row in rows]
    groups: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for unit, row in zip(units, rows, strict=True):
        groups[unit].append(row)
    hits = {}
    for unit, group in groups.items():
        right = {row["index"]: row["answer"] for row in group}
        hits[unit] = float(mmbench_evaluator.eval_sub_data(_Table(group), right))
    return [hits[unit] for unit in units]


_SCORES: dict[str, Callable[[Samples], list[float]]] = {"mmbench": _rotations_right}
"""Benchmark -> its samples' scores under `lmms`, where they do not stand in the samples."""


def _in_samples(scoring: Scoring, samples: Samples) -> list[float]:
    found = [one[scoring.metric] for one in samples]
    return [float(one if scoring.score is None else one[scoring.score]) for one in found]


def _commonest(answers: Sequence[str]) -> float:
    return max(Counter(answers).values()) / len(answers)


def _guess(benchmark: Benchmark, docs: Docs) -> list[float]:
    """One of the options (in every rotation), or the commonest of the answers without options."""
    answer = benchmark.scoring.answer
    if not benchmark.scoring.options and benchmark.scoring.option_count is None:
        return [_commonest([doc[answer] for doc in docs])]
    counts = [_options(benchmark.scoring, doc) for doc in docs]
    free = [doc[answer] for doc, count in zip(docs, counts, strict=True) if not count]
    unit = _unit(benchmark)
    chance: dict[int, float] = defaultdict(lambda: 1.0)
    for place, (doc, count) in enumerate(zip(docs, counts, strict=True)):
        belongs = unit(doc) if unit else place
        if count:
            chance[belongs] /= count
        else:
            chance[belongs] *= _commonest(free)
    return list(chance.values())


def _options(scoring: Scoring, doc: Mapping[str, Any]) -> int:
    """How many options a row has, 0 for a free answer."""
    if scoring.option_count is not None:
        return scoring.option_count
    if len(scoring.options) == 1:
        return len(doc[scoring.options[0]] or ())
    return sum(not cases.is_empty(doc.get(column)) for column in scoring.options)


def _guess_vlmevalkit(benchmark: str, docs: Docs) -> list[float]:
    """One of the options (of every rotation), or the commonest of the answers without options."""
    read = [cases.read(benchmark, doc) for doc in docs]
    free = [case.answer for case in read if not case.options]
    chance: dict[str, float] = defaultdict(lambda: 1.0)
    for case in read:
        if not case.options:
            chance[case.unit] *= _commonest(free)
        else:
            chance[case.unit] *= (case.answer in case.options) / len(case.options)
    return list(chance.values())


def _unit(benchmark: Benchmark) -> Callable[[Mapping[str, Any]], int] | None:
    """What the rotations of a question share; None: each row is a question."""
    if benchmark.dataset.rotation is None:
        return None
    return lambda doc: cases.question_number(benchmark.name, doc["index"])


def _lmms(benchmark: Benchmark) -> Rules:
    stratum = benchmark.scoring.stratum
    return Rules(
        metric=benchmark.scoring.metric,
        scale=benchmark.scoring.scale,
        scores=_SCORES.get(benchmark.name, functools.partial(_in_samples, benchmark.scoring)),
        guess=functools.partial(_guess, benchmark),
        unit=_unit(benchmark),
        stratum=(lambda doc: doc[stratum]) if stratum else None,
    )


def _vlmevalkit(benchmark: Benchmark) -> Rules:
    """The aggregation writes each score into its sample."""
    return Rules(
        metric="accuracy",
        scale=100,
        scores=lambda samples: [one["accuracy"]["score"] for one in samples],
        guess=functools.partial(_guess_vlmevalkit, benchmark.name),
        unit=_unit(benchmark),
    )


RULES: dict[str, dict[str, Rules]] = {
    protocol: {name: rules(benchmark) for name, benchmark in BENCHMARKS.items()}
    for protocol, rules in (("lmms", _lmms), ("vlmevalkit", _vlmevalkit))
}
"""Protocol -> benchmark -> its rules."""
