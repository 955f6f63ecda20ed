"""Model folders as the hub's lie: the published configurations made narrow, random weights in bf16.

What a model sees and says keeps its real numbers: 4 tiles of 560 pixels and 1,601 patches, the
anyres grids of 336 pixels, 128,256 + 8 rows of embeddings, the rotary bases, several ids that end
an answer. Widths and layers are few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from heima.planning.llava_next import llava_next_vicuna_7b, vicuna_7b
from heima.planning.mllama import llama_3_1_8b, llama_3_2_11b_vision
from timings.rehearsal import tokenizers

WIDTH = 64
"""A thinking state of the VLM is an embedding of the LLM: both are as wide."""
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_ENDS = [128_001, 128_008, 128_009]
"""Llama's ends of a text, of a message and of a turn."""
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
"""CLIP's, of a picture's colours."""
_LLAMA_3, _LLAMA_2 = "PreTrainedTokenizerFast", "LlamaTokenizer"
SHARD = "6MB"
"""So that the weights lie in several files, as those of the real models."""


def write_llama(folder: Path, *, file: Path | None) -> None:
    """`text-cot`, `base` and `interpreter` of the family `llava-cot-11b` below `folder`.

    `file` is Meta's tokenizer file, if it is at hand.
    """
    tokenizer = tokenizers.llama_3(tokenizers.LLAMA_32_VISION, pad=True, image=True, file=file)
    images = MllamaImageProcessorPil(
        size={"height": 560, "width": 560},
        max_image_tiles=4,
        image_mean=_MEAN,
        image_std=_STD,
    )
    processor = MllamaProcessor(images, tokenizer, chat_template=tokenizers.LLAMA_32_VISION)
    for seed, name in enumerate(("text-cot", "base")):
        _save(folder / name, mllama(seed), _sampling(pad_token_id=128_004))
        _save_tokenizer(folder / name, tokenizer, tokenizers.LLAMA_32_VISION, _LLAMA_3)
        _write(folder / name / "chat_template.json", {"chat_template": tokenizers.LLAMA_32_VISION})
        _save_images(folder / name, processor, "MllamaImageProcessor")
    _save(folder / "interpreter", llama(seed=2), _sampling())
    own = tokenizers.llama_3(tokenizers.LLAMA_31, pad=False, image=False, file=file)
    _save_tokenizer(folder / "interpreter", own, tokenizers.LLAMA_31, _LLAMA_3)


def write_llava_next(folder: Path) -> None:
    """`text-cot`, `base` (one model, as the profile has it) and `interpreter` of
    `llava-next-vicuna-7b` below `folder`."""
    tokenizer = tokenizers.vicuna(image=True)
    config = llava_next_vicuna_7b()
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=config.image_grid_pinpoints,
        image_mean=_MEAN,
        image_std=_STD,
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizers.LLAVA_16_VICUNA,
    )
    place = folder / "text-cot"
    _save(place, llava_next(seed=0), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32_001})
    _save_tokenizer(place, tokenizer, None, _LLAMA_2)
    _save_images(place, processor, "LlavaNextImageProcessor")
    _write(place / "chat_template.json", {"chat_template": tokenizers.LLAVA_16_VICUNA})
    _write(
        place / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaNextProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 4096}
    _save(folder / "interpreter", vicuna(seed=1), generation)
    _save_tokenizer(folder / "interpreter", tokenizers.vicuna(image=False), None, _LLAMA_2)


def mllama(seed: int) -> MllamaForConditionalGeneration:
    """Llama-3.2-11B-Vision made narrow; its gates are half open, as trained ones are."""
    whole = llama_3_2_11b_vision()
    text = whole.text_config.to_dict() | _TEXT
    text |= {"num_hidden_layers": 4, "cross_attention_layers": [1, 3], "eos_token_id": _ENDS}
    vision = whole.vision_config.to_dict() | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "attention_heads": 2,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 3 * 32,
    }
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(
        MllamaConfig(
            text_config=MllamaTextConfig(**text),
            vision_config=MllamaVisionConfig(**vision),
            image_token_index=128_256,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate"):
                weight.fill_(0.5)
    return model.to(torch.bfloat16)


def llama(seed: int) -> LlamaForCausalLM:
    """Llama-3.1-8B made narrow."""
    config = llama_3_1_8b().to_dict() | _TEXT | {"num_hidden_layers": 2, "eos_token_id": _ENDS}
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)


def llava_next(seed: int) -> LlavaNextForConditionalGeneration:
    """LLaVA-NeXT-Vicuna-7B made narrow, with the 64 rows that its embeddings have too many."""
    whole = llava_next_vicuna_7b()
    text = whole.text_config.to_dict() | _TEXT | {"num_hidden_layers": 2, "num_key_value_heads": 4}
    vision = whole.vision_config.to_dict() | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    config = whole.to_dict() | {
        "text_config": LlamaConfig(**text),
        "vision_config": CLIPVisionConfig(**vision),
    }
    torch.manual_seed(seed)
    return LlavaNextForConditionalGeneration(LlavaNextConfig(**config)).to(torch.bfloat16)


def vicuna(seed: int) -> LlamaForCausalLM:
    """Vicuna-7B made narrow."""
    narrow = _TEXT | {"num_hidden_layers": 2, "num_key_value_heads": 4}
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**vicuna_7b().to_dict() | narrow)).to(torch.bfloat16)


def _sampling(**ids: int) -> dict[str, Any]:
    """What Llama's folders say of decoding: to sample, whatever a caller wants."""
    ends = {"bos_token_id": 128_000, "eos_token_id": _ENDS}
    return {**ends, "do_sample": True, "temperature": 0.6, "top_p": 0.9, **ids}


def _save(folder: Path, model: PreTrainedModel, generation: Mapping[str, Any]) -> None:
    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder, max_shard_size=SHARD)


def _save_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase, template: str | None, kind: str
) -> None:
    """The tokenizer with its class by the hub's name, and its template where the hub has it."""
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": kind}
    stated.pop("backend", None)
    _write(path, stated | ({"chat_template": template} if template else {}))


def _save_images(folder: Path, processor: Any, kind: str) -> None:
    """`preprocessor_config.json`, the only file that the hub's folders have of a processor."""
    stated = json.loads(processor.image_processor.to_json_string())
    stated |= {"image_processor_type": kind, "processor_class": type(processor).__name__}
    _write(folder / "preprocessor_config.json", stated)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
