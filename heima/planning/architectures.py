"""The architectures of the families, without weights: for counting what they hold and do.

The full-size configurations are facts of the published models, written down here so that nothing
has to be downloaded to plan a run. `on_meta` builds a model of any size in a second: its tensors
have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    MllamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from heima.config import Params
from heima.toy.families import TOYS
from heima.toy.models import build_llm

_LLAMA_3 = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Architecture:
    """The configurations of a family's VLM and of its interpreter LLM."""

    vlm: PreTrainedConfig
    llm: PreTrainedConfig


def llama_3_2_11b_vision() -> MllamaConfig:
    """Llama-3.2-11B-Vision, which Llama-3.2V-11B-cot is a fine-tuning of.

    Eight of the 40 text layers attend to the image. The vision tower has 32 local layers and 8
    global ones; five local layers' outputs are stacked on the last one's: 6 x 1280 = 7680.
    """
    return MllamaConfig(
        text_config=MllamaTextConfig(
            **_LLAMA_3,
            num_hidden_layers=40,
            cross_attention_layers=[3, 8, 13, 18, 23, 28, 33, 38],
            pad_token_id=128004,
        ),
        vision_config=MllamaVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_global_layers=8,
            attention_heads=16,
            image_size=560,
            patch_size=14,
            max_num_tiles=4,
            vision_output_dim=7680,
            intermediate_layers_indices=[3, 7, 15, 23, 30],
            supported_aspect_ratios=[
                *([1, 1], [1, 2], [1, 3], [1, 4]),
                *([2, 1], [2, 2], [3, 1], [4, 1]),
            ],
        ),
        image_token_index=128256,
    )


def llama_3_1_8b() -> LlamaConfig:
    """Llama-3.1-8B, the interpreter of the first family."""
    return LlamaConfig(**_LLAMA_3, num_hidden_layers=32, pad_token_id=128004)


def llava_next_vicuna_7b() -> LlavaNextConfig:
    """LLaVA-v1.6-Vicuna-7B: CLIP-L/14 at 336 px, read before its last layer, and Llama 2 7B.

    The language model has 64 rows more than Vicuna's tokenizer has tokens, for the image and the
    padding token among others.
    """
    return LlavaNextConfig(
        text_config=LlamaConfig(**_LLAMA_2_7B, vocab_size=32064),
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        image_token_index=32000,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def vicuna_7b() -> LlamaConfig:
    """Vicuna-7B v1.5, the interpreter of the second family."""
    return LlamaConfig(**_LLAMA_2_7B, vocab_size=32000)


FULL_SIZE: Mapping[str, Callable[[], Architecture]] = {
    "llava-cot-11b": lambda: Architecture(llama_3_2_11b_vision(), llama_3_1_8b()),
    "llava-next-vicuna-7b": lambda: Architecture(llava_next_vicuna_7b(), vicuna_7b()),
}
"""The architectures of the families whose models are not trained here."""


def of(params: Params) -> Architecture:
    """The architecture of the parameters' family; a toy's is that of the model `teach` builds."""
    if params.family in FULL_SIZE:
        return FULL_SIZE[params.family]()
    twin, llm = TOYS[params.family], params.teach.llm
    processor = twin.build_processor()
    with torch.device("meta"):
        vlm = twin.build_vlm(processor, hidden_size=params.teach.vlm.hidden_size, seed=params.seed)
        llm = build_llm(processor.tokenizer, hidden_size=llm.hidden_size, seed=params.seed)
    return Architecture(vlm.config, llm.config)


def on_meta(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A model of a configuration whose tensors have shapes and no content."""
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(config, dtype=dtype)
