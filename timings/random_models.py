"""Models with random weights for the benchmarks, the paper's architecture on a GPU among them.

They use the toy's tokenizer, whatever their vocabulary: a word is a token.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    MllamaConfig,
    MllamaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from heima.planning.architectures import on_meta
from heima.planning.mllama import llama_3_2_11b_vision
from heima.toy.models import IMAGE, set_generation

_SPECIAL = ("bos", "eos", "pad")


def special_ids(tokenizer: Any) -> dict[str, int]:
    """The ids by which a text model's configuration knows the tokenizer's special tokens."""
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}


def mllama(text: MllamaTextConfig, vision: MllamaVisionConfig, tokenizer: Any) -> MllamaConfig:
    """The configuration of a model that is used with `tokenizer`."""
    return MllamaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )


def papers_vlm(tokenizer: Any) -> MllamaConfig:
    """Llama-3.2-11B-Vision's configuration, for use with `tokenizer`."""
    config = llama_3_2_11b_vision()
    for name, value in special_ids(tokenizer).items():
        setattr(config.text_config, name, value)
    return mllama(config.text_config, config.vision_config, tokenizer)


def random_model(
    config: MllamaConfig, dtype: torch.dtype, device: torch.device, tokenizer: Any, *, seed: int
) -> PreTrainedModel:
    """A model with random weights, made on its device and in its precision."""
    torch.manual_seed(seed)
    with device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    set_generation(model, tokenizer)
    return model.eval()


def gpu_for(config: MllamaConfig, dtype: torch.dtype, spare: int) -> torch.device:
    """The GPU; ends the program where none has room for the model and `spare` bytes."""
    weights = sum(weight.numel() for weight in on_meta(config).parameters()) * dtype.itemsize
    needed = weights + spare
    if not torch.cuda.is_available():
        sys.exit(f"--size 11b needs a GPU with {needed / 1e9:.0f} GB; PyTorch sees none")
    device = torch.device("cuda", torch.cuda.current_device())
    free, _ = torch.cuda.mem_get_info(device)
    if free < needed:
        sys.exit(
            f"--size 11b needs {needed / 1e9:.0f} GB on the GPU; "
            f"{torch.cuda.get_device_name(device)} has {free / 1e9:.0f} GB free"
        )
    return device


def tiled(processor: ProcessorMixin, *, tiles: int, side: int) -> ProcessorMixin:
    """The toy's processor for images of up to `tiles` tiles of `side` pixels."""
    images = MllamaImageProcessorPil(size={"height": side, "width": side}, max_image_tiles=tiles)
    return MllamaProcessor(
        images, processor.tokenizer, chat_template=processor.tokenizer.chat_template
    )
