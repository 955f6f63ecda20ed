"""Where the files of a pretrained model lie: a folder of models names them, with their sizes."""

from __future__ import annotations

from pathlib import Path

from heima.data import hub_cache
from heima.results.files import read_json

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


def locate(folder: Path) -> Path:
    """The folder with a full model's files: `folder` itself, or what its `pretrained.json` names.

    Raises:
        FileNotFoundError: naming the stage that makes the folder, where it holds no model.
        ModelError: where the files that the stage found are there no more.
    """
    again = f"`dvc repro -f teach@{folder.name}`"
    if not (folder / POINTER).exists():
        if not (folder / "config.json").exists():
            raise FileNotFoundError(
                f"{folder} holds no model; `dvc repro teach@{folder.name}` makes it"
            )
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
    for name, facts in named["files"].items():
        size = (found / name).stat().st_size if (found / name).exists() else None
        if size != facts["bytes"]:
            raise ModelError(
                f"{found / name} is {'missing' if size is None else f'{size} bytes'}, teach found "
                f"{facts['bytes']} bytes: put it back, or run {again}"
            )
    return found
