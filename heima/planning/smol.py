"""The architectures of the family `smol`, by the published configuration of SmolLM2-135M."""

from __future__ import annotations

from transformers import LlamaConfig, MllamaConfig

from heima.toy.mllama import RESERVED
from heima.toy.smol import vlm_config

_VOCABULARY = 49152


def smollm2() -> LlamaConfig:
    """SmolLM2-135M with the reserved tokens that `teach` puts behind its vocabulary."""
    return LlamaConfig(
        vocab_size=_VOCABULARY + len(RESERVED),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        # As every model is loaded here (`heima.vlm.added_tokens.untie`).
        tie_word_embeddings=False,
    )


def smol_vision() -> MllamaConfig:
    """The Mllama that `heima.toy.smol` builds around it."""
    return vlm_config(smollm2())
