"""LLaVA-NeXT's tensors: turns or prompts, and their images, as its forward pass wants them.

An image stands in the text as one `<image>` token, as `heima.data.tokens` writes it; here it
becomes as many as the model has features for it: those of a small copy of the whole image, then
those of the tiles of the grid that fits it best, with one more at the end of each row of patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from heima.data.encoding import Sample, pad, pad_text
from heima.data.images import ImageZip
from heima.data.tokens import Encoded
from heima.families.images import ImageCache, distinct


def vision_tower(model: PreTrainedModel) -> nn.Module:
    return model.model.vision_tower


def process(image: Image.Image, processor: ProcessorMixin) -> Mapping[str, Any]:
    """An image as arrays: `pixel_values` (1, tiles, 3, side, side), `image_sizes` (1, 2).

    `image_sizes` is (height, width); `tokens` says how many tokens stand for the image.
    """
    one = processor.image_processor([image], return_tensors="np")
    return {**one, "tokens": processor.replace_image_token(one, 0).count(processor.image_token)}


def model_inputs(
    ids: Sequence[Sequence[int]],
    images: Sequence[Mapping[str, Any]],
    processor: ProcessorMixin,
    rows: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Text (batch, longest) padded on the left, and the images as given.

    Row i of the text is about the image `rows[i]`, by default the i-th.
    """
    rows = range(len(ids)) if rows is None else rows
    token = processor.image_token_id
    expanded = [
        expand(row, row, token, times=images[place]["tokens"])
        for row, place in zip(ids, rows, strict=True)
    ]
    return {
        "input_ids": pad(expanded, processor.tokenizer.pad_token_id, side="left"),
        "attention_mask": pad([[1] * len(row) for row in expanded], 0, side="left"),
        **_image_tensors(images),
    }


def expand(
    values: Sequence[int], ids: Sequence[int], image_token_id: int, *, times: int
) -> list[int]:
    """One value a token (the ids themselves, or labels), that of the image token `times` times.

    Raises `ValueError` where `ids` has not exactly one image token.
    """
    found = ids.count(image_token_id)
    if found != 1:
        raise ValueError(f"a turn must have exactly one image token, not {found}")
    place = ids.index(image_token_id)
    return [*values[:place], *[values[place]] * times, *values[place + 1 :]]


def _image_tensors(images: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """`image_sizes`, and `pixel_values` as (tiles of all images, 3, side, side): none is padded."""
    arrays = {
        "pixel_values": np.concatenate([one["pixel_values"][0] for one in images]),
        "image_sizes": np.concatenate([one["image_sizes"] for one in images]),
    }
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


class LlavaNextCollator:
    """Batches of `Sample`s for `heima.training.backbone.body`; images come from one zip.

    `image_rows`, (rows,), says which of the batch's images a row is about: with `once`, its
    distinct images are there once each, otherwise one a row, as transformers has it.
    """

    def __init__(self, processor: ProcessorMixin, images: ImageZip, *, once: bool = True) -> None:
        self._processor = processor
        self._images = images
        self._once = once
        self._cache = ImageCache()

    def _image(self, name: str) -> Mapping[str, Any]:
        return self._cache.get(name, lambda: process(self._images.read(name), self._processor))

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        names, rows = distinct([sample.image for sample in samples], once=self._once)
        images = [self._image(name) for name in names]
        expanded = [
            self._expanded(sample.encoded, images[row]["tokens"])
            for sample, row in zip(samples, rows, strict=True)
        ]
        return {
            **pad_text(expanded, self._processor.tokenizer.pad_token_id),
            **_image_tensors(images),
            "image_rows": torch.tensor(rows),
        }

    def _expanded(self, encoded: Encoded, tokens: int) -> Encoded:
        ids, token = encoded.input_ids, self._processor.image_token_id
        return Encoded(
            input_ids=expand(ids, ids, token, times=tokens),
            labels=expand(encoded.labels, ids, token, times=tokens),
            body=encoded.body + tokens - 1,
        )
