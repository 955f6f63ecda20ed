"""Memory formulas against what autograd keeps, on the meta device."""

from __future__ import annotations

import pytest
import torch

from heima.families.registry import FAMILIES
from heima.planning import memory
from heima.planning.architectures import FULL_SIZE, costs, on_meta
from heima.vlm.models import add_lora


def test_a_text_layer_keeps_what_is_computed(params):
    """All but attention's own tensors, which a fused kernel keeps as queries, keys and values."""
    config = FULL_SIZE["llava-cot-11b"]().llm
    config.num_hidden_layers, length = 2, 256
    model = on_meta(config)
    model = add_lora(model, FAMILIES["llava-cot-11b"].llm_lora, params.distill.lora, seed=0)
    model = model.to(torch.bfloat16)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        scores = tensor.shape[-1] == length or tensor.shape[-2:] == (length, 128)
        if storage._cdata not in weights and not scores:
            kept[storage._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.model(inputs_embeds=torch.zeros(1, length, 4096, device="meta").bfloat16())
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    queries_keys_values = 3 * 2 * config.hidden_size
    expected = memory.layer_activations(config, 2) - queries_keys_values
    assert found / length / config.num_hidden_layers == pytest.approx(expected, rel=0.02)


@pytest.fixture(scope="module")
def encoder(params):
    config = FULL_SIZE["llava-cot-11b"]().vlm
    family = FAMILIES["llava-cot-11b"]
    return config, memory.weights(config, family.vlm_lora, params.distill.lora)


def test_weights_are_counted_by_what_becomes_of_them(encoder):
    config, held = encoder
    assert (held.frozen, held.trained) == (10_670_220_835, 57_683_968)
    text = config.text_config
    # A layer of self-attention: its four products, its MLP, two norms.
    width, inner = text.hidden_size, text.intermediate_size
    assert held.layer == pytest.approx(width**2 * 2.5 + 3 * width * inner, rel=1e-3)
    # Embeddings (with rows for special image tokens) and lm_head, projector, vision embeddings.
    assert 1.10e9 < held.outside < 1.20e9


def peak(encoder, **changed):
    config, held = encoder
    options = {"size": 2, "shards": 8, "rows": 6, "tokens": 120, "labelled": 60, "images": 2}
    options |= {"checkpointing": True, "logits_chunk": 1024, **changed}
    return memory.training(config, held, image=costs(config).picture(config, 480, 640), **options)


def test_training_memory_follows_its_levers(encoder):
    whole = sum(peak(encoder).values())
    assert peak(encoder)["frozen weights"] == pytest.approx(2 * 10_670_220_835 / 8)
    assert peak(encoder, shards=1)["gathered layers"] == 0
    assert peak(encoder)["adapter and optimizer"] == pytest.approx(57_683_968 * 16 / 8)
    assert sum(peak(encoder, checkpointing=False).values()) > 1.5 * whole
    assert sum(peak(encoder, rows=12, images=4).values()) > whole
    assert peak(encoder, logits_chunk=100)["logits"] < peak(encoder)["logits"]
    assert peak(encoder)["logits"] < peak(encoder, logits_chunk=None)["logits"]


def test_keys_and_values_have_the_size_of_a_models_cache():
    config = FULL_SIZE["llava-next-vicuna-7b"]().llm
    model = on_meta(config)
    ids = torch.zeros(3, 17, dtype=torch.long, device="meta")
    cache = model(input_ids=ids, use_cache=True).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert held == 3 * memory.cached(config, 17, None)
