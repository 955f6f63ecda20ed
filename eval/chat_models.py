"""Our models for lmms-eval: one decodes, one returns what was decoded before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from PIL import Image

from heima import config
from heima.generation import Generation, Prompt, generate
from heima.models import load_vlm, vocabulary
from heima.results import read_jsonl


class _ChatModel(lmms):
    """A model that answers one user message; the six tasks ask for nothing else."""

    is_simple = False

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(f"{type(self).__name__} generates; it ranks no options")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__} answers single questions")


class Heima(_ChatModel):
    """`--model heima --model_args name=recover --batch_size 64`: a model of the pipeline.

    `name` is a folder below `models`; decoding follows `predict` of the parameter file, with the
    batch size of the command line where there is one. All requests of all tasks are batched
    together, and a task's own generation limits do not count.

    On lmms-eval's command line a task scores the whole text; `eval.tasks` lets it score the
    conclusion.
    """

    def __init__(
        self,
        name: str,
        models: str = "models",
        params: str = "params.yaml",
        batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        self._params = config.load(params)
        self._decoding = self._params.predict
        if batch_size is not None:
            self._decoding = self._decoding.model_copy(update={"batch_size": int(batch_size)})
        self._model, self._processor = load_vlm(Path(models), name, self._params)
        self.device = self._model.device

    def generate(self, requests: Sequence[Instance]) -> list[Generation]:
        """Text, counts, finish reason and seconds of every request, in their order.

        Raises `ValueError` for a request that is not one image and one text.
        """
        return generate(
            self._model,
            self._processor,
            vocabulary(self._processor.tokenizer, self._params),
            [self._prompt(request) for request in requests],
            decoding=self._decoding,
            seed=self._params.seed,
        )

    def _prompt(self, request: Instance) -> Prompt:
        question, image = self._content(request)
        content = hashlib.sha256(image.tobytes())
        content.update(f"{image.mode}{image.size}".encode())
        # Loaded again for its batch: the images of six real benchmarks do not fit into memory.
        return Prompt(question, content.hexdigest(), lambda: self._content(request)[1])

    def _content(self, request: Instance) -> tuple[str, Image.Image]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        parts = [part for message in messages for part in message["content"]]
        if len(messages) != 1 or [part["type"] for part in parts] != ["image", "text"]:
            raise ValueError(
                f"{task}, sample {doc_id}: expected an image and a text, got "
                f"{[part['type'] for part in parts]}"
            )
        return parts[1]["text"], parts[0]["url"]

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        return [
            _result(one.text, one.counts.prompt, one.counts.decoded, one.counts.thinking)
            for one in self.generate(requests)
        ]


class HeimaReplay(_ChatModel):
    """`--model heima-replay --model_args predictions=predictions/heima`: saved answers.

    lmms-eval scores them as if they had just been decoded. Its command line always names a batch
    size, which changes nothing here. Raises `KeyError` for a sample that was not predicted.
    """

    def __init__(
        self,
        predictions: str,
        params: str = "params.yaml",
        batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        self._rows = {
            (known.task, row["doc_id"]): row
            for benchmark, known in config.load(params).benchmarks.items()
            for row in read_jsonl(Path(predictions) / f"{benchmark}.jsonl")
        }
        self._folder = predictions

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        return [self._replay(request) for request in requests]

    def _replay(self, request: Instance) -> GenerationResult:
        _, _, _, doc_id, task, _ = request.args
        if (task, doc_id) not in self._rows:
            raise KeyError(f"{self._folder} has no prediction of {task}, sample {doc_id}")
        row = self._rows[task, doc_id]
        counts = row["counts"]
        return _result(row["text"], counts["prompt"], counts["decoded"], counts["thinking"])


def _result(text: str, prompt: int, decoded: int, thinking: int) -> GenerationResult:
    return GenerationResult(
        text, TokenCounts(input_tokens=prompt, output_tokens=decoded, reasoning_tokens=thinking)
    )
