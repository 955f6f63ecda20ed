"""A tiny Idefics3 and its SmolLM2, of the real classes, for the toy world.

The tokenizer is SmolLM2's in miniature: its special tokens, nothing reserved. The VLM's has tokens
for images and for the end of a turn besides, all of them with rows of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from heima.toy.models import (
    INITIALIZER_RANGE,
    ROPE_THETA,
    See,
    set_generation,
    text_options,
    word_tokenizer,
)
from heima.toy.world import CELL_SIDE, IMAGE_SIDE, PHRASES

UNKNOWN, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
END = "<end_of_utterance>"
IMAGE_TOKENS = (
    *("<fake_token_around_image>", "<image>", END, "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
CHAT = ("User:", "Assistant:")
FEATURES = (IMAGE_SIDE // CELL_SIDE) ** 2
"""Of a tile: one for each patch, as none are put together (`scale_factor` 1)."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build SmolLM2's word-level tokenizer, which pads with its end of turn."""
    return word_tokenizer(
        [UNKNOWN, BOS, EOS],
        [*PHRASES, *CHAT],
        unk_token=UNKNOWN,
        pad_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
    )


def build_processor() -> Idefics3Processor:
    """Build a real Idefics3 processor (PIL backend, no torchvision) for tiles of 32x32 pixels.

    The world's images are one tile.
    """
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=True) for text in IMAGE_TOKENS]
    )
    tokenizer.eos_token = END
    side = {"longest_edge": IMAGE_SIDE}
    return Idefics3Processor(
        Idefics3ImageProcessorPil(
            size=side, max_image_size=side, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
        ),
        tokenizer,
        image_seq_len=FEATURES,
    )


def build_vlm(
    processor: Idefics3Processor,
    *,
    hidden_size: int = 64,
    layers: int = 4,
    heads: int = 4,
    intermediate_size: int = 192,
    vision_size: int = 64,
    initializer_range: float = INITIALIZER_RANGE,
    rope_theta: float = ROPE_THETA,
    seed: int,
) -> Idefics3ForConditionalGeneration:
    """Build an untrained Idefics3.

    Args:
        processor: gives the vocabulary and the image token.
        hidden_size, layers, heads, intermediate_size: the language model.
        vision_size: width of the vision tower, which has two layers.
        initializer_range: standard deviation of the initial weights.
        rope_theta: base of the rotary embedding.
        seed: of the initial weights.
    """
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        **text_options(
            tokenizer, hidden_size, layers, heads, intermediate_size, initializer_range, rope_theta
        ),
    )
    vision = Idefics3VisionConfig(
        hidden_size=vision_size,
        intermediate_size=2 * vision_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=CELL_SIDE,
        size={"longest_edge": IMAGE_SIDE},
        initializer_range=initializer_range,
    )
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=1,
        image_token_id=processor.image_token_id,
        initializer_range=initializer_range,
    )
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(config)
    set_generation(model, tokenizer)
    return model


def sees(
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    images: Sequence[Image.Image],
) -> See:
    """The projected patches of the images' one tile."""
    batch = processor.image_processor([[image] for image in images], return_tensors="pt")

    def see(rows: torch.Tensor) -> torch.Tensor:
        features = model.model.get_image_features(
            batch["pixel_values"][rows], batch["pixel_attention_mask"][rows]
        )
        return torch.stack(list(features.pooler_output))

    return see
