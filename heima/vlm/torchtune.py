"""An adapter of torchtune on Llama 3.2 Vision, in the names and the layout of transformers.

Two things differ besides names. torchtune counts the text layers alone and puts a fusion layer
(cross-attention) *into* each of some; transformers counts both, the fusion layer first: of the 11B,
torchtune's fusion layers 3, 7, …, 31 are the layers 3, 8, …, 38. And its rotary embedding turns
neighbouring rows of a head where transformers turns rows half a head apart, so that the rows of
queries and keys of self-attention stand in another order. Cross-attention and vision have none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from transformers import MllamaConfig

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>[ab])\.weight")
_LAYER = re.compile(
    r"(?P<part>decoder|encoder\.clip|encoder\.projection)\.layers\.(?P<layer>\d+)\."
    # Some ways of saving name the text layer inside a layer with a fusion layer.
    r"(?:layer\.)?(?P<fusion>fusion_layer\.)?(?P<linear>(?:attn|mlp)\.\w+)"
)
_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_TEXT = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_VISION = {"w1": "fc1", "w2": "fc2"}
_TOWERS = {
    "encoder.clip": "model.vision_model.transformer",
    "encoder.projection": "model.vision_model.global_transformer",
}
_ALONE = {"decoder.output": "lm_head", "encoder.projection.output": "model.multi_modal_projector"}


class UnknownKey(ValueError):
    """A key that is none of an adapter of torchtune on this model; says which."""


def to_transformers(
    weights: Mapping[str, torch.Tensor], config: MllamaConfig
) -> dict[str, torch.Tensor]:
    """Module and `lora_A` or `lora_B`, as `model.language_model.layers.0.mlp.up_proj.lora_A` ->
    its matrix: A (rank, inputs), B (outputs, rank).

    Raises `UnknownKey` where a key has no place in a model of `config`.
    """
    found = {}
    for key, value in weights.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise UnknownKey(f"{key} is no weight of a LoRA in torchtune's names")
        module, rotated = _module(match["module"], config)
        if rotated and match["matrix"] == "b":
            value = _halves(value, rotated)
        found[f"{module}.lora_{match['matrix'].upper()}"] = value
    return found


def _module(name: str, config: MllamaConfig) -> tuple[str, int]:
    """The name of a module in transformers, and its heads where their rows are to be reordered."""
    if name in _ALONE:
        return _ALONE[name], 0
    match = _LAYER.fullmatch(name)
    if match is None:
        raise UnknownKey(f"{name} is no module of Llama 3.2 Vision in torchtune's names")
    kind, _, linear = match["linear"].partition(".")
    text = match["part"] == "decoder"
    names = _ATTENTION if kind == "attn" else _TEXT if text else _VISION
    if linear not in names or (match["fusion"] and not text):
        raise UnknownKey(f"{name} is no module of Llama 3.2 Vision in torchtune's names")
    if not text:
        part = "self_attn" if kind == "attn" else "mlp"
        return f"{_TOWERS[match['part']]}.layers.{match['layer']}.{part}.{names[linear]}", 0
    layer = _layer(int(match["layer"]), config, name, fusion=bool(match["fusion"]))
    part = {"mlp": "mlp", "attn": "cross_attn" if match["fusion"] else "self_attn"}[kind]
    options = config.text_config
    heads = {"q_proj": options.num_attention_heads, "k_proj": options.num_key_value_heads}
    rotated = heads.get(linear, 0) if part == "self_attn" else 0
    return f"model.language_model.layers.{layer}.{part}.{names[linear]}", rotated


def _layer(number: int, config: MllamaConfig, name: str, *, fusion: bool) -> int:
    """transformers' number of a layer."""
    options = config.text_config
    cross = sorted(options.cross_attention_layers)
    if fusion:
        # Before a fusion layer stand as many fusion layers as come before it.
        known = {layer - before: layer for before, layer in enumerate(cross)}
    else:
        own = [layer for layer in range(options.num_hidden_layers) if layer not in set(cross)]
        known = dict(enumerate(own))
    if number not in known:
        what = "fusion layers are" if fusion else "text layers are"
        raise UnknownKey(
            f"{name}: the model's {what}, as torchtune counts, {', '.join(map(str, known))}"
        )
    return known[number]


def _halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """(outputs, rank) with rows 0, 2, 4, … of each head first, then 1, 3, 5, …"""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()
