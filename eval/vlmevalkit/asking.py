"""What the protocol `vlmevalkit` asks, as functions of lmms-eval's tasks; no rule of scoring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from PIL import Image as images

from eval.vlmevalkit import cases


class AskingTask:
    """The functions of one benchmark's task that make its prompts."""

    def __init__(self, benchmark: str) -> None:
        self.benchmark = benchmark

    def docs(self, dataset: Dataset) -> Dataset:
        """The data as it is, but each row with an index; AI2D's rows have none."""
        if self.benchmark == "ai2d" and "index" not in dataset.column_names:
            return dataset.add_column("index", list(range(len(dataset))))
        return dataset

    def visual(self, doc: Mapping[str, Any]) -> list[images.Image]:
        column = "decoded_image" if "decoded_image" in doc else "image"
        return [doc[column].convert("RGB")]

    def text(self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
        """What the model is asked; raises `ValueError` for a row that is no question."""
        return self.case(doc).prompt

    def target(self, doc: Mapping[str, Any]) -> str:
        return self.case(doc).answer

    def case(self, doc: Mapping[str, Any]) -> cases.Case:
        try:
            return cases.read(self.benchmark, doc)
        except cases.RowError as error:
            raise ValueError(f"{self.benchmark} sample {cases.name(doc)}: {error}") from error
