"""A mirror of the result files in MLflow: one parent run a reproduction, in it a run a training
seed and a run a stage; the stages of one training seed lie in that seed's run.

`dvc.lock` and the result files are the record; nothing is ever read back from MLflow. The mirror
can be deleted and is built again. A child is known by the hash of its stage's entry in `dvc.lock`
(command, dependencies, parameters, outputs), so mirroring again adds nothing, and another
parameter gives other entries and with them another parent.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

import reports
from heima.results.files import read_json, read_jsonl
from heima.results.measures import NLL_GAIN

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "heima"
NO_RESULTS = ("resolve", "tables", "track")
"""Stages that compute nothing new; the tables are artifacts of the parent."""

SEEDED = ("distill", "states", "interpret", "reconstruct")
"""Stages that run once a training seed, which their names end with."""

_LOCK_TIMEOUT = 60
_BATCH = {"metrics": 1000, "params": 100}
"""What MLflow takes in one `log_batch`."""

_CODE = ("heima", "eval", "reports/*.py", "stages", "params.yaml", "dvc.yaml")


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
    entries = _read_yaml(lock_file).get("stages", {})
    pipeline, values = _read_yaml(root / "dvc.yaml"), _read_yaml(root / "params.yaml")
    for file in pipeline.get("vars", []):
        values |= _read_yaml(root / file)
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


def _read_yaml(path: Path) -> dict[str, Any]:
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
        dvc_hash=_md5(entry),
        command=entry["cmd"],
        code=next(
            (
                dep["md5"]
                for dep in entry.get("deps", [])
                if dep["path"].startswith("fingerprints/")
            ),
            "unknown",
        ),
        recorded=dict(_flatten(_lock_params(entry))),
        params=_params_with_origin(name, entries),
        metrics_files=tuple(root / out["path"] for out in outs if _is_metrics_file(out)),
        curve_files=tuple(
            curve for out in outs if (curve := root / out["path"] / "loss.jsonl").is_file()
        ),
    )


def _md5(value: Any) -> str:
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
        for key, value in _flatten(_lock_params(entry))
    }


def _lock_params(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given or have a default; what follows from them says nothing more."""
    known = entry.get("params", {}).get("resolved.yaml", {})
    return {key: value for key, value in known.items() if not key.startswith("derived.")}


def _flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Dotted name and text of every leaf; a list is a leaf."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, (*path, str(key)))
    else:
        yield ".".join(path), value if isinstance(value, str) else json.dumps(value)


def metrics_of(content: Mapping[str, Any]) -> dict[str, float]:
    """`<group>/<metric>` -> value of a metrics file: cells, other numbers, numbers of provenance.

    >>> metrics_of({"turns": {"train": 3}, "provenance": {"seed": 1, "seconds": 2.5}})
    {'turns/train': 3.0, 'seconds': 2.5}
    """
    found = {}
    for key, value in content.items():
        if key == "cells":
            for group, row in value.items():
                found |= {f"{group}/{metric}": cell["value"] for metric, cell in row.items()}
        elif key == "provenance":
            found |= {name: number for name, number in value.items() if name != "seed"}
        else:
            found |= dict(_leaves(value, (key,)))
    return {
        name: float(number)
        for name, number in found.items()
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    }


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield "/".join(path), value


