"""The families by name, and by the model that is at hand."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from heima.families.family import Family
from heima.families.idefics3 import Idefics3
from heima.families.llava_next import LlavaNext
from heima.families.mllama import Mllama
from heima.families.smol import Smol

_MLLAMA, _LLAVA_NEXT, _IDEFICS3 = Mllama(), LlavaNext(), Idefics3()

FAMILIES: Mapping[str, Family] = {
    # Before the family whose `model_type` it shares: by that, `of` finds the last.
    "smol": Smol(),
    "toy-mllama": _MLLAMA,
    "llava-cot-11b": _MLLAMA,
    "toy-llava-next": _LLAVA_NEXT,
    "toy-idefics3": _IDEFICS3,
    "llava-next-vicuna-7b": _LLAVA_NEXT,
}
"""Each name of `config.FAMILIES`. The toy twins are the same architectures, small enough for a
CPU."""


def of(model: nn.Module) -> Family:
    """The family of a VLM, or of the VLM in what adapters and losses have been put around it.

    Raises `ValueError` where it is none of these.
    """
    known = {family.model_type: family for family in FAMILIES.values()}
    kind = pretrained(model).config.model_type
    if kind not in known:
        raise ValueError(f"a model of type {kind!r} is none of {', '.join(known)}")
    return known[kind]


def pretrained(model: nn.Module) -> PreTrainedModel:
    """The model of transformers in what adapters and losses have been put around it."""
    return next(part for part in model.modules() if isinstance(part, PreTrainedModel))
