"""A mirror of the result files in MLflow: one parent run a reproduction, in it what is compared.

`dvc.lock` and the result files are the record; nothing is ever read back from MLflow. The mirror
can be deleted and is built again, also in a fresh clone, from what git holds. A child is known by
the hash of the entries in `dvc.lock` that it is made from (commands, dependencies, parameters,
outputs), so mirroring again adds nothing, and another parameter gives other children wherever it
reached, and with them another parent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reports
from heima.results.files import read_jsonl
from reports.finished import FinishedStage, finished_stages, md5, read_yaml
from reports.finished import TrackingError as TrackingError
from reports.times import RECORDED, Time, times
from reports.tracking import entries as runs
from reports.tracking import notes
from reports.tracking.connection import connected, uri_of
from reports.tracking.entries import Entry
from reports.tracking.parts import children_of, dataset, digests, file_md5, git_tags, ms, short
from reports.tracking.samples import Samples

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_BATCH = {"metrics": 800, "params": 100}
"""What goes into one `log_batch`, which takes 1000 of both and tags."""
_PARENT = "mlflow.parentRunId"
_COLORS = (
    *("#7f7f7f", "#1f77b4", "#d62728", "#ff9896", "#ff7f0e"),
    *("#9467bd", "#2ca02c", "#17becf", "#bcbd22", "#8c564b", "#e377c2"),
)
"""Of variants in charts, in their order."""


def mirror(root: Path, *, uri: str | None = None) -> dict[str, Any]:
    """Bring MLflow to the state of the result files below `root`.

    Parameters: `uri` is a tracking URI; by default `MLFLOW_TRACKING_URI` or, without it,
    `mlflow.db` below `root` (SQLite), with artifacts in `mlruns`.

    A parent whose children are all among the stages finished now is continued, so that mirroring
    a pipeline halfway and again at its end gives one parent. What a killed mirror left unfinished
    is deleted and mirrored again.

    Returns {key, profile, runs, unfinished, stages: {name: hash}}, which depends on the results
    only, and `where`: {experiment, reproduction}, their ids. Raises `TrackingError`.
    """
    stages, unfinished = finished_stages(root)
    entries = runs.entries(stages)
    if not entries:
        raise TrackingError("no stage in dvc.lock is finished: run `make repro`")
    profile = read_yaml(root / "params.yaml")["profile"]
    hashes = {stage.name: stage.dvc_hash for stage in stages}
    summary = {
        "key": md5(hashes)[:12],
        "profile": profile,
        "runs": len(entries),
        "unfinished": unfinished,
        "stages": hashes,
    }
    with connected(root, uri or uri_of(root)) as (client, experiment):
        work = _Mirror(root, client, experiment, summary, stages, entries)
        return {**summary, "where": {"experiment": experiment, "reproduction": work.run()}}


class _Mirror:
    """One mirroring: the connection, and what is to be there."""

    def __init__(
        self,
        root: Path,
        client: MlflowClient,
        experiment: str,
        summary: Mapping[str, Any],
        stages: Sequence[FinishedStage],
        entries: Sequence[Entry],
    ) -> None:
        self.root = root
        self.client = client
        self.experiment = experiment
        self.summary = summary
        self.stages = {stage.name: stage for stage in stages}
        self.entries = {entry.name: entry for entry in entries}
        self.git = git_tags(root)
        self.times = times(root, summary["profile"], stages)
        self.folder = root / reports.folder(summary["profile"])
        self.samples = Samples(self.folder / "index.html")
        self.models: dict[str, str] = {}

    def run(self) -> str:
        """Mirror everything; the id of the reproduction's run."""
        found = self._existing()
        parent, children, seeds = self._parent(found)
        for seed in sorted({one.seed for one in self.entries.values() if one.seed is not None}):
            if seed not in seeds:
                seeds[seed] = self._seed(parent, seed)
        # Models are there before what measures them.
        for entry in sorted(self.entries.values(), key=lambda one: bool(one.reads)):
            run = children.get(entry.name)
            above = parent if entry.seed is None else seeds[entry.seed]
            run_id = run.info.run_id if run else self._create(parent, above, entry)
            if run and "model" in run.data.tags:
                self.models[entry.name] = run.data.tags["model"]
            self._fill(run_id, entry, run)
        for seed, run_id in seeds.items():
            self._complete_seed(run_id, seed)
        self._complete(parent, found)
        self._forget(found, parent, seeds.values())
        return parent

    def _existing(self) -> list[Run]:
        """All runs, without those that a killed mirror left half written."""
        found = []
        for run in self._runs():
            if run.data.tags.get("kind") == "live" or run.info.status == "FINISHED":
                found.append(run)
            elif "digest" in run.data.tags:
                self._delete(run)
            else:
                found.append(run)
        return found

    def _parent(self, found: Sequence[Run]) -> tuple[str, dict[str, Run], dict[int, str]]:
        """The id of the run to mirror under; the entries and the training seeds it already has."""
        wanted = {name: entry.digest for name, entry in self.entries.items()}
        children = children_of(found)
        seeds: dict[str, dict[int, str]] = {}
        parents = []
        for run in found:
            tags = run.data.tags
            if tags.get("kind") == "reproduction":
                parents.append(run)
            elif tags.get("kind") == "seed":
                below = seeds.setdefault(tags[_PARENT], {})
                below[int(tags["training_seed"])] = run.info.run_id
        fitting = [
            (len(own), run.info.run_id)
            for run in parents
            if run.data.tags.get("profile") == self.summary["profile"]
            and (own := digests(children.get(run.info.run_id, {}))).items() <= wanted.items()
        ]
        if fitting:
            _, run_id = max(fitting)
            return run_id, children.get(run_id, {}), seeds.get(run_id, {})
        from mlflow.utils.time import get_current_time_millis

        before = max(
            (one for one in parents if one.data.tags.get("profile") == self.summary["profile"]),
            key=lambda one: int(one.data.tags.get("mirrored", 0)),
            default=None,
        )
        started = min(one.started for one in self.times.values())
        run = self.client.create_run(
            self.experiment,
            start_time=ms(started),
            run_name=f"{self.summary['profile']} {self.summary['key']}",
            tags={
                **self.git,
                "kind": "reproduction",
                "profile": self.summary["profile"],
                **({"before": before.info.run_id} if before else {}),
                "mlflow.source.name": "make repro",
                "mirrored": str(get_current_time_millis()),
            },
        )
        return run.info.run_id, {}, {}

    def _seed(self, parent: str, seed: int) -> str:
        """A new run for what was trained with one seed."""
        own = [one for one in self.entries.values() if one.seed == seed]
        run = self.client.create_run(
            self.experiment,
            start_time=ms(min(self._time(one).started for one in own)),
            run_name=f"training seed {seed}",
            tags={
                **self.git,
                "kind": "seed",
                _PARENT: parent,
                "reproduction": parent,
                "training_seed": str(seed),
                "profile": self.summary["profile"],
                "mlflow.note.content": notes.of_seed(seed),
            },
        )
        self._log(run.info.run_id, [], {"training_seed": str(seed)})
        return run.info.run_id

    def _runs(self) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _time(self, entry: Entry) -> Time:
        """From the start of the first of an entry's stages to the end of the last."""
        own = [self.times[name] for name in entry.stages if name in self.times]
        source = next((one.source for one in own if one.source != RECORDED), RECORDED)
        return Time(min(one.started for one in own), max(one.ended for one in own), source)

    def _create(self, parent: str, above: str, entry: Entry) -> str:
        """A new run in the run `above`, the parent or a seed's; it is not yet whole."""
        time = self._time(entry)
        run = self.client.create_run(
            self.experiment,
            start_time=ms(time.started),
            run_name=entry.name,
            tags={
                **self.git,
                "kind": entry.kind,
                _PARENT: above,
                "mlflow.source.name": entry.command,
                "mlflow.note.content": entry.note,
                "reproduction": parent,
                "stages": ", ".join(entry.stages),
                "digest": entry.digest,
                "code": entry.code,
                "times": time.source,
                **({"mlflow.runColor": self._color(entry)} if entry.kind == "variant" else {}),
                "profile": self.summary["profile"],
            },
        )
        run_id = run.info.run_id
        self._log_inputs(run_id, entry)
        for path in entry.files:
            place = path.relative_to(self.root).parent.as_posix()
            self.client.log_artifact(run_id, str(path), place)
        if entry.model is not None:
            self.models[entry.name] = self._log_model(run_id, entry)
        return str(run_id)

    def _color(self, entry: Entry) -> str:
        """A colour for each variant; MLflow's own, by the run's id, fall on two alike."""
        return _COLORS[[one.name for one in self._variants()].index(entry.name) % len(_COLORS)]

    def _fill(self, run_id: str, entry: Entry, run: Run | None) -> None:
        """Give an entry's run the numbers and samples that it does not have yet, and finish it."""
        known = run.data.metrics if run else {}
        ended = self._time(entry).ended
        points: list[Metric] = [
            self._point(key, value, ended, entry=entry)
            for key, value in entry.values.items()
            if key not in known
        ]
        # A clone has no curves; the place where they were made may mirror later.
        if "loss" not in known:
            for path in entry.curves:
                points += [
                    self._point(key, value, ended, step=row["step"], entry=entry)
                    for row in read_jsonl(path)
                    for key, value in row.items()
                    if key != "step"
                ]
        tags = self._log_samples(run_id, entry, run)
        if run is None and entry.name in self.models:
            tags["model"] = self.models[entry.name]
        if points or tags:
            self._log(run_id, points, {} if run else entry.params, tags)
        if run is None or run.info.status != "FINISHED":
            self.client.set_terminated(run_id, end_time=ms(ended))

    def _point(self, key: str, value: float, when: float, *, step: int = 0, entry: Entry) -> Metric:
        from mlflow.entities import Metric

        data = entry.data_of.get(key)
        return Metric(
            key,
            float(value),
            ms(when),
            step,
            model_id=self.models.get(entry.name),
            dataset_name=data.name if data else None,
            dataset_digest=data.digest if data else None,
        )

    def _log_all_data(self, run: Run) -> None:
        """The data sets of the children, those that the parent does not have yet."""
        from mlflow.entities import DatasetInput, InputTag

        inputs = run.inputs.dataset_inputs if run.inputs else []
        known = {(one.dataset.name, one.dataset.digest) for one in inputs}
        found = dict.fromkeys(data for entry in self.entries.values() for data in entry.data)
        new = [
            DatasetInput(dataset(one), [InputTag("mlflow.data.context", one.context)])
            for one in found
            if (one.name, one.digest) not in known
        ]
        if new:
            self.client.log_inputs(run.info.run_id, datasets=new)

    def _log_inputs(self, run_id: str, entry: Entry) -> None:
        from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

        data = [
            DatasetInput(dataset(one), [InputTag("mlflow.data.context", one.context)])
            for one in entry.data
        ]
        models = [LoggedModelInput(self.models[name]) for name in entry.reads]
        if data or models:
            self.client.log_inputs(run_id, datasets=data, models=models)

    def _log_model(self, run_id: str, entry: Entry) -> str:
        """A LoggedModel whose weights stay with DVC; its id."""
        from mlflow.entities import LoggedModelOutput

        assert entry.model is not None
        model = self.client.create_logged_model(
            self.experiment,
            name=re.sub(r"[/:.%\"']", "_", entry.model.name),
            source_run_id=run_id,
            tags={
                "mlflow.model.isExternal": "true",
                "mlflow.note.content": f"Weights, kept by DVC (path: MD5 in dvc.lock): "
                f"{runs.as_text(entry.model.weights)}",
                "profile": self.summary["profile"],
            },
            params=dict(entry.params),
            model_type=entry.model.kind,
        )
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)

    def _log_samples(self, run_id: str, entry: Entry, run: Run | None) -> dict[str, str]:
        """A table of samples, which the UI lays beside others; its tags, if it is new."""
        table = self.samples.table(entry.kind, entry.samples) if entry.samples else None
        if table is None:
            return {}
        digest = md5(table)
        if run and run.data.tags.get("samples") == digest:
            return {}
        self.client.log_dict(run_id, table, "samples.json")
        kinds = json.dumps([{"path": "samples.json", "type": "table"}])
        return {"mlflow.loggedArtifacts": kinds, "samples": digest}

    def _complete(self, parent: str, found: Sequence[Run]) -> None:
        """Give the parent what sums up its children, where it does not have it yet."""
        run = self.client.get_run(parent)
        variants = self._variants()
        params: dict[str, str] = {}
        for stage in self.stages.values():
            params |= stage.recorded
        ended = max(one.ended for one in self.times.values())
        self._log(
            parent,
            self._own_points(runs.of_seed(variants, None), run, ended),
            {key: value for key, value in params.items() if key not in run.data.params},
        )
        stages = list(self.stages.values())
        tags = {
            "key": self.summary["key"],
            "unfinished": ", ".join(self.summary["unfinished"]) or "none",
            "code": runs.as_text(runs.code(stages)),
            "versions": runs.as_text(runs.versions(stages)),
        }
        before = next(
            (one for one in found if one.info.run_id == run.data.tags.get("before")), None
        )
        differing = self._differing(before, params, tags)
        name = f"{self.summary['profile']}: {short(differing) if before else 'the first one'}"
        tags["mlflow.note.content"] = notes.of_reproduction(
            self.summary, differing, before.info.run_name if before else None, variants
        )
        self._log_all_data(run)
        for what in ("tables", "figures", "claims.md", "index.html"):
            tags |= self._log_results(run, what)
        if run.info.run_name != name:
            self.client.update_run(parent, name=name)
        new = {key: value for key, value in tags.items() if run.data.tags.get(key) != value}
        self._log(parent, [], {}, new)
        if run.info.status != "FINISHED" or run.info.end_time != ms(ended):
            self.client.set_terminated(parent, end_time=ms(ended))

    def _variants(self) -> list[Entry]:
        return [one for one in self.entries.values() if one.kind == "variant"]

    def _own_points(self, values: Mapping[str, float], run: Run, when: float) -> list[Metric]:
        from mlflow.entities import Metric

        return [
            Metric(key, value, ms(when), 0)
            for key, value in values.items()
            if key not in run.data.metrics
        ]

    def _differing(
        self, before: Run | None, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> list[str]:
        """What of parameters, code and versions is another than in the reproduction before."""
        if before is None:
            return []
        known = before.data.params
        given = runs.differences(known, params)
        old = {key: json.loads(before.data.tags.get(key, "{}")) for key in ("code", "versions")}
        new = {key: json.loads(tags[key]) for key in ("code", "versions")}
        both = old["code"].keys() & new["code"].keys()
        changed = [stage for stage in new["code"] if stage in both]
        changed = [stage for stage in changed if new["code"][stage] != old["code"][stage]]
        if changed:
            given.append(f"code of {', '.join(changed)}")
        given += runs.differences(old["versions"], new["versions"])
        return given or ["the same once more"]

    def _log_results(self, run: Run, what: str) -> dict[str, str]:
        """Put a file or folder of results into the parent, if it is new; a tag with its hash."""
        path = self.folder / what
        if not path.exists():
            return {}
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        names = {one.relative_to(self.folder).as_posix(): file_md5(one) for one in files}
        tag = {what.partition(".")[0]: md5(names)}
        if tag.items() <= run.data.tags.items():
            return {}
        if path.is_dir():
            self.client.log_artifacts(run.info.run_id, str(path), what)
        else:
            self.client.log_artifact(run.info.run_id, str(path))
        return tag

    def _complete_seed(self, run_id: str, seed: int) -> None:
        """Give a training seed's run its own values of what sums up the reproduction."""
        run = self.client.get_run(run_id)
        own = [self._time(one) for one in self.entries.values() if one.seed == seed]
        ended = max((one.ended for one in own), default=run.info.start_time / 1000)
        self._log(run_id, self._own_points(runs.of_seed(self._variants(), seed), run, ended), {})
        if run.info.status != "FINISHED" or run.info.end_time != ms(ended):
            self.client.set_terminated(run_id, end_time=ms(ended))

    def _forget(self, found: Sequence[Run], parent: str, seeds: Any) -> None:
        """Delete what the mirrored runs replace: live ones, and parents that had a part of them."""
        wanted = {name: entry.digest for name, entry in self.entries.items()}
        children = children_of(found)
        halves = {
            run.info.run_id
            for run in found
            if run.data.tags.get("kind") == "reproduction"
            and run.info.run_id != parent
            and run.data.tags.get("profile") == self.summary["profile"]
            and digests(children.get(run.info.run_id, {})).items() <= wanted.items()
        }
        here = str(self.root.resolve())
        for run in found:
            tags = run.data.tags
            if tags.get("kind") == "live":
                if tags.get("folder") == here and tags.get("stage") in self.entries:
                    self._delete(run)
            elif {run.info.run_id, tags.get("reproduction"), tags.get(_PARENT)} & halves:
                self._delete(run)

    def _delete(self, run: Run) -> None:
        """Delete a run, and its model."""
        # A search leaves out what runs put out.
        outputs = self.client.get_run(run.info.run_id).outputs
        for output in outputs.model_outputs if outputs else ():
            self.client.delete_logged_model(output.model_id)
        self.client.delete_run(run.info.run_id)

    def _log(
        self,
        run_id: str,
        points: Sequence[Metric],
        params: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """As few batches as it takes: each is a transaction, or a request."""
        from mlflow.entities import Param, RunTag

        pairs = [Param(key, value) for key, value in params.items()]
        marks = [RunTag(key, value) for key, value in (tags or {}).items()]
        most, few = _BATCH["metrics"], _BATCH["params"]
        batches = max(-(-len(points) // most), -(-len(pairs) // few), bool(marks))
        for number in range(batches):
            self.client.log_batch(
                run_id,
                metrics=points[number * most : (number + 1) * most],
                params=pairs[number * few : (number + 1) * few],
                tags=() if number else marks,
            )
