"""How each task's number breaks down to samples, units, strata and chance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.vlmevalkit import cases

_ROTATIONS = 1_000_000
"""MMBench numbers the rotations of question i as i, i + 1e6, …; all must be right."""

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

    groups: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        groups[sample["gpt_eval_score"]["index"] % _ROTATIONS].append(sample["gpt_eval_score"])
    hits = {}
    for index, group in groups.items():
        right = {row["index"]: row["answer"] for row in group}
        hits[index] = float(mmbench_evaluator.eval_sub_data(_Table(group), right))
    return [hits[sample["gpt_eval_score"]["index"] % _ROTATIONS] for sample in samples]


def _commonest(answers: Sequence[str]) -> float:
    return max(Counter(answers).values()) / len(answers)


def _guess_rotations(docs: Docs) -> list[float]:
    """A guess must be right in every rotation of a question."""
    chance: dict[int, float] = defaultdict(lambda: 1.0)
    for doc in docs:
        options = [doc[letter] for letter in "ABCDE" if doc[letter] not in (None, "", "nan")]
        chance[doc["index"] % _ROTATIONS] /= len(options)
    return list(chance.values())


def _guess_mathvista(docs: Docs) -> list[float]:
    """One of the choices, or the commonest of the free answers."""
    free = [doc["answer"] for doc in docs if not doc["choices"]]
    return [1 / len(doc["choices"]) if doc["choices"] else _commonest(free) for doc in docs]


LMMS: dict[str, Rules] = {
    "mmstar": Rules(
        metric="average",
        scale=100,
        scores=lambda samples: [one["average"]["score"] for one in samples],
        guess=lambda docs: [1 / 4] * len(docs),
        stratum=lambda doc: doc["l2_category"],
    ),
    "mmbench": Rules(
        metric="gpt_eval_score",
        scale=1,
        scores=_rotations_right,
        guess=_guess_rotations,
        unit=lambda doc: doc["index"] % _ROTATIONS,
    ),
    "mmvet": Rules(
        metric="gpt_eval_score",
        scale=1,
        scores=lambda samples: [one["gpt_eval_score"]["score"] for one in samples],
        guess=lambda docs: [_commonest([doc["answer"] for doc in docs])],
    ),
    "mathvista": Rules(
        metric="llm_as_judge_eval",
        scale=1,
        scores=lambda samples: [float(one["llm_as_judge_eval"]["true_false"]) for one in samples],
        guess=_guess_mathvista,
    ),
    "ai2d": Rules(
        metric="exact_match",
        scale=100,
        scores=lambda samples: [one["exact_match"] for one in samples],
        guess=lambda docs: [1 / len(doc["options"]) for doc in docs],
    ),
    "hallusionbench": Rules(
        metric="aAcc",
        scale=1,
        # The aggregation writes its verdict into the sample.
        scores=lambda samples: [float(one["aAcc"]["correct"]) for one in samples],
        guess=lambda docs: [_commonest([doc["gt_answer"] for doc in docs])],
    ),
}


def _guess_vlmevalkit(benchmark: str, docs: Docs) -> list[float]:
    """One of the options (of every rotation), or the commonest of the answers without options."""
    read = [cases.read(benchmark, doc) for doc in docs]
    free = [case.answer for case in read if not case.options]
    chance: dict[str, float] = defaultdict(lambda: 1.0)
    for case in read:
        chance[case.unit] *= 1 / len(case.options) if case.options else _commonest(free)
    return list(chance.values())


def _vlmevalkit(benchmark: str) -> Rules:
    """The aggregation writes each score into its sample."""
    return Rules(
        metric="accuracy",
        scale=100,
        scores=lambda samples: [one["accuracy"]["score"] for one in samples],
        guess=lambda docs: _guess_vlmevalkit(benchmark, docs),
        unit=(lambda doc: doc["index"] % _ROTATIONS) if benchmark == "mmbench" else None,
    )


RULES: dict[str, dict[str, Rules]] = {
    "lmms": LMMS,
    "vlmevalkit": {benchmark: _vlmevalkit(benchmark) for benchmark in LMMS},
}
"""Protocol -> benchmark -> its rules."""
