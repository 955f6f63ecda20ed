import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from heima import config
from heima.results.cells import read_metrics
from reports import mlflow_mirror
from reports.finished import TrackingError, finished_stages, stage_names
from tests import fabricated

ROOT = fabricated.ROOT


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A fabricated reproduction, mirrored once; tests that change it work on their own."""
    root = tmp_path_factory.mktemp("reproduction")
    params = fabricated.write(root, questions=5)
    fabricated.lock(root, params)
    (root / "reports" / "toy" / "tables").mkdir(parents=True)
    (root / "reports" / "toy" / "tables" / "benchmarks.md").write_text("# table", encoding="utf-8")
    return root, mlflow_mirror.mirror(root)


def client(root):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root):
    api = client(root)
    experiment = api.get_experiment_by_name(mlflow_mirror.EXPERIMENT)
    return api.search_runs([experiment.experiment_id], max_results=1000)


def named(root):
    """Run name -> run; names are unique within one reproduction."""
    return {run.info.run_name: run for run in runs(root)}


def parents(root):
    return [run for run in runs(root) if run.data.tags["kind"] == "reproduction"]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """MLflow takes seconds to create one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def fresh(tmp_path, empty_database):
    """A reproduction with nothing mirrored."""
    shutil.copy(empty_database, tmp_path)
    fabricated.lock(tmp_path, fabricated.write(tmp_path, questions=5))
    return tmp_path


