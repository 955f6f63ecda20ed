"""LLaVA-NeXT and Vicuna.

An image becomes as many tokens of the text as the model has features for it: those of a small copy
of the whole image, then those of the tiles of the grid that fits it best, with one more at the end
of each row of patches.
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

# Vicuna's tokenizer has no chat template, and LLaVA-NeXT's processor puts every image first and
# no system prompt. This is the text that Vicuna 1.1 and LLaVA were tuned on. An image has a line of
# its own. SentencePiece keeps the blank before a word with the word, so a part of the text begins
# with the blank that separates it from the part before.
_VICUNA_TEMPLATE = """\
{{- bos_token }}
{{- ' A chat between a curious user and an artificial intelligence assistant. ' }}
{{- "The assistant gives helpful, detailed, and polite answers to the user's questions." }}
{%- for message in messages %}
    {{- ' ' + message['role'].upper() + ': ' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' %}
                {{- '<image>\\n' if loop.first else '\\n<image>' }}
            {%- elif item['type'] == 'text' %}
                {{- item['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- if message['role'] == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- ' ASSISTANT:' }}
{%- endif %}"""


class LlavaNext(Family):
    model_type = "llava_next"
    # The paper names no modules for this family: the language model as in Mllama, lm_head and
    # projector included. The whole CLIP tower is frozen, for it has no trained counterpart there.
    vlm_lora = (
        rf".*language_model\.layers\.\d+\.{LINEARS}"
        r"|lm_head"
        r"|.*multi_modal_projector\.linear_(1|2)"
    )
    llm_lora = LLAMA_LORA
    thinking_tokens = standing_on(
        f"<|thinking_token_{number}|>" for number in range(len(THINKING_TOKENS))
    )
    added = True
    pad_token = "<unk>"
    chat_template = _VICUNA_TEMPLATE

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_tower

    def process(self, image: Image.Image, processor: ProcessorMixin) -> Mapping[str, Any]:
        """`pixel_values` (1, tiles, 3, side, side), `image_sizes` (1, 2): height and width."""
        one = processor.image_processor([image], return_tensors="np")
        tokens = processor.replace_image_token(one, 0).count(processor.image_token)
        return {**one, "placeholders": [processor.image_token_id] * tokens}

    def image_tensors(
        self,
        images: Sequence[Mapping[str, Any]],
        rows: Sequence[int],
        input_ids: torch.Tensor,
        processor: ProcessorMixin,
    ) -> dict[str, torch.Tensor]:
        """`image_sizes`, and `pixel_values` as (tiles of all images, 3, side, side)."""
        arrays = {
            "pixel_values": np.concatenate([one["pixel_values"][0] for one in images]),
            "image_sizes": np.concatenate([one["image_sizes"] for one in images]),
        }
        return {key: torch.from_numpy(array) for key, array in arrays.items()}
