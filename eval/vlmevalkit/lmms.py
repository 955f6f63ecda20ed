"""The protocol `vlmevalkit` as lmms-eval tasks: what yaml files in `eval/tasks/vlmevalkit` name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.vlmevalkit import scoring
from eval.vlmevalkit.asking import AskingTask


class VlmEvalKitTask(AskingTask):
    """The functions of one benchmark's task.

    lmms-eval keeps the dicts of `process` in its samples, and the aggregations score them in
    place: after `simple_evaluate`, a sample's `accuracy` holds its score.
    """

    def process(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """One dict, shared by the metrics: whichever is aggregated first scores the samples."""
        one = scoring.sample(self.case(doc), results[0])
        names = ["accuracy"]
        if self.benchmark == "hallusionbench":
            names += ["figure_accuracy", "question_accuracy"]
        return dict.fromkeys(names, one)

    def accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self.benchmark, samples)
        return scoring.accuracy(samples)

    def figure_accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self.benchmark, samples)
        return scoring.figure_accuracy(samples)

    def question_accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self.benchmark, samples)
        return scoring.question_accuracy(samples)
