"""The mirror in MLflow, on SQLite: what runs there are, built from files alone."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from jinja2.utils import htmlsafe_json_dumps

from heima import config
from heima.config.profiles import written_out
from heima.results.cells import read_metrics
from heima.results.files import read_json
from heima.results.measures import NLL_GAIN, difference
from reports.finished import TrackingError, finished_stages, stage_names
from reports.times import COMMITTED, RECORDED, WRITTEN, Ran, record, times
from reports.tracking import entries, mirror
from tests import fabricated

ROOT = fabricated.ROOT
SEEDS = (42, 43, 44)
FEW = (42, 43)
PAGE = {
    "questions": [
        {
            "benchmark": "ai2d",
            "doc": 3,
            "question": "Which?",
            "options": {"A": "<b>"},
            "answer": "A",
            "answers": {"lmms": {"heima": [0, 13, 3, [1.0, 0.0, 1.0], 0]}},
        }
    ],
    "turns": [
        {
            "id": "t-1",
            "question": "What?",
            "sections": {"caption": 1},
            "rebuilt": {"caption": {"own": [0, 1.5, 4], "noise": [1, 2.5, None]}},
        }
    ],
    "texts": ["said </script>", "section"],
    "reconstructions": {"caption": "caption"},
}


def write_small(root):
    """A small reproduction: 15 runs, and three above them."""
    raw = yaml.safe_load(fabricated.toy_text())
    raw["seeds"] = list(FEW)
    raw["variants"] = {"base": {"model": "base"}, "heima": {"model": "recover"}}
    for key, names in {
        "reconstructions": ("summary", "caption", "reasoning"),
        "checkpoints": ("p1", "p2", "p3", "recover"),
    }.items():
        raw[key] = {name: raw[key][name] for name in names}
    raw["latency"]["cases"] = {"heima": {"variant": "heima"}}
    params = fabricated.write(root, questions=5, params_text=yaml.safe_dump(raw))
    fabricated.lock(root, params)


def write_results(root):
    """What the parent shows: a table, a figure, the claims, the page."""
    folder = root / "reports" / "toy"
    for name in ("tables/benchmarks.md", "tables/compact/a.tex", "figures/a.svg", "claims.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}", encoding="utf-8")
    data = htmlsafe_json_dumps(PAGE)
    (folder / "index.html").write_text(
        f'<p>x<script type="application/json" id="data">{data}</script><script>1</script>',
        encoding="utf-8",
    )


def write_times(root):
    """As `stages.repro` notes them: every stage took a minute, one after the other."""
    stages = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    start = 1_700_000_000.0
    record(
        root,
        {
            name: Ran(entry, start + 60 * place, start + 60 * place + 60)
            for place, (name, entry) in enumerate(sorted(stages.items()))
        },
    )


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A fabricated reproduction, mirrored once; tests that change it work on their own."""
    root = tmp_path_factory.mktemp("reproduction")
    params = fabricated.write(root, questions=5)
    fabricated.lock(root, params)
    write_results(root)
    write_times(root)
    return root, mirror.mirror(root)


def client(root):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root):
    api = client(root)
    experiment = api.get_experiment_by_name("heima")
    return api.search_runs([experiment.experiment_id], max_results=1000)


def named(root):
    """Run name -> run; names are unique within one reproduction."""
    return {run.info.run_name: run for run in runs(root)}


def of_kind(root, kind):
    return [run for run in runs(root) if run.data.tags["kind"] == kind]


def parents(root):
    return of_kind(root, "reproduction")


def expected(root):
    return {one.name: one for one in entries.entries(finished_stages(root)[0])}


@pytest.fixture(scope="module")
def small(tmp_path_factory, empty_database):
    """A small reproduction with nothing mirrored."""
    root = tmp_path_factory.mktemp("small")
    shutil.copy(empty_database, root)
    write_small(root)
    return root


