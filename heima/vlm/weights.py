"""Whether a pretrained model's weights are all there, finite, and its own.

transformers draws what a folder lacks at random, with a line in the log, and applies an adapter
that lies beside a model unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from heima.vlm.pointer import ModelError

CLASSES: Mapping[str, Any] = {"vlm": AutoModelForImageTextToText, "llm": AutoModelForCausalLM}
"""What loads a family's VLM and its interpreter LLM."""

_NAMES = 5
"""How many weights of many are named."""


def check(title: str, folder: Path, kind: Literal["vlm", "llm"]) -> list[str]:
    """The names of weights in a model's folder that the model has no place for.

    Builds no model: names and shapes are compared on the meta device, and each weight is read once.
    Raises `ModelError` for weights that are missing, of another shape, not finite or unreadable.
    """
    try:
        _, found = CLASSES[kind].from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        _refuse_incomplete(title, found)
        if odd := [name for file in files(folder) for name in _not_finite(file)]:
            raise ModelError(
                f"{title}: {_listed(odd)} hold numbers that are not finite (NaN or infinite); the "
                "files are damaged, or of a training that failed"
            )
    except SafetensorError as error:
        raise ModelError(f"{title}: its weights cannot be read ({error})") from error
    return sorted(found["unexpected_keys"])


def load(kind: Literal["vlm", "llm"], folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model in `folder`. Raises `ModelError` where a weight of it would be drawn."""
    model, found = CLASSES[kind].from_pretrained(
        str(folder),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=dtype,
        output_loading_info=True,
    )
    _refuse_incomplete(str(folder), found)
    return model


def files(folder: Path) -> list[Path]:
    """The files of weights that transformers reads in a model's folder."""
    if (whole := folder / "model.safetensors").exists():
        return [whole]
    return sorted(folder.glob("model-*-of-*.safetensors"))


def _refuse_incomplete(title: str, found: Mapping[str, Any]) -> None:
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{title} lacks {_listed(missing)}: its weights are incomplete, and transformers would "
            "draw these at random"
        )
    if found["mismatched_keys"]:
        shapes = [
            f"{name} as {tuple(here)} instead of {tuple(wanted)}"
            for name, here, wanted in sorted(found["mismatched_keys"])
        ]
        raise ModelError(f"{title} has {_listed(shapes)}: its config.json is another model's")


def _not_finite(file: Path) -> list[str]:
    with safe_open(file, "pt") as weights:
        return [
            name
            for name in weights.keys()  # noqa: SIM118
            if not torch.isfinite(weights.get_tensor(name).float()).all()
        ]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
