"""What the protocol `vlmevalkit` asks, as functions of lmms-eval's tasks; no rule of scoring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from PIL import Image as images

from eval.vlmevalkit import cases
from heima.config.benchmarks import BENCHMARKS


class AskingTask:
    """The functions of one benchmark's task that make its prompts."""

    def __init__(self, benchmark: str) -> None:
        self.benchmark = benchmark

    def asking(self) -> dict[str, Any]:
        """What lmms-eval needs to know of the task to ask."""
        facts = BENCHMARKS[self.benchmark]
        return {
            "task": facts.tasks["vlmevalkit"],
            "dataset_name": facts.dataset.configuration,
            "test_split": facts.dataset.split,
            "process_docs": self.docs,
            "doc_to_visual": self.visual,
            "doc_to_text": self.text,
            "doc_to_target": self.target,
        }

    def docs(self, dataset: Dataset) -> Dataset:
        """The data as it is, but each row with an index where it has no name (AI2D)."""
        if not BENCHMARKS[self.benchmark].dataset.identity and "index" not in dataset.column_names:
            return dataset.add_column("index", list(range(len(dataset))))
        return dataset

    def visual(self, doc: Mapping[str, Any]) -> list[images.Image]:
        return [doc[BENCHMARKS[self.benchmark].dataset.image].convert("RGB")]

    def text(self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
        """What the model is asked; raises `ValueError` for a row that is no question."""
        return self.case(doc).prompt

    def target(self, doc: Mapping[str, Any]) -> str:
        return self.case(doc).answer

    def case(self, doc: Mapping[str, Any]) -> cases.Case:
        try:
            return cases.read(self.benchmark, doc)
        except cases.RowError as error:
            raise ValueError(
                f"{self.benchmark} sample {cases.name(self.benchmark, doc)}: {error}"
            ) from error
