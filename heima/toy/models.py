"""Tokenizer, processor and tiny models of the real classes for the toy world.

The tokenizer is Llama 3 in miniature: the same special tokens, reserved slots for thinking tokens
inside the vocabulary, and `<|image|>` as the first id beyond the lm_head. Each word is a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_all_supported_aspect_ratios,
)

from heima.toy.words import SECTION_TAGS, WORDS, world_words
from heima.toy.world import (
    CELL_SIDE,
    CELLS,
    IMAGE_SIDE,
    OBJECTS,
    PHRASES,
    Scene,
    render,
)
from heima.vlm.generation import architecture

BOS, EOT, PAD = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
IMAGE, UNKNOWN = "<|image|>", "<unk>"
RESERVED = tuple(f"<|reserved_special_token_{index}|>" for index in range(104))
"""Room for three sections of 32 numbered thinking tokens each, as the ablations ask for."""

INITIALIZER_RANGE = 0.08
"""Llama's .02 is made for widths of thousands; at a width of 64 it is small (1/8 is usual)."""
ROPE_THETA = 1000.0
"""Sequences have less than 100 tokens: with Llama's base most rotations would hardly turn."""

# Content items stand where they stand in the list, so the image can come before or after the text.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
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
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""


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


def word_tokenizer(
    special: Iterable[str], phrases: Iterable[str], **special_tokens: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer with an id a word: the `special` tokens, tags, `phrases`, words of the world.

    `special_tokens` are the tokenizer's own arguments that say what the special ones are for.
    """
    # White space behind a phrase carries nothing: a prompt of the protocol `vlmevalkit` ends
    # with some, which a turn's question has lost.
    whole = [AddedToken(text, normalized=False) for text in SECTION_TAGS]
    whole += [AddedToken(text, normalized=False, rstrip=True) for text in phrases]
    vocabulary = {word: i for i, word in enumerate([*special, *map(str, whole)])}
    for word in world_words():
        vocabulary.setdefault(word, len(vocabulary))
    backend = Tokenizer(WordLevel(vocabulary, unk_token=special_tokens["unk_token"]))
    backend.pre_tokenizer = WORDS
    backend.add_tokens(whole)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        **special_tokens,
    )


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


def build_llm(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int = 64,
    layers: int = 4,
    heads: int = 4,
    intermediate_size: int = 192,
    initializer_range: float = INITIALIZER_RANGE,
    rope_theta: float = ROPE_THETA,
    seed: int,
) -> LlamaForCausalLM:
    """Build an untrained Llama with the tokenizer's vocabulary, but for Mllama's `<|image|>`.

    Thinking states enter without a projection only where `hidden_size` is the VLM's.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) - (IMAGE in tokenizer.get_vocab()),
            **text_options(
                tokenizer,
                hidden_size,
                layers,
                heads,
                intermediate_size,
                initializer_range,
                rope_theta,
            ),
        )
    )
    set_generation(model, tokenizer)
    return model


def text_options(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int,
    layers: int,
    heads: int,
    intermediate_size: int,
    initializer_range: float,
    rope_theta: float,
) -> dict[str, Any]:
    """What the configurations of all text models here have in common."""
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "max_position_embeddings": 2048,
        "initializer_range": initializer_range,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def set_generation(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let `generate` know the tokenizer's special tokens."""
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def warm_up_vision(
    model: MllamaForConditionalGeneration | LlavaNextForConditionalGeneration,
    processor: ProcessorMixin,
    scenes: Iterable[Scene],
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int,
) -> float:
    """Teach the vision tower and the projector what stands in which cell; changes `model`.

    A throw-away head reads the object *and* the cell from each projected patch. With the object
    alone the position is lost and captions never become exact.

    Args:
        scenes: images to learn from; at least one.
        steps: updates of AdamW with `batch_size` images each, drawn with replacement.

    Returns:
        Share of patches of the last batch whose object and cell were both right.

    Raises:
        ValueError: if there are no scenes.
    """
    scenes = list(scenes)
    if not scenes:
        raise ValueError("scenes is empty; the vision tower needs at least one to learn from")
    things = torch.tensor([[OBJECTS.index(thing) for thing in scene.objects] for scene in scenes])
    see = _SEE[model.config.model_type](model, processor, [render(scene) for scene in scenes])
    cells = torch.arange(len(CELLS))
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    width = model.config.text_config.hidden_size
    head = nn.Linear(width, len(OBJECTS) + len(CELLS))
    tower = architecture(model).vision_tower(model)
    eyes = [*tower.parameters(), *model.model.multi_modal_projector.parameters()]
    optimizer = torch.optim.AdamW([*eyes, *head.parameters()], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    right = 0.0
    for _ in range(steps):
        rows = torch.randint(len(scenes), (batch_size,), generator=generator)
        thing_logits, cell_logits = head(see(rows)).split([len(OBJECTS), len(CELLS)], dim=-1)
        where = cells.expand(batch_size, -1)
        loss = nn.functional.cross_entropy(thing_logits.flatten(0, 1), things[rows].flatten())
        loss = loss + nn.functional.cross_entropy(cell_logits.flatten(0, 1), where.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        hit = (thing_logits.argmax(-1) == things[rows]) & (cell_logits.argmax(-1) == where)
        right = hit.float().mean().item()
    return right


See = Callable[[torch.Tensor], torch.Tensor]
"""Indices of images, (n,), to their projected patches in reading order, (n, 4, width)."""


def _mllama_sees(
    model: MllamaForConditionalGeneration, processor: ProcessorMixin, images: list[Image.Image]
) -> See:
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


def _llava_next_sees(
    model: LlavaNextForConditionalGeneration, processor: ProcessorMixin, images: list[Image.Image]
) -> See:
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


_SEE = {"mllama": _mllama_sees, "llava_next": _llava_next_sees}