def mirror(root: Path, *, uri: str | None = None) -> dict[str, Any]:
    """Bring MLflow to the state of the result files below `root`.

    Parameters: `uri` is a tracking URI; by default `mlflow.db` below `root` (SQLite), with
    artifacts in `mlruns`.

    A parent whose children are all among the stages finished now is continued, so that mirroring
    a pipeline halfway and again at its end gives one parent. What a killed mirror left unfinished
    is deleted and mirrored again.

    Returns {key, profile, experiment, runs, unfinished, stages: {name: hash}}; it depends on the
    results only. Raises `TrackingError`.
    """
    stages, unfinished = finished_stages(root)
    if not stages:
        raise TrackingError("no stage in dvc.lock is finished: run `make repro`")
    profile = _read_yaml(root / "params.yaml")["profile"]
    hashes = {stage.name: stage.dvc_hash for stage in stages}
    summary = {
        "key": _md5(hashes)[:12],
        "profile": profile,
        "experiment": EXPERIMENT,
        "runs": len(stages),
        "unfinished": unfinished,
        "stages": hashes,
    }
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    database = root.resolve() / "mlflow.db"
    # Two processes that create the database at once break it for good.
    try:
        with FileLock(f"{database}.lock", timeout=_LOCK_TIMEOUT):
            _Mirror(root, uri or f"sqlite:///{database}").run(stages, summary)
    except Timeout as error:
        raise TrackingError(
            f"another process has mirrored into {database} for {_LOCK_TIMEOUT} s; try again when "
            "it is done"
        ) from error
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"MLflow ({uri or database}) failed: {error}\nThe results are complete without it. If "
            f"the database is damaged or of another MLflow version, delete {database} and run "
            "`python -m stages.track`: it is built again from the results"
        ) from error
    return summary


