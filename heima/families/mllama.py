"""Mllama's tensors for generation: prompts padded on the left, and the images they are about.

The attention of text to its image follows transformers' own functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from heima.data.encoding import Sample, pad, pad_text
from heima.data.images import ImageZip
from heima.families.images import ImageCache, distinct


def vision_tower(model: PreTrainedModel) -> nn.Module:
    return model.model.vision_model


def process(image: Image.Image, processor: ProcessorMixin) -> Mapping[str, Any]:
    """An image as arrays: `pixel_values` (1, 1, tiles, 3, side, side), and its aspect ratio."""
    return processor.image_processor([[image]], return_tensors="np")


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
    input_ids = pad(ids, processor.tokenizer.pad_token_id, side="left")
    arrays = {
        key: np.concatenate([image[key] for image in images])
        for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    }
    token = processor.image_token_id
    arrays["cross_attention_mask"] = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(row, token) for row in input_ids.tolist()],
        num_tiles=[images[row]["num_tiles"][0] for row in rows],
        max_num_tiles=arrays["pixel_values"].shape[2],
        length=input_ids.shape[1],
    )
    return {
        "input_ids": input_ids,
        "attention_mask": pad([[1] * len(row) for row in ids], 0, side="left"),
        **{key: torch.from_numpy(array) for key, array in arrays.items()},
    }


class MllamaCollator:
    """Batches of `Sample`s for `heima.training.backbone.body`; images come from one zip.

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
