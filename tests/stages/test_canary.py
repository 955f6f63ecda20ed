"""Does this machine give the recorded bits? Trained in a process of its own, as a run starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from heima.results import machine
from heima.results.files import write_json
from stages import canary
from tests.conftest import ROOT

RECORD = json.loads((ROOT / machine.CANARY).read_text(encoding="utf-8"))


def test_this_machine_gives_the_recorded_bits():
    if not machine.can_pin():
        pytest.skip("this CPU has no AVX2 and FMA: its results are not the recorded bits")
    if machine.versions() != RECORD["versions"]:
        pytest.skip(f"recorded with {RECORD['versions']}, here is {machine.versions()}")
    # A setting of the user's own, which the pins overrule.
    environ = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.canary"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert f"canary matches: {machine.cpu_name()}" in done.stdout


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A folder with a record, and what it is of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heima").mkdir()
    Path(canary.PROFILE).parent.mkdir()
    Path(canary.PROFILE).write_text("profile: toy\n")
    of = canary._of()
    write_json(machine.CANARY, {**of, "bits": {"data": "1", "teach": "2"}})
    return of


def test_the_verdict_names_part_and_reason_and_stands_in_results(recorded):
    assert machine.canary() == "not run"
    assert "canary matches" in canary.judge({"data": "1", "teach": "2"}, recorded)
    assert machine.canary() == machine.facts()["canary"] == "matches"
    line = canary.judge({"data": "1", "teach": "3"}, recorded)
    assert "DIFFERS" in line and "'teach'" in line and "it is the machine" in line
    assert machine.canary() == "differs"
    older = {**recorded, "versions": {**recorded["versions"], "torch": "1.0"}, "code": "old"}
    line = canary.judge({"data": "1", "teach": "3"}, older)
    assert "torch is 1.0" in line and "code or profile has changed" in line


def test_a_verdict_holds_for_the_same_machine_versions_code_and_record(recorded, monkeypatch):
    runs = []

    def bits() -> dict[str, str]:
        runs.append(1)
        return {"data": "1", "teach": "2"}

    monkeypatch.setattr(canary, "_bits", bits)
    assert canary.verdict() == canary.verdict() and len(runs) == 1
    Path("heima/new.py").write_text("x = 1\n")
    assert "matches" in canary.verdict() and len(runs) == 2
    monkeypatch.setattr(machine, "cpu_name", lambda: "another")
    assert machine.canary() == "not run"
    assert "another gives" in canary.verdict() and len(runs) == 3
    write_json(machine.CANARY, {**recorded, "bits": {"data": "9"}})
    assert machine.canary() == "not run"
    assert "DIFFERS" in canary.verdict() and len(runs) == 4
