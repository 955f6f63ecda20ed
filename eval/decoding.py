"""Our model for lmms-eval that decodes, and what lmms-eval asks as prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from lmms_eval.api.instance import GenerationResult, Instance
from PIL import Image

from eval.benchmark_rows import Rows
from eval.chat_models import ChatModel, params_below, result_of
from eval.tasks import scored_text
from heima import config
from heima.config.mixtures import word
from heima.cot.mixtures import asked
from heima.data.pictures import PIL_FAULTS, worded
from heima.vlm.generation import Prompt, generate
from heima.vlm.models import feed, load_vlm, vocabulary


class Heima(ChatModel):
    """`--model heima --model_args name=recover/42 --batch_size 64`: a model of the pipeline.

    `name` is a folder below `models`: a checkpoint and a training seed. `root` is the repository
    that ran the pipeline, by default the current folder; `models` and `params` lie below it.
    Decoding follows `predict` and a `protocol` of the parameter file, with the protocol's first
    seed, and with the batch size of the command line where there is one. `forced_prefix` is that of
    `variants`, and so is `asks`, which a model of several renderings must have. All requests of all
    tasks are batched together, and a task's own generation limits do not count.

    On lmms-eval's command line a task scores the whole text, or with `conclusion=True` what stands
    in the answer's `<CONCLUSION>`, where it has one; `eval.tasks` lets it score that. Raises
    `KeyError` for a protocol that the parameter file does not have, and `FileNotFoundError` where
    no reproduction lies.
    """

    def __init__(
        self,
        name: str,
        models: str = "models",
        params: str = "params.yaml",
        protocol: config.ProtocolName = "lmms",
        forced_prefix: str | None = None,
        batch_size: int | str | None = None,
        root: str = ".",
        conclusion: bool = False,
        asks: str | None = None,
    ) -> None:
        super().__init__()
        self._params = params_below(root, params)
        if protocol not in self._params.protocols:
            raise KeyError(f"protocol {protocol!r} is not one of {sorted(self._params.protocols)}")
        self._conclusion = conclusion
        self._seed = self._params.protocols[protocol].seeds[0]
        self._decoding = self._params.decoding(protocol)
        if batch_size is not None:
            self._decoding = self._decoding.model_copy(update={"batch_size": int(batch_size)})
        self._prefix = self._params.prefix(name.partition("/")[0], forced_prefix)
        base = name.partition("/")[0]
        self._word = word(self._params, base, asks)
        self._tags = self._params.rendering(base).tags
        self._model, self._processor = load_vlm(Path(root) / models, name, self._params)
        self._feed = feed(self._processor.tokenizer, self._params, base)
        self.device = self._model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Raises `ValueError` naming every sample that is not one whole image and one text."""
        prompts = prompts_of(
            [(one.args[4], one) for one in requests],
            self.task_dict,
            decoding=self._params.image_decoding,
        )
        answers = generate(
            self._model,
            self._processor,
            vocabulary(self._processor.tokenizer, self._params),
            [replace(one, question=asked(one.question, self._word)) for one in prompts],
            decoding=self._decoding,
            seed=self._seed,
            prefix=self._prefix,
            tags=self._tags,
            feed=self._feed,
        )
        return [
            result_of(
                self._said(one.text), one.counts.prompt, one.counts.decoded, one.counts.thinking
            )
            for one in answers
        ]

    def _said(self, text: str) -> str:
        return scored_text(text) if self._conclusion else text


def prompts_of(
    requests: Sequence[tuple[str, Instance]],
    datasets: Mapping[str, Mapping[str, Dataset]],
    *,
    decoding: config.ImageDecoding = "faithful",
) -> list[Prompt]:
    """What lmms-eval's requests ask, in their order; `datasets` is task -> split -> rows.

    Each request stands behind the name that errors call its benchmark. Images are decoded as those
    of training are (`heima.data.pictures`), each once for its key and to know that it is whole, and
    again for its batch: the images of six real benchmarks do not fit into memory.

    Raises `ValueError` naming every sample that is not one whole image and one text.
    """
    read = {
        (task, split): Rows(rows, decoding)
        for task, splits in datasets.items()
        for split, rows in splits.items()
    }
    prompts, faults = [], []
    for name, request in requests:
        *_, task, split = request.args
        rows = read[task, split]
        try:
            question, image = _content(request, rows, complete=True)
        # A ValueError, as Pillow's own, is also what `_content` raises of other samples.
        except PIL_FAULTS as error:
            reason = worded(error)
            faults.append(f"  {name}, sample {request.doc_id}: {type(error).__name__}: {reason}")
            continue
        content = hashlib.sha256(image.tobytes())
        content.update(f"{image.mode}{image.size}".encode())
        prompts.append(Prompt(question, content.hexdigest(), _loader(request, rows)))
    if faults:
        raise ValueError("\n".join([f"{len(faults)} samples cannot be asked:", *faults]))
    return prompts


def _loader(request: Instance, rows: Rows) -> Callable[[], Image.Image]:
    return lambda: _content(request, rows)[1]


def _content(request: Instance, rows: Rows, *, complete: bool = False) -> tuple[str, Image.Image]:
    """The question and the image of a request; `complete`: its row must have all its images."""
    _, doc_to_messages, _, doc_id, _, _ = request.args
    row = rows[doc_id]
    for column in rows.pictures if complete else ():
        if row[column] is None:
            raise ValueError(f"its {column} is empty")
    messages = doc_to_messages(row)
    parts = [part for message in messages for part in message["content"]]
    if len(messages) != 1 or [part["type"] for part in parts] != ["image", "text"]:
        raise ValueError(f"expected an image and a text, got {[part['type'] for part in parts]}")
    return parts[1]["text"], parts[0]["url"]