def change_learning_rate(root, checkpoint: str, rate: float) -> None:
    """What `dvc repro` leaves after a changed parameter: its stages have other entries."""
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    for seed in (42, 43, 44):
        used = lock["stages"][f"distill@{checkpoint}-{seed}"]["params"]["resolved.yaml"]
        used[f"checkpoints.{checkpoint}"]["learning_rate"] = rate
    (root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")


def test_every_stage_is_a_finished_run_under_one_parent(mirrored):
    root, summary = mirrored
    found = named(root)
    (parent,) = parents(root)
    assert summary["runs"] == len(summary["stages"]) == 1 + 3 * 6 + 7 + 7 + 6
    seeds = {f"training seed {seed}": str(seed) for seed in (42, 43, 44)}
    assert set(found) == {*summary["stages"], *seeds, parent.info.run_name}
    for name, seed in seeds.items():
        assert found[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert found[name].data.params == {"training_seed": seed}
        assert found[name].info.status == "FINISHED"
    assert summary["unfinished"] == []
    for name, dvc_hash in summary["stages"].items():
        run = found[name]
        assert run.info.status == "FINISHED"
        seed = name.rpartition("-")[2] if name.startswith("distill") else None
        above = found[f"training seed {seed}"] if seed else parent
        assert run.data.tags["mlflow.parentRunId"] == above.info.run_id
        assert run.data.tags["reproduction"] == parent.info.run_id
        assert run.data.tags["dvc_hash"] == dvc_hash
        assert run.data.tags["stage"] == name.partition("@")[0]
        assert (run.data.tags["profile"], run.data.tags["code"]) == ("toy", "c" * 32)


def test_metrics_curves_and_artifacts_are_those_of_the_files(mirrored):
    root, _ = mirrored
    api, found = client(root), named(root)
    cells, _ = read_metrics(root / "metrics/score/heima.json")
    assert (
        found["score@heima"].data.metrics["lmms/mean/accuracy"]
        == cells["lmms/mean"]["accuracy"].value
    )
    assert found["rewrite"].data.metrics == {"turns/train": 90.0, "turns/heldout": 10.0}
    recover = found["distill@recover-42"].info.run_id
    curve = api.get_metric_history(recover, "loss")
    assert [(point.step, point.value) for point in curve] == [(n, 2 / n) for n in range(1, 6)]
    assert found["distill@recover-42"].data.metrics["seconds"] == 1.5
    assert [file.path for file in api.list_artifacts(recover)] == ["42.json"]
    own = found["training seed 43"].data.metrics
    assert own["heima/lmms/mean/accuracy"] == cells["lmms/mean"]["accuracy"].seeds[43]
    assert not any(key.startswith("text-cot/") for key in own), "it has no training seed of its own"
    (parent,) = parents(root)
    assert [file.path for file in api.list_artifacts(parent.info.run_id, "tables")] == [
        "tables/benchmarks.md"
    ]
    assert parent.data.params["checkpoints.p2.learning_rate"] == "0.003"


def test_variants_can_be_compared(mirrored):
    """The same names, other values: what the comparison of the UI needs."""
    found = named(mirrored[0])
    heima, one_shot = (found[f"score@{v}"].data for v in ("heima", "heima-no-progressive"))
    assert heima.metrics.keys() == one_shot.metrics.keys()
    differing = {key for key in heima.params if heima.params[key] != one_shot.params.get(key)}
    assert {"item", "variants.model", "checkpoints.init", "checkpoints.steps"} <= differing
    recover = config.load(mirrored[0] / "params.yaml").checkpoints["recover"]
    assert heima.params["checkpoints.steps"] == str(recover.steps)


def test_mirroring_again_adds_nothing(mirrored):
    root, summary = mirrored
    before = {run.info.run_id: run.to_dictionary() for run in runs(root)}
    assert mlflow_mirror.mirror(root) == summary
    assert {run.info.run_id: run.to_dictionary() for run in runs(root)} == before


def test_other_params_get_another_parent(fresh):
    root = fresh
    first = mlflow_mirror.mirror(root)
    change_learning_rate(root, "p2", 1e-3)
    second = mlflow_mirror.mirror(root)
    assert first["key"] != second["key"]
    changed = {n for n in first["stages"] if first["stages"][n] != second["stages"][n]}
    assert changed == {f"distill@p2-{seed}" for seed in (42, 43, 44)}
    rates = {parent.data.params["checkpoints.p2.learning_rate"] for parent in parents(root)}
    assert rates == {"0.003", "0.001"}
    assert len(runs(root)) == 2 * (1 + 3 + first["runs"])
    # Back to the first parameters: its parent is complete already.
    change_learning_rate(root, "p2", 3e-3)
    assert mlflow_mirror.mirror(root) == first
    assert len(runs(root)) == 2 * (1 + 3 + first["runs"])


def test_the_mirror_is_built_from_the_files_alone(mirrored, tmp_path, empty_database):
    root, summary = mirrored
    copy = shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("ml*"))
    shutil.copy(empty_database, copy)
    assert mlflow_mirror.mirror(copy) == summary
    assert named(copy).keys() == named(root).keys()


def test_a_pipeline_halfway_and_a_killed_mirror_are_continued(fresh, monkeypatch):
    root = fresh
    whole = (root / "dvc.lock").read_text(encoding="utf-8")
    half = yaml.safe_load(whole)
    del half["stages"]["score@heima"], half["stages"]["score@base"]
    (root / "dvc.lock").write_text(yaml.safe_dump(half), encoding="utf-8")
    assert mlflow_mirror.mirror(root)["unfinished"] == ["score@base", "score@heima"]

    (root / "dvc.lock").write_text(whole, encoding="utf-8")
    log = mlflow_mirror._Mirror._log

    def killed(self, *arguments):
        log(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow_mirror._Mirror, "_log", killed)
    with pytest.raises(KeyboardInterrupt):
        mlflow_mirror.mirror(root)
    assert [run.info.run_name for run in runs(root) if run.info.status == "RUNNING"] == [
        "score@base"
    ]
    monkeypatch.undo()

    summary = mlflow_mirror.mirror(root)
    assert summary["unfinished"] == []
    assert len(parents(root)) == 1
    assert len(runs(root)) == 1 + 3 + summary["runs"]
    assert {run.info.status for run in runs(root)} == {"FINISHED"}
    (parent,) = parents(root)
    assert (parent.data.tags["key"], parent.data.tags["unfinished"]) == (summary["key"], "")


def test_changed_and_missing_outputs_are_not_finished(fresh):
    root = fresh
    (root / "metrics/score/heima.json").write_text("{}", encoding="utf-8")
    (root / "models/p1/43/loss.jsonl").unlink()
    (root / "models/p1/43").rmdir()
    finished, unfinished = finished_stages(root)
    assert unfinished == ["distill@p1-43", "score@heima"]
    assert not {"distill@p1-43", "score@heima"} & {stage.name for stage in finished}


def test_stale_entries_are_ignored(fresh):
    root = fresh
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    # One that a parameter file no longer names, and one from before there were training seeds.
    for name in ("distill@removed-42", "distill@recover"):
        lock["stages"][name] = lock["stages"]["distill@p1-42"]
    (root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    finished, _ = finished_stages(root)
    assert not {"distill@removed-42", "distill@recover"} & {stage.name for stage in finished}


def test_a_damaged_database_is_named_and_nothing_else_is_touched(fresh):
    root = fresh
    (root / "mlflow.db").write_bytes(b"no database at all" * 100)
    before = {path: path.read_bytes() for path in root.rglob("*.json*")}
    with pytest.raises(TrackingError, match=r"delete .*mlflow\.db and run"):
        mlflow_mirror.mirror(root)
    assert {path: path.read_bytes() for path in root.rglob("*.json*")} == before


def test_without_results_the_message_says_what_to_run(tmp_path):
    with pytest.raises(TrackingError, match=r"dvc\.lock does not exist.*make repro"):
        mlflow_mirror.mirror(tmp_path)


def test_names_of_the_real_pipeline():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    plain = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    listed = yaml.safe_load((ROOT / "runs.yaml").read_text(encoding="utf-8"))
    names = stage_names(pipeline, plain | listed)
    params = config.load(ROOT / "params.yaml")
    assert len(names) == len(set(names))
    assert {f"distill@{n}-{seed}" for n in params.checkpoints for seed in params.seeds} <= set(
        names
    )
    assert {f"score@{name}" for name in params.variants} <= set(names)
    assert {"prepare", "teach@text-cot", "interpret@reasoning-question-only-44"} <= set(names)


LOOK = """
import json
from mlflow import MlflowClient
from pathlib import Path
from reports import mlflow_mirror

summary = mlflow_mirror.mirror(Path("."))
api = MlflowClient("sqlite:///mlflow.db")
experiment = api.get_experiment_by_name(mlflow_mirror.EXPERIMENT)
found = api.search_runs([experiment.experiment_id], max_results=1000)
parent = next(run for run in found if run.data.tags["kind"] == "reproduction")
shown = Path(api.download_artifacts(parent.info.run_id, "tables/benchmarks.md")).read_text()
print(json.dumps([shown, len(found) - summary["runs"]]))
"""


@pytest.mark.parametrize("name", ["a%2Fb%20c", "a b?c#d% ä&=;%41"])
def test_a_path_is_a_path_whatever_stands_in_it(fresh, name):
    """As `stages.track` mirrors, from within; database and artifacts lie there and nowhere else.

    In a process of its own: MLflow keeps what it opened by its URI.
    """
    root = fresh.parent / f"{fresh.name}-odd" / name
    shutil.copytree(fresh, root)
    (root / "reports" / "toy" / "tables").mkdir(parents=True, exist_ok=True)
    (root / "reports" / "toy" / "tables" / "benchmarks.md").write_text("# table", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == ["# table", 1 + 3]
    assert list(root.parent.iterdir()) == [root]
    assert list((root / "mlruns").rglob("benchmarks.md"))
