"""`stages.repro` tells what runs to the process that draws curves, and notes when stages ran."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest
import yaml

from reports.finished import md5
from stages import progress
from stages.watching import Watcher
from tests.conftest import ROOT
from tests.stages.conftest import alive, until

PIPELINE = """\
stages:
  distill:
    cmd: sh train.sh
    outs: [models/p1, metrics/p1.json: {cache: false}]
  track:
    cmd: mkdir -p reports/toy && echo 1 > reports/toy/tracking.json
    deps: [metrics/p1.json]
    outs: [reports/toy/tracking.json: {cache: false}]
"""
TRAIN = """\
echo "step 1/9 loss 0.5000"
while test ! -e go; do sleep .1; done
mkdir -p models/p1 metrics
echo '{"step": 1, "loss": 0.51}' > models/p1/loss.jsonl
echo '{"provenance": {}}' > metrics/p1.json
"""


@pytest.fixture
def repository(new):
    found = new("repository")
    (found.root / "dvc.yaml").write_text(PIPELINE)
    (found.root / "train.sh").write_text(TRAIN)
    (found.root / ".gitignore").write_text("/models/\n")
    return found


def test_a_fault_of_mlflow_is_one_line_and_stops_nothing(repository):
    root = repository.root
    (root / "mlflow.db").write_bytes(b"no database at all" * 100)
    process = repository.repro()
    until(lambda: (root / ".cache/logs/live.log").exists(), seconds=60)
    until(lambda: "no more live curves" in (root / ".cache/logs/live.log").read_text(), seconds=90)
    (root / "go").touch()
    output = repository.finished(process)
    assert output.count("no live curves in MLflow (.cache/logs/live.log)") == 1
    assert "track ran" in output


@pytest.mark.parametrize("arguments", [["--no-live"], ["distill"]])
def test_there_is_no_such_process_where_nobody_wants_it(repository, arguments):
    (repository.root / "go").touch()
    repository.finished(repository.repro(*arguments))
    assert not (repository.root / ".cache/logs/live.log").exists()
    assert not list(repository.root.glob("reports/*/times.json")), "it has no parameters"


def test_it_is_noted_when_stages_ran_with_the_hash_of_their_entries(repository):
    root = repository.root
    # Whose machine is not asked for its bits.
    shutil.copy(ROOT / "profiles" / "paper.yaml", root / "params.yaml")
    (root / "go").touch()
    before = time.time()
    repository.finished(repository.repro("--no-live"))
    noted = json.loads((root / "reports/paper/times.json").read_text())
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    assert {name: one["dvc_hash"] for name, one in noted.items()} == {
        name: md5(entry) for name, entry in lock.items()
    }
    assert before - 1 <= noted["distill"]["started"] <= noted["distill"]["ended"]
    assert noted["distill"]["ended"] <= noted["track"]["ended"] <= time.time() + 1
    # A run that finds all up to date notes nothing, and forgets nothing.
    repository.finished(repository.repro("--no-live"))
    assert json.loads((root / "reports/paper/times.json").read_text()) == noted


def test_the_process_ends_with_the_run_however_that_ends(repository):
    import psutil

    process = repository.repro()
    live = until_child(psutil.Process(process.pid), "reports.tracking.live")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not alive(live), seconds=30)


def until_child(process, word: str) -> int:
    found: list[int] = []

    def look() -> bool:
        found[:] = [one.pid for one in process.children(True) if word in " ".join(one.cmdline())]
        return bool(found)

    until(look, seconds=60)
    return found[0]


def test_a_watcher_is_never_waited_for(tmp_path, monkeypatch):
    """One that hangs: what it is told is more than a pipe holds."""
    monkeypatch.chdir(tmp_path)
    progress.LOGS.mkdir(parents=True)
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr("stages.watching.sys.executable", str(hanging))
    monkeypatch.setattr("stages.watching._PATIENCE", 0.2)
    watcher = Watcher(wanted=True)
    begun = time.monotonic()
    for number in range(3000):
        watcher.started(f"stage-{number}", [tmp_path / "out"])
        watcher.ended(f"stage-{number}", failed=False)
    watcher.close()
    watcher.close()
    assert time.monotonic() - begun < 10
    watcher.tell(pytest.fail)
