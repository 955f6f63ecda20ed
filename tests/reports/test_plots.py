"""What `dvc plots show` draws: the numbers of the results, in columns that dvc.yaml names."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest
import yaml

from heima.results.cells import read_metrics
from heima.results.files import read_jsonl, write_jsonl
from reports import figures
from reports.figures import plots
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def own(root, tmp_path_factory):
    return shutil.copytree(root, tmp_path_factory.mktemp("plots") / "root")


@pytest.fixture(scope="module")
def folder(own, params):
    """The files, of invented scores and of training runs of 150 updates."""
    runs = [f"models/{params.trained(c, s)}" for c in params.checkpoints for s in params.seeds]
    runs += [
        f"interpreters/{name}/{source}/{seed}"
        for name in params.interpreters
        for source in ("own", "question-only")
        for seed in params.seeds
    ]
    for run in runs:
        rows = [{"step": step, "loss": 2 / step} for step in range(1, 151)]
        write_jsonl(own / run / "loss.jsonl", rows)
    (there := own / "plots").mkdir()
    plots.write(figures.Inputs(own, params), there)
    return there


def read(folder, name):
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_is_that_of_its_results(folder, root, params):
    rows = read(folder, "accuracy")
    assert len(rows) == len(params.protocols) * (len(params.benchmarks) + 1) * len(params.variants)
    for row in rows:
        benchmark, protocol = re.fullmatch(r"(\S+) \((\S+)\)", row["panel"]).groups()
        cells, _ = read_metrics(root / "metrics" / "score" / f"{row['variant']}.json")
        value = cells[f"{protocol}/{benchmark}"]["accuracy"].value
        assert float(row["accuracy"]) == pytest.approx(value, rel=1e-5)
    for row in read(folder, "tokens"):
        cells, _ = read_metrics(root / "metrics" / "score" / f"{row['variant']}.json")
        value = cells[f"{row['panel']}/mean"]["decoded_tokens"].value
        assert float(row["tokens"]) == pytest.approx(value, rel=1e-5)
    for row in read(folder, "gain"):
        cells, _ = read_metrics(root / "metrics" / "similarity" / f"{row['panel']}.json")
        value = cells[f"own-minus-{row['control']}"]["nll_gain"].value
        assert float(row["nats"]) == pytest.approx(value, rel=1e-5)
    assert len(read(folder, "gain")) == (len(params.reconstruct.controls) - 1) * len(
        params.reconstructions
    )


def test_a_curve_a_run_is_the_mean_of_neighbouring_updates(folder, own, params):
    curves: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in read(folder, "loss"):
        curves.setdefault((row["panel"], row["run"], row["seed"]), []).append(row)
    runs = len(params.checkpoints) + 2 * len(params.interpreters)
    assert len(curves) == len(params.seeds) * runs
    for (panel, run, seed), rows in curves.items():
        assert len(rows) == plots._POINTS
        updates = [float(row["update"]) for row in rows]
        assert updates == sorted(updates) and updates[0] >= 1 and updates[-1] <= 150
        if panel == "checkpoints":
            losses = read_jsonl(own / "models" / params.trained(run, int(seed)) / "loss.jsonl")
            first = [row["loss"] for row in losses if row["step"] <= 3]
            assert float(rows[0]["loss"]) == pytest.approx(sum(first) / 3, rel=1e-5)


def test_dvc_yaml_draws_each_file_by_columns_that_it_has():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    drawn = {}
    for entry in pipeline["plots"]:
        [(name, how)] = entry.items()
        [(file, column)] = how["y"].items()
        assert file == f"reports/${{profile}}/plots/{name}.csv"
        columns, _ = plots.PLOTS[name]
        template = (ROOT / ".dvc" / "plots" / f"{how['template']}.json").read_text("utf-8")
        fields = set(re.findall(r'"field": "([a-z]+)"', template)) - {"rev"}
        assert {how["x"], column, *fields} <= set(columns), name
        assert set(columns) == {how["x"], column, *fields}, "nothing is written that is not drawn"
        assert json.loads(template)["data"]["values"] == "<DVC_METRIC_DATA>"
        drawn[name] = how
    assert drawn.keys() == plots.PLOTS.keys()
    outs = pipeline["stages"]["figures"]["outs"]
    assert {"reports/${profile}/plots": {"cache": False}} in outs


def test_summaries_have_few_numbers(root, params, tmp_path):
    """DVC lists each file's keys in columns of their own: 8 files of 6 keys fit a terminal."""
    from reports import summaries

    keys = set()
    for kind, names, summarise in (
        ("score", params.variants, summaries.summarise_scores),
        ("similarity", params.reconstructions, summaries.summarise_similarity),
    ):
        for name in names:
            source = root / "metrics" / kind / f"{name}.json"
            summarise(source, tmp_path / "out.json", params)
            found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
            keys |= found.keys()
            cells, _ = read_metrics(source)
            if kind == "score":
                for protocol in params.protocols:
                    wanted = round(cells[f"{protocol}/mean"]["accuracy"].value, 3)
                    assert found[protocol] == wanted
            else:
                wanted = round(cells["own-minus-shuffled"]["nll_gain"].value, 3)
                assert found["nll_gain_shuffled"] == wanted
    assert len(keys) <= 6
