"""What a model needs of a GPU's memory: weights, what training keeps, keys and values. In bytes.

Estimates, for choosing a micro-batch and a number of GPUs: they leave out the CUDA context, what
the allocator holds unused, and buffers of communication, about 10 % together.

In training the frozen weights are sharded (FSDP2): each GPU holds its share of them and, while they
are used, the weights of one layer and those of the next in full, besides what stands in no layer
(embeddings, lm_head, projector). An adapter's weight has a gradient and two moments of AdamW, all
fp32. Attention is fused: it keeps queries, keys and values, and no scores.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import cachetools
from transformers import PreTrainedConfig

from heima.config import Lora
from heima.families import registry
from heima.planning.architectures import costs, on_meta
from heima.planning.costs import Picture
from heima.vlm.models import add_lora, trainable_parameters

ADAPTER_BYTES = 16
"""A trained parameter, its gradient and AdamW's two moments, four bytes each."""
LOGIT_BYTES = 10
"""A logit in bf16, once more in fp32 for the loss, and its gradient."""


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters.

    `trained` are those of the adapter, not among `frozen`; `outside` stand in none of the layers
    that are sharded one by one, of which `layer` is the largest; `language` are those that each
    decoded token needs.
    """

    frozen: int
    trained: int
    outside: int
    layer: int
    language: int


def _asked(config: PreTrainedConfig, targets: str, lora: Lora) -> Hashable:
    return config.to_json_string(use_diff=False), targets, lora


@cachetools.cached({}, key=_asked)
def weights(config: PreTrainedConfig, targets: str, lora: Lora) -> Weights:
    """Count the parameters of a model with a family's adapter, on the meta device.

    Kept: it takes a second, and one plan asks for each division of the work again.
    """
    model = on_meta(config)
    sizes = [
        sum(weight.numel() for weight in module.parameters())
        for module in model.modules()
        if type(module).__name__ in (model._no_split_modules or ())
    ]
    frozen = sum(weight.numel() for weight in model.parameters())
    vlm = hasattr(config, "vision_config")
    text = registry.of(model).language_model(model) if vlm else model.model
    read = sum(weight.numel() for weight in text.parameters()) + model.lm_head.weight.numel()
    return Weights(
        frozen=frozen,
        trained=trainable_parameters(add_lora(model, targets, lora, seed=0)),
        outside=frozen - sum(sizes),
        layer=max(sizes, default=0),
        # Of the embeddings a step reads a row for each sample.
        language=read - text.embed_tokens.weight.numel(),
    )


def layer_activations(text: PreTrainedConfig, size: int) -> float:
    """Bytes that a text layer with adapters keeps of a token for its backward pass.

    Numbers of `size` bytes: the inputs of the norms (in fp32), and of the adapters, queries, keys
    and values, and what the MLP multiplies.
    """
    return size * (6 * text.hidden_size + 4 * text.intermediate_size) + 8 * text.hidden_size


def training(
    config: PreTrainedConfig,
    held: Weights,
    *,
    size: int,
    shards: int,
    rows: float,
    tokens: float,
    labelled: float,
    images: float = 0,
    image: Picture | None = None,
    checkpointing: bool,
    logits_chunk: int | None,
) -> dict[str, float]:
    """What a GPU holds at the peak of a step, by part.

    `size` is that of a frozen weight, 2 or 4 bytes; `rows` of `tokens` positions, `labelled` of
    them with a loss, and `images` distinct images are computed at once; `logits_chunk` is the most
    positions whose logits are held, None: those of all positions.
    """
    text = getattr(config, "text_config", config)
    each = layer_activations(text, size)
    positions = rows * tokens
    kept = (
        positions * (text.num_hidden_layers * size * text.hidden_size + each)
        if checkpointing
        else positions * text.num_hidden_layers * each
    )
    predicted = positions if logits_chunk is None else min(rows * labelled, logits_chunk)
    parts = {
        "frozen weights": held.frozen * size / shards,
        "gathered layers": (held.outside + 2 * held.layer) * size if shards > 1 else 0.0,
        "adapter and optimizer": held.trained * ADAPTER_BYTES / shards,
        "text activations": kept,
        "logits": predicted * text.vocab_size * LOGIT_BYTES,
    }
    if image is not None:
        parts["image activations"] = images * _tower(config, image, size)
        parts["image activations"] += rows * _crossing(config, image, size, kept=not checkpointing)
        if layers := costs(config).trained_layers(config):
            tower = config.vision_config
            kept = size * (8 * tower.hidden_size + 2 * tower.intermediate_size) * image.tokens
            parts["image activations"] += images * (1 if checkpointing else layers) * kept
    return parts


def inference(
    config: PreTrainedConfig,
    held: Weights,
    *,
    size: int,
    rows: int,
    tokens: float,
    image: Picture | None = None,
) -> dict[str, float]:
    """What a GPU holds at the peak of decoding `rows` sequences that end with `tokens` positions.

    The adapter is merged into the weights, which are whole. Each row has an image of its own.
    """
    parts = {
        "weights": held.frozen * size,
        "keys and values": rows * cached(config, tokens, image) * size,
    }
    if image is not None:
        parts["image activations"] = rows * (
            _tower(config, image, size) + _crossing(config, image, size, kept=False)
        )
    return parts


def cached(config: PreTrainedConfig, tokens: float, image: Picture | None) -> float:
    """Numbers that the keys and values of a row of `tokens` positions and its image consist of."""
    text = getattr(config, "text_config", config)
    narrow = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    crossing = len(getattr(text, "cross_attention_layers", ()))
    seen = image.tokens if image is not None else 0
    return 2 * narrow * ((text.num_hidden_layers - crossing) * tokens + crossing * seen)


def _tower(config: PreTrainedConfig, image: Picture, size: int) -> float:
    """Bytes of an image in a frozen tower: its hidden states, one layer at work, the projector."""
    tower, width = config.vision_config, config.text_config.hidden_size
    encoded = costs(config).encoded(config, image)
    layer = 6 * tower.hidden_size + 2 * tower.intermediate_size
    states = (tower.num_hidden_layers + 1) * tower.hidden_size
    return size * (encoded.tokens * (states + layer + encoded.width + width) + encoded.mask)


def _crossing(config: PreTrainedConfig, image: Picture, size: int, *, kept: bool) -> float:
    """Bytes of a row's view of its image: its tokens, and keys and values for every head."""
    text = config.text_config
    crossing = len(getattr(text, "cross_attention_layers", ()))
    if not crossing:
        return 0.0
    narrow = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    layers = crossing if kept else 1
    return image.tokens * (
        size * text.hidden_size + layers * (size * (2 * text.hidden_size + narrow) + 4 * narrow)
    )
