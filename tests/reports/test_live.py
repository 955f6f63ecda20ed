"""Live curves: read from what training leaves, shown while it trains, then replaced."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from heima.results.files import write_jsonl
from heima.training import snapshots
from reports.finished import TrackingError
from reports.tracking import live, mirror
from tests import fabricated
from tests.reports.test_tracking import ROOT, client, runs

STAGE = "distill@p2-42"
OUT = "models/p2/42"


def curve(*steps):
    return [{"step": step, "loss": 2 / step, "learning_rate": 1e-3} for step in steps]


def snapshot(root, rows, stage=STAGE, key="k"):
    folder = root / live.SNAPSHOTS / stage / key / f"step-{rows[-1]['step']:08d}"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps({"curve": rows}), encoding="utf-8")
    return folder


def write_log(root, text, stage=STAGE):
    (root / live.LOGS).mkdir(parents=True, exist_ok=True)
    (root / live.LOGS / f"{stage}.log").write_text(text, encoding="utf-8")


def test_it_looks_where_training_writes():
    assert live.SNAPSHOTS == snapshots.ROOT
    source = (ROOT / "heima/training/loop.py").read_text(encoding="utf-8")
    assert 'f"step {step}/{total} loss {mean:.4f}"' in source
    assert live._LINE.findall(f"a\nstep {8}/{30} loss {0.25:.4f}\nstep 9 of 30\n") == [
        ("8", "0.2500")
    ]
    for stage in ("distill", "interpret"):
        text = (ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8")
        assert f'snapshots.of(f"{stage}@' in text


def test_rows_come_once_and_a_snapshot_has_more_than_a_log(tmp_path):
    followed = live.Followed(tmp_path, STAGE, time.time(), [OUT])
    assert followed.rows() == []
    write_log(tmp_path, "warming\nstep 4/20 loss 0.5000\n")
    assert followed.rows() == [{"step": 4, "loss": 0.5}]
    assert followed.rows() == []
    first = snapshot(tmp_path, curve(2, 4, 6))
    assert followed.rows() == curve(2, 6)
    shutil.rmtree(first)
    snapshot(tmp_path, curve(2, 4, 6, 8, 10))
    assert followed.rows() == curve(8, 10)
    (tmp_path / OUT).mkdir(parents=True)
    write_jsonl(tmp_path / OUT / live.CURVE, curve(*range(2, 21, 2)))
    assert followed.rows() == curve(12, 14, 16, 18, 20)
    assert followed.rows() == []


def test_what_earlier_runs_have_left_is_not_this_ones(tmp_path):
    write_log(tmp_path, "step 4/20 loss 0.5000\n")
    old = snapshot(tmp_path, curve(2, 4), key="other")
    for path in (tmp_path / live.LOGS / f"{STAGE}.log", old / "progress.json"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    followed = live.Followed(tmp_path, STAGE, time.time(), [OUT])
    snapshot(tmp_path, curve(1, 3), stage="distill@p2-43")
    assert followed.rows() == []
    # A run that goes on from there has the whole curve in its next snapshot.
    snapshot(tmp_path, curve(2, 4, 6), key="other")
    assert followed.rows() == curve(2, 4, 6)


def test_curves_appear_while_a_stage_trains_and_the_mirror_replaces_them(tmp_path, empty_database):
    """In a process of its own, as `stages.repro` starts it."""
    root = tmp_path
    shutil.copy(empty_database, root)
    fabricated.lock(root, fabricated.write(root, questions=4))
    for file in (root / OUT).iterdir():
        # Of an earlier run, however soon this one follows.
        os.utime(file, (1_600_000_000, 1_600_000_000))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "reports.tracking.live"],
        cwd=root,
        env=environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def tell(**what):
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()

    def shown(stage):
        if not client(root).get_experiment_by_name("heima"):
            return None
        found = [run for run in runs(root) if run.info.run_name == stage]
        return found[0] if found and found[0].data.metrics else None

    def until(true):
        end = time.monotonic() + 300
        while not (found := true()):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail(f"nothing is shown: {process.stderr.read()}")
            time.sleep(0.2)
        return found

    now = time.time()
    write_log(root, "step 20/30 loss 0.7500\n")
    # A stage that never trains gets no run.
    tell(started="score@base", at=now, outs=["scores/base.jsonl"])
    tell(started=STAGE, at=now, outs=[OUT, "metrics/distill/p2/42.json"])
    tell(started="distill@gone-42", at=now, outs=["models/gone/42"])
    write_log(root, "step 1/9 loss 1.5000\n", stage="distill@gone-42")
    run = until(lambda: shown(STAGE))
    assert (run.info.status, run.data.metrics["loss"]) == ("RUNNING", 0.75)
    assert run.info.start_time == round(now * 1000) and run.data.tags["kind"] == "live"
    write_jsonl(root / OUT / live.CURVE, curve(10, 20, 30))
    tell(ended=STAGE, status="FINISHED")
    until(lambda: shown(STAGE).info.status == "FINISHED")
    points = client(root).get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == [10, 20, 30]
    process.stdin.close()
    assert process.wait(120) == 0
    assert shown("distill@gone-42").info.status == "KILLED"
    assert shown("score@base") is None

    mirror.mirror(root)
    left = {run.info.run_name for run in runs(root) if run.data.tags["kind"] == "live"}
    assert left == {"distill@gone-42"}
    (whole,) = (one for one in runs(root) if one.info.run_name == STAGE)
    assert whole.data.tags["kind"] == "training"


def test_a_stage_that_starts_again_has_one_live_run(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path)
    follower = live.Live(tmp_path, uri=f"sqlite:///{tmp_path}/mlflow.db")
    for number, status in ((1, "FAILED"), (2, "FINISHED")):
        follower.hear({"started": STAGE, "at": time.time(), "outs": []})
        write_log(tmp_path, f"step {number}/9 loss 0.5000\n")
        follower.look()
        follower.hear({"ended": STAGE, "status": status})
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    points = client(tmp_path).get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in points] == [2]


def test_a_fault_of_mlflow_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    follower = live.Live(tmp_path, uri=f"sqlite:///{tmp_path}/mlflow.db")
    follower.hear({"started": STAGE, "at": time.time(), "outs": []})
    follower.look()
    write_log(tmp_path, "step 1/9 loss 0.5000\n")
    with pytest.raises(TrackingError, match=r"MLflow .* failed"):
        follower.look()
