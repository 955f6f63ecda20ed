"""The architectures of the families, without weights: for counting what they hold and do.

`on_meta` builds a model of any size in a second: its tensors have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from heima.config import Params, ToyLlm, ToyVlm, expected
from heima.planning import idefics3, llava_next, mllama, smol
from heima.planning.costs import Costs
from heima.toy.models import build_llm
from heima.toy.twins import TWINS


@dataclass(frozen=True)
class Architecture:
    """The configurations of a family's VLM and of its interpreter LLM."""

    vlm: PreTrainedConfig
    llm: PreTrainedConfig


COSTS: Mapping[str, Costs] = {
    "mllama": mllama,
    "llava_next": llava_next,
    "idefics3": idefics3,
}
"""By the VLM's `model_type`."""

FULL_SIZE: Mapping[str, Callable[[], Architecture]] = {
    "llava-cot-11b": lambda: Architecture(mllama.llama_3_2_11b_vision(), mllama.llama_3_1_8b()),
    "llava-next-vicuna-7b": lambda: Architecture(
        llava_next.llava_next_vicuna_7b(), llava_next.vicuna_7b()
    ),
    "smol": lambda: Architecture(smol.smol_vision(), smol.smollm2()),
}
"""The architectures of the families whose models are not trained here from scratch."""


def costs(config: PreTrainedConfig) -> Costs:
    """The entry of `COSTS` for a VLM's configuration."""
    return COSTS[config.model_type]


def of(params: Params) -> Architecture:
    """The architecture of the parameters' family; a toy's is that of the model `teach` builds."""
    if params.family in FULL_SIZE:
        return FULL_SIZE[params.family]()
    twin = TWINS[params.family]
    vlm_params = expected(ToyVlm, params.teach.vlm, "teach.vlm")
    llm_params = expected(ToyLlm, params.teach.llm, "teach.llm")
    processor = twin.build_processor()
    with torch.device("meta"):
        vlm = twin.build_vlm(processor, hidden_size=vlm_params.hidden_size, seed=params.seed)
        llm = build_llm(processor.tokenizer, hidden_size=llm_params.hidden_size, seed=params.seed)
    return Architecture(vlm.config, llm.config)


def on_meta(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A model of a configuration whose tensors have shapes and no content."""
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(config, dtype=dtype)