class _Mirror:
    """One connection to MLflow and what it needs to know of the repository."""

    def __init__(self, root: Path, uri: str) -> None:
        from mlflow import MlflowClient

        self.root = root
        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        self.experiment_id = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(
                EXPERIMENT, artifact_location=(root.resolve() / "mlruns").as_uri()
            )
        )
        self.git = _git_tags(root)

    def run(self, stages: Sequence[FinishedStage], summary: Mapping[str, Any]) -> None:
        parent, mirrored, seeds = self._parent(summary)
        for seed in sorted({stage.seed for stage in stages} - {None} - seeds.keys()):
            seeds[seed] = self._seed(parent, seed, summary["profile"])
        for stage in stages:
            if stage.name not in mirrored:
                self._child(parent, seeds.get(stage.seed, parent), stage, summary["profile"])
        for seed, run_id in seeds.items():
            self._complete_seed(run_id, seed, stages)
        self._complete(parent, stages, summary)

    def _parent(self, summary: Mapping[str, Any]) -> tuple[str, set[str], dict[int, str]]:
        """The id of the run to mirror under; the stages and the training seeds it already has."""
        children: dict[str, dict[str, str]] = {}
        seeds: dict[str, dict[int, str]] = {}
        parents = []
        for run in self._runs():
            tags = run.data.tags
            if tags.get("kind") == "reproduction":
                parents.append(run)
            elif tags.get("kind") == "seed":
                found = seeds.setdefault(tags["mlflow.parentRunId"], {})
                found[int(tags["training_seed"])] = run.info.run_id
            elif tags.get("kind") == "stage" and run.info.status != "FINISHED":
                # A killed mirror left it half written.
                self.client.delete_run(run.info.run_id)
            elif tags.get("kind") == "stage":
                children.setdefault(tags["reproduction"], {})[run.info.run_name] = tags["dvc_hash"]
        fitting = [
            (len(found), run.info.run_id)
            for run in parents
            if (found := children.get(run.info.run_id, {})).items() <= summary["stages"].items()
        ]
        if fitting:
            _, run_id = max(fitting)
            return run_id, set(children.get(run_id, {})), seeds.get(run_id, {})
        run = self.client.create_run(
            self.experiment_id,
            run_name=f"{summary['profile']} {summary['key']}",
            tags={**self.git, "kind": "reproduction", "profile": summary["profile"]},
        )
        return run.info.run_id, set(), {}

    def _seed(self, parent: str, seed: int, profile: str) -> str:
        """A new run for what was trained with one seed."""
        run = self.client.create_run(
            self.experiment_id,
            run_name=f"training seed {seed}",
            tags={
                **self.git,
                "kind": "seed",
                "mlflow.parentRunId": parent,
                "training_seed": str(seed),
                "profile": profile,
            },
        )
        self._log(run.info.run_id, [], {"training_seed": str(seed)})
        return run.info.run_id

    def _runs(self) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _child(self, parent: str, above: str, stage: FinishedStage, profile: str) -> None:
        """A new run for a stage, in the run `above`: the parent itself or that of a seed."""
        run = self.client.create_run(
            self.experiment_id,
            run_name=stage.name,
            tags={
                **self.git,
                "kind": "stage",
                "mlflow.parentRunId": above,
                "reproduction": parent,
                "mlflow.source.name": stage.command,
                "stage": stage.stage,
                "item": stage.item,
                "dvc_hash": stage.dvc_hash,
                "code": stage.code,
                "profile": profile,
            },
        )
        run_id = run.info.run_id
        metrics: dict[str, float] = {}
        for path in stage.metrics_files:
            metrics |= metrics_of(read_json(path))
        points = [(key, value, 0) for key, value in metrics.items()]
        for path in stage.curve_files:
            for row in read_jsonl(path):
                points += [(key, value, row["step"]) for key, value in row.items() if key != "step"]
        self._log(run_id, points, stage.params)
        for path in stage.metrics_files:
            self.client.log_artifact(run_id, str(path))
        self.client.set_terminated(run_id)

    def _complete(
        self, parent: str, stages: Sequence[FinishedStage], summary: Mapping[str, Any]
    ) -> None:
        """Give the parent what sums up its children, where it does not have it yet."""
        run = self.client.get_run(parent)
        params = {key: value for stage in stages for key, value in stage.recorded.items()}
        headline = [(key, cell["value"]) for key, cell in _headline(stages)]
        self._log(
            parent,
            [(key, value, 0) for key, value in headline if key not in run.data.metrics],
            {key: value for key, value in params.items() if key not in run.data.params},
        )
        tags = {"key": summary["key"], "unfinished": ", ".join(summary["unfinished"])}
        folder = self.root / reports.folder(summary["profile"]) / "tables"
        if folder.is_dir():
            files = sorted(path for path in folder.iterdir() if path.is_file())
            tags["tables"] = _md5({path.name: path.read_text(encoding="utf-8") for path in files})
            if run.data.tags.get("tables") != tags["tables"]:
                self.client.log_artifacts(parent, str(folder), "tables")
        for key, value in tags.items():
            if run.data.tags.get(key) != value:
                self.client.set_tag(parent, key, value)
        if run.info.status != "FINISHED":
            self.client.set_terminated(parent)

    def _complete_seed(self, run_id: str, seed: int, stages: Sequence[FinishedStage]) -> None:
        """Give a training seed's run its own values of what sums up the reproduction."""
        run = self.client.get_run(run_id)
        own = [
            (key, cell["seeds"][str(seed)], 0)
            for key, cell in _headline(stages)
            if str(seed) in cell.get("seeds", {}) and key not in run.data.metrics
        ]
        self._log(run_id, own, {})
        if run.info.status != "FINISHED":
            self.client.set_terminated(run_id)

    def _log(
        self,
        run_id: str,
        points: Sequence[tuple[str, float, int]],
        params: Mapping[str, str],
    ) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(key, value, now, step) for key, value, step in points]
        for start in range(0, len(metrics), _BATCH["metrics"]):
            self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH["metrics"]])
        pairs = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(pairs), _BATCH["params"]):
            self.client.log_batch(run_id, params=pairs[start : start + _BATCH["params"]])


def _headline(stages: Sequence[FinishedStage]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The cells that sum up a reproduction, by the name that they have there.

    The means over benchmarks of each variant, and what each section's state tells.
    """
    for stage in stages:
        if stage.stage not in ("score", "similarity"):
            continue
        for path in stage.metrics_files:
            for group, row in read_json(path)["cells"].items():
                for metric, cell in row.items():
                    if group.endswith("/mean") if stage.stage == "score" else metric == NLL_GAIN:
                        yield f"{stage.item}/{group}/{metric}", cell


def _git_tags(root: Path) -> dict[str, str]:
    """The commit, and whether code or parameters differ from it; nothing outside a repository."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )

    commit = git("rev-parse", "HEAD")
    if commit.returncode:
        return {}
    # Result files in git change with every run; they do not make the code another.
    changed = git("status", "--porcelain", "--", *_CODE).stdout.strip()
    return {
        "mlflow.source.git.commit": commit.stdout.strip(),
        "git_dirty": str(bool(changed)).lower(),
    }
