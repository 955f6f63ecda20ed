"""The full-size architectures on the meta device: parameters, and what LoRA trains."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from heima.families.registry import FAMILIES
from heima.planning.architectures import FULL_SIZE, on_meta
from heima.vlm.models import add_lora, trainable_parameters

TEXT = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted(model, targets: str, params):
    """The model with LoRA, and the modules with an adapter by (part of the model, kind)."""
    model = add_lora(model, targets, params.distill.lora, seed=0)
    kinds: Counter[tuple[str, str]] = Counter()
    for name, weight in model.named_parameters():
        assert weight.requires_grad == (".lora_" in name)
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            part, _, kind = re.fullmatch(r"(.*?)(\.layers\.\d+\..*\.(\w+))?", module).groups("")
            kinds[part.removeprefix("model."), kind] += 1
    return model, kinds


def test_llava_cot_trains_what_the_recipe_says(params):
    """57.68 M in the encoder; of the vision tower the 8 global layers and not the 32 local ones."""
    family = FAMILIES["llava-cot-11b"]
    model = on_meta(FULL_SIZE["llava-cot-11b"]().vlm)
    assert sum(weight.numel() for weight in model.parameters()) == 10_670_220_835
    model, kinds = adapted(model, family.vlm_lora, params)
    assert trainable_parameters(model) == 57_683_968
    vision = TEXT - {"gate_proj", "up_proj", "down_proj"} | {"fc1", "fc2"}
    assert kinds == {
        **{("language_model", kind): 40 for kind in TEXT},
        **{("vision_model.global_transformer", kind): 8 for kind in vision},
        ("multi_modal_projector", ""): 1,
        ("lm_head", ""): 1,
    }


@pytest.mark.parametrize(
    ("family", "parameters", "trained"),
    [
        ("llava-cot-11b", 8_030_261_248, 44_060_672),
        ("llava-next-vicuna-7b", 6_738_415_616, 40_554_496),
    ],
)
def test_interpreters_train_every_linear_layer(family, parameters, trained, params):
    model = on_meta(FULL_SIZE[family]().llm)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    model, kinds = adapted(model, FAMILIES[family].llm_lora, params)
    assert trainable_parameters(model) == trained
    assert kinds == {**{("model", kind): 32 for kind in TEXT}, ("lm_head", ""): 1}


def test_llava_next_trains_the_language_model_and_the_projector(params):
    """The count is that before thinking tokens are added; each one adds a row to the lm_head."""
    model = on_meta(FULL_SIZE["llava-next-vicuna-7b"]().vlm)
    assert sum(weight.numel() for weight in model.parameters()) == 7_063_431_168
    model, kinds = adapted(model, FAMILIES["llava-next-vicuna-7b"].vlm_lora, params)
    assert trainable_parameters(model) == 40_768_512
    assert kinds == {
        **{("language_model", kind): 32 for kind in TEXT},
        ("multi_modal_projector.linear_1", ""): 1,
        ("multi_modal_projector.linear_2", ""): 1,
        ("lm_head", ""): 1,
    }
