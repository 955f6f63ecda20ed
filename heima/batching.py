"""Turns -> padded tensors for Mllama.

Image tensors are made by the model's own image processor, once per image as far as memory
allows; the attention of text to its image follows transformers' own functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from heima.config import ONE_TOKEN, Thinking
from heima.corpus import ImageZip, Turn
from heima.cot import COMPRESSIBLE, ThinkingTokens, numbered, render, repeated
from heima.images import ImageCache, distinct
from heima.tokens import IGNORED, Encoded, Vocabulary


@dataclass(frozen=True)
class Sample:
    """An encoded turn and the path of its image."""

    encoded: Encoded
    image: str

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def labelled(self) -> int:
        return self.encoded.labelled


def encode_turns(
    turns: Sequence[Turn],
    rendering: str,
    vocabulary: Vocabulary,
    *,
    max_length: int,
    thinking: Thinking = ONE_TOKEN,
) -> list[Sample]:
    """Render and encode turns in one rendering of `cot.RENDERINGS`.

    With a `thinking.ratio` a section's tokens are counted in its text alone, without its tags.
    Raises `ValueError` naming the turn where one is longer than `max_length` tokens: cutting it
    would train on an answer without its conclusion.
    """
    same = None if thinking.tokens is None else numbered(thinking.tokens)
    encoded = vocabulary.encode_all(
        [
            (
                turn.question,
                "first" if turn.image_first else "last",
                render(turn.sections, rendering, same or _adaptive(turn, thinking, vocabulary)),
            )
            for turn in turns
        ]
    )
    for turn, one in zip(turns, encoded, strict=True):
        if len(one) > max_length:
            raise ValueError(
                f"turn {turn.id} has {len(one)} tokens as {rendering}, more than "
                f"distill.max_length = {max_length}"
            )
    return [Sample(one, turn.image) for turn, one in zip(turns, encoded, strict=True)]


def _adaptive(turn: Turn, thinking: Thinking, vocabulary: Vocabulary) -> ThinkingTokens:
    return repeated(
        {
            section: thinking.count(vocabulary.length(turn.sections[section]))
            for section in COMPRESSIBLE
        }
    )


def pad(
    rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right"
) -> torch.Tensor:
    """Rows of different length as one (rows, longest) int64 tensor, padded on one side."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows],
        batch_first=True,
        padding_value=value,
        padding_side=side,
    )


def pad_text(encoded: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each (batch, longest)."""
    return {
        "input_ids": pad([one.input_ids for one in encoded], pad_id),
        "attention_mask": pad([[1] * len(one.input_ids) for one in encoded], 0),
        "labels": pad([one.labels for one in encoded], IGNORED),
    }


class MllamaCollator:
    """Batches of `Sample`s for `heima.bodies.body`; images come from one zip.

    `image_rows`, (rows,), says which of the batch's images a row is about: with `once`, its
    distinct images are there once each, otherwise one a row, as transformers has it. `num_tiles`,
    (images,), counts the tiles that an image really has.
    """

    def __init__(self, processor: ProcessorMixin, images: ImageZip, *, once: bool = True) -> None:
        self._image_processor = processor.image_processor
        self._image_token_id = processor.image_token_id
        self._pad_id = processor.tokenizer.pad_token_id
        self._images = images
        self._once = once
        self._cache = ImageCache()

    def _image(self, name: str) -> Mapping[str, np.ndarray]:
        return self._cache.get(
            name,
            lambda: self._image_processor([[self._images.read(name)]], return_tensors="np"),
        )

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        batch = pad_text([sample.encoded for sample in samples], self._pad_id)
        names, rows = distinct([sample.image for sample in samples], once=self._once)
        images = [self._image(name) for name in names]
        for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"):
            batch[key] = torch.from_numpy(np.concatenate([one[key] for one in images]))
        counts = [one["num_tiles"][0][0] for one in images]
        batch["num_tiles"] = torch.tensor(counts)
        batch["image_rows"] = torch.tensor(rows)
        # (rows, longest, 1 image, tiles): text after an image attends to it, padding to none.
        batch["cross_attention_mask"] = torch.from_numpy(
            convert_sparse_cross_attention_mask_to_dense(
                [
                    get_cross_attention_token_mask(sample.encoded.input_ids, self._image_token_id)
                    for sample in samples
                ],
                num_tiles=[[counts[row]] for row in rows],
                max_num_tiles=batch["pixel_values"].shape[2],
                length=batch["input_ids"].shape[1],
            )
        )
        return batch
