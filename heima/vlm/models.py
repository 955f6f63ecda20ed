"""Models: loading and saving them, base and adapter apart.

On disk every model has a folder below `models/`: a full model (`text-cot`, `base`,
`interpreter`), a `pretrained.json` that says where one lies, or an adapter on `text-cot`, whose
folder is named by its checkpoint and training seed (`recover/42`, see `Params.trained`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from heima.config import GivenCheckpoint, Lora, Params
from heima.cot.sections import with_controls
from heima.data.images import ImageZip
from heima.data.tokens import Vocabulary
from heima.families.batches import Collator
from heima.families.feeding import Feed
from heima.families.registry import FAMILIES
from heima.results.provenance import digest
from heima.vlm import kernels, weights
from heima.vlm.added_tokens import equip, fit, untie
from heima.vlm.pointer import locate

# Whatever computes with a model imports this module.
kernels.install()

ROOT = Path("models")
"""Where the pipeline keeps models."""

WHOLE = ("text-cot", "base")
"""The VLMs that are whole models there; all others are adapters on `text-cot`."""


_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "pillow")


def device() -> torch.device:
    """A GPU where there is one; processes started by torchrun or accelerate have one each."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def fingerprint() -> str:
    """A short SHA-256 of what rounds as it does: the device's kind and the libraries' versions."""
    cuda = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if cuda else "cpu"
    return digest({"device": where, **{one: version(one) for one in _LIBRARIES}})


def dtype(params: Params) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[params.precision]


