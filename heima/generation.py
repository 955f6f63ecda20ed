"""Batched decoding of a VLM, with every token accounted for.

Left padding, longest prompt first. Prompts that share an image stand together, so that the image
is processed once. Greedy decoding gives the same text for any batch size (tested).
"""

from __future__ import annotations

import bisect
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from heima.config import Decoding
from heima.cot import SECTIONS
from heima.sampling import sampling
from heima.tokens import Vocabulary

_TAG = re.compile(rf"</?(?:{'|'.join(section.upper() for section in SECTIONS)})>")


@dataclass(frozen=True)
class Prompt:
    """A question about one image, which stands before it.

    The image is loaded when its batch is decoded; equal `image_key`s mean equal images.
    """

    question: str
    image_key: str
    load_image: Callable[[], Image.Image]


@dataclass(frozen=True)
class Counts:
    """Tokens of one generation.

    `prompt` counts an image as the one token that stands for it. `decoded` counts everything
    generated, the end of turn included; `thinking`, `tag` (of the sections' tags) and
    `conclusion` (between its tags) are disjoint parts of it.
    """

    prompt: int
    decoded: int
    thinking: int
    tag: int
    conclusion: int


@dataclass(frozen=True)
class Generation:
    """One answer: `text` shows thinking tokens by name, `seconds` is its share of the batch."""

    text: str
    counts: Counts
    finish: Literal["stop", "length"]
    seconds: float


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding,
    seed: int,
) -> list[Generation]:
    """Answer every prompt; the generations stand in the order of the prompts.

    `decoding.temperature` 0 is greedy; otherwise tokens are drawn from the `top_k` likeliest, and
    the draws depend on `seed` and `batch_size`.
    """
    tokenizer = vocabulary.tokenizer
    ids = [
        tokenizer(vocabulary.prompt(prompt.question, "first"), add_special_tokens=False)[
            "input_ids"
        ]
        for prompt in prompts
    ]
    ends = _end_ids(model)
    options = {
        "max_new_tokens": decoding.max_new_tokens,
        "eos_token_id": sorted(ends),
        "pad_token_id": tokenizer.pad_token_id,
        **sampling(decoding),
    }
    count = _Tally(vocabulary)
    images = _Images(processor.image_processor)
    torch.manual_seed(seed)
    generations: dict[int, Generation] = {}
    order = _order(prompts, ids)
    for first in range(0, len(order), decoding.batch_size):
        batch = order[first : first + decoding.batch_size]
        start = time.perf_counter()
        inputs = _inputs([ids[i] for i in batch], images([prompts[i] for i in batch]), processor)
        output = model.generate(**{k: v.to(model.device) for k, v in inputs.items()}, **options)
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        seconds = (time.perf_counter() - start) / len(batch)
        for i, row in zip(batch, rows, strict=True):
            end = next((at for at, token in enumerate(row) if token in ends), None)
            answer = row[:end]
            generations[i] = Generation(
                text=vocabulary.decode(answer),
                counts=Counts(
                    prompt=len(ids[i]),
                    decoded=len(answer) + (end is not None),
                    **count(answer),
                ),
                finish="length" if end is None else "stop",
                seconds=seconds,
            )
    return [generations[i] for i in range(len(prompts))]


def _end_ids(model: PreTrainedModel) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _order(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> list[int]:
    """Longest first, prompts of one image together at the place of their longest."""
    longest: dict[str, int] = {}
    for prompt, row in zip(prompts, ids, strict=True):
        longest[prompt.image_key] = max(longest.get(prompt.image_key, 0), len(row))
    return sorted(
        range(len(prompts)),
        key=lambda i: (-longest[prompts[i].image_key], prompts[i].image_key, -len(ids[i]), i),
    )


class _Images:
    """Tensors of a batch's images; what the next batch may share is kept, no more."""

    def __init__(self, process: Callable[..., Mapping[str, Any]]) -> None:
        self._process = process
        self._kept: dict[str, Mapping[str, Any]] = {}

    def __call__(self, prompts: Sequence[Prompt]) -> list[Mapping[str, Any]]:
        kept = {}
        for prompt in prompts:
            key = prompt.image_key
            if key not in kept:
                kept[key] = self._kept.get(key) or self._process(
                    [[prompt.load_image()]], return_tensors="np"
                )
        self._kept = kept
        return [kept[prompt.image_key] for prompt in prompts]


def _inputs(
    ids: Sequence[Sequence[int]], images: Sequence[Mapping[str, Any]], processor: ProcessorMixin
) -> dict[str, torch.Tensor]:
    """Mllama's tensors: text (batch, longest) padded on the left, one image a row."""
    width = max(len(row) for row in ids)
    pad_id = processor.tokenizer.pad_token_id
    padded = [[pad_id] * (width - len(row)) + list(row) for row in ids]
    pixels = np.concatenate([image["pixel_values"] for image in images])
    mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(row, processor.image_token_id) for row in padded],
        num_tiles=[image["num_tiles"][0] for image in images],
        max_num_tiles=pixels.shape[2],
        length=width,
    )
    arrays = {
        "input_ids": np.array(padded),
        "attention_mask": np.array([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
        "pixel_values": pixels,
        "cross_attention_mask": mask,
    }
    for key in ("aspect_ratio_ids", "aspect_ratio_mask"):
        arrays[key] = np.concatenate([image[key] for image in images])
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


class _Tally:
    """Counts thinking, tag and conclusion tokens of an answer.

    A tag can be one token or several, and a token can reach beyond a tag's edge. So tags are found
    in the text that the tokens' own pieces make, and a token that overlaps a tag belongs to it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._thinking = set(vocabulary.thinking_ids.values())
        # A thinking token is no text: without a piece it is neither tag nor conclusion.
        self._pieces: dict[int, str] = dict.fromkeys(self._thinking, "")

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._tokenizer.decode(
                [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return self._pieces[token]

    def __call__(self, ids: Sequence[int]) -> dict[str, int]:
        pieces = [self._piece(token) for token in ids]
        starts = [0, *itertools.accumulate(map(len, pieces))]
        text = "".join(pieces)
        tags = list(_TAG.finditer(text))
        tag_tokens = {i for tag in tags for i in _overlapping(starts, *tag.span())}
        conclusion: set[int] = set()
        opened = [tag for tag in tags if tag.group() == "<CONCLUSION>"]
        if opened:
            begin = opened[-1].end()
            closed = text.find("</CONCLUSION>", begin)
            conclusion = set(_overlapping(starts, begin, len(text) if closed < 0 else closed))
        return {
            "thinking": sum(token in self._thinking for token in ids),
            "tag": len(tag_tokens),
            "conclusion": len(conclusion - tag_tokens),
        }


def _overlapping(starts: Sequence[int], begin: int, end: int) -> Iterator[int]:
    """Tokens with a character in [begin, end); token i has those from starts[i] on."""
    for i in range(bisect.bisect_right(starts, begin) - 1, len(starts) - 1):
        if starts[i] >= end:
            return
        if starts[i + 1] > max(begin, starts[i]):
            yield i
