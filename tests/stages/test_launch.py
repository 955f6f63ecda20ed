"""How stages start on devices: a large model computes on a CPU only where that is said."""

from __future__ import annotations

import re

import pytest
import yaml

from heima.config import TOY_FAMILIES, Slurm
from heima.config.families import RECORDS
from stages import launch, slurm
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
    """Those that run on GPUs by dvc.yaml; `teach` where it trains."""
    asking = {
        path.stem
        for path in (ROOT / "stages").glob("*.py")
        if re.search(r"launch\.on_(all_devices|one_device)\(", path.read_text(encoding="utf-8"))
    }
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    on_gpus = {
        name
        for name, stage in pipeline.items()
        if stage.get("do", stage).get("meta", {}).get("needs") in ("gpu", "machine")
    }
    assert asking == on_gpus >= {"distill", "states", "interpret", "reconstruct", "predict"}


@pytest.fixture
def started(monkeypatch):
    """The commands that this process would become, or submit (with the nodes asked for)."""
    found = []
    monkeypatch.setattr(launch.os, "execv", lambda _, command: found.append(command[2:]))
    monkeypatch.setattr(
        launch.slurm, "run", lambda options, *command: found.append([options.nodes, *command])
    )
    monkeypatch.delenv("RANK", raising=False)
    return found


@pytest.mark.parametrize("shard", [False, True])
def test_on_a_cluster_one_command_submits_and_the_nodes_divide(params, started, monkeypatch, shard):
    configuration = "profiles/accelerate/fsdp2-cpu.yaml"
    hardware = {"slurm": Slurm(nodes=3), "processes": 2, "accelerate": configuration}
    asking = given(params, params.family, **hardware)
    stage = ("stages.distill", "p1", "42")
    launch.on_all_devices(asking, *stage, shard=shard)
    assert started.pop(0) == [3, *stage]
    started.clear()  # the real one never returns
    for name, value in ((slurm.NODES, "3"), (slurm.NODE, "1"), (slurm.MEETING, "10.0.0.7:29500")):
        monkeypatch.setenv(name, value)
    launch.on_all_devices(asking, *stage, shard=shard)
    (command,) = started
    said = " ".join(command)
    assert said.endswith("--module stages.distill p1 42")
    if shard:
        assert said.startswith(f"accelerate.commands.launch --config_file {configuration}")
        assert "--num_processes 6 --num_machines 3 --machine_rank 1" in said
        assert "--main_process_ip 10.0.0.7 --main_process_port 29500" in said
    else:
        assert "--nproc-per-node 2 --nnodes 3 --node-rank 1" in said
        assert "--master-addr 10.0.0.7 --master-port 29500" in said
    monkeypatch.setenv("RANK", "3")
    launch.on_all_devices(asking, *stage, shard=shard)
    assert len(started) == 1, "a process of a launch starts no other"


def test_what_runs_in_one_process_asks_for_one_node(params, started):
    asking = given(params, params.family, slurm=Slurm(nodes=3, mem="64G"))
    launch.on_one_device(asking, "stages.latency")
    assert started == [[1, "stages.latency"]]
    launch.on_one_device(given(params, params.family), "stages.latency")
    assert len(started) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "--nodes=1"),
        ({"gpus_per_node": 8, "time": "1-12:00"}, "--nodes=1 --gpus-per-node=8 --time=1-12:00"),
        (
            {"nodes": 2, "exclusive": True, "requeues": 0, "mem": "0"},
            "--nodes=2 --mem=0 --exclusive",
        ),
        ({"gres": "gpu:a100:4", "partition": "a,b"}, "--nodes=1 --gres=gpu:a100:4 --partition=a,b"),
    ],
)
def test_options_are_those_of_srun(options, line):
    assert " ".join(Slurm(**options).options()) == line
