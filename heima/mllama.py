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

from heima.batching import pad


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
