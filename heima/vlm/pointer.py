"""Where the files of a pretrained model lie: a folder of models names them, with their hashes."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from heima.data import hub_cache
from heima.results.files import read_json, sha256

POINTER = "pretrained.json"
"""{id and revision | path, files: {name: {bytes, sha256}}}, in place of a model's own files."""
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*processor_config.json",
    "chat_template.*",
)
"""The files that `from_pretrained` reads; not Meta's `original/*.pth`, the same weights again."""


class ModelError(RuntimeError):
    """A model that cannot be used; says what to do."""


ADAPTER = "adapter_config.json"
"""Beside a model, it makes transformers apply an adapter."""


def locate(folder: Path, *, weights: bool = False) -> Path:
    """The folder with a full model's files: `folder` itself, or what its `pretrained.json` names.

    All files are those that the stage found: each is hashed once a process, of weights where they
    are to be read (`weights`), and by the first process of a machine.

    Raises:
        FileNotFoundError: naming the stage that makes the folder, where it holds no model.
        ModelError: where the files are not those that the stage found.
    """
    again = f"`dvc repro -f teach@{folder.name}`"
    if not (folder / POINTER).exists():
        if not (folder / "config.json").exists():
            raise FileNotFoundError(
                f"{folder} holds no model; `dvc repro teach@{folder.name}` makes it"
            )
        refuse_adapter(str(folder), folder)
        return folder
    named = read_json(folder / POINTER)
    found: Path | None
    if "path" in named:
        found = Path(named["path"])
    else:
        found = hub_cache.cached("model", named["id"], named["revision"], PATTERNS)
        if found is None:
            raise ModelError(
                f"the model {named['id']} at {named['revision']} is not in the hub's cache: run "
                f"{again}, or set HF_HOME to where it was downloaded"
            )
    refuse_adapter(str(found), found)
    for name, facts in named["files"].items():
        size = (found / name).stat().st_size if (found / name).exists() else None
        if size != facts["bytes"]:
            raise ModelError(
                f"{found / name} is {'missing' if size is None else f'{size} bytes'}, teach found "
                f"{facts['bytes']} bytes: put it back, or run {again}"
            )
    if new := sorted({file.name for file in model_files(found)} - named["files"].keys()):
        raise ModelError(
            f"{found} holds {', '.join(new)}, which teach has not seen: take it away, or run "
            f"{again}"
        )
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    wanted = [
        (found / name, facts["sha256"])
        for name, facts in named["files"].items()
        if not name.endswith(".safetensors") or (weights and first)
    ]
    with ThreadPoolExecutor() as pool:
        for (file, expected), digest in zip(
            wanted, pool.map(_hashed, [file for file, _ in wanted]), strict=True
        ):
            if digest != expected:
                raise ModelError(
                    f"{file} has changed since teach saw it (SHA-256 {digest}, not {expected}): "
                    f"put it back, or run {again}"
                )
    return found


def model_files(folder: Path) -> list[Path]:
    """The files that `PATTERNS` names, in order."""
    return sorted({file for part in PATTERNS for file in folder.glob(part) if file.is_file()})


def refuse_adapter(title: str, folder: Path) -> None:
    """Raise `ModelError` where transformers would apply an adapter to the model in a folder."""
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"{title} has an adapter beside the model ({ADAPTER}), which would be applied unseen: "
            "merge it into the weights (peft's merge_and_unload) and give that folder, or take "
            "the adapter's files away"
        )


def _hashed(file: Path) -> str:
    facts = file.stat()
    return _hashed_once(file.absolute(), facts.st_size, facts.st_mtime_ns)


@functools.cache
def _hashed_once(file: Path, size: int, time: int) -> str:
    return sha256(file)
