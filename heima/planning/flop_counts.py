"""What a model's passes cost: FLOPs from its configuration alone.

Counted are matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them:
two FLOPs for each multiply-add, attention over every pair of positions, masked or not (the kernels
that take a mask compute them all). Norms, activations and the optimizer are below 1 %. The formulas
are held against that counter on models that run, and on the full-size ones without memory.

In training the weights are frozen and have LoRA adapters where the family's scope says so (recipe,
section 2). A frozen layer takes part in the backward pass as far as gradients of its input are
needed; gradients of its weights are never computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Flops:
    """FLOPs of a part: `recomputed` is what gradient checkpointing runs a second time."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recomputed + other.recomputed,
        )

    def __mul__(self, times: float) -> Flops:
        return Flops(self.forward * times, self.backward * times, self.recomputed * times)

    @property
    def checkpointed(self) -> Flops:
        """The same part, with only the inputs of its layers kept for the backward pass."""
        return Flops(self.forward, self.backward, self.forward if self.backward else 0.0)

    def total(self, *, checkpointing: bool) -> float:
        return self.forward + self.backward + (self.recomputed if checkpointing else 0.0)


def linear(
    tokens: float, inputs: int, outputs: int, *, rank: int = 0, reached: bool = False
) -> Flops:
    """A frozen layer with an adapter of `rank`, or none; `reached`: its input needs gradients."""
    whole, down, up = (
        2 * tokens * size for size in (inputs * outputs, inputs * rank, rank * outputs)
    )
    # The adapter's two weights, what runs back through its second one, and both paths' inputs.
    weights = down + 2 * up
    return Flops(whole + down + up, weights + (whole + down if reached else 0.0))


def _attention(pairs: float, width: int, *, trained: bool) -> Flops:
    """Scores and weighted sums of `pairs` positions: two products, and four on the way back."""
    return Flops(4 * pairs * width, 8 * pairs * width if trained else 0.0)


def language(
    config: PreTrainedConfig,
    tokens: float,
    *,
    pairs: float,
    logits: float,
    seen: float = 0,
    fresh: bool = True,
    rank: int = 0,
    reached: bool = False,
) -> Flops:
    """The language model on `tokens` positions, and its lm_head on `logits` of them.

    `pairs` counts (query, key) pairs of self-attention: tokens² where a text is read at once.
    `seen` image tokens are attended to by cross-attention layers, where there are any; their keys
    and values are computed if `fresh`, else kept from an earlier pass. `rank` is that of the
    adapters on every layer and the lm_head, 0 without; `reached` says whether gradients of the
    embeddings are needed.
    """
    width, inner = config.hidden_size, config.intermediate_size
    narrow = width * config.num_key_value_heads // config.num_attention_heads
    crossing = set(getattr(config, "cross_attention_layers", ()))
    layers = Flops()
    for index in range(config.num_hidden_layers):
        # Before the first adapter nothing needs a gradient; behind it everything does.
        flowing = reached or (rank > 0 and index > 0)
        layers += linear(tokens, width, width, rank=rank, reached=flowing)
        if index in crossing:
            attended = tokens * seen
            keys = linear(seen if fresh else 0, width, narrow, rank=rank, reached=rank > 0)
        else:
            attended = pairs
            keys = linear(tokens, width, narrow, rank=rank, reached=flowing)
        layers += keys * 2 + _attention(attended, width, trained=rank > 0 or reached)
        behind = rank > 0 or reached
        layers += linear(tokens, width, width, rank=rank, reached=behind)
        layers += linear(tokens, width, inner, rank=rank, reached=behind) * 2
        layers += linear(tokens, inner, width, rank=rank, reached=behind)
    head = linear(logits, width, config.vocab_size, rank=rank, reached=rank > 0 or reached)
    return layers.checkpointed + head


def decoding(config: PreTrainedConfig, tokens: float, *, prompt: float, seen: float = 0) -> Flops:
    """Decoding `tokens` positions one by one behind a prompt, with keys and values kept.

    `tokens` counts passes: an answer's tokens, less the one that the prompt's pass gives.
    """
    pairs = tokens * prompt + tokens * (tokens + 1) / 2
    return language(config, tokens, pairs=pairs, logits=tokens, seen=seen, fresh=False)


def tower_layer(
    tokens: float, pairs: float, hidden: int, inner: int, *, rank: int = 0, reached: bool = False
) -> Flops:
    """A layer of a vision tower on `tokens` positions; see `language` for the others."""
    behind = rank > 0 or reached
    return (
        linear(tokens, hidden, hidden, rank=rank, reached=reached) * 3
        + _attention(pairs, hidden, trained=behind)
        + linear(tokens, hidden, hidden, rank=rank, reached=behind)
        + linear(tokens, hidden, inner, rank=rank, reached=behind)
        + linear(tokens, inner, hidden, rank=rank, reached=behind)
    )


def patching(tower: PreTrainedConfig, tiles: float) -> Flops:
    """The convolution that makes each patch of `tiles` tiles a vector."""
    patches = (tower.image_size // tower.patch_size) ** 2
    return Flops(2 * tiles * patches * tower.num_channels * tower.patch_size**2 * tower.hidden_size)
