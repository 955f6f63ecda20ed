"""Adapters that others trained: fetched, read as tensors alone, checked, and written for peft.

torchtune's file and peft's `.bin` are Python pickles. They are unpickled with `weights_only`, which
builds tensors and refuses everything else. What an adapter must be follows from the model that it
is put on: each of its weights has a place there, and each place of its scope a weight.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, MllamaConfig, PreTrainedModel

from heima.config import GivenAdapter, Lora, given
from heima.data import hub_cache
from heima.data.hub import Repository
from heima.results.files import read_json, sha256
from heima.vlm import torchtune
from heima.vlm.export import BASE
from heima.vlm.pointer import ADAPTER
from heima.vlm.weights import CLASSES, files

_SAFE, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_RENAMED = {"meta-llama/Meta-Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct"}
"""Repositories of the hub that had another name when adapters on them were published."""
_IDENTITY = re.compile(r"[\w.-]+/[\w.-]+")
_OTHERWISE = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "modules_to_save": ([], None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": ([], None),
    "layer_replication": ([], None),
}
"""What may stand in a peft configuration for a LoRA to be plain; all else is another method."""
_PICKLE_FAULTS = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, struct.error),
    *(LookupError, AttributeError, TypeError),
)
"""What unpickling raises for bytes that are no whole pickle, or one of more than tensors."""
_NAMES = 3
"""How many weights of many are named."""


class AdapterError(RuntimeError):
    """A given adapter that cannot be used; says what to do."""


@dataclass(frozen=True)
class Base:
    """The model that an adapter is put on: its folder, its id on the hub if it is from there, and
    what it is called in messages."""

    folder: Path
    id: str | None
    kind: Literal["vlm", "llm"]
    name: str


@dataclass(frozen=True)
class Found:
    """An adapter as it was given: its files, and their parent's name in messages."""

    title: str
    files: dict[str, Path]
    origin: dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """Weights in peft's names, the modules that they are for (as in `LoraConfig`), and the alpha
    that the adapter's own configuration states."""

    weights: dict[str, torch.Tensor]
    targets: str | list[str]
    alpha: float | None


def fetch(source: GivenAdapter, *, key: str, again: str) -> Found:
    """The files of a given adapter, from its path or the hub.

    Raises:
        HubError: for what cannot be had from the hub.
        AdapterError: where there is no adapter.
    """
    if source.path is not None:
        path = Path(source.path)
        title = f"{key}.path = {source.path}"
        if path.is_file():
            named = {path.name: path}
        elif path.is_dir():
            named = {one.name: one for one in path.iterdir() if one.is_file()}
        else:
            raise AdapterError(f"{title} is neither a file nor a folder: correct it")
        # Of a model that was exported with its adapter.
        if (path / BASE / "config.json").exists():
            named[BASE] = path / BASE
        return Found(title, _needed(title, named), {"path": source.path})
    identity = given(source.id, "id")
    instead = f"or download it elsewhere and give its file or folder as {key}.path"
    repository = Repository("model", identity, source.revision, key, again, instead)
    where = f"{source.within}/" if source.within else ""
    title = f"{repository.title}{f', {source.within}' if source.within else ''}"
    patterns = [source.within] if source.within else []
    patterns += [f"{where}{name}" for name in (ADAPTER, _SAFE, _PICKLED)]
    patterns += [f"{where}*.pt"]
    commit = source.revision
    folder = hub_cache.cached("model", identity, commit, patterns) if commit else None
    if folder is None or not (named := _listed(folder, source.within)):
        info = repository.info()
        commit = repository.commit(info)
        repository.check_room_in_cache(info, patterns)
        named = _listed(repository.snapshot(info, patterns), source.within)
        if not named:
            there = sorted({file.rfilename for file in info.siblings or ()})
            raise AdapterError(
                f"{title} is not there: the repository holds {_some(there)}; correct {key}.within"
            )
    return Found(
        title,
        _needed(title, named),
        {"id": identity, "revision": commit, "within": source.within},
    )


def _listed(snapshot: Path, within: str | None) -> dict[str, Path]:
    place = snapshot / within if within else snapshot
    if place.is_file():
        return {place.name: place}
    return {one.name: one for one in place.iterdir() if one.is_file()} if place.is_dir() else {}


def _needed(title: str, named: Mapping[str, Path]) -> dict[str, Path]:
    """Of the files of a folder, those that make its adapter."""
    if ADAPTER in named:
        weights = _SAFE if _SAFE in named else _PICKLED
        if weights not in named:
            raise AdapterError(
                f"{title} has an {ADAPTER} and no weights beside it: it lacks {_SAFE} (or "
                f"{_PICKLED}); download it anew"
            )
        wanted = [ADAPTER, weights, *(one for one in (BASE,) if one in named)]
        return {name: named[name] for name in wanted}
    pickled = [name for name in named if name.endswith(".pt")]
    if len(pickled) == 1:
        return {pickled[0]: named[pickled[0]]}
    raise AdapterError(
        f"{title} holds no adapter, but {_some(sorted(named))}: name torchtune's adapter_….pt, or "
        f"a folder with {ADAPTER} and {_SAFE}"
    )