@pytest.fixture
def fresh(small, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(small, tmp_path / "reproduction")


def change(root, key: str, value) -> None:
    """What `dvc repro` leaves after a changed parameter: other entries of the stages that ran."""
    _, checkpoint, name = key.split(".")
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    for seed in FEW:
        used = lock["stages"][f"distill@{checkpoint}-{seed}"]["params"]["resolved.yaml"]
        used[f"checkpoints.{checkpoint}"][name] = value
    (root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")


def test_every_number_is_in_a_finished_run_under_one_parent(mirrored):
    root, summary = mirrored
    found = named(root)
    (parent,) = parents(root)
    assert len(summary["stages"]) == 1 + 1 + 3 * 6 + 7 + 7 + 6 + 1
    assert summary["runs"] == 1 + 5 + 3 * 6 + 7 + 6 + 1
    seeds = {f"training seed {seed}": str(seed) for seed in SEEDS}
    wanted = expected(root)
    assert set(found) == {*wanted, *seeds, parent.info.run_name}
    for name, seed in seeds.items():
        assert found[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert found[name].data.params == {"training_seed": seed}
    assert summary["unfinished"] == []
    assert summary["where"]["reproduction"] == parent.info.run_id
    for name, entry in wanted.items():
        run = found[name]
        above = found[f"training seed {entry.seed}"] if entry.seed else parent
        assert run.data.tags["mlflow.parentRunId"] == above.info.run_id
        assert run.data.tags["reproduction"] == parent.info.run_id
        assert run.data.tags["digest"] == entry.digest
        assert (run.data.tags["profile"], run.data.tags["code"]) == ("toy", "c" * 32)
    kinds = {"variant": 7, "reconstruction": 6, "training": 18, "latency": 5, "data": 1}
    kinds["audit"] = 1
    assert {kind: len(of_kind(root, kind)) for kind in kinds} == kinds


def test_nothing_is_empty_and_everything_has_a_description(mirrored):
    root, _ = mirrored
    api = client(root)
    for run in runs(root):
        assert run.info.status == "FINISHED"
        assert run.info.end_time >= run.info.start_time
        assert run.data.metrics and run.data.params, run.info.run_name
        assert len(run.data.tags["mlflow.note.content"]) > 40
        if run.data.tags["kind"] != "seed":
            assert api.list_artifacts(run.info.run_id), run.info.run_name
    experiment = api.get_experiment_by_name("heima")
    assert "Chart view" in experiment.tags["mlflow.note.content"]


def test_names_of_metrics_begin_with_the_metric_and_are_few(mirrored):
    root, _ = mirrored
    found = {run.info.run_name: set(run.data.metrics) for run in runs(root)}
    names = set().union(*found.values())
    assert len(names) <= 150
    params = config.load(root / "params.yaml")
    things = {*params.variants, *params.checkpoints, *params.reconstructions, *params.protocols}
    assert not {name.partition("/")[0] for name in names} & things
    variants = [found[name] for name in params.variants]
    assert all(names == variants[0] for names in variants), "one chart has the bars of all"
    assert {f"accuracy/lmms/{name}" for name in params.benchmarks} <= variants[0]


@pytest.mark.parametrize("profile", ["paper", "toy-thinking"])
def test_metric_names_are_few_in_the_largest_profiles(profile, tmp_path):
    text = written_out(ROOT / "profiles" / f"{profile}.yaml")
    fabricated.lock(tmp_path, fabricated.write(tmp_path, questions=4, params_text=text))
    found = entries.entries(finished_stages(tmp_path)[0])
    names = {name for one in found for name in (*one.values, "loss", "learning_rate")}
    names |= entries.of_seed([one for one in found if one.kind == "variant"], None).keys()
    assert 40 < len(names) <= 150


def test_metrics_curves_and_artifacts_are_those_of_the_files(mirrored):
    root, _ = mirrored
    api, found = client(root), named(root)
    cells, _ = read_metrics(root / "metrics/score/heima.json")
    for group, row in cells.items():
        for metric in ("accuracy", "decoded_tokens"):
            assert found["heima"].data.metrics[f"{metric}/{group}"] == row[metric].value
    assert found["rewrite"].data.metrics == {"turns/train": 90.0, "turns/heldout": 10.0}
    rebuilt, _ = read_metrics(root / "metrics/similarity/caption.json")
    shown = found["similarity@caption"].data.metrics
    assert shown["rougeL/own"] == rebuilt["own"]["rougeL"].value
    assert shown["nll_gain/zero"] == rebuilt[difference("zero")][NLL_GAIN].value
    times_of, _ = read_metrics(root / "metrics/latency.json")
    shown = found["latency@heima"].data.metrics
    assert shown["e2e_ms/batch-8"] == times_of["heima/batch-8"]["e2e_ms"].value
    assert shown["speedup/batch-8"] == times_of["heima-vs-text-cot/batch-8"]["speedup"].value

    recover = found["distill@recover-42"]
    curve = api.get_metric_history(recover.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(n, 2 / n) for n in range(1, 6)]
    assert recover.data.metrics["seconds"] == 1.5
    assert recover.data.metrics["loss/heldout"] == 0.5

    def paths(run, folder=None):
        return [file.path for file in api.list_artifacts(run.info.run_id, folder)]

    assert paths(recover, "metrics/distill/recover") == ["metrics/distill/recover/42.json"]
    (parent,) = parents(root)
    assert paths(parent) == ["claims.md", "figures", "index.html", "tables"]
    assert paths(parent, "tables") == ["tables/benchmarks.md", "tables/compact"]
    assert parent.data.params["checkpoints.p2.learning_rate"] == "0.003"


def test_the_parent_and_the_seeds_have_the_methods_values_and_each_variants_mean(mirrored):
    root, _ = mirrored
    found = named(root)
    (parent,) = parents(root)
    heima, _ = read_metrics(root / "metrics/score/heima.json")
    text_cot, _ = read_metrics(root / "metrics/score/text-cot.json")
    one_shot, _ = read_metrics(root / "metrics/score/heima-no-progressive.json")
    whole = parent.data.metrics
    assert whole["accuracy/lmms/ai2d"] == heima["lmms/ai2d"]["accuracy"].value
    assert whole["accuracy/lmms/mean/text-cot"] == text_cot["lmms/mean"]["accuracy"].value
    own = found["training seed 43"].data.metrics
    assert own["accuracy/lmms/ai2d"] == heima["lmms/ai2d"]["accuracy"].seeds[43]
    name = "accuracy/vlmevalkit/mean/heima-no-progressive"
    assert own[name] == one_shot["vlmevalkit/mean"]["accuracy"].seeds[43]
    assert own.keys() < whole.keys()
    assert not any(key.endswith("/text-cot") for key in own), "it has no training seed of its own"
    note = parent.data.tags["mlflow.note.content"]
    assert f"| heima | {heima['lmms/mmstar']['accuracy'].value:.1f} |" in note


def test_a_variant_has_the_schedule_of_its_whole_chain(mirrored):
    root, _ = mirrored
    found = named(root)
    params = config.load(root / "params.yaml")
    steps = {name: params.checkpoints[name].steps for name in params.checkpoints}
    shown = {name: found[name].data.params for name in params.variants}
    chain = ("p1", "p2", "p3", "recover")
    assert shown["heima"]["chain"] == "text-cot > p1 > p2 > p3 > recover"
    assert shown["heima"]["updates"] == str(sum(steps[name] for name in chain))
    assert shown["heima-no-recover"]["updates"] == str(sum(steps[name] for name in chain[:3]))
    assert shown["heima-no-progressive"]["updates"] == str(steps["one-shot"])
    assert "updates" not in shown["text-cot"] and shown["text-cot"]["chain"] == "text-cot"
    rates = {name: one.get("checkpoints.p2.learning_rate") for name, one in shown.items()}
    through = {"heima", "heima-forced-prefix", "heima-no-recover"}
    assert {name for name, rate in rates.items() if rate == "0.003"} == through
    assert shown["heima-forced-prefix"]["forced_prefix"] == "p3"
    training = found["distill@p3-42"].data.params
    assert training["checkpoints.p2.learning_rate"] == "0.003"
    assert training["checkpoints.learning_rate"] == training["checkpoints.p3.learning_rate"]


def test_runs_have_the_recorded_times(mirrored):
    root, _ = mirrored
    noted = json.loads((root / "reports/toy/times.json").read_text(encoding="utf-8"))
    found = named(root)
    for name, stages in {
        "heima": ("predict@heima", "score@heima"),
        "distill@p2-43": ("distill@p2-43",),
        "latency@heima": ("latency",),
    }.items():
        info = found[name].info
        assert info.start_time == 1000 * min(noted[one]["started"] for one in stages)
        assert info.end_time == 1000 * max(noted[one]["ended"] for one in stages)
        assert found[name].data.tags["times"] == RECORDED
    (parent,) = parents(root)
    whole = [one for name, one in noted.items() if name != "predict@base"]
    assert parent.info.start_time == 1000 * min(one["started"] for one in whole)
    assert parent.info.end_time == 1000 * max(one["ended"] for one in whole)
    seed = found["training seed 42"].info
    assert seed.start_time == 1000 * noted["distill@answer-only-42"]["started"]
    assert seed.end_time == 1000 * noted["distill@recover-42"]["ended"]


def test_without_recorded_times_those_of_git_and_of_files_are_named_as_such(fresh):
    root = fresh
    stages, _ = finished_stages(root)
    file = root / "metrics/score/heima.json"
    os.utime(file, (1_650_000_000, 1_650_000_000))
    assert times(root, "toy", stages)["score@heima"].ended == 1_650_000_000
    when = {"GIT_COMMITTER_DATE": "1600000000 +0000", "GIT_AUTHOR_DATE": "1600000000 +0000"}
    for command in (
        ["init", "--quiet"],
        ["add", "--force", "metrics"],
        ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "results"],
    ):
        subprocess.run(["git", *command], cwd=root, env={**os.environ, **when}, check=True)
    found = times(root, "toy", stages)
    assert (found["score@heima"].ended, found["score@heima"].source) == (1_600_000_000, COMMITTED)
    training = found["distill@p2-42"]
    assert training.ended - training.started == 1.5
    file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
    os.utime(file, (1_650_000_000, 1_650_000_000))
    found = times(root, "toy", stages)
    assert (found["score@heima"].ended, found["score@heima"].source) == (1_650_000_000, WRITTEN)

    # What is recorded of another entry of dvc.lock is not believed.
    entry = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]["score@base"]
    record(root, {"score@base": Ran(entry, 5.0, 7.5)})
    assert times(root, "toy", stages)["score@base"].source == RECORDED
    record(root, {"score@base": Ran({**entry, "cmd": "other"}, 5.0, 7.5)})
    assert times(root, "toy", stages)["score@base"].source == COMMITTED


def test_data_and_models_are_linked_to_the_metrics(mirrored):
    root, summary = mirrored
    api, found = client(root), named(root)
    heima = found["heima"]
    inputs = {(one.dataset.name, one.dataset.digest) for one in heima.inputs.dataset_inputs}
    assert ("ai2d", "lmms-ai2d") in inputs and len(inputs) == 2 * 6
    assert {one.dataset.profile for one in heima.inputs.dataset_inputs} == {'{"num_rows": 5}'}
    models = api.search_logged_models([summary["where"]["experiment"]], max_results=100)
    by_name = {one.name: one for one in models}
    assert len(by_name) == len(models) == 7 + 18
    linked = {metric.key: metric for metric in by_name["heima"].metrics}
    metric = linked["accuracy/lmms/ai2d"]
    assert (metric.dataset_name, metric.dataset_digest) == ("ai2d", "lmms-ai2d")
    assert metric.value == heima.data.metrics["accuracy/lmms/ai2d"]
    assert by_name["recover-42"].model_type == "adapter"
    assert "models/recover/42" in by_name["recover-42"].tags["mlflow.note.content"]
    # A search leaves them out.
    reads = {one.model_id for one in api.get_run(heima.info.run_id).inputs.model_inputs}
    assert reads == {by_name[f"recover-{seed}"].model_id for seed in SEEDS}
    (parent,) = parents(root)
    assert inputs < {(one.dataset.name, one.dataset.digest) for one in parent.inputs.dataset_inputs}
    colors = {run.data.tags["mlflow.runColor"] for run in of_kind(root, "variant")}
    assert len(colors) == 7
    training = found["distill@p1-42"].inputs.dataset_inputs
    assert {(one.dataset.name, one.tags[0].value) for one in training} == {
        ("turns-train", "training"),
        ("turns-heldout", "eval"),
    }


def test_samples_are_tables_that_can_be_laid_beside_each_other(mirrored, tmp_path):
    root, _ = mirrored
    api, found = client(root), named(root)

    def table(name):
        path = api.download_artifacts(found[name].info.run_id, "samples.json", str(tmp_path))
        content = read_json(path)
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    (answer,) = table("heima")
    assert (answer["benchmark"], answer["said"]) == ("ai2d", "said </script>")
    assert answer["scores of the training seeds"] == "1, 0, 1"
    own, noise = table("similarity@caption")
    assert (own["rebuilt"], own["grade"], noise["grade"]) == ("said </script>", 4, None)
    assert "samples" not in found["base"].data.tags, "the page has none of it"


def test_mirroring_again_adds_nothing(mirrored):
    root, summary = mirrored
    before = {run.info.run_id: run.to_dictionary() for run in runs(root)}
    assert mirror.mirror(root) == summary
    assert {run.info.run_id: run.to_dictionary() for run in runs(root)} == before


def test_other_params_get_another_parent_that_is_named_by_them(fresh):
    root = fresh
    first = mirror.mirror(root)
    (one,) = parents(root)
    assert one.info.run_name == "toy: the first one"
    change(root, "checkpoints.p2.learning_rate", 1e-3)
    second = mirror.mirror(root)
    assert first["key"] != second["key"]
    changed = {n for n in first["stages"] if first["stages"][n] != second["stages"][n]}
    assert changed == {f"distill@p2-{seed}" for seed in FEW}
    (other,) = (one for one in parents(root) if one.info.run_id == second["where"]["reproduction"])
    assert other.info.run_name == "toy: p2.learning_rate 0.003 → 0.001"
    note = other.data.tags["mlflow.note.content"]
    assert "“toy: the first one”" in note and "- p2.learning_rate 0.003 → 0.001" in note
    assert len(runs(root)) == 2 * (1 + 2 + first["runs"])
    # In every run that it has reached, and in no other.
    key = "checkpoints.p2.learning_rate"
    new = [run for run in runs(root) if run.data.tags.get("reproduction") == other.info.run_id]
    rates = {run.info.run_name: run.data.params.get(key) for run in new}
    reached = {"heima", "latency@heima"} | {
        f"distill@{name}-{seed}" for name in ("p2", "p3", "recover") for seed in FEW
    }
    assert {name for name, rate in rates.items() if rate == "0.001"} == reached
    assert set(rates.values()) == {"0.001", None}
    # Back to the first parameters: its parent is complete already.
    change(root, "checkpoints.p2.learning_rate", 3e-3)
    assert mirror.mirror(root) == first
    assert len(runs(root)) == 2 * (1 + 2 + first["runs"])


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda stage: stage.update(cmd=f"{stage['cmd']} "), "the same once more"),
        (lambda stage: stage["deps"][0].update(md5="d" * 32), "code of distill"),
    ],
)
def test_what_differs_is_said_of_code_and_of_the_same_too(fresh, edit, name):
    root = fresh
    mirror.mirror(root)
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    for seed in FEW:
        edit(lock["stages"][f"distill@p2-{seed}"])
    for stage in lock["stages"]:
        if stage.startswith("distill@") and name.startswith("code"):
            lock["stages"][stage]["deps"][0]["md5"] = "d" * 32
    (root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    mirror.mirror(root)
    assert {one.info.run_name for one in parents(root)} == {"toy: the first one", f"toy: {name}"}


def test_the_mirror_is_built_from_the_files_alone(mirrored, tmp_path, empty_database):
    root, summary = mirrored
    copy = shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("ml*"))
    shutil.copy(empty_database, copy)
    again = mirror.mirror(copy)
    assert {**again, "where": None} == {**summary, "where": None}
    assert named(copy).keys() == named(root).keys()


