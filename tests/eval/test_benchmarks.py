"""Facts on benchmarks agree with lmms-eval, with the paper's tables, and with each other."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from lmms_eval.utils import load_yaml_config

from eval import benchmark_check, breakdown
from eval.vlmevalkit import cases, scoring
from heima import config
from heima.config.benchmarks import BENCHMARKS, Scoring
from heima.toy.benchmarks import EDITIONS
from tests.conftest import ROOT

TASKS = Path(importlib.util.find_spec("lmms_eval.tasks").submodule_search_locations[0])


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_its_task_is_lmms_evals(benchmark):
    """One task of that name, on that split, with that metric; and its judge's module is there."""
    [file] = TASKS.rglob(f"{benchmark.task}.yaml")
    found = load_yaml_config(file, mode="simple")
    assert found["task"] == benchmark.task
    assert found.get("dataset_name") == benchmark.dataset.configuration
    assert found["test_split"] == benchmark.dataset.split
    assert benchmark.scoring.metric in {one["metric"] for one in found["metric_list"]}
    module = benchmark.judge_module
    assert module is None or (TASKS.parents[1] / f"{module.replace('.', '/')}.py").is_file()


def test_every_concern_knows_every_benchmark():
    """What it does is a function in each of these tables, and a page says how it is scored."""
    pages = {file.stem for file in (ROOT / "eval" / "tasks" / "vlmevalkit").glob("*.md")}
    for table in (EDITIONS, benchmark_check._FAULTS, cases._READERS, pages):
        assert set(table) == set(BENCHMARKS)
    assert breakdown._SCORES.keys() <= BENCHMARKS.keys()
    assert scoring._WAYS.keys() == set(get_args(get_type_hints(Scoring)["kind"]))


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_what_it_names_is_among_its_columns(benchmark):
    dataset, score = benchmark.dataset, benchmark.scoring
    named = {dataset.image, score.answer, *dataset.identity, *score.options}
    named |= {score.stratum} - {None}
    assert named <= set(dataset.columns)
    assert not (score.options and score.option_count)
    assert (score.kind == "choice") <= bool(score.options or score.option_count)
    assert dataset.rotation is None or "index" in dataset.columns
    for metric in score.group_metrics:
        assert callable(getattr(scoring, metric))
    assert bool(benchmark.judged) == bool(benchmark.judge_tokens)
    assert set(benchmark.judged) <= set(benchmark.tasks) == set(get_args(config.ProtocolName))


@pytest.mark.parametrize("name", ["benchmarks", "retention_ratio", "tokens_per_stage"])
def test_the_papers_benchmarks_are_the_published_ones(name):
    path = ROOT / "reports" / "published" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        columns = {row["benchmark"] for row in csv.DictReader(file)}
    assert columns == {benchmark.published for benchmark in BENCHMARKS.values()} - {None}
