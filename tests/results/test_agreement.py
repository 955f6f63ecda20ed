"""Is a rerun the record? The interval against scipy, what must be exact, what is missing."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from heima.results import agreement, recorded
from tests.conftest import ROOT

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def cell(seeds: dict[int, float], n: int = 10) -> dict:
    value = sum(seeds.values()) / len(seeds)
    plain = {"value": value, "low": value - 1, "high": value + 1, "n": n, "n_failed": 0}
    return plain | {"seeds": {str(seed): one for seed, one in seeds.items()}}


def provenance(stage: str, **details) -> dict:
    return {
        "stage": stage,
        "code": "c0de",
        "params": "ab",
        "updates": 30,
        "seconds": 1.5,
        "tasks": ["a", "b"],
        "versions": {"torch": "2"},
        "machine": {"cpu": "one", "canary": "matches"},
        **details,
    }


def metrics(seeds=(42, 43, 44), shift=0.0) -> dict[str, dict]:
    """A variant that was trained, one that was not, a file for each training seed, counts."""
    trained = {seed: 50.0 + seed % 3 + shift for seed in seeds}
    plain = {"value": 25.0, "low": 20.0, "high": 30.0, "n": 10, "n_failed": 1}
    found = {
        "metrics/score/heima.json": {
            "cells": {"lmms/mmstar": {"accuracy": cell(trained), "chance": plain}},
            "provenance": provenance("score@heima", training_seeds=list(seeds)),
        },
        "metrics/predict/heima.json": {
            "cells": {"lmms/mmstar": {"seconds_per_sample": cell(trained)}},
            "provenance": provenance("predict@heima"),
        },
        "metrics/rewrite.json": {"turns": {"train": 30}, "provenance": provenance("rewrite")},
    }
    for seed, value in trained.items():
        one = {"value": value, "low": 0.0, "high": 1.0, "n": 5, "n_failed": 0}
        found[f"metrics/distill/p3/{seed}.json"] = {
            "cells": {"heldout": {"loss": one}},
            "provenance": provenance(f"distill@p3-{seed}", training_seed=seed),
        }
    return found


def run(seeds=(42, 43, 44), shift=0.0, **changes) -> recorded.Run:
    whole = recorded.Run(
        params={"seed": 42, "seeds": list(seeds), "family": "toy-mllama", "profile": "toy"},
        outs={
            "rewrite": {"data/rewritten": "d0"},
            "tables": {},
            **{f"distill@p3-{seed}": {f"models/p3/{seed}": f"m{seed}"} for seed in seeds},
        },
        metrics=metrics(seeds, shift),
        tables={
            "reports/toy/tables/benchmarks.csv": "origin,panel,row,column,value\na,b,heima,x,1\n"
        },
    )
    return replace(whole, **changes)


def outside(record: recorded.Run, rerun: recorded.Run) -> list[tuple[str, str]]:
    return [(one.file, one.key) for one in agreement.compare(record, rerun).outside]


@given(st.lists(numbers, min_size=2, max_size=9))
def test_the_interval_is_that_of_one_draw_more(values):
    low, high = agreement.interval(values)
    scale = np.std(values, ddof=1) * math.sqrt(1 + 1 / len(values))
    expected = np.mean(values) + scale * stats.t.ppf([0.025, 0.975], len(values) - 1)
    np.testing.assert_allclose([low, high], expected, rtol=1e-9, atol=1e-6)


def test_of_faithful_reruns_one_in_twenty_is_outside():
    draws = np.random.default_rng(3).normal(5, 2, (3000, 4))
    bounds = np.array([agreement.interval(list(recorded)) for recorded in draws[:, :3]])
    inside = (bounds[:, 0] <= draws[:, 3]) & (draws[:, 3] <= bounds[:, 1])
    assert inside.mean() == pytest.approx(0.95, abs=0.015)


@given(st.dictionaries(st.sampled_from("123456"), numbers, min_size=1), numbers)
def test_a_value_is_judged_by_the_recorded_seeds(recorded, value):
    for seed, own in recorded.items():
        assert agreement.judge(recorded, seed, own) == ("equal", "")
    verdict, allowed = agreement.judge(recorded, "7", value)
    if len(recorded) == 1:
        assert verdict == "outside" and "one recorded value" in allowed
    else:
        low, high = agreement.interval(list(recorded.values()))
        assume(not math.isclose(value, low) and not math.isclose(value, high))
        assert verdict == ("inside" if low <= value <= high else "outside")


@given(numbers, st.integers(2, 9))
def test_equal_recorded_values_allow_that_value(value, count):
    recorded = {str(seed): value for seed in range(count)}
    assert agreement.judge(recorded, "new", value)[0] == "inside"
    assert agreement.judge(recorded, "new", value + 1)[0] == "outside"


def test_a_rerun_of_the_same_agrees_entirely():
    report = agreement.compare(run(), run())
    assert not report.outside and not report.agree["number of seeds", "inside"]
    assert report.stages == {"equal": 4}
    assert report.counts("number of seeds") == {"equal": 6, "inside": 0, "outside": 0}
    assert agreement.differences(run(), run()) == []


def test_times_and_machines_are_told_apart_from_results():
    other = copy.deepcopy(run())
    for content in other.metrics.values():
        content["provenance"] |= {
            "seconds": 99.0,
            "machine": {"cpu": "two", "canary": "differs"},
            "versions": {"torch": "3"},
            "code": "other",
        }
    slow = other.metrics["metrics/predict/heima.json"]["cells"]["lmms/mmstar"]
    slow["seconds_per_sample"]["value"] = 7.0
    assert outside(run(), other) == []
    assert agreement.differences(run(), other) == [
        "code of distill, predict, rewrite, score",
        "machine two, canary differs (recorded one)",
        "versions torch 3 (recorded torch 2)",
    ]


def test_other_seeds_are_judged_by_the_recorded_ones():
    report = agreement.compare(run(), run((45, 46, 47), shift=1e-3))
    assert not report.outside
    assert report.counts("number of seeds") == {"equal": 0, "inside": 6, "outside": 0}
    assert report.stages == {"equal": 1, "of other seeds": 6}
    far = agreement.compare(run(), run((45, 46, 47), shift=100))
    assert len(far.outside) == 6
    assert far.outside[0].key.startswith("heldout/loss (seed 4")
    assert "training seeds 45, 46, 47" in agreement.differences(run(), run((45, 46, 47)))[0]


CELL = "metrics/score/heima.json"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row["accuracy"]["seeds"].update({"43": 90.0}), "accuracy (seed 43)"),
        (lambda row: row["chance"].update(value=25.5), "chance"),
        (lambda row: row["accuracy"].update(n=11), "accuracy"),
        (lambda row: row["chance"].update(high=31.0), "chance"),
        (lambda row: row["chance"].update(n_failed=2), "chance"),
        (lambda row: row["accuracy"].update(value=50.5), "accuracy"),
        (lambda row: row["accuracy"].update(low=0.5), "accuracy"),
        (lambda row: row.pop("accuracy"), "accuracy"),
        (lambda row: row.update(more=row["chance"]), "more"),
    ],
)
def test_what_is_changed_missing_or_left_over_is_named(change, named):
    other = copy.deepcopy(run())
    change(other.metrics[CELL]["cells"]["lmms/mmstar"])
    assert outside(run(), other) == [(CELL, f"lmms/mmstar/{named}")]
    [one] = agreement.compare(run(), other).outside
    assert one.value != one.allowed.removeprefix("exactly ")


def test_strings_lists_rows_and_stages_are_exact():
    other = copy.deepcopy(run())
    other.metrics[CELL]["provenance"]["tasks"] = ["a", "c"]
    other.metrics["metrics/rewrite.json"]["turns"]["train"] = 31
    del other.outs["distill@p3-43"]
    other = replace(
        other, tables={"reports/toy/tables/benchmarks.csv": "origin,panel,row,column\na,b,base,x\n"}
    )
    assert set(outside(run(), other)) == {
        (CELL, "provenance.tasks"),
        ("metrics/rewrite.json", "turns.train"),
        ("dvc.lock", "distill@p3-43"),
        ("reports/toy/tables/benchmarks.csv", "a / b / heima / x"),
        ("reports/toy/tables/benchmarks.csv", "a / b / base / x"),
    }


def test_a_column_of_another_seed_is_no_result():
    """A panel by training seed has the seeds of its run; what else it lacks is named."""

    def table(seeds, row="heima"):
        lines = [f"a,by training seed,{row},seed {seed}\n" for seed in seeds]
        return {"reports/toy/tables/x.csv": "origin,panel,row,column\n" + "".join(lines)}

    record = replace(run(), tables=table((42, 43, 44)))
    params = {**record.params, "seeds": [44, 45, 46]}
    assert not outside(record, replace(record, params=params, tables=table((44, 45, 46))))
    assert outside(record, replace(record, params=params, tables=table((45, 46)))) == [
        ("reports/toy/tables/x.csv", "a / by training seed / heima / seed 44")
    ]
    assert outside(record, replace(record, tables=table((42, 43)))) == [
        ("reports/toy/tables/x.csv", "a / by training seed / heima / seed 44")
    ]


def write(folder, whole: recorded.Run) -> None:
    """The files of a run, its metrics as outputs of the stage `rewrite`."""
    made = {stage: dict(outs) for stage, outs in whole.outs.items()}
    made["rewrite"] |= dict.fromkeys(whole.metrics, "d1")
    stages = {
        stage: {"outs": [{"path": path, "md5": md5} for path, md5 in outs.items()]}
        for stage, outs in made.items()
    }
    files = {
        "params.yaml": yaml.safe_dump(dict(whole.params)),
        "dvc.yaml": yaml.safe_dump({"stages": {stage: {} for stage in stages}}),
        "dvc.lock": yaml.safe_dump({"schema": "2.0", "stages": stages}),
        **{name: json.dumps(content) for name, content in whole.metrics.items()},
        **whole.tables,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def commit(folder) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "record"]):
        subprocess.run([*git, *command], check=True)


def check(folder, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "stages.check", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_make_check_compares_with_what_git_holds(tmp_path):
    write(tmp_path, run())
    commit(tmp_path)
    same = check(tmp_path)
    assert same.returncode == 0 and "0 outside (100.0 % agree)" in same.stdout, same.stderr
    write(tmp_path, run(shift=100.0))
    other = check(tmp_path, "--against", "HEAD")
    assert other.returncode == 1
    assert "accuracy (seed 42) = 150; allowed: 46.0" in other.stdout
    nothing = check(tmp_path, "--against", "no-such-revision")
    assert nothing.returncode == 1 and "no-such-revision" in nothing.stderr


def of_profile(profile: str, **details) -> recorded.Run:
    """The same run of another profile, whose tables lie below its name."""
    one = run(**details)
    tables = {name.replace("toy", profile): text for name, text in one.tables.items()}
    return replace(one, params={**one.params, "profile": profile}, tables=tables)


def test_make_check_compares_with_the_record_of_the_profile_that_was_run(tmp_path):
    """Git has the toy's own results and another profile's record; what is here is of that one."""
    write(tmp_path, run(seeds=(42, 43, 44, 45), shift=7.0))
    recorded.write(tmp_path, of_profile("toy-more"))
    for name, text in of_profile("toy-more").tables.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    commit(tmp_path)

    # As in a clone: the toy's files are still there where the other profile has none.
    write(tmp_path, of_profile("toy-more"))
    same = check(tmp_path)
    assert same.returncode == 0 and "stages by bytes: 4 equal" in same.stdout, same.stdout
    first = "HEAD:reports/toy-more/record.json: nothing: a rerun of the same"
    assert same.stdout.startswith(f"what differs from {first}\n")
    assert "not compared: metrics/distill/p3/45.json (left over" in same.stdout

    changed = of_profile("toy-more")
    changed.metrics[CELL]["cells"]["lmms/mmstar"]["chance"]["value"] = 25.000000001
    write(tmp_path, changed)
    other = check(tmp_path)
    assert other.returncode == 1 and "lmms/mmstar/chance = 25; allowed: exactly 25" in other.stdout

    write(tmp_path, of_profile("toy-less"))
    nothing = check(tmp_path, "--against", "HEAD")
    assert nothing.returncode == 1
    assert "HEAD has no recorded results of the profile toy-less, only of toy, toy-more" in (
        nothing.stderr
    )
    assert "python -m stages.keep" in nothing.stderr and nothing.stderr.count("\n") == 1
