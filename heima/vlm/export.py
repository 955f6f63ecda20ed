"""A trained checkpoint as a folder that transformers and peft load without this package."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import ProcessorMixin

from heima.config import Params
from heima.families.registry import FAMILIES
from heima.results.files import atomic, read_json, write_json
from heima.vlm import models
from heima.vlm.pointer import POINTER

BASE = "base"
"""Of an exported adapter, the folder with the model that it belongs on, where no hub has it."""


class ExportError(ValueError):
    """What cannot be exported as asked; says what can."""


def export(
    root: Path, checkpoint: str, seed: int, params: Params, folder: Path, card: str, *, merged: bool
) -> None:
    """Write a checkpoint of a training seed to a new `folder`, with `card` as its README.md.

    `merged`: one model, as `from_pretrained` of its class loads it. Otherwise a peft folder: the
    adapter, which names the hub's model that it belongs on, or brings it in `base/`. Either has the
    processor, whose tokenizer has the chat template, and `thinking_tokens.json`: name -> the token
    that it stands on and its id.

    Raises:
        ExportError: for a folder that is there already, for a checkpoint that states are fed back
            to, and for an adapter of a family whose thinking tokens are added to the vocabulary,
            which a peft folder would lose.
        FileNotFoundError: where the checkpoint has not been trained.
    """
    if folder.exists():
        raise ExportError(f"{folder} exists; name a new folder")
    if FAMILIES[params.family].added and not merged:
        raise ExportError(
            f"the family {params.family} adds its thinking tokens to the vocabulary, which an "
            "adapter does not carry; export it with --merged"
        )
    if params.feed(checkpoint) is not None:
        raise ExportError(
            f"checkpoints.{checkpoint}.feed = 'state' cannot be exported, only 'token': "
            "transformers alone would feed it tokens, and give other answers"
        )
    trained = params.trained(checkpoint, seed)
    processor = models.load_processor(root, params)
    with atomic(folder) as temporary:
        if merged:
            model, _ = models.load_vlm(root, trained, params)
            model.save_pretrained(temporary)
        else:
            temporary.mkdir()
            _write_adapter(root, trained, params, temporary)
        processor.save_pretrained(temporary)
        write_json(temporary / "thinking_tokens.json", _thinking_tokens(processor, params))
        (temporary / "README.md").write_text(card, encoding="utf-8")


def base_of(root: Path) -> tuple[str, str | None] | None:
    """The hub's id and commit of text-CoT, on which all adapters lie; None: it lies in a folder."""
    pointer = root / "text-cot" / POINTER
    named = read_json(pointer) if pointer.exists() else {}
    return (named["id"], named.get("revision")) if "id" in named else None


def _write_adapter(root: Path, trained: str, params: Params, folder: Path) -> None:
    source = root / trained
    if not (source / "adapter_config.json").exists():
        raise FileNotFoundError(f"{source} holds no adapter: it has not been trained")
    config = read_json(source / "adapter_config.json")
    if (base := base_of(root)) is None:
        model, _ = models.load_vlm(root, "text-cot", params)
        model.save_pretrained(folder / BASE)
        config["base_model_name_or_path"] = BASE
    else:
        config["base_model_name_or_path"], config["revision"] = base
    write_json(folder / "adapter_config.json", config)
    weights = "adapter_model.safetensors"
    shutil.copyfile(source / weights, folder / weights)


def _thinking_tokens(processor: ProcessorMixin, params: Params) -> dict[str, dict[str, str | int]]:
    vocabulary = models.vocabulary(processor.tokenizer, params)
    return {
        name: {"token": vocabulary.reserved[name], "id": number}
        for name, number in {**vocabulary.thinking_ids, **vocabulary.tag_ids}.items()
    }
