"""What a run says: how far a stage is, what is left, what it took; from files, without a run."""

from __future__ import annotations

import io
import json
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from eval.judge.cache import ReplyCache
from heima.results import bars
from heima.training import snapshots
from stages import advance, energy, progress, resolve, spending
from stages.progress import Ended, Progress, Result, Working
from tests.conftest import ROOT

# Bars


class Stream(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_quickly_done_shows_no_bar(monkeypatch, terminal):
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=terminal))
    assert list(bars.tracked(range(1000), "quick", 1000, "item")) == list(range(1000))
    assert stream.getvalue() == ""


def test_in_a_log_each_state_is_a_line_that_repro_can_read(monkeypatch):
    """Though lmms-eval's own bars are off, by the variable that `lmms_start.quiet` sets."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=False))
    monkeypatch.setattr(bars, "DELAY", 0.0)
    monkeypatch.setattr(bars, "BETWEEN_LINES", 0.0)
    list(bars.tracked(range(4), "slow", 4, "item"))
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 4 and all(line.startswith("slow:") and "\r" not in line for line in lines)
    assert [advance.read(lines[:n], "x") for n in (1, len(lines))] == [
        advance.Advance(0, 4),
        advance.Advance(4, 4),
    ]


def test_at_most_a_line_a_minute(monkeypatch):
    """However fast the items come."""
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=False))
    monkeypatch.setattr(bars, "DELAY", 0.0)
    list(bars.tracked(range(5000), "fast", 5000, "item"))
    assert len(stream.getvalue().splitlines()) <= 2


def test_one_process_of_several_shows(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=False))
    monkeypatch.setattr(bars, "DELAY", 0.0)
    list(bars.tracked(range(4), "other", 4, "item", show=False))
    assert stream.getvalue() == ""


def test_no_fingerprint_holds_the_bars():
    graph = resolve.code_graph()
    for stage in ("predict", "states", "similarity", "rewrite", "latency", "distill"):
        assert "heima.results.bars" not in resolve.fingerprint(ROOT, stage, graph)


# How far a stage is


def test_a_snapshot_that_is_newer_than_the_log_counts(tmp_path):
    assert advance.SNAPSHOTS == snapshots.ROOT
    log = ["step 40/880 loss 0.2", "a warning"]
    assert advance.read(log, "distill@p3-42", tmp_path) == advance.Advance(40, 880)
    for step in (100, 200):
        folder = tmp_path / snapshots.ROOT / "distill@p3-42" / "abc" / f"step-{step:08d}"
        folder.mkdir(parents=True)
    (folder.parent / "step-00000300.partial").mkdir()
    assert advance.read(log, "distill@p3-42", tmp_path) == advance.Advance(200, 880)
    assert advance.read(log, "distill@p3-43", tmp_path) == advance.Advance(40, 880)
    assert advance.read(["nothing yet"], "distill@p3-42", tmp_path) is None
    bar = " 33%|###4      | 50/150 [00:01<00:02, 40.1reply/s]"
    assert advance.read([bar, "a word"], "judge", tmp_path) == advance.Advance(50, 150)


def test_a_stage_says_how_far_it_is_and_what_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    progress.LOGS.mkdir(parents=True)
    progress.log_of("distill@p3-42").write_text("step 220/880 loss 0.1\n")
    out = io.StringIO()
    shown = Progress(97, Console(file=out, soft_wrap=True))
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_WORDS", 0.0)
    one = Working("distill@p3-42", time.monotonic() - 60, ("1",))
    shown.tick([one], 5, lambda: (90.0, 3))
    said = out.getvalue()
    assert "5 of 97" in said
    assert "about 1:30 min left and what 3 stages take that were never timed" in said
    assert "distill@p3-42 on GPU 1, 1:00 min [###.........]  25 %, about 3:00 min left" in said


def test_where_nothing_has_run_the_recorded_times_are_gone_by(tmp_path):
    files = {name: tmp_path / f"{name}.json" for name in ("train", "decode", "other", "none")}
    for name, content in {
        "train": {"cells": {}, "provenance": {"seconds": 12.5}},
        "decode": {
            "cells": {g: {"seconds_per_sample": {"value": 0.5, "n": 30}} for g in ("a", "b")},
            "provenance": {},
        },
        "other": {"turns": 5},
    }.items():
        files[name].write_text(json.dumps(content))
    assert progress.recorded(files) == {"train": 12.5, "decode": 30.0}
    committed = {"distill@p3-42": ROOT / "metrics/distill/p3/42.json"}
    assert progress.recorded(committed)["distill@p3-42"] > 1


# What it took


def zone(folder: Path, name: str, joules: float, most: int = 100_000_000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{round(1e6 * joules)}\n")
    return folder


def test_energy_is_that_of_packages_and_survives_a_wrap(tmp_path):
    first, second = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1"
    zone(first, "package-0", 90), zone(second, "package-1", 10)
    zone(tmp_path / "intel-rapl:0:0", "core", 5), zone(tmp_path / "intel-rapl:2", "psys", 7)
    clock = iter(range(0, 4000, 40))
    meter = energy.Meter(powercap=tmp_path, now=lambda: next(clock))
    zone(first, "package-0", 20), zone(second, "package-1", 15)  # 30 J beyond its range
    meter.tick()
    zone(first, "package-0", 25), zone(tmp_path / "intel-rapl:0:0", "core", 99)
    assert meter.close() == {energy.CPUS: pytest.approx(30 + 5 + 5, abs=1e-5)}
    assert "no GPU that says its power" in meter.reasons


def smi(folder: Path, monkeypatch, text: str, status: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_power_of_gpus_is_summed_over_time(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, "100.0\\n50.5\\n")
    clock = iter([0.0, 31.0, 31.0, 40.0])
    meter = energy.Meter(("0", "1"), tmp_path / "none", now=lambda: next(clock))
    meter.tick()
    assert meter.close() == {energy.GPUS: pytest.approx(40 * 150.5)}


@pytest.mark.parametrize(("text", "status"), [("[N/A]\\n", 0), ("", 9)])
def test_a_gpu_that_says_no_power_counts_nothing(tmp_path, monkeypatch, text, status):
    smi(tmp_path, monkeypatch, text, status)
    meter = energy.Meter(("0",), tmp_path / "none")
    assert meter.close() == {} and "nvidia-smi tells no power" in meter.reasons
    assert spending.drawn({}, meter.reasons).startswith("energy: not to be read here (no counter")


ENDED = [
    Ended("distill@p1", Result.RAN, 3600.0, 1800.0, gpus=8),
    Ended("score@heima", Result.RAN, 20.0, 10.0),
    Ended("tables", Result.RESTORED, 5.0, 1.0),
]
PLAN = {
    "machine": {"name": "h100"},
    "stages": [
        {"name": "distill@p1", "gpu_hours": 4.0, "usd": 0.0},
        {"name": "score@heima", "gpu_hours": 0.0, "usd": 2.5},
        {"name": "tables", "gpu_hours": 9.0, "usd": 9.0},
    ],
}


def test_time_and_dollars_stand_beside_the_plan_of_what_was_run():
    assert spending.took(ENDED, 3630.0) == (
        "time: 1:00 h by the clock, 30:11 min of CPU time, 8.00 GPU-hours"
    )
    [line] = spending.against_the_plan(ENDED, PLAN)
    assert line.startswith("plan: 4:00 h of one h100 for 1 of these stages, which took 8:00 h (2.0")
    assert spending.against_the_plan(ENDED[1:], PLAN) == []
    assert spending.dollars(ENDED, PLAN, 3.0, 2.0) == (
        "dollars: $3.00 to the judge (plan $2.50), $16.00 for 8.00 GPU-hours at $2 (plan $8.00)"
    )
    assert spending.dollars(ENDED, None, 3.0, None) == (
        "dollars: $3.00 to the judge, GPUs not counted without --gpu-hour-price"
    )
    assert spending.dollars(ENDED, PLAN, None, None).startswith("dollars: none: the judge costs")


def test_what_the_judge_was_paid_is_what_its_cache_has_more(params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    judge = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    from heima.config import OpenAIJudge

    asked = params.model_copy(update={"judge": OpenAIJudge.model_validate(judge)})
    with ReplyCache(Path(asked.judge.cache)) as cache:
        cache.charge("a", "m", "reply", 1.25)
        account = spending.Account(asked, (), None)
        cache.charge("b", "m", "reply", 0.5)
        cache.charge("c", "m", "unusable", 0.25)
    lines = account.report(ENDED[1:2], 20.0, {})
    assert lines[-1].startswith("dollars: $0.75 to the judge, GPUs not counted")
    assert [line.partition(":")[0] for line in lines] == ["time", "energy", "dollars"]
    with sqlite3.connect(asked.judge.cache) as known:
        assert known.execute("SELECT COUNT(*) FROM charges").fetchone() == (3,)


def test_a_run_asks_the_plan_once_it_was_worth_it(monkeypatch):
    monkeypatch.setattr(spending, "planned", lambda gpus, price: PLAN)
    lines = spending.Account(None, (), None).report(ENDED, 61.0, {})
    assert [line.partition(":")[0] for line in lines] == ["time", "energy", "plan", "dollars"]
