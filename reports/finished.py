"""The stages that stand finished in `dvc.lock`: their hashes, parameters and files of results."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml
from dvc.utils.flatten import flatten

NO_RESULTS = ("resolve", "tables", "figures", "page", "track")
"""Stages that compute nothing new; what they make are artifacts of the parent."""

SEEDED = ("adopt", "distill", "states", "interpret", "reconstruct", "audit", "examine")
"""Stages that run once a training seed, which their names end with."""


class TrackingError(RuntimeError):
    """The mirror could not be written; results are as they were."""


@dataclass(frozen=True)
class FinishedStage:
    """A stage whose metrics are those that `dvc.lock` records.

    `recorded` has its own parameters as `dvc.lock` names them, `reached` also those of all stages
    that it is made from, directly or not, whose names `upstream` has in the order of the pipeline.
    `data` is path -> MD5 of what it reads, `made` of what it writes.
    """

    name: str
    dvc_hash: str
    command: str
    code: str
    recorded: Mapping[str, str]
    reached: Mapping[str, str]
    upstream: tuple[str, ...]
    data: Mapping[str, str]
    made: Mapping[str, str]
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


def pipeline_stages(root: Path) -> list[str]:
    """The names of all stages of the pipeline in `root`, with its parameters."""
    values = read_yaml(root / "params.yaml")
    pipeline = read_yaml(root / "dvc.yaml")
    for file in pipeline.get("vars", []):
        values |= read_yaml(root / file)
    return stage_names(pipeline, values)


def finished_stages(root: Path) -> tuple[list[FinishedStage], list[str]]:
    """The stages of `dvc.yaml` that stand finished in `dvc.lock`, and the names of the others.

    An entry that `dvc.yaml` no longer names is ignored. A stage is not finished where a metrics
    file is not the recorded one (it is being run again) or is of another profile, where it has read
    another output of a stage than that one's entry records, or where a stage that it is made from
    is not finished. Other outputs may be missing: in a fresh clone only what git holds is there.
    """
    lock_file = root / "dvc.lock"
    if not lock_file.is_file():
        raise TrackingError(
            f"{lock_file} does not exist, so no stage is finished: run `make repro`"
        )
    entries = read_yaml(lock_file).get("stages", {})
    names = [name for name in pipeline_stages(root) if name.partition("@")[0] not in NO_RESULTS]
    profile = read_yaml(root / "params.yaml")["profile"]
    known = {name: entries[name] for name in names if name in entries}
    upstream = _upstream(known)
    whole: set[str] = set()
    # Those that a stage is made from come first in the pipeline, and so here.
    for name in sorted(known, key=lambda one: (len(upstream[one]), names.index(one))):
        if upstream[name] <= whole and _is_recorded(root, known[name], profile):
            whole |= {name} if _fits(known[name], known) else set()
    found = [
        _finished_stage(root, name, known, sorted(upstream[name], key=names.index))
        for name in names
        if name in whole
    ]
    return found, [name for name in names if name not in whole]


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


def _is_metrics_file(out: Mapping[str, Any]) -> bool:
    return out["path"].startswith("metrics/")


def _outs(entry: Mapping[str, Any]) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in entry.get("outs", [])}


def _data(entry: Mapping[str, Any]) -> dict[str, str]:
    """Path -> MD5 of what a stage reads, its code aside."""
    return {
        dep["path"]: dep["md5"]
        for dep in entry.get("deps", [])
        if not dep["path"].startswith("fingerprints/")
    }


def _upstream(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    """For each stage, all that it is made from, directly or not."""
    makers = [(PurePath(out), name) for name, entry in entries.items() for out in _outs(entry)]
    direct = {
        name: {
            maker
            for dep in map(PurePath, _data(entry))
            for out, maker in makers
            if out.is_relative_to(dep) or dep.is_relative_to(out)
        }
        for name, entry in entries.items()
    }
    found: dict[str, set[str]] = {}

    def all_of(name: str) -> set[str]:
        if name not in found:
            found[name] = set(direct[name])
            for one in direct[name]:
                found[name] |= all_of(one)
        return found[name]

    for name in entries:
        all_of(name)
    return found


def _is_recorded(root: Path, entry: Mapping[str, Any], profile: str) -> bool:
    for out in filter(_is_metrics_file, entry.get("outs", [])):
        path = root / out["path"]
        if not path.is_file():
            return False
        content = path.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != out["md5"]:
            return False
        if json.loads(content).get("provenance", {}).get("profile", profile) != profile:
            return False
    return True


def _fits(entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a stage has read what the others have made last."""
    made = {path: digest for other in entries.values() for path, digest in _outs(other).items()}
    return all(made.get(path, digest) == digest for path, digest in _data(entry).items())


def _finished_stage(
    root: Path, name: str, entries: Mapping[str, Any], upstream: Sequence[str]
) -> FinishedStage:
    entry = entries[name]
    outs = entry.get("outs", [])
    reached: dict[str, str] = {}
    for one in (*upstream, name):
        reached |= _leaves(_lock_params(entries[one]))
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
        reached=reached,
        upstream=tuple(upstream),
        data=_data(entry),
        made=_outs(entry),
        metrics_files=tuple(root / out["path"] for out in outs if _is_metrics_file(out)),
        curve_files=tuple(
            curve for out in outs if (curve := root / out["path"] / "loss.jsonl").is_file()
        ),
    )


def md5(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


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
