"""The scores as lm-evaluation-harness writes them: the same numbers, in its fields."""

from __future__ import annotations

import json

import pytest

from heima.config.benchmarks import BENCHMARKS
from heima.results.cells import read_metrics
from reports.tables import harness


@pytest.fixture(scope="module")
def made(root, params, results):
    provenances = {v: read_metrics(root / source)[1] for v, (_, source) in results.scores.items()}
    models = {name: one.model for name, one in params.variants.items()}
    return json.loads(json.dumps(harness.files(results.scores, provenances, models)))


def test_each_number_is_the_cells(made, root, params):
    assert made.keys() == params.variants.keys()
    for variant, one in made.items():
        cells, _ = read_metrics(root / "metrics" / "score" / f"{variant}.json")
        for protocol in params.protocols:
            for benchmark in params.benchmarks:
                cell = cells[f"{protocol}/{benchmark}"]["accuracy"]
                found = one["results"][BENCHMARKS[benchmark].tasks[protocol]]
                assert found["acc,none"] == pytest.approx(cell.value / 100)
                half = 1.96 * found["acc_stderr,none"]
                assert 2 * half == pytest.approx((cell.high - cell.low) / 100, rel=1e-3)
                assert found["acc_by_seed,none"].keys() == {str(seed) for seed in cell.seeds}
            mean = one["groups"][f"heima_{protocol}"]["acc,none"]
            assert mean == pytest.approx(cells[f"{protocol}/mean"]["accuracy"].value / 100)


def test_its_fields_are_there_and_agree(made, params):
    """What its own table and its readers look up."""
    for one in made.values():
        tasks = one["results"].keys()
        assert len(tasks) == len(params.protocols) * len(params.benchmarks)
        for field in ("configs", "versions", "n-shot", "n-samples"):
            assert one[field].keys() == tasks, field
        assert {task for group in one["group_subtasks"].values() for task in group} == tasks
        assert one["group_subtasks"].keys() == one["groups"].keys()
        assert one["higher_is_better"].keys() == {*tasks, *one["groups"]}
        for found in (*one["results"].values(), *one["groups"].values()):
            assert 0 <= found["acc,none"] <= 1 and found["acc_stderr,none"] >= 0 and found["alias"]
        assert one["config"]["model"] == "heima"
    assert made["heima"]["config"]["model_args"] == "name=recover"
