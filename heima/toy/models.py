"""What the twins of all families share: words as tokens, the LLM, and a tower that sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from heima.families import registry
from heima.toy.words import SECTION_TAGS, WORDS, world_words
from heima.toy.world import (
    CELLS,
    OBJECTS,
    Scene,
    render,
)

IMAGE = "<|image|>"
"""Llama 3's image token, for which an LLM has no row."""

INITIALIZER_RANGE = 0.08
"""Llama's .02 is made for widths of thousands; at a width of 64 it is small (1/8 is usual)."""
ROPE_THETA = 1000.0
"""Sequences have less than 100 tokens: with Llama's base most rotations would hardly turn."""

See = Callable[[torch.Tensor], torch.Tensor]
"""Indices of images, (n,), to their projected patches in reading order, (n, 4, width)."""


class Twin(Protocol):
    """The modules of `heima.toy.twins`: a family's tokenizer, processor and VLM, very small."""

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """The interpreter's."""

    def build_processor(self) -> ProcessorMixin:
        """The VLM's, with its tokenizer; its image part needs no torchvision."""

    def build_vlm(
        self, processor: ProcessorMixin, *, hidden_size: int, seed: int
    ) -> PreTrainedModel:
        """The VLM, untrained."""

    def sees(
        self, model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[Image.Image]
    ) -> See:
        """What the VLM's tower and projector make of images."""


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


def set_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let `generate` know the tokenizer's special tokens."""
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def warm_up_vision(
    twin: Twin,
    model: PreTrainedModel,
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
    see = twin.sees(model, processor, [render(scene) for scene in scenes])
    cells = torch.arange(len(CELLS))
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    width = model.config.text_config.hidden_size
    head = nn.Linear(width, len(OBJECTS) + len(CELLS))
    family = registry.of(model)
    eyes = [
        *family.vision_tower(model).parameters(),
        *family.projector(model).parameters(),
    ]
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