def read(found: Found, base: Base, *, called: str | None = None) -> Adapter:
    """The weights of an adapter, in the names of the model below it.

    `called` is another name of that model, which the adapter's configuration may have.

    Raises `AdapterError` for a file that holds anything but tensors, an adapter of another method
    or on another base, and names that the model does not have.
    """
    if ADAPTER in found.files:
        return _of_peft(found, base, called)
    [file] = found.files.values()
    weights = unpickled(found.title, file)
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True)
    if not isinstance(config, MllamaConfig):
        raise AdapterError(
            f"{found.title} is a file of torchtune, which is read on Llama 3.2 Vision alone, and "
            f"{base.name} is of type {config.model_type!r}: name a folder of peft"
        )
    try:
        named = torchtune.to_transformers(weights, config)
    except torchtune.UnknownKey as error:
        raise AdapterError(
            f"{found.title} does not belong on {base.name}: {error}; name an adapter on that model"
        ) from error
    groups = {re.sub(r"\d+", "#", key.rpartition(".")[0]) for key in named}
    targets = "|".join(re.escape(one).replace(r"\#", r"\d+") for one in sorted(groups))
    weights = {f"{_PREFIX}{key}.weight": value for key, value in named.items()}
    return Adapter(weights, targets, alpha=None)


def _of_peft(found: Found, base: Base, called: str | None) -> Adapter:
    title = found.title
    try:
        config = read_json(found.files[ADAPTER])
        kind, named = config["peft_type"], config.get("base_model_name_or_path")
        targets, alpha = config["target_modules"], float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"{title}: {ADAPTER} is no configuration of a LoRA ({error!r}): download it anew"
        ) from error
    other = [key for key, plain in _OTHERWISE.items() if config.get(key) not in plain]
    if kind != "LORA" or other or not isinstance(targets, str | list):
        stated = {key: config.get(key) for key in other} or {"peft_type": kind}
        raise AdapterError(
            f"{title} is no plain LoRA: {ADAPTER} has "
            f"{', '.join(f'{key} = {value!r}' for key, value in stated.items())}; only a plain one "
            "is read (merge another into the model, and give that as teach's)"
        )
    if called is None or named != called:
        _check_base(title, named, base, found.files.get(BASE))
    if _SAFE in found.files:
        try:
            weights = load_file(found.files[_SAFE])
        except SafetensorError as error:
            raise AdapterError(
                f"{title}: {_SAFE} cannot be read ({error}): download it anew"
            ) from error
    else:
        weights = unpickled(title, found.files[_PICKLED])
    return Adapter(weights, targets, alpha)


def _check_base(title: str, named: object, base: Base, beside: Path | None) -> None:
    """Whether an adapter says that it lies on another model. A path of elsewhere says nothing."""
    if beside is not None:
        for file in files(beside):
            if differing := _differing(file, files(base.folder)):
                raise AdapterError(
                    f"{title} lies on another model: {differing} in {BASE}/ is not that of "
                    f"{base.name}; name an adapter that was trained on {base.name}"
                )
        return
    if not isinstance(named, str) or not _IDENTITY.fullmatch(named) or base.id is None:
        return
    if _RENAMED.get(named, named).lower() != base.id.lower():
        raise AdapterError(
            f"{title} lies on another model: {ADAPTER} names {named}, and {base.name} is "
            f"{base.id}; name an adapter on that one, or, where both are one model, write "
            f"base: {named} beside its path or id"
        )


def _differing(file: Path, others: Iterable[Path]) -> str | None:
    """The first weight of a file that another value has in the `others`."""
    with safe_open(file, "pt") as mine:
        names = set(mine.keys())
        for other in others:
            with safe_open(other, "pt") as theirs:
                for name in sorted(names & set(theirs.keys())):
                    if not torch.equal(mine.get_tensor(name), theirs.get_tensor(name)):
                        return name
    return None


