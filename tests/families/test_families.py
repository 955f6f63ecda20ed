"""Families: what the table promises of each one's tokens, LoRA scope and configuration."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from heima.config.families import RECORDS, TOY_FAMILIES
from heima.cot.sections import COMPRESSIBLE, THINKING_TOKENS, thinking_token
from heima.families.registry import FAMILIES
from heima.planning.architectures import COSTS, FULL_SIZE, of, on_meta
from heima.toy.twins import TWINS
from heima.vlm.added_tokens import equip


def test_the_configuration_allows_exactly_the_families():
    assert set(RECORDS) == set(FAMILIES)
    assert set(TWINS) == set(TOY_FAMILIES) < set(FAMILIES)
    assert {record.published for record in RECORDS.values()} <= {None, *RECORDS}
    # `heima.results.machine` knows a toy by its name, before anything is imported.
    assert all(name.startswith("toy-") is record.toy for name, record in RECORDS.items())


def test_every_family_has_its_twin_or_its_size_and_its_costs():
    assert set(FULL_SIZE) | set(TWINS) == set(FAMILIES)
    assert set(COSTS) == {family.model_type for family in FAMILIES.values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_models_of_a_family_are_of_its_type(name, params):
    architecture = of(params.model_copy(update={"family": name}))
    assert architecture.vlm.model_type == FAMILIES[name].model_type
    text = architecture.vlm.text_config
    assert text.hidden_size == architecture.llm.hidden_size, "states enter without a projection"
    # Each has what the adapters' scopes name, the vision tower apart.
    model = on_meta(architecture.vlm)
    family = FAMILIES[name]
    found = [part for part, _ in model.named_modules() if re.fullmatch(family.vlm_lora, part)]
    assert "lm_head" in found
    layers = {int(m[1]) for one in found if (m := re.search(r"_model\.layers\.(\d+)", one))}
    assert layers == set(range(text.num_hidden_layers))
    assert isinstance(family.projector(model), torch.nn.Module)
    assert family.vision_tower(model) is not family.language_model(model)


def test_every_thinking_token_has_its_own():
    for family in FAMILIES.values():
        assert tuple(family.thinking_tokens) == THINKING_TOKENS
        assert len(set(family.thinking_tokens.values())) == len(THINKING_TOKENS)


def test_one_token_a_section_stands_on_the_papers_ids():
    """From 128011, which is reserved token 3, Llama 3 reserves ids without a gap to 128255."""
    tokens = FAMILIES["llava-cot-11b"].thinking_tokens
    ids = {f"<|reserved_special_token_{id_ - 128008}|>": id_ for id_ in range(128011, 128256)}
    papers = [ids[tokens[thinking_token(section)]] for section in COMPRESSIBLE]
    assert papers == [128013, 128014, 128015]
    assert sorted(ids[token] for token in tokens.values()) == list(range(128013, 128112))


@pytest.mark.parametrize("name", TWINS)
def test_an_images_tokens_follow_from_its_size(name):
    family, processor = FAMILIES[name], TWINS[name].build_processor()
    equip(processor.tokenizer, family)
    for size in ((32, 32), (100, 40), (40, 100), (64, 64), (500, 20), (1, 200), (333, 257)):
        made = family.process(Image.new("RGB", size), processor)
        assert family.image_tokens(size, processor) == len(made["placeholders"])
