"""Families: what the table promises of each one's tokens, LoRA scope and configuration."""

from __future__ import annotations

from typing import get_args

from heima.config import TOY_FAMILIES, Params
from heima.cot.sections import COMPRESSIBLE, THINKING_TOKENS, thinking_token
from heima.families.registry import FAMILIES
from heima.toy.families import TOYS


def test_the_configuration_allows_exactly_the_families():
    assert set(get_args(Params.model_fields["family"].annotation)) == set(FAMILIES)
    assert set(TOYS) == set(TOY_FAMILIES) < set(FAMILIES)


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
