"""A small Llama and a tokenizer with the traps of SmolLM2's."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEFAULT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def tokenizer_like_smollm2() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and SmolLM2's traps: it pads with its end of turn, and reserves nothing."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    ids = {token: number for number, token in enumerate([*special, *sorted(letters)])}
    backend = Tokenizer(BPE(ids, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=DEFAULT,
    )


def llama_like_smollm2(layers: int = 15) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Untrained, with tied embeddings, and without reserved tokens."""
    tokenizer = tokenizer_like_smollm2()
    torch.manual_seed(0)
    options = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(options).eval(), tokenizer
