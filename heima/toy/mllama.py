"""A tiny Mllama and its Llama, of the real classes, for the toy world.

The tokenizer is Llama 3 in miniature: the same special tokens, reserved slots for thinking tokens
inside the vocabulary, and `<|image|>` as the first id beyond the lm_head. Each word is a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_all_supported_aspect_ratios,
)

from heima.families.mllama import chat_template
from heima.toy.models import (
    IMAGE,
    INITIALIZER_RANGE,
    ROPE_THETA,
    See,
    set_generation,
    text_options,
    word_tokenizer,
)
from heima.toy.world import CELL_SIDE, IMAGE_SIDE, PHRASES

BOS, EOT, PAD = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
UNKNOWN = "<unk>"
RESERVED = tuple(f"<|reserved_special_token_{index}|>" for index in range(104))
"""Room for three sections of 32 numbered thinking tokens each, as the ablations ask for."""

CHAT_TEMPLATE = "{{- bos_token }}\n" + chat_template(
    begin=HEADERS[0], named=f"{HEADERS[1]}\\n\\n", end=EOT
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer.

    Its length is `vocab_size + 1` of the models: `<|image|>` has no row in the lm_head.
    Unknown words become `<unk>`. Decoding joins tokens with blanks, which gives every section
    text of the world back unchanged.
    """
    tokenizer = word_tokenizer(
        [UNKNOWN, PAD, BOS, *HEADERS, EOT, *RESERVED],
        PHRASES,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOT,
        additional_special_tokens=[*HEADERS, *RESERVED, IMAGE],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor() -> MllamaProcessor:
    """Build a real Mllama processor for 32x32 images of one tile (PIL backend, no torchvision)."""
    image_processor = MllamaImageProcessorPil(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        max_image_tiles=1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return MllamaProcessor(image_processor, build_tokenizer(), chat_template=CHAT_TEMPLATE)


def build_vlm(
    processor: MllamaProcessor,
    *,
    hidden_size: int = 64,
    layers: int = 5,
    cross_attention_layers: Iterable[int] = (1,),
    heads: int = 4,
    intermediate_size: int = 192,
    vision_size: int = 64,
    max_tiles: int = 1,
    initializer_range: float = INITIALIZER_RANGE,
    rope_theta: float = ROPE_THETA,
    seed: int,
) -> MllamaForConditionalGeneration:
    """Build an untrained Mllama whose cross-attention gates are open.

    Args:
        processor: gives the vocabulary, the image token and the image size.
        hidden_size, layers, heads, intermediate_size: the text model; cross-attention layers count
            as layers.
        cross_attention_layers: which of the layers attend to the image instead of the text. One
            early layer leaves a pass the layers behind it to gather, add and choose.
        vision_size: width of the vision tower (one local and one global layer).
        max_tiles: tiles that an image may have, each of the toy images' size.
        initializer_range: standard deviation of the initial weights.
        rope_theta: base of the rotary embedding.
        seed: of the initial weights.

    Raises:
        ValueError: if a cross-attention layer is not one of the layers.
    """
    cross = sorted(cross_attention_layers)
    if not all(0 <= layer < layers for layer in cross):
        raise ValueError(f"cross_attention_layers={cross} must lie in 0..{layers - 1}")
    tokenizer = processor.tokenizer
    text = MllamaTextConfig(
        vocab_size=len(tokenizer) - 1,
        cross_attention_layers=cross,
        **text_options(
            tokenizer, hidden_size, layers, heads, intermediate_size, initializer_range, rope_theta
        ),
    )
    vision = MllamaVisionConfig(
        hidden_size=vision_size,
        num_hidden_layers=1,
        num_global_layers=1,
        attention_heads=4,
        intermediate_size=2 * vision_size,
        vision_output_dim=2 * vision_size,
        intermediate_layers_indices=[0],
        image_size=IMAGE_SIDE,
        patch_size=CELL_SIDE,
        max_num_tiles=max_tiles,
        supported_aspect_ratios=[list(one) for one in get_all_supported_aspect_ratios(max_tiles)],
    )
    config = MllamaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        # From scratch a closed gate (0) leaves no path from the image to the text.
        for layer in cross:
            block = model.model.language_model.layers[layer]
            block.cross_attn_attn_gate.fill_(1.0)
            block.cross_attn_mlp_gate.fill_(1.0)
    set_generation(model, tokenizer)
    return model


def sees(
    model: MllamaForConditionalGeneration, processor: MllamaProcessor, images: Sequence[Image.Image]
) -> See:
    """The projected patches of the images' one tile."""
    batch = processor.image_processor([[image] for image in images], return_tensors="pt")

    def see(rows: torch.Tensor) -> torch.Tensor:
        seen = model.model.vision_model(
            pixel_values=batch["pixel_values"][rows],
            aspect_ratio_ids=batch["aspect_ratio_ids"][rows],
            aspect_ratio_mask=batch["aspect_ratio_mask"][rows],
        ).last_hidden_state
        # (images, 1, 1 tile, 1 class token + 4 patches, width) -> (images, 4, width)
        return model.model.multi_modal_projector(seen)[:, 0, 0, 1:]

    return see
