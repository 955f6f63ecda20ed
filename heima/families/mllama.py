"""Mllama (Llama 3.2 Vision) and Llama 3.

An image is one token of the text; layers of cross-attention look at its tiles, from that token on.
The attention of text to its image follows transformers' own functions.

With states fed back, short segments of text look at an image again and again: there its keys and
values are not spread over the heads that share them (`_grouped`).

With `tiles="real"`, padding tiles are left out: what the vision encoder would make of them is taken
to be 0. That is **not** the pretrained function: transformers hides padding only from padding, so
there real tiles attend to it; and tokens before the image attend to all tiles alike.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.mllama.modeling_mllama import MllamaModel, MllamaTextCrossAttention
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from heima.config import Tiles
from heima.cot.sections import THINKING_TOKENS
from heima.families.family import LLAMA_LORA, Body, Family, standing_on
from heima.families.feeding import Feed, by_segments

_TEMPLATE = """\
{%- for message in messages %}
    {{- '(begin)' + message['role'] + '(named)' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif item['type'] == 'text' %}
                {{- item['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '(end)' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '(begin)assistant(named)' }}
{%- endif %}"""


def chat_template(*, begin: str, named: str, end: str) -> str:
    """A chat template in Jinja: each message between `begin`, its role, `named`, and `end`.

    Content items stand where they stand in the list, so the image can come before or after the
    text. The marks are as a string of Jinja has them: a line break is `\\n`.
    """
    marks = {"(begin)": begin, "(named)": named, "(end)": end}
    return functools.reduce(lambda text, mark: text.replace(mark, marks[mark]), marks, _TEMPLATE)


class Mllama(Family):
    model_type = "mllama"
    vlm_lora = (
        r".*language_model\.layers\.\d+\.(self_attn|cross_attn)\.(q|k|v|o)_proj"
        r"|.*language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj"
        r"|lm_head"
        r"|.*vision_model\.global_transformer\..*(q_proj|k_proj|v_proj|o_proj|fc1|fc2)"
        r"|.*multi_modal_projector"
    )
    llm_lora = LLAMA_LORA
    image_is_one_token = True
    # The unnumbered three are Llama 3's ids 128013, 128014 and 128015; the numbered ones follow.
    thinking_tokens = standing_on(
        f"<|reserved_special_token_{number}|>" for number in range(5, 5 + len(THINKING_TOKENS))
    )

    # Llama 3.1's LLM names no token for padding, and has no unknown one.
    pad_token = "<|finetune_right_pad_id|>"

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_model

    def cross_attention_layers(self, config: MllamaConfig) -> Sequence[int]:
        return config.text_config.cross_attention_layers

    def process(self, image: Image.Image, processor: ProcessorMixin) -> Mapping[str, Any]:
        """`pixel_values` (1, 1, tiles, 3, side, side), its aspect ratio and `num_tiles`."""
        one = processor.image_processor([[image]], return_tensors="np")
        return {**one, "placeholders": [processor.image_token_id]}

    def image_tensors(
        self,
        images: Sequence[Mapping[str, Any]],
        rows: Sequence[int],
        input_ids: torch.Tensor,
        processor: ProcessorMixin,
    ) -> dict[str, torch.Tensor]:
        """The images' pixels and aspect ratios, and which of their tiles a token attends to."""
        tensors = {
            key: torch.from_numpy(np.concatenate([one[key] for one in images]))
            for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        }
        # (rows, longest, 1 image, tiles): text attends from its image on.
        mask = convert_sparse_cross_attention_mask_to_dense(
            [
                get_cross_attention_token_mask(row, processor.image_token_id)
                for row in input_ids.tolist()
            ],
            num_tiles=[images[row]["num_tiles"][0] for row in rows],
            max_num_tiles=tensors["pixel_values"].shape[2],
            length=input_ids.shape[1],
        )
        return {**tensors, "cross_attention_mask": torch.from_numpy(mask)}

    @contextlib.contextmanager
    def spread(self, model: PreTrainedModel, rows: Sequence[int]) -> Iterator[None]:
        # transformers projects tile by tile: (images * tiles, patches, hidden).
        tiles = model.config.vision_config.max_num_tiles
        hooks = _repeat(model.model, torch.tensor(rows, device=model.device), tiles)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def body(self, model: PreTrainedModel, tiles: Tiles, feed: Feed | None = None) -> Body:
        """A call may name `tiles`, too.

        Where gradients are computed, a call leaves hooks in the model, which gradient checkpointing
        needs when it computes a layer again during the backward pass; the next call removes them,
        so that a model may have several bodies.
        """
        return _States(model, tiles, feed)


def _repeat(model: MllamaModel, rows: torch.Tensor, parts: int) -> list[RemovableHandle]:
    """Turn keys and values of each image into those of each row; their gradients add up.

    The layers are given them in `parts` of each image, (images * parts, patches, hidden).
    """
    text = model.language_model

    def repeat(module: nn.Module, args: object, projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(0, (-1, parts)).flatten(1, 2)[rows]

    return [
        projection.register_forward_hook(repeat)
        for index in text.config.cross_attention_layers
        for projection in (
            text.layers[index].cross_attn.k_proj,
            text.layers[index].cross_attn.v_proj,
        )
    ]


_HOOKS: WeakKeyDictionary[MllamaModel, list[RemovableHandle]] = WeakKeyDictionary()


class _States:
    def __init__(
        self, model: MllamaForConditionalGeneration, tiles: Tiles, feed: Feed | None
    ) -> None:
        self._model = model.model
        self._tiles = tiles
        self._feed = feed

    def __call__(
        self,
        *,
        pixel_values: torch.Tensor,
        aspect_ratio_ids: torch.Tensor,
        aspect_ratio_mask: torch.Tensor,
        cross_attention_mask: torch.Tensor,
        image_rows: torch.Tensor,
        tiles: Tiles | None = None,
        **text: torch.Tensor,
    ) -> torch.Tensor:
        self._release()
        _HOOKS[self._model] = _repeat(self._model, image_rows, 1)
        images = (pixel_values, aspect_ratio_ids, aspect_ratio_mask)
        if (tiles or self._tiles) == "padded":
            seen = self._encode(*images)
        else:
            seen = self._encode_real_tiles(*images)
        # (images, tiles, patches, hidden) -> (images, tiles * patches, hidden)
        seen = seen.flatten(1, 2)
        if self._feed is None:
            hidden = self._model(
                **text,
                cross_attention_states=seen,
                cross_attention_mask=cross_attention_mask,
                use_cache=False,
            ).last_hidden_state
        else:
            # Its keys and values, once projected, are those that later segments find in the cache.
            with _grouping(self._model):
                hidden = by_segments(
                    self._model,
                    self._model.get_input_embeddings(),
                    self._feed,
                    text=text,
                    image={"cross_attention_states": seen},
                    columns={"cross_attention_mask": cross_attention_mask},
                    cache=DynamicCache(config=self._model.config.get_text_config()),
                )
        if not torch.is_grad_enabled():
            self._release()
        return hidden

    def _release(self) -> None:
        for hook in _HOOKS.pop(self._model, ()):
            hook.remove()

    def _encode(
        self, pixels: torch.Tensor, ratios: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Projected patches of each image, (images, tiles, patches, hidden)."""
        seen = self._model.vision_model(pixels, ratios, mask).last_hidden_state
        return self._model.multi_modal_projector(seen[:, 0])

    def _encode_real_tiles(
        self, pixels: torch.Tensor, ratios: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """As `_encode`, with images of equal numbers of tiles encoded together."""
        vision, project = self._model.vision_model, self._model.multi_modal_projector
        parts: dict[int, torch.Tensor] = {}
        # (images, 1, tiles): the tiles that an image really has.
        counts = mask[:, 0].sum(dim=-1)
        for count in counts.unique().tolist():
            alike = (counts == count).nonzero(as_tuple=True)[0]
            with _FewerTiles(vision, count):
                seen = vision(pixels[alike, :, :count], ratios[alike], mask[alike, :, :count])
            projected = project(seen.last_hidden_state[:, 0])
            missing = vision.max_num_tiles - count
            filled = nn.functional.pad(projected, (0, 0, 0, 0, 0, missing))
            for place, image in zip(alike.tolist(), filled, strict=True):
                parts[place] = image
        return torch.stack([parts[place] for place in range(len(pixels))])


@contextlib.contextmanager
def _grouping(model: MllamaModel) -> Iterator[None]:
    """Within it, the text's attention to its image is `_grouped`, if it was torch's."""
    config = model.config.get_text_config()
    chosen = config._attn_implementation
    if chosen == "sdpa":
        config._attn_implementation = _GROUPED
    try:
        yield
    finally:
        config._attn_implementation = chosen


def _grouped(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`sdpa`, but that heads which share a key of the image ask it as so many queries more.

    To spread keys and values over the heads instead, as `sdpa` does under a mask, copies thousands
    of them for each segment, and their gradients, for a few queries.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups == 1 or not isinstance(module, MllamaTextCrossAttention):
        return sdpa_attention_forward(
            *(module, query, key, value, attention_mask), dropout, scaling, **kwargs
        )
    rows, heads, length, _ = query.shape
    if attention_mask is not None:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    found = nn.functional.scaled_dot_product_attention(
        query.reshape(rows, heads // groups, groups * length, -1),
        *(key, value),
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return found.reshape(rows, heads, length, -1).transpose(1, 2).contiguous(), None


_GROUPED = "heima-grouped"
AttentionInterface.register(_GROUPED, _grouped)
AttentionMaskInterface.register(_GROUPED, sdpa_mask)


class _FewerTiles:
    """Within it, a vision model takes images of `count` tiles instead of its full number.

    Its tile and position embeddings are made for the full number: for them alone, tiles are filled
    up and cut off again.
    """

    def __init__(self, vision: PreTrainedModel, count: int) -> None:
        self._embeddings = (
            vision.pre_tile_positional_embedding,
            vision.gated_positional_embedding,
            vision.post_tile_positional_embedding,
        )
        self._missing = vision.max_num_tiles - count
        self._count = count

    def __enter__(self) -> None:
        self._hooks = [
            hook
            for module in self._embeddings
            for hook in (
                module.register_forward_pre_hook(self._fill),
                module.register_forward_hook(self._cut),
            )
        ]

    def __exit__(self, *fault: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _fill(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, ratios = args
        return nn.functional.pad(hidden, (0, 0, 0, 0, 0, self._missing)), ratios

    def _cut(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        return output[:, : self._count]
