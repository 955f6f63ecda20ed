"""What our models for lmms-eval share, and the one that returns what was decoded before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from heima import config
from heima.config.benchmarks import BENCHMARKS
from heima.results.files import read_jsonl


class ChatModel(lmms):
    """A model that answers one user message; the tasks ask for nothing else."""

    is_simple = False

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(f"{type(self).__name__} generates; it ranks no options")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__} answers single questions")


def params_below(root: str, params: str) -> config.Params:
    """The parameters of the repository `root`; raises `FileNotFoundError`, saying what to do."""
    path = Path(root) / params
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.absolute()} does not exist: give the folder of the repository as "
            "--model_args root=FOLDER"
        )
    return config.load(path)


class HeimaReplay(ChatModel):
    """`--model heima-replay --model_args predictions=predictions/heima/lmms/42`: saved answers.

    `predictions` is the folder of one run, below `root`, the repository (by default the current
    folder). lmms-eval scores its answers as if they had just been decoded, whichever protocol's
    task asks for a benchmark. Its command line always names a batch size, which changes nothing
    here. Control characters are replaced: some tasks write the answers into a spreadsheet, which
    holds none. Raises `KeyError` for a sample that was not predicted.
    """

    def __init__(
        self,
        predictions: str,
        params: str = "params.yaml",
        batch_size: int | str | None = None,
        root: str = ".",
    ) -> None:
        super().__init__()
        self._rows = {
            (task, row["doc_id"]): row
            for benchmark in params_below(root, params).benchmarks
            for row in read_jsonl(Path(root) / predictions / f"{benchmark}.jsonl")
            for task in BENCHMARKS[benchmark].tasks.values()
        }
        self._folder = predictions

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        return [self._replay(request) for request in requests]

    def clean(self) -> None:
        """lmms-eval's collects garbage, twice, for a GPU's sake: seconds, and there is no model."""

    def _replay(self, request: Instance) -> GenerationResult:
        _, _, _, doc_id, task, _ = request.args
        if (task, doc_id) not in self._rows:
            raise KeyError(f"{self._folder} has no prediction of {task}, sample {doc_id}")
        row = self._rows[task, doc_id]
        counts = row["counts"]
        text = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", row["text"])
        return result_of(text, counts["prompt"], counts["decoded"], counts["thinking"])


def result_of(text: str, prompt: int, decoded: int, thinking: int) -> GenerationResult:
    return GenerationResult(
        text, TokenCounts(input_tokens=prompt, output_tokens=decoded, reasoning_tokens=thinking)
    )
