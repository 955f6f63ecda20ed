"""lmms-eval tasks of the protocol `paper`: what a yaml file in `eval/tasks/paper` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Image
from PIL import Image as images

from eval.paper import cases, scoring


class PaperTask:
    """The functions of one benchmark's task.

    lmms-eval keeps the dicts of `process` in its samples, and the aggregations score them in
    place: after `simple_evaluate`, a sample's `accuracy` holds its score.
    """

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark

    def docs(self, dataset: Dataset) -> Dataset:
        """The data as it is, each row with an index, checked.

        Raises `ValueError` naming each row that is no question of this benchmark, or whose name
        another one has.
        """
        if "index" not in dataset.column_names and self._benchmark == "ai2d":
            dataset = dataset.add_column("index", list(range(len(dataset))))
        pictures = [k for k, feature in dataset.features.items() if isinstance(feature, Image)]
        cases.check(self._benchmark, dataset.remove_columns(pictures))
        return dataset

    def visual(self, doc: Mapping[str, Any]) -> list[images.Image]:
        column = "decoded_image" if "decoded_image" in doc else "image"
        return [doc[column].convert("RGB")]

    def text(self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
        return cases.read(self._benchmark, doc).prompt

    def target(self, doc: Mapping[str, Any]) -> str:
        return cases.read(self._benchmark, doc).answer

    def process(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """One dict, shared by the metrics: whichever is aggregated first scores the samples."""
        one = scoring.sample(cases.read(self._benchmark, doc), results[0])
        names = ["accuracy"]
        if self._benchmark == "hallusionbench":
            names += ["figure_accuracy", "question_accuracy"]
        return dict.fromkeys(names, one)

    def accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self._benchmark, samples)
        return scoring.accuracy(samples)

    def figure_accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self._benchmark, samples)
        return scoring.figure_accuracy(samples)

    def question_accuracy(self, samples: Sequence[scoring.Sample]) -> float:
        scoring.settle(self._benchmark, samples)
        return scoring.question_accuracy(samples)
