"""What is carried to a GPU machine runs there: lean imports, pinned wheels, limits."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from timings import device

HEAVY = ("lmms_eval", "dvc", "mlflow", "loguru", "grimp", "openai")
"""Of what a reproduction needs, that which neither an image brings nor `.wheels` carries."""


def test_nothing_heavy_is_imported():
    """With these modules out of reach, all parts are imported, and the plan is printed."""
    code = f"""
import sys
from importlib.machinery import ModuleSpec
class Blocked:
    # Whether a module is there may be asked.
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in {HEAVY!r} else None
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}} (blocked)", name=spec.name)
    def exec_module(self, module): ...
sys.meta_path.insert(0, Blocked())
import eval.latency_cells, eval.timing, timings.device, timings.latency, timings.train
import timings.rehearsal.on_device, timings.rehearsal.models
sys.argv = ["device", "--dry-run"]
timings.device.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "nothing missing"


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return {
        re.sub(r"[-_.]+", "-", key).lower(): version
        for key, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    }


def test_the_carried_wheels_are_the_pinned_ones():
    carried, whole = pins("requirements-device.txt"), pins("requirements.txt")
    assert {"pydantic", "pydantic-core", "cachetools", "transformers"} <= carried.keys()
    assert carried.items() <= whole.items()
    named = {name.replace("_", "-").replace(".", "-") for name in device.CARRIED}
    assert named <= carried.keys()


@pytest.mark.parametrize(
    "lock, pinned",
    [
        ("requirements.lock", ("requirements.txt", "requirements-nodeps.txt")),
        ("requirements-device.lock", ("requirements-device.txt",)),
    ],
)
def test_all_that_is_pinned_is_hashed(lock, pinned):
    """But torch, whose builds differ by platform."""
    wanted = dict(itertools.chain(*(pins(name).items() for name in pinned)))
    wanted.pop("torch", None)
    hashed = (ROOT / lock).read_text(encoding="utf-8")
    entry = r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$"
    entries = re.findall(entry, hashed, re.MULTILINE)
    assert {name: version for name, version, _ in entries} == wanted
    assert re.sub(entry, "", hashed, flags=re.MULTILINE).strip() == ""


def test_all_parts_together_stay_below_the_limit():
    assert sum(part.limit for part in device.PARTS) <= device.MOST_SECONDS


def test_without_a_gpu_it_says_so(monkeypatch):
    done = subprocess.run(
        [sys.executable, "-m", "timings.device"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "", "CUDA_VISIBLE_DEVICES": "", "HOME": "/"},
    )
    assert done.returncode == 1
    assert "PyTorch sees no GPU here" in done.stderr


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(device, "CARRIED", ("pydantic", "no_such_module", "no_such.part"))
    assert device.lacking() == ["no_such_module", "no_such.part"]
    shown = device.describe(device.PARTS, False)
    assert "missing here: no_such_module, no_such.part (make device-wheels)" in shown


def part(tmp_path, monkeypatch, code: str, limit: int = 60) -> device.Part:
    (tmp_path / "a_part.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return device.Part("one", "a_part", (), (), limit)


@pytest.mark.parametrize(
    ("code", "fault", "result"),
    [
        ("print('a table'); print('{\"ratio\": 2}')", None, {"ratio": 2}),
        ("print('a table')", "it printed no result", None),
        (
            "print('{\"wrong\": 1}'); raise SystemExit('error: it is off')",
            "it is off",
            {"wrong": 1},
        ),
    ],
)
def test_a_parts_outcome_is_kept_with_its_fault(tmp_path, monkeypatch, code, fault, result):
    found = device.run(part(tmp_path, monkeypatch, code), False, 60)
    assert found.result == result
    assert found.fault is None if fault is None else fault in found.fault
    page = device.write(tmp_path, {"device": "Card X/1"}, {"one": found})
    assert page.name == "card-x-1.md" and (tmp_path / "card-x-1.json").exists()
    text = page.read_text(encoding="utf-8")
    assert ("**" in text) == (fault is not None)


def test_a_part_ends_at_its_limit_and_keeps_what_it_printed(tmp_path, monkeypatch):
    code = "import time; print('begun', flush=True); time.sleep(60)"
    slow = part(tmp_path, monkeypatch, code, limit=3)
    found = device.run(slow, False, 300)
    assert found.text.strip() == "begun" and "stopped after" in found.fault
    assert found.seconds < 30
    assert device.run(slow, False, 1).fault == "no time was left"
