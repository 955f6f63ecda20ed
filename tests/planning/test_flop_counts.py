"""Cost formulas against counted FLOPs: toy models that run, the full-size ones on meta."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from heima.families.registry import FAMILIES
from heima.planning import flop_counts
from heima.planning.architectures import FULL_SIZE, costs, on_meta
from heima.toy import mllama as toy
from heima.vlm.models import add_lora


def counted(run, *, backward: bool) -> tuple[int, int]:
    """FLOPs of a forward pass that gives logits, and of the backward pass from them.

    Attention runs as matrix products: that kernel is counted on every device.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = run()
        forward = counter.get_total_flops()
        if backward:
            logits.sum().backward()
        return forward, counter.get_total_flops() - forward


def lora(model, family: str, part: str, params):
    targets = getattr(FAMILIES[family], part)
    return add_lora(model, targets, params.distill.lora, seed=0).to(model.dtype)


def mllama_batch(config, *, length: int, device: str) -> dict[str, torch.Tensor]:
    vision = config.vision_config
    zeros = functools.partial(torch.zeros, dtype=torch.long, device=device)
    shape = (1, 1, vision.max_num_tiles, 3, vision.image_size, vision.image_size)
    return {
        "input_ids": zeros(1, length),
        "pixel_values": torch.zeros(shape, device=device),
        "aspect_ratio_ids": zeros(1, 1) + 1,
        "aspect_ratio_mask": zeros(1, 1, vision.max_num_tiles) + 1,
        "cross_attention_mask": zeros(1, length, 1, vision.max_num_tiles) + 1,
    }


def mllama_flops(config, *, length: int, rank: int) -> flop_counts.Flops:
    image = costs(config).picture(config, 480, 640)
    return costs(config).vision(config, image.tiles, rank=rank) + flop_counts.language(
        config.text_config,
        length,
        pairs=length**2,
        logits=length,
        seen=image.tokens,
        rank=rank,
    )


@pytest.mark.parametrize("trained", [False, True])
def test_mllama_on_meta(trained, params):
    """A turn about an image; tile embeddings are the little that is left out."""
    config = FULL_SIZE["llava-cot-11b"]().vlm
    model = on_meta(config)
    if trained:
        model = lora(model, "llava-cot-11b", "vlm_lora", params)
    batch = mllama_batch(config, length=96, device="meta")
    forward, backward = counted(lambda: model(**batch).logits, backward=trained)
    flops = mllama_flops(config, length=96, rank=16 if trained else 0)
    assert flops.forward == pytest.approx(forward, rel=1e-3)
    if trained:
        assert flops.backward == pytest.approx(backward, rel=1e-3)


def test_vision_of_mllama_costs_what_the_recipe_says():
    """The tower: 18.6 TFLOP for a padded image, 7.2 for two real tiles, 3.1 for one."""
    config = FULL_SIZE["llava-cot-11b"]().vlm
    projector = 2 * 1601 * 7680 * 4096
    tera = [(costs(config).vision(config, n).forward - n * projector) / 1e12 for n in (4, 2, 1)]
    assert tera == pytest.approx([18.6, 7.2, 3.1], abs=0.05)


def test_toy_mllama_runs_what_is_computed(toy_processor, params):
    model = toy.build_vlm(toy_processor, seed=0)
    config = model.config
    batch = mllama_batch(config, length=40, device="cpu")
    plain, _ = counted(lambda: model(**batch).logits, backward=False)
    assert mllama_flops(config, length=40, rank=0).forward == pytest.approx(plain, rel=1e-3)
    model = lora(model, "toy-mllama", "vlm_lora", params)
    forward, backward = counted(lambda: model(**batch).logits, backward=True)
    flops = mllama_flops(config, length=40, rank=params.distill.lora.rank)
    assert flops.forward == pytest.approx(forward, rel=1e-3)
    assert flops.backward == pytest.approx(backward, rel=1e-3)