def _source(folder: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained` for what lies beside a full model's weights."""
    return {
        "pretrained_model_name_or_path": str(locate(folder)),
        "local_files_only": True,
        "trust_remote_code": False,
    }


def load_processor(models: Path, params: Params) -> ProcessorMixin:
    """The processor of the family's VLM; its image part needs no torchvision."""
    processor = AutoProcessor.from_pretrained(**_source(models / "text-cot"), backend="pil")
    equip(processor.tokenizer, FAMILIES[params.family])
    return processor


def load_tokenizer(models: Path, params: Params) -> PreTrainedTokenizerBase:
    """The tokenizer of the family's interpreter LLM."""
    tokenizer = AutoTokenizer.from_pretrained(**_source(models / "interpreter"))
    equip(tokenizer, FAMILIES[params.family])
    return tokenizer


def vocabulary(tokenizer: PreTrainedTokenizerBase, params: Params) -> Vocabulary:
    reserved = FAMILIES[params.family].thinking_tokens
    return Vocabulary(tokenizer, with_controls(reserved) if params.controls else reserved)


def positions(models: Path, params: Params) -> int:
    """How many tokens the family's VLM was made for."""
    config = AutoConfig.from_pretrained(**_source(models / "text-cot"))
    return config.get_text_config().max_position_embeddings


def image_tokens(
    processor: ProcessorMixin, images: ImageZip, params: Params
) -> Callable[[str], int]:
    """How many tokens stand for an image, by its name; no pixel is read for it."""
    family = FAMILIES[params.family]

    @functools.cache
    def of_size(size: tuple[int, int]) -> int:
        return family.image_tokens(size, processor)

    @functools.cache
    def of_image(name: str) -> int:
        return 1 if family.image_is_one_token else of_size(images.size(name))

    return of_image


def feed(tokenizer: PreTrainedTokenizerBase, params: Params, model: str) -> Feed | None:
    """Of which tokens a model's states are fed back; None: of none."""
    scale = params.feed(model)
    if scale is None:
        return None
    return Feed(frozenset(vocabulary(tokenizer, params).thinking_ids.values()), scale)


def collator(
    processor: ProcessorMixin, images: ImageZip, params: Params, feed: Feed | None = None
) -> Collator:
    """What makes batches of the family's VLM from `encoding.Sample`s."""
    family = FAMILIES[params.family]
    return Collator(
        family,
        processor,
        images,
        once=params.training.images_once,
        thoughts=feed.ids if feed else None,
    )


def load_vlm(models: Path, name: str, params: Params) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A VLM for inference with its processor: a full model, or `text-cot` with adapter `name`.

    The adapter is merged into the weights: generation is about 1.3 times faster.
    """
    full = name if name in WHOLE else "text-cot"
    model = weights.load("vlm", locate(models / full, weights=True), dtype(params))
    expected = FAMILIES[params.family].model_type
    if model.config.model_type != expected:
        raise ValueError(
            f"{models / full} holds a model of type {model.config.model_type!r}, the family "
            f"{params.family} needs {expected!r}"
        )
    processor = load_processor(models, params)
    untie(model)
    fit(model, processor.tokenizer, FAMILIES[params.family])
    if full != name:
        model = _adapted(model, models, name, params).merge_and_unload()
    return model.to(device()).eval(), processor


def _adapted(
    model: PreTrainedModel, models: Path, name: str, params: Params, *, trainable: bool = False
) -> PeftModel:
    """`text-cot` with the adapter of a checkpoint.

    Raises `ValueError` for an adapter of another family: peft alone would stop in the middle of
    loading, or leave out what it finds no place for.
    """
    folder = _adapter(models, name, params)
    again = f"dvc repro {_stage(name, params)}"
    with safe_open(folder / "adapter_model.safetensors", "pt") as stored:
        for key in stored.keys():  # noqa: SIM118
            module, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
            found = stored.get_slice(key).get_shape()
            # A is (rank, inputs), B is (outputs, rank).
            axis = 1 if kind.startswith("A") else 0
            try:
                layer = model.get_submodule(module)
            except AttributeError:
                layer = None
            width = getattr(layer, ("out_features", "in_features")[axis], None)
            if width != found[axis]:
                raise ValueError(
                    f"{folder} does not belong to the family {params.family}: its {key} is "
                    f"{tuple(found)}, and {module} there "
                    + (f"has width {width}" if width else "does not exist")
                    + f"; `{again}` makes it anew"
                )
    return load_adapter(model, folder, again=again, trainable=trainable)


def load_adapter(
    model: PreTrainedModel, folder: Path, *, again: str, trainable: bool = False
) -> PeftModel:
    """`model` with the adapter in `folder`, which `again` makes anew.

    Raises `ValueError` for an adapter that lacks weights, which peft would draw, or whose weights
    are not finite.
    """
    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with safe_open(folder / "adapter_model.safetensors", "pt") as stored:
        lacking = sorted(wanted.keys() - set(stored.keys()))
    odd = sorted(name for name, value in wanted.items() if not torch.isfinite(value).all())
    for names, what in ((lacking, "lacks"), (odd, "is not finite in")):
        if names:
            raise ValueError(
                f"{folder} {what} {len(names)} of the adapter's {len(wanted)} weights, {names[0]} "
                f"among them; `{again}` makes it anew"
            )
    return adapted


def load_llm(models: Path, params: Params) -> PreTrainedModel:
    """The LLM that every interpreter starts from."""
    model = weights.load("llm", locate(models / "interpreter", weights=True), dtype(params))
    untie(model)
    fit(model, load_tokenizer(models, params), FAMILIES[params.family])
    return model


def trainable_vlm(models: Path, init: str, params: Params, *, seed: int) -> PeftModel:
    """`text-cot` with a trainable adapter: a new one, drawn by `seed`, or the one at `init`.

    Only adapter weights pass from phase to phase (docs/recipe.md, section 2).
    """
    model, _ = load_vlm(models, "text-cot", params)
    if init == "text-cot":
        return add_lora(model, FAMILIES[params.family].vlm_lora, params.distill.lora, seed)
    return _adapted(model, models, init, params, trainable=True)


def add_lora(model: PreTrainedModel, targets: str, lora: Lora, seed: int) -> PeftModel:
    """A new adapter (LoRA without biases) on the modules whose whole name matches `targets`."""
    torch.manual_seed(seed)
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it is divided by r: any number will do
            lora_dropout=lora.dropout,
            bias="none",
            target_modules=targets,
        ),
    )


def save_adapter(
    model: PeftModel, folder: Path, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Save the adapter alone; the embeddings are frozen and stay with the base model.

    `weights` are the adapter's if `model` is sharded (`training.trained_weights`).
    """
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
    # peft adds a model card full of local paths.
    (folder / "README.md").unlink(missing_ok=True)


def _adapter(models: Path, name: str, params: Params) -> Path:
    folder = models / name
    if not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter; `dvc repro {_stage(name, params)}` makes it"
        )
    return folder


def _stage(name: str, params: Params) -> str:
    """The stage that trains an adapter, or takes a given one: `distill@recover-42`."""
    given = isinstance(params.checkpoints.get(name.partition("/")[0]), GivenCheckpoint)
    return f"{'adopt@checkpoint-' if given else 'distill@'}{name.replace('/', '-')}"


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