def unpickled(title: str, file: Path) -> dict[str, torch.Tensor]:
    """The tensors by name that a pickle holds, and nothing else.

    Raises `AdapterError` for a pickle of anything more, or none.
    """
    # What torch wrote before 1.6 is a bare pickle, as anything may be.
    if not zipfile.is_zipfile(file):
        raise AdapterError(
            f"{title}: {file.name} is no file of torch.save, or not whole: download it anew"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except _PICKLE_FAULTS as error:
        # What torch says of a class or function that is none of a tensor's.
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            raise AdapterError(
                f"{title}: {file.name} is a pickle of more than tensors, which may run code, and "
                "is not loaded: ask its authors for safetensors, or, if you trust them, load it "
                "elsewhere and save its tensors alone"
            ) from error
        raise AdapterError(
            f"{title}: {file.name} is no file of torch.save, or not whole ({_first_line(error)}): "
            "download it anew"
        ) from error
    if not isinstance(content, dict) or not content:
        raise AdapterError(
            f"{title}: {file.name} holds a {type(content).__name__} and no tensors by name: name "
            "the adapter's own file"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise AdapterError(
                f"{title}: {file.name} holds more than tensors ({name!r} is a "
                f"{type(value).__name__}): name the adapter's own file, not a whole checkpoint's"
            )
    return content


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def skeleton(base: Base) -> PreTrainedModel:
    """The model below an adapter, without memory: its modules and their shapes."""
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True)
    with torch.device("meta"):
        return CLASSES[base.kind].from_config(config)


def check(
    title: str, adapter: Adapter, model: PreTrainedModel, lora: Lora, *, scope: str, key: str
) -> list[str]:
    """What of `scope`, a regular expression of modules, the adapter leaves as it is: kinds of
    modules, a layer's number as #.

    `model` must be a `skeleton`, on which the adapter is put; `key` names the parameters of `lora`.
    Raises `AdapterError` unless the adapter is one of `lora` on this model, whole and finite.
    """
    _check_numbers(title, adapter, lora, key)
    linear = {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    own = {}
    for name in adapter.weights:
        own[name] = name.removeprefix(_PREFIX).partition(".lora_")[0]
        if own[name] not in linear:
            raise AdapterError(
                f"{title} is of another family: its {name} is for {own[name]}, and the model has "
                "no such linear layer; name an adapter of this family"
            )
    adapted = get_peft_model(model, configuration(adapter, lora))
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for name in sorted(wanted.keys() & adapter.weights.keys()):
        shape, fits = tuple(adapter.weights[name].shape), tuple(wanted[name].shape)
        if shape != fits:
            raise AdapterError(
                f"{title} lies on another model: its {name} is {shape}, and would be {fits} on "
                "this one; name an adapter that was trained on this model"
            )
    if lacking := sorted(wanted.keys() - adapter.weights.keys()):
        raise AdapterError(
            f"{title} lacks {len(lacking)} of {len(wanted)} weights, {_some(lacking)}: its file is "
            "not whole, download it anew"
        )
    if unused := sorted(adapter.weights.keys() - wanted.keys()):
        raise AdapterError(
            f"{title} has {len(unused)} weights for modules that its target_modules do not name, "
            f"{_some(unused)}, and they would not be used: correct its {ADAPTER}"
        )
    left = {one for one in linear if re.fullmatch(scope, one)} - set(own.values())
    return sorted({re.sub(r"\d+", "#", one) for one in left})


def _check_numbers(title: str, adapter: Adapter, lora: Lora, key: str) -> None:
    ranks = {
        value.shape[0 if ".lora_A" in name else -1]
        for name, value in adapter.weights.items()
        if value.dim() == 2
    }
    if ranks != {lora.rank}:
        raise AdapterError(
            f"{title} has rank {' and '.join(map(str, sorted(ranks))) or 'none'}, and {key}.rank "
            f"is {lora.rank}: set {key}.rank to it, or name an adapter of rank {lora.rank}"
        )
    if adapter.alpha is not None and adapter.alpha != lora.alpha:
        raise AdapterError(
            f"{title} has alpha {adapter.alpha:g}, and {key}.alpha is {lora.alpha:g}: set "
            f"{key}.alpha to it, or name an adapter of that alpha"
        )
    odd = sorted(n for n, value in adapter.weights.items() if not torch.isfinite(value).all())
    if odd:
        raise AdapterError(f"{title} is not finite in {_some(odd)}: download it anew")


def configuration(adapter: Adapter, lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it is divided by r: any number will do
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=adapter.targets,
    )


def write(adapter: Adapter, lora: Lora, folder: Path) -> None:
    """Write a new folder of peft, as `models.save_adapter` does."""
    folder.mkdir(parents=True)
    configuration(adapter, lora).save_pretrained(str(folder))
    weights = {name: value.contiguous() for name, value in adapter.weights.items()}
    save_file(weights, folder / _SAFE, metadata={"format": "pt"})


def facts(found: Found, adapter: Adapter) -> dict[str, Any]:
    """What was found, for a metrics file: where it is from, its files, and how much it is."""
    return {
        **found.origin,
        "files": {
            name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for name, file in sorted(found.files.items())
            if file.is_file()
        },
        "weights": len(adapter.weights),
        "parameters": sum(value.numel() for value in adapter.weights.values()),
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return (", ".join(names[:_NAMES]) or "nothing") + more
