"""The stages that stand finished in `dvc.lock`: their hashes, parameters and files of results."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dvc.utils.flatten import flatten

NO_RESULTS = ("resolve", "tables", "figures", "page", "track")
"""Stages that compute nothing new; the tables are artifacts of the parent."""

SEEDED = ("adopt", "distill", "states", "interpret", "reconstruct")
"""Stages that run once a training seed, which their names end with."""


class TrackingError(RuntimeError):
    """The mirror could not be written; results are as they were."""


@dataclass(frozen=True)
class FinishedStage:
    """A stage whose outputs are those that `dvc.lock` records.

    `recorded` has the parameters as `dvc.lock` names them. `params` leaves the stage's own item
    out of the names, so that the runs of two items share them: `checkpoints.steps`, not
    `checkpoints.recover.steps`.
    """

    name: str
    dvc_hash: str
    command: str
    code: str
    recorded: Mapping[str, str]
    params: Mapping[str, str]
    metrics_files: tuple[Path, ...]
    curve_files: tuple[Path, ...]

    @property
    def stage(self) -> str:
        return self.name.partition("@")[0]

    @property
    def item(self) -> str:
        return _item(self.name)[0]

    @property
    def seed(self) -> int | None:
        """The training seed, of a stage that has one."""
        return _item(self.name)[1]


def _item(name: str) -> tuple[str, int | None]:
    """The item of a stage's name, and its training seed.

    >>> _item("distill@one-shot-42"), _item("score@one-shot"), _item("states@42"), _item("judge")
    (('one-shot', 42), ('one-shot', None), ('', 42), ('', None))
    """
    stage, _, item = name.partition("@")
    before, _, seed = item.rpartition("-")
    # dvc.lock may hold entries of a time before training seeds.
    if stage not in SEEDED or not seed.isdigit():
        return item, None
    return before, int(seed)


def stage_names(pipeline: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """The names of all stages of a `dvc.yaml`, its foreach and matrix expanded as DVC does.

    >>> stage_names({"stages": {"a": {"foreach": "${xs}"}, "b": {"matrix": {"m": [1, 2]}}}},
    ...             {"xs": {"p": 0, "q": 0}})
    ['a@p', 'a@q', 'b@1', 'b@2']
    """

    def values(axis: Any) -> list[str]:
        if isinstance(axis, str):
            found: Any = params
            for part in axis.removeprefix("${").removesuffix("}").split("."):
                found = found[part]
            axis = found
        return [str(value) for value in axis]

    names = []
    for stage, content in pipeline["stages"].items():
        if "foreach" in content:
            names += [f"{stage}@{value}" for value in values(content["foreach"])]
        elif "matrix" in content:
            axes = map(values, content["matrix"].values())
            names += [
                f"{stage}@{'-'.join(combination)}" for combination in itertools.product(*axes)
            ]
        else:
            names.append(stage)
    return names


def finished_stages(root: Path) -> tuple[list[FinishedStage], list[str]]:
    """The stages of `dvc.yaml` that stand finished in `dvc.lock`, and the names of the others.

    An entry that `dvc.yaml` no longer names is ignored. A stage whose metrics file is not the
    recorded one, or whose output is missing, is not finished: it is being run again.
    """
    lock_file = root / "dvc.lock"
    if not lock_file.is_file():
        raise TrackingError(
            f"{lock_file} does not exist, so no stage is finished: run `make repro`"
        )
    entries = read_yaml(lock_file).get("stages", {})
    pipeline, values = read_yaml(root / "dvc.yaml"), read_yaml(root / "params.yaml")
    for file in pipeline.get("vars", []):
        values |= read_yaml(root / file)
    names = stage_names(pipeline, values)
    finished, unfinished = [], []
    for name in names:
        if name.partition("@")[0] in NO_RESULTS:
            continue
        if name in entries and _is_finished(root, entries[name]):
            finished.append(_finished_stage(root, name, entries))
        else:
            unfinished.append(name)
    return finished, unfinished


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


def _is_metrics_file(out: Mapping[str, Any]) -> bool:
    return out["path"].startswith("metrics/")


def _is_finished(root: Path, entry: Mapping[str, Any]) -> bool:
    for out in entry.get("outs", []):
        path = root / out["path"]
        if not path.exists():
            return False
        if (
            _is_metrics_file(out)
            and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != out["md5"]
        ):
            return False
    return True


def _finished_stage(root: Path, name: str, entries: Mapping[str, Any]) -> FinishedStage:
    entry = entries[name]
    outs = entry.get("outs", [])
    return FinishedStage(
        name=name,
        dvc_hash=md5(entry),
        command=entry["cmd"],
        code=next(
            (
                dep["md5"]
                for dep in entry.get("deps", [])
                if dep["path"].startswith("fingerprints/")
            ),
            "unknown",
        ),
        recorded=_leaves(_lock_params(entry)),
        params=_params_with_origin(name, entries),
        metrics_files=tuple(root / out["path"] for out in outs if _is_metrics_file(out)),
        curve_files=tuple(
            curve for out in outs if (curve := root / out["path"] / "loss.jsonl").is_file()
        ),
    )


def md5(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _params_with_origin(name: str, entries: Mapping[str, Any]) -> dict[str, str]:
    """A stage's parameters; for a benchmark also those that its model was trained with.

    Without them a comparison of two scores would show no parameter that differs.
    """
    stage = name.partition("@")[0]
    item, seed = _item(name)
    params = _own_params(entries[name], item)
    if item:
        params["item"] = item
    if seed is not None:
        params["training_seed"] = str(seed)
    if stage == "score" and f"predict@{item}" in entries:
        return {**_params_with_origin(f"predict@{item}", entries), **params}
    if stage == "predict":
        model = params["variants.model"]
        trained = (n for n in entries if n.startswith("distill@") and _is_of(n, model))
        # Its training seeds differ in nothing but the seed.
        if first := next(trained, None):
            origin = _params_with_origin(first, entries)
            del origin["training_seed"]
            return {**origin, **params}
    return params


def _is_of(name: str, checkpoint: str) -> bool:
    item, seed = _item(name)
    return item == checkpoint and seed is not None


def _own_params(entry: Mapping[str, Any], item: str) -> dict[str, str]:
    return {
        ".".join(part for part in key.split(".") if part != item): value
        for key, value in _leaves(_lock_params(entry)).items()
    }


def _lock_params(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given or have a default; what follows from them says nothing more."""
    known = entry.get("params", {}).get("resolved.yaml", {})
    return {key: value for key, value in known.items() if not key.startswith("derived.")}


def _leaves(params: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name -> text of every leaf; a list is a leaf."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in flatten(params).items()
    }