def test_a_pipeline_halfway_and_a_killed_mirror_are_continued(fresh, monkeypatch):
    root = fresh
    whole = (root / "dvc.lock").read_text(encoding="utf-8")
    half = yaml.safe_load(whole)
    del half["stages"]["score@heima"], half["stages"]["score@base"]
    (root / "dvc.lock").write_text(yaml.safe_dump(half), encoding="utf-8")
    assert mirror.mirror(root)["unfinished"] == ["score@base", "score@heima"]

    (root / "dvc.lock").write_text(whole, encoding="utf-8")
    log = mirror._Mirror._log

    def killed(self, *arguments):
        log(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(mirror._Mirror, "_log", killed)
    with pytest.raises(KeyboardInterrupt):
        mirror.mirror(root)
    assert [run.info.run_name for run in runs(root) if run.info.status == "RUNNING"] == ["base"]
    monkeypatch.undo()

    summary = mirror.mirror(root)
    assert summary["unfinished"] == []
    assert len(parents(root)) == 1
    assert len(runs(root)) == 1 + 2 + summary["runs"]
    assert {run.info.status for run in runs(root)} == {"FINISHED"}
    (parent,) = parents(root)
    assert (parent.data.tags["key"], parent.data.tags["unfinished"]) == (summary["key"], "none")


def test_what_is_run_again_is_not_finished_nor_what_is_made_from_it(fresh):
    root = fresh
    (root / "metrics/distill/p3/43.json").unlink()
    (root / "metrics/rewrite.json").write_text('{"provenance": {}}', encoding="utf-8")
    finished, unfinished = finished_stages(root)
    others = ("similarity", "effects")
    names = [stage.name for stage in finished if stage.stage not in others]
    assert names == ["predict@base", "score@base"]
    assert "rewrite" in unfinished and "distill@p1-42" in unfinished and "score@heima" in unfinished


def test_a_stage_that_has_read_what_is_no_longer_there_is_not_finished(fresh):
    """p2 of one seed ran again and gave another adapter; p3 has not yet."""
    root = fresh
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    for out in lock["stages"]["distill@p2-43"]["outs"]:
        if out["path"] == "models/p2/43":
            out["md5"] = "1" * 32
    (root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    _, unfinished = finished_stages(root)
    assert unfinished == [
        "latency", "distill@p3-43", "distill@recover-43", "predict@heima", "score@heima"
    ]  # fmt: skip


def test_results_of_another_profile_are_not_this_ones(fresh):
    root = fresh
    text = (root / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(text.replace("profile: toy", "profile: other"), "utf-8")
    finished, _ = finished_stages(root)
    assert {stage.stage for stage in finished} <= {"rewrite", "predict"}


def test_a_clone_has_what_git_holds_and_the_curves_come_later(fresh):
    """Models, predictions and scores are nowhere; the place where they were made mirrors too."""
    root = fresh
    models = (root / "models").rename(root / "elsewhere")
    shutil.rmtree(root / "predictions")
    shutil.rmtree(root / "scores")
    first = mirror.mirror(root)
    assert first["unfinished"] == []
    assert "loss" not in named(root)["distill@p2-42"].data.metrics
    assert named(root)["distill@p2-42"].data.metrics["loss/heldout"] == 0.5
    number = len(runs(root))
    models.rename(root / "models")
    write_results(root)
    assert mirror.mirror(root) == first
    assert len(runs(root)) == number
    found = named(root)
    assert found["distill@p2-42"].data.metrics["loss"] == 2 / 5
    assert "samples" in found["heima"].data.tags and "figures" in parents(root)[0].data.tags


def test_a_model_that_was_given_without_a_number_has_no_run(fresh, monkeypatch):
    """As the paper profile's models, which are fetched and not trained."""
    training, without = entries._training, ("distill@recover-42", "distill@recover-43")

    def given(stage, known):
        entry = training(stage, known)
        return replace(entry, values={}, curves=()) if stage.name in without else entry

    monkeypatch.setattr(entries, "_training", given)
    mirror.mirror(fresh)
    assert "heima" in named(fresh) and not named(fresh).keys() & set(without)


def test_what_a_half_had_is_not_kept_beside_the_whole(fresh):
    """Mirrored while everything runs again, which is then given up."""
    root = fresh
    first = mirror.mirror(root)
    kept = {path: path.read_bytes() for path in (root / "metrics").rglob("*.json")}
    for path in kept:
        if path.name != "rewrite.json":
            path.unlink()
    half = mirror.mirror(root)
    assert half["runs"] == 1 and len(parents(root)) == 2
    for path, content in kept.items():
        path.write_bytes(content)
    assert mirror.mirror(root) == first
    assert len(parents(root)) == 1 and len(runs(root)) == 1 + 2 + first["runs"]


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
        mirror.mirror(root)
    assert {path: path.read_bytes() for path in root.rglob("*.json*")} == before


def test_without_results_the_message_says_what_to_run(tmp_path):
    with pytest.raises(TrackingError, match=r"dvc\.lock does not exist.*make repro"):
        mirror.mirror(tmp_path)


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
from dataclasses import replace
from pathlib import Path
from reports.tracking import mirror

summary = mirror.mirror(Path("."))
api = MlflowClient("sqlite:///mlflow.db")
experiment = api.get_experiment_by_name("heima")
found = api.search_runs([experiment.experiment_id], max_results=1000)
parent = next(run for run in found if run.data.tags["kind"] == "reproduction")
shown = Path(api.download_artifacts(parent.info.run_id, "tables/benchmarks.md")).read_text()
print(json.dumps([shown, len(found) - summary["runs"]]))
"""


@pytest.mark.parametrize(
    "name", ["a b?c#d% ä&=;%41", pytest.param("a%2Fb%20c", marks=pytest.mark.slow)]
)
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
    assert json.loads(ended.stdout.splitlines()[-1]) == ["# table", 1 + 2]
    assert list(root.parent.iterdir()) == [root]
    assert list((root / "mlruns").rglob("benchmarks.md"))
