"""Pretrained models: fetched from the hub by commit, or given as a folder, and found again later.

Weights are read as safetensors and nothing else (other formats are Python pickles, which may run
code), and a model's own Python code is never run. What was found is written to `pretrained.json`;
whoever loads the model later loads those very files, without asking the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from heima.config import PretrainedModel, given
from heima.data import hub, hub_cache
from heima.data.hub import Repository
from heima.results.files import sha256, write_json
from heima.vlm import weights
from heima.vlm.pointer import PATTERNS, POINTER, ModelError, model_files, refuse_adapter

_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_PART = re.compile(r"model(-[\w.-]*-of-[\w.-]*)?\.safetensors")
_PICKLED = (".bin", ".pth", ".pt", ".ckpt")


def provide(
    source: PretrainedModel,
    folder: Path,
    *,
    key: str,
    again: str,
    kind: Literal["vlm", "llm"],
    model_type: str | None = None,
) -> dict[str, Any]:
    """Fetch and check a model and write its `pretrained.json` into the new `folder`.

    `key` names it in params, `again` is what to run after a fault. Where `model_type` is given, the
    model must be of it. A pinned commit that the hub's cache holds needs no network. Returns what
    was written.

    Raises:
        HubError: for what cannot be had from the hub, or no room on the disk.
        ModelError: for weights that are no safetensors, lack a part or a weight, or are not
            finite, an adapter beside them, a model that needs its own code or is of another type,
            and a damaged file.
    """
    found: Path | None
    if source.path is not None:
        title, found = f"{key}.path = {source.path}", Path(source.path)
        if not found.is_dir():
            raise ModelError(f"{title} is not a folder")
        written: dict[str, Any] = {"path": source.path}
        _check_listing(title, key, source, kind, {file.name for file in found.iterdir()})
    else:
        identity = given(source.id, "id")
        repository = Repository(
            "model",
            identity,
            source.revision,
            key=key,
            again=again,
            instead=f"or download it elsewhere and give its folder as {key}.path",
        )
        title, commit = repository.title, source.revision
        found = hub_cache.cached("model", identity, commit, PATTERNS) if commit else None
        if found is None:
            info = repository.info()
            commit = repository.commit(info)
            files = {file.rfilename for file in info.siblings or ()}
            _check_listing(title, key, source, kind, files)
            repository.check_room_in_cache(info, PATTERNS)
            # Before 20 GB of weights come for nothing.
            _check_config(title, repository.file(info, "config.json"), model_type)
            found = repository.snapshot(info, PATTERNS)
        written = {"id": source.id, "revision": commit}
    _check_config(title, found / "config.json", model_type)
    refuse_adapter(title, found)
    _check_index(title, found)
    written["files"] = {file.name: _facts(title, file) for file in model_files(found)}
    if unused := weights.check(title, found, kind):
        print(f"{title} has weights that the model has no place for: {', '.join(unused)}")
        written["unused"] = unused
    folder.mkdir(parents=True)
    write_json(folder / POINTER, written)
    return written


def _check_listing(
    title: str, key: str, source: PretrainedModel, kind: str, files: Collection[str]
) -> None:
    """Whether a listing has a configuration, and the weights as safetensors, all parts of them."""
    if "config.json" not in files:
        raise ModelError(f"{title} has no config.json: it is no model of transformers")
    shards = sorted(filter(None, map(_SHARD.fullmatch, files)), key=lambda shard: shard[0])
    if "model.safetensors" not in files and not shards:
        pickled = sorted(name for name in files if name.endswith(_PICKLED))
        if not pickled:
            raise ModelError(f"{title} holds no weights: it lacks model.safetensors and its parts")
        classes = {
            "vlm": ("AutoModelForImageTextToText", "AutoProcessor"),
            "llm": ("AutoModelForCausalLM", "AutoTokenizer"),
        }
        name = source.id or source.path
        saves = "; ".join(
            f"{one}.from_pretrained({name!r}).save_pretrained('converted')" for one in classes[kind]
        )
        raise ModelError(
            f"{title} has its weights as {pickled[0]}{' …' if len(pickled) > 1 else ''} alone, a "
            "Python pickle, which may run code; only safetensors are loaded. If you trust its "
            f'authors, convert it once, python -c "from transformers import '
            f'{", ".join(classes[kind])}; {saves}", and give the folder as {key}.path; or pin a '
            "commit or another repository that has safetensors"
        )
    if shards:
        parts = int(shards[-1][2])
        wanted = {f"model-{place:05d}-of-{parts:05d}.safetensors" for place in range(1, parts + 1)}
        if lacking := sorted(wanted - set(files)):
            raise ModelError(f"{title} lacks {', '.join(lacking)}: its weights are incomplete")


def _check_config(title: str, file: Path, model_type: str | None) -> None:
    """Whether transformers has the model's class, and the family wants it."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        found = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{title}: {file} is no model's configuration ({error})") from error
    if found not in CONFIG_MAPPING_NAMES:
        own = " and brings Python code of its own (auto_map), which is never run"
        raise ModelError(
            f"{title} is of type {found!r}, which transformers does not have"
            f"{own if 'auto_map' in config else ''}: name a model that it has"
        )
    if model_type is not None and found != model_type:
        raise ModelError(f"{title} is of type {found!r}, the family needs {model_type!r}")


def _check_index(title: str, folder: Path) -> None:
    """Whether all files are there that the index of the weights names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if not (folder / "model.safetensors").exists():
            raise ModelError(f"{title} lacks {index.name}, which says where each weight is")
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{title}: {index} is no index of weights ({error!r})") from error
    if outside := sorted(name for name in named if not _PART.fullmatch(str(name))):
        raise ModelError(
            f"{title}: {index.name} names {', '.join(map(repr, outside))}; its parts must lie "
            "beside it and be called model-…-of-….safetensors"
        )
    if lacking := sorted(name for name in named if not (folder / name).exists()):
        raise ModelError(f"{title} lacks {', '.join(lacking)}, which {index.name} names")


def _facts(title: str, file: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of a file; one damaged in the hub's cache no longer has its name.

    The cache names the file behind a link by its SHA-256, or by its id in git where it is small.
    """
    size, blob = file.stat().st_size, file.resolve().name
    digest, found = sha256(file), blob
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        found = digest
    elif file.is_symlink() and re.fullmatch(r"[0-9a-f]{40}", blob):
        with file.open("rb") as content:
            found = hub.checksum("git-blob:", content, size).partition(":")[2]
    if found != blob:
        raise ModelError(
            f"{title}: {file.name} is damaged in the hub's cache, its checksum is {found}, not "
            f"{blob}: delete {file.resolve()} and run the stage again"
        )
    return {"bytes": size, "sha256": digest}
