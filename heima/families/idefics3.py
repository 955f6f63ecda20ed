"""Idefics3, as SmolVLM is one, and SmolLM2.

A large image is cut into rows and columns of tiles, and a small copy of the whole stands behind
them. Each takes as many image tokens of the text as the model makes features of a tile, with tokens
around them that say which tile it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from heima.cot.sections import THINKING_TOKENS
from heima.families.family import LINEARS, LLAMA_LORA, Family, standing_on

# SmolVLM's own, with the tokenizer's end of turn instead of a token that SmolLM2 does not have; and
# without the line break behind an answer's end, which is not part of an answer.
_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- message['role'].capitalize() + ':' }}
    {%- if message['content'] is string %}
        {{- ' ' + message['content'] }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' %}
                {{- '<image>' }}
            {%- elif item['type'] == 'text' %}
                {{- (' ' if loop.first else '') + item['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}"""


class Idefics3(Family):
    model_type = "idefics3"
    # As in LLaVA-NeXT: the language model, lm_head and projector.
    vlm_lora = (
        rf".*text_model\.layers\.\d+\.{LINEARS}|lm_head|.*connector\.modality_projection\.proj"
    )
    llm_lora = LLAMA_LORA
    thinking_tokens = standing_on(
        f"<|thinking_token_{number}|>" for number in range(len(THINKING_TOKENS))
    )
    added = True
    pad_token = "<|endoftext|>"
    chat_template = _TEMPLATE

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_model

    def projector(self, model: PreTrainedModel) -> nn.Module:
        return model.model.connector

    def language_model(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.model.text_model

    def process(self, image: Image.Image, processor: ProcessorMixin) -> Mapping[str, Any]:
        """`pixel_values` (1, tiles, 3, side, side) and `pixel_attention_mask` (1, tiles, side,
        side)."""
        one = processor.image_processor([[image]], return_row_col_info=True, return_tensors="np")
        text = processor.replace_image_token(one, 0)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return {**one, "placeholders": ids}

    def image_tensors(
        self,
        images: Sequence[Mapping[str, Any]],
        rows: Sequence[int],
        input_ids: torch.Tensor,
        processor: ProcessorMixin,
    ) -> dict[str, torch.Tensor]:
        """Both arrays as (images, most tiles of one, …); what is filled up is 0, and left out."""
        most = max(one["pixel_values"].shape[1] for one in images)
        return {
            key: torch.from_numpy(np.concatenate([_filled(one[key], most) for one in images]))
            for key in ("pixel_values", "pixel_attention_mask")
        }


def _filled(array: np.ndarray, tiles: int) -> np.ndarray:
    missing = tiles - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)])