def small_llama() -> LlamaConfig:
    """Grouped queries, so that keys are narrower than queries."""
    return LlamaConfig(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def test_interpreter_trains_at_the_computed_cost(params):
    config = small_llama()
    model = lora(LlamaForCausalLM(config), "toy-mllama", "llm_lora", params)
    ids = torch.zeros(1, 24, dtype=torch.long)
    forward, backward = counted(lambda: model(input_ids=ids).logits, backward=True)
    flops = flop_counts.language(config, 24, pairs=24**2, logits=24, rank=params.distill.lora.rank)
    assert (flops.forward, flops.backward) == (forward, backward)


def test_gradient_checkpointing_computes_layers_twice(params):
    """All but the lm_head, which stands behind the last layer that is checkpointed."""
    config = small_llama()
    model = lora(LlamaForCausalLM(config), "toy-mllama", "llm_lora", params)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.zeros(1, 24, dtype=torch.long)
    forward, backward = counted(lambda: model(input_ids=ids).logits, backward=True)
    # transformers lets gradients reach the embeddings, though none are needed there.
    rank = params.distill.lora.rank
    flops = flop_counts.language(config, 24, pairs=24**2, logits=24, rank=rank, reached=True)
    # A layer's very last product, that of down_proj's adapter, is needed by nothing: left out.
    last = config.num_hidden_layers * 2 * 24 * rank * config.hidden_size
    assert forward + backward == flops.total(checkpointing=True) - last


def test_decoding_costs_a_pass_for_each_token_behind_the_prompt():
    config = small_llama()
    model = LlamaForCausalLM(config).eval()
    ids = torch.zeros(1, 10, dtype=torch.long)

    def run():
        model.generate(
            input_ids=ids, min_new_tokens=6, max_new_tokens=6, do_sample=False, pad_token_id=0
        )

    total, _ = counted(run, backward=False)
    # Generation asks for the logits of a prompt's last position only.
    prompt = flop_counts.language(config, 10, pairs=100, logits=1)
    rest = flop_counts.decoding(config, 5, prompt=10)
    assert prompt.forward + rest.forward == total


def small_llava_next() -> LlavaNextConfig:
    return LlavaNextConfig(
        text_config=small_llama(),
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=4,
        ),
        image_token_index=119,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )


@pytest.mark.parametrize(("height", "width"), [(24, 32), (40, 20), (30, 31)])
def test_toy_llava_next_runs_what_is_computed(height, width, params):
    """The image's tokens are counted as the model makes them, cut to the image's shape."""
    config = small_llava_next()
    image = costs(config).picture(config, height, width)
    model = lora(
        LlavaNextForConditionalGeneration(config), "llava-next-vicuna-7b", "vlm_lora", params
    )
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    pixels = processor(
        torch.zeros(3, height, width, dtype=torch.uint8).numpy(), return_tensors="pt"
    )
    assert pixels["pixel_values"].shape[1] == image.tiles
    ids = torch.tensor([[119] * image.tokens + [1] * 12])
    # The tower is not reached by gradients, nor does it have weights that train.
    forward, backward = counted(
        lambda: model(input_ids=ids, **pixels, return_dict=True).logits, backward=True
    )
    rank, length = params.distill.lora.rank, ids.shape[1]
    flops = costs(config).vision(config, image.tiles, rank=rank) + flop_counts.language(
        config.text_config, length, pairs=length**2, logits=length, rank=rank, reached=True
    )
    assert flops.forward == pytest.approx(forward, rel=1e-3)
    assert flops.backward == pytest.approx(backward, rel=1e-3)


def test_mllama_tiles_follow_the_images_shape():
    config = FULL_SIZE["llava-cot-11b"]().vlm
    shapes = [(400, 400), (480, 640), (900, 500), (1000, 1000), (300, 1600)]
    tiles = [costs(config).picture(config, *shape, padded=False).tiles for shape in shapes]
    assert tiles == [1, 2, 2, 4, 3]
    assert {costs(config).picture(config, *shape).tiles for shape in shapes} == {4}
