"""The protocol `vlmevalkit` as lmms-eval tasks: what yaml files in `eval/tasks/vlmevalkit` name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from PIL import Image as images

from eval.vlmevalkit import cases, scoring


class PaperTask:
    """The functions of one benchmark's task.

    lmms-eval keeps the dicts of `process` in its samples, and the aggregations score them in
    place: after `simple_evaluate`, a sample's `accuracy` holds its score.
    """

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark

    def docs(self, dataset: Dataset) -> Dataset:
        """The data as it is, but each row with an index; AI2D's rows have none."""
        if self._benchmark == "ai2d" and "index" not in dataset.column_names:
            return dataset.add_column("index", list(range(len(dataset))))
        return dataset

    def visual(self, doc: Mapping[str, Any]) -> list[images.Image]:
        column = "decoded_image" if "decoded_image" in doc else "image"
        return [doc[column].convert("RGB")]

    def text(self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
        """What the model is asked; raises `ValueError` for a row that is no question."""
        return self._case(doc).prompt

    def target(self, doc: Mapping[str, Any]) -> str:
        return self._case(doc).answer

    def process(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """One dict, shared by the metrics: whichever is aggregated first scores the samples."""
        one = scoring.sample(self._case(doc), results[0])
        names = ["accuracy"]
        if self._benchmark == "hallusionbench":
            names += ["figure_accuracy", "question_accuracy"]
        return dict.fromkeys(names, one)

    def _case(self, doc: Mapping[str, Any]) -> cases.Case:
        try:
            return cases.read(self._benchmark, doc)
        except cases.RowError as error:
            raise ValueError(f"{self._benchmark} sample {cases.name(doc)}: {error}") from error

    def accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self._benchmark, samples)
        return scoring.accuracy(samples)

    def figure_accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self._benchmark, samples)
        return scoring.figure_accuracy(samples)

    def question_accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self._benchmark, samples)
        return scoring.question_accuracy(samples)
