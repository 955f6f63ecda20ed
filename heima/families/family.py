"""What differs between families, and what the registry's entries promise.

A family is a VLM and its interpreter LLM (recipe, sections 2 and 3). Its names, adapters, tokens,
chat text and tensors stand in one module beside this one; its twin of the toy world in the module
of the same name in `heima.toy`, and what it costs in that of `heima.planning`, so that a formula
of costs trains nothing anew. Nothing else tells one family from another.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from heima.config import Tiles
from heima.cot.sections import THINKING_TOKENS
from heima.families.feeding import Feed, by_segments

Body = Callable[..., torch.Tensor]
"""Last hidden states, (rows, length, hidden_size), after the final norm, for a batch."""


TEXT = ("input_ids", "attention_mask", "position_ids")
"""What a batch says of its text, labels apart, where states are fed back."""


class Family(ABC):
    """A VLM and its interpreter LLM.

    - `model_type`: the VLM's in transformers.
    - `vlm_lora`, `llm_lora`: regular expressions over module names, matched whole: short names
      would also hit the frozen vision tower.
    - `thinking_tokens`: each of `sections.THINKING_TOKENS` -> the token of the vocabulary that it
      stands on. So a thinking token has the same id in every checkpoint.
    - `added`: whether those tokens are added to a tokenizer that has no reserved ones; the
      embeddings and the lm_head get rows for them (`heima.vlm.models`).
    - `image_is_one_token`: of the text, whatever its size.
    - `chat_template`: replaces that of tokenizer and processor; None: the tokenizer's own.
    - `pad_token`: the token of the vocabulary that pads where a tokenizer names none. It ends no
      turn: ends are looked for.
    """

    model_type: ClassVar[str]
    vlm_lora: ClassVar[str]
    llm_lora: ClassVar[str]
    thinking_tokens: ClassVar[Mapping[str, str]]
    added: ClassVar[bool] = False
    image_is_one_token: ClassVar[bool] = False
    chat_template: ClassVar[str | None] = None
    pad_token: ClassVar[str]

    @abstractmethod
    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        """The part of the VLM that encodes images, projector apart."""

    def projector(self, model: PreTrainedModel) -> nn.Module:
        """What turns the vision tower's output into the language model's width."""
        return model.model.multi_modal_projector

    def language_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The text layers with their embeddings, lm_head apart."""
        return model.model.language_model

    def cross_attention_layers(self, config: PreTrainedConfig) -> Sequence[int]:
        """The layers of the language model that look at an image instead of the text."""
        return ()

    @abstractmethod
    def process(self, image: Image.Image, processor: ProcessorMixin) -> Mapping[str, Any]:
        """An image as arrays, `pixel_values` among them, and `placeholders`: the token ids that
        stand in the text where the image does."""

    def image_tokens(self, size: tuple[int, int], processor: ProcessorMixin) -> int:
        """How many `placeholders` an image of this width and height has."""
        if self.image_is_one_token:
            return 1
        # What the processors of transformers tell an engine that plans its memory by sizes.
        counted = processor._get_num_multimodal_tokens(image_sizes=[size[::-1]])
        return counted["num_image_tokens"][0]

    @abstractmethod
    def image_tensors(
        self,
        images: Sequence[Mapping[str, Any]],
        rows: Sequence[int],
        input_ids: torch.Tensor,
        processor: ProcessorMixin,
    ) -> dict[str, torch.Tensor]:
        """What the VLM takes beside the text, `input_ids` (rows, longest).

        `images` are the batch's, each processed; row i of the text is about the image `rows[i]`.
        """

    @contextlib.contextmanager
    def spread(self, model: PreTrainedModel, rows: Sequence[int]) -> Iterator[None]:
        """While it is open, row i of the text looks at the image `rows[i]` of those given.

        The vision tower sees each image once; the gradients of its rows add up on their way back.

        Here for a VLM that fills image tokens with a list of features, (tokens of the image,
        hidden) each. `generate` asks for them ahead of the first forward pass: so it is the method
        that both use which answers with repeated ones.
        """
        core = model.model
        encode = core.get_image_features

        # `generate` reads from the signature what to pass.
        @functools.wraps(encode)
        def repeated(*args: Any, **kwargs: Any) -> Any:
            encoded = encode(*args, **kwargs)
            encoded.pooler_output = [encoded.pooler_output[row] for row in rows]
            return encoded

        core.get_image_features = repeated
        try:
            yield
        finally:
            del core.get_image_features

    def body(self, model: PreTrainedModel, tiles: Tiles, feed: Feed | None = None) -> Body:
        """The last hidden states of `model` on a batch of `batches.Collator`, labels apart.

        `tiles` matters where images are filled up with empty tiles (see `Params.training`). With
        `feed`, states are fed back; the batch is then one of a collator with its `thoughts`.
        """

        def states(*, image_rows: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
            with self.spread(model, image_rows.tolist()):
                if feed is None:
                    return model.model(**inputs, use_cache=False).last_hidden_state
                return by_segments(
                    model.model,
                    model.get_input_embeddings(),
                    feed,
                    text={name: inputs.pop(name) for name in TEXT},
                    image=inputs,
                    columns={},
                    cache=DynamicCache(config=model.config.get_text_config()),
                )

        return states


def standing_on(tokens: Iterable[str]) -> dict[str, str]:
    """The thinking tokens in their order, each on one of `tokens`."""
    return dict(zip(THINKING_TOKENS, tokens, strict=True))


LINEARS = r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""The linear layers of a text layer of Llama, as a regular expression."""

LLAMA_LORA = rf".*layers\.\d+\.{LINEARS}|lm_head"
"""The scope of an interpreter's adapter (recipe, section 3)."""
