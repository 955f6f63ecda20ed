"""A tiny LLaVA-NeXT and its Vicuna, of the real classes, for the toy world.

The tokenizer is Llama 2's in miniature: three special tokens, `<image>` and `<pad>` behind the
words, nothing reserved, no chat template. The embeddings have a few rows more than the tokenizer
has tokens, as those of the published model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from heima.toy.models import (
    INITIALIZER_RANGE,
    ROPE_THETA,
    See,
    set_generation,
    text_options,
    word_tokenizer,
)
from heima.toy.world import CELL_SIDE, IMAGE_SIDE, PHRASES

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
IMAGE, PAD = "<image>", "<pad>"
CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.",
    "USER:",
    "ASSISTANT:",
)
"""The constant wordings of Vicuna's chat; each is a token, like those of the world's prompts."""

ROWS = 64
"""The embeddings' rows are a multiple of it, as in the published model."""

GRID = [[IMAGE_SIDE, IMAGE_SIDE], [IMAGE_SIDE, 2 * IMAGE_SIDE], [2 * IMAGE_SIDE, IMAGE_SIDE]]
"""Resolutions, (height, width), into which an image can be cut. The world's images are one tile,
which stands behind the copy of the whole image with a token at the end of each of its two rows:
10 tokens."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build Vicuna's word-level tokenizer; like Vicuna's it pads with `<unk>`."""
    return word_tokenizer(
        [UNKNOWN, BOS, EOS],
        [*PHRASES, *CHAT],
        unk_token=UNKNOWN,
        pad_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
    )


def build_processor() -> LlavaNextProcessor:
    """Build a real LLaVA-NeXT processor (PIL backend, no torchvision) for tiles of 32x32 pixels."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=True) for text in (IMAGE, PAD)]
    )
    tokenizer.pad_token = PAD
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    return LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE_SIDE},
            crop_size=side,
            image_grid_pinpoints=GRID,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        tokenizer,
        patch_size=CELL_SIDE,
        vision_feature_select_strategy="default",
        # The class token of the vision tower, which the strategy leaves out again.
        num_additional_image_tokens=1,
    )


def build_vlm(
    processor: LlavaNextProcessor,
    *,
    hidden_size: int = 64,
    layers: int = 4,
    heads: int = 4,
    intermediate_size: int = 192,
    vision_size: int = 64,
    initializer_range: float = INITIALIZER_RANGE,
    rope_theta: float = ROPE_THETA,
    seed: int,
) -> LlavaNextForConditionalGeneration:
    """Build an untrained LLaVA-NeXT.

    Args:
        processor: gives the vocabulary and the image token.
        hidden_size, layers, heads, intermediate_size: the language model.
        vision_size: width of the CLIP tower. It has two layers, and the features are those of the
            last but one, as in the published model.
        initializer_range: standard deviation of the initial weights.
        rope_theta: base of the rotary embedding.
        seed: of the initial weights.
    """
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=-(-len(tokenizer) // ROWS) * ROWS,
        **text_options(
            tokenizer, hidden_size, layers, heads, intermediate_size, initializer_range, rope_theta
        ),
    )
    vision = CLIPVisionConfig(
        hidden_size=vision_size,
        intermediate_size=2 * vision_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=CELL_SIDE,
    )
    config = LlavaNextConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        initializer_range=initializer_range,
    )
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config)
    set_generation(model, tokenizer)
    return model


def sees(
    model: LlavaNextForConditionalGeneration,
    processor: LlavaNextProcessor,
    images: Sequence[Image.Image],
) -> See:
    """The projected patches of the copy of the whole image."""
    # The first tile is the whole image; the others show the same once more.
    process = processor.image_processor
    pixels = torch.cat(
        [process([one], return_tensors="pt")["pixel_values"][:, 0] for one in images]
    )
    core, layer = model.model, model.config.vision_feature_layer

    def see(rows: torch.Tensor) -> torch.Tensor:
        seen = core.vision_tower(pixels[rows], output_hidden_states=True).hidden_states[layer]
        # Without the class token.
        return core.multi_modal_projector(seen[:, 1:])

    return see
