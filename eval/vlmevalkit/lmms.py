"""The protocol `vlmevalkit` as lmms-eval tasks: what `eval/tasks/vlmevalkit.yaml` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.vlmevalkit import scoring
from eval.vlmevalkit.asking import AskingTask
from heima.config.benchmarks import BENCHMARKS


class VlmEvalKitTask(AskingTask):
    """The functions of one benchmark's task.

    lmms-eval keeps the dicts of `process` in its samples, and the aggregations score them in
    place: after `simple_evaluate`, a sample's `accuracy` holds its score.
    """

    def configuration(self) -> dict[str, Any]:
        """What lmms-eval needs to know of the task, but for where its data lies."""
        metrics = [
            {"metric": name, "aggregation": getattr(self, name), "higher_is_better": True}
            for name in self._metrics()
        ]
        return {**self.asking(), "process_results": self.process, "metric_list": metrics}

    def process(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """One dict, shared by the metrics: whichever is aggregated first scores the samples."""
        return dict.fromkeys(self._metrics(), scoring.sample(self.case(doc), results[0]))

    def _metrics(self) -> tuple[str, ...]:
        return ("accuracy", *BENCHMARKS[self.benchmark].scoring.group_metrics)

    def accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self.benchmark, samples)
        return scoring.accuracy(samples)

    def figure_accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self.benchmark, samples)
        return scoring.figure_accuracy(samples)

    def question_accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self.benchmark, samples)
        return scoring.question_accuracy(samples)
