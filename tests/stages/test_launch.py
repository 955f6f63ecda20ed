"""How stages start on devices: a large model computes on a CPU only where that is said."""

from __future__ import annotations

import pytest

from heima.config import TOY_FAMILIES
from heima.config.families import RECORDS
from stages import launch
from tests.conftest import ROOT


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launch.os, "execv", lambda *_: pytest.fail("it was started"))


def given(params, family, **hardware):
    hardware = params.hardware.model_copy(update=hardware)
    return params.model_copy(update={"family": family, "hardware": hardware})


@pytest.mark.parametrize("family", RECORDS)
def test_without_a_gpu_only_toys_run_unless_told(params, no_gpu, family):
    launch.on_all_devices(given(params, family, allow_cpu=True), "stages.states", "42")
    if family in TOY_FAMILIES:
        launch.on_all_devices(given(params, family), "stages.states", "42")
        return
    for processes in (1, 2):
        with pytest.raises(SystemExit, match=f"no GPU is seen.*{family}.*hardware.allow_cpu: true"):
            launch.on_all_devices(given(params, family, processes=processes), "stages.states", "42")


def test_with_a_gpu_all_run(params, no_gpu, monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: True)
    for family in RECORDS:
        launch.require_gpu(given(params, family))


def test_every_stage_that_computes_asks(params):
    """Those that run on GPUs by dvc.yaml, but `teach`, which only fetches large models."""
    asking = {
        path.stem
        for path in (ROOT / "stages").glob("*.py")
        if "launch.on_all_devices(" in (text := path.read_text(encoding="utf-8"))
        or "launch.require_gpu(" in text
    }
    assert asking == {"distill", "states", "interpret", "reconstruct", "predict", "latency"}
