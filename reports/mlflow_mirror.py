"""A mirror of the result files in MLflow: one parent run a reproduction, in it a run a training
seed and a run a stage; the stages of one training seed lie in that seed's run.

`dvc.lock` and the result files are the record; nothing is ever read back from MLflow. The mirror
can be deleted and is built again. A child is known by the hash of its stage's entry in `dvc.lock`
(command, dependencies, parameters, outputs), so mirroring again adds nothing, and another
parameter gives other entries and with them another parent.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from filelock import FileLock, Timeout

import reports
from heima.results.files import read_json, read_jsonl
from heima.results.measures import NLL_GAIN
from reports.finished import FinishedStage, TrackingError, finished_stages, md5, read_yaml

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "heima"

_LOCK_TIMEOUT = 60
_BATCH = {"metrics": 1000, "params": 100}
"""What MLflow takes in one `log_batch`."""

_CODE = ("heima", "eval", "reports/*.py", "stages", "params.yaml", "dvc.yaml")


def metrics_of(content: Mapping[str, Any]) -> dict[str, float]:
    """`<group>/<metric>` -> value of a metrics file: cells, other numbers, numbers of provenance.

    >>> metrics_of({"turns": {"train": 3}, "provenance": {"seed": 1, "seconds": 2.5}})
    {'turns/train': 3.0, 'seconds': 2.5}
    """
    found: dict[str, Any] = {}
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
    profile = read_yaml(root / "params.yaml")["profile"]
    hashes = {stage.name: stage.dvc_hash for stage in stages}
    summary = {
        "key": md5(hashes)[:12],
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
            _Mirror(root, uri or _uri(database)).run(stages, summary)
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


def _uri(database: Path) -> str:
    """The tracking URI of a SQLite file, whatever characters stand in its path.

    SQLAlchemy unquotes the path in a URI. MLflow makes the folder above the file before, by its
    quoted name: beside the right one, unless the path is relative and has no folder.
    """
    return f"sqlite:///{quote(os.path.relpath(database))}"


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
        for seed in sorted({one.seed for one in stages if one.seed is not None} - seeds.keys()):
            seeds[seed] = self._seed(parent, seed, summary["profile"])
        for stage in stages:
            if stage.name not in mirrored:
                above = parent if stage.seed is None else seeds[stage.seed]
                self._child(parent, above, stage, summary["profile"])
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
                below = seeds.setdefault(tags["mlflow.parentRunId"], {})
                below[int(tags["training_seed"])] = run.info.run_id
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
            tags["tables"] = md5({path.name: path.read_text(encoding="utf-8") for path in files})
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

    if shutil.which("git") is None:
        return {}

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
