"""Families: what the table promises of each one's tokens, LoRA scope and configuration."""

from __future__ import annotations

from typing import get_args

from heima.config import Params
from heima.cot import COMPRESSIBLE
from heima.families import FAMILIES, MAX_TOKENS


def test_the_configuration_allows_exactly_the_families():
    assert set(get_args(Params.model_fields["family"].annotation)) == set(FAMILIES)


def test_every_section_has_its_own_tokens():
    for family in FAMILIES.values():
        assert set(family.thinking_tokens) == set(COMPRESSIBLE)
        tokens = [token for names in family.thinking_tokens.values() for token in names]
        assert len(tokens) == len(set(tokens)) == MAX_TOKENS * len(COMPRESSIBLE)


def test_one_token_a_section_stands_on_the_papers_ids():
    """From 128011, which is reserved token 3, Llama 3 reserves ids without a gap."""
    firsts = [names[0] for names in FAMILIES["llava-cot-11b"].thinking_tokens.values()]
    assert firsts == [f"<|reserved_special_token_{id_ - 128008}|>" for id_ in range(128013, 128016)]
