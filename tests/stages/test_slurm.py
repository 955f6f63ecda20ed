"""Stages on a Slurm cluster: a real one on loopback, with real kills, where Slurm is installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from heima import config
from heima.config import Slurm
from heima.vlm import kept_batches
from stages import resolve, slurm, states
from tests.conftest import ROOT
from tests.slurm_cluster import LACKING, WHY_NOT, Cluster, tasks
from tests.stages.conftest import until
from tests.stages.test_shared_work import ready, workspace, written  # noqa: F401

installed = pytest.mark.skipif(bool(LACKING), reason=WHY_NOT)
GONE = 30
"""Seconds within which no job may be left."""
STAGE = "tests.stages.slurm_stage"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as one:
        yield one


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(cluster, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stage(cluster, seconds: float, **options) -> subprocess.Popen[str]:
    return start(cluster, STAGE, str(seconds), json.dumps(options))


def ended(process: subprocess.Popen[str], status: int) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def under(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """What the command has started by that name; of several, the first."""
    (found, *_) = [
        one
        for one in psutil.Process(process.pid).children(recursive=True)
        if Path(one.cmdline()[0]).name.startswith(name)
    ]
    return found


def journal() -> list[str]:
    return Path("journal").read_text().splitlines() if Path("journal").exists() else []


def nothing_left(cluster, folder: Path) -> bool:
    return not cluster.jobs() and not tasks(folder)


def pipeline(cluster, seconds: int, *outs: str) -> None:
    """A repository of DVC in the current folder, with a stage for each output."""
    stages = {
        name: {"cmd": f"{sys.executable} -m {STAGE} {seconds} '{{}}' {name}", "outs": [name]}
        for name in outs
    }
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for arguments in (("init", "--quiet", "--no-scm"), ("config", "core.analytics", "false")):
        ended(start(cluster, "dvc", *arguments), 0)


@installed
def test_a_stage_runs_where_it_is_asked_for_and_ends_as_it_does_there(cluster, folder):
    output = ended(stage(cluster, 0, nodes=2, cpus_per_task=1, time="5", mem="100M"), 0)
    assert sorted(line.split()[0] for line in journal()) == ["n1", "n2"]
    places = [line for line in output.splitlines() if line.startswith("done")]
    assert {line.partition("address=")[2] for line in places} == {
        places[0].partition("address=")[2]
    }
    assert len(places) == 2 and Path("out").read_text() == "done"
    Path("journal").unlink()
    failed = ended(stage(cluster, "soon"), 1)
    assert "could not convert string to float" in failed
    assert "ended as FAILED" in failed and "what it printed is above" in failed
    until(lambda: nothing_left(cluster, folder), GONE)


KILLS = ("dvc", "srun", *(pytest.param(one, marks=pytest.mark.slow) for one in ("stage", "all")))


@installed
@pytest.mark.parametrize("killed", KILLS)
def test_no_job_is_left_whatever_is_killed(cluster, folder, killed):
    """SIGKILL, while the job runs."""
    pipeline(cluster, 300, "out")
    process = start(cluster, "dvc", "repro")
    until(journal, 60)
    if killed == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif killed == "dvc":
        process.kill()
    elif killed == "srun":
        # It is two processes; the second ends with the first.
        under(process, "srun").kill()
    else:
        under(process, "python").kill()
    until(lambda: nothing_left(cluster, folder), GONE)
    output = process.communicate(timeout=GONE)[0]
    assert process.returncode != 0 and not Path("out").exists()
    if killed == "srun":
        assert "srun was killed, and job" in output
    # The next run is not disturbed.
    ended(start(cluster, "dvc", "repro"), 0)
    assert Path("out").read_text() == "done"


@installed
@pytest.mark.parametrize("killed", ["command", "everything"])
def test_no_job_waits_on_for_a_stage_that_was_killed(cluster, folder, killed):
    cluster.run("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    try:
        process = stage(cluster, 0)
        until(cluster.jobs, 60)
        if killed == "everything":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate(timeout=GONE)
        until(lambda: nothing_left(cluster, folder), GONE)
    finally:
        cluster.run("scontrol", "update", "NodeName=n1,n2", "State=RESUME")
    cluster.until_idle()
    assert not journal() and not cluster.jobs()


@installed
def test_ctrl_c_ends_the_job(cluster, folder):
    process = stage(cluster, 300)
    until(journal, 60)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=GONE)[0]
    assert process.returncode != 0 and "Traceback" not in output
    until(lambda: nothing_left(cluster, folder), GONE)


@installed
@pytest.mark.slow
@pytest.mark.parametrize("requeues", [0, 1])
def test_a_node_that_dies_takes_no_job_with_it(cluster, folder, requeues):
    """Without requeues the stage ends, with one it goes on elsewhere; no task is left either way,
    though the killed slurmd can end none."""
    process = stage(cluster, 300, requeues=requeues)
    until(journal, 60)
    node = journal()[0].split()[0]
    cluster.kill_node(node)
    killed = time.monotonic()
    try:
        output = ended(process, 0 if requeues else 1)
        until(lambda: nothing_left(cluster, folder), GONE)
        assert requeues or time.monotonic() - killed < GONE
    finally:
        cluster.start_node(node)
        cluster.until_idle()
    if requeues:
        assert "has lost its nodes (NODE_FAIL); it is submitted again (1 of 1)" in output
        assert len(journal()) == 2 and journal()[1].split()[0] != node
    else:
        assert "has lost its nodes (NODE_FAIL); run it again" in output


@installed
@pytest.mark.slow
def test_stages_side_by_side_end_with_the_run_that_was_killed(cluster, folder):
    """One of them was forked by the server of `stages.repro`."""
    pipeline(cluster, 300, "left", "right")
    process = start(cluster, "stages.repro", "--jobs", "2")
    until(lambda: len(list(folder.glob("*.journal"))) == 2, 60)
    process.kill()
    process.communicate(timeout=GONE)
    until(lambda: nothing_left(cluster, folder), GONE)


@installed
@pytest.mark.slow
def test_two_branches_run_at_once(cluster, folder):
    """They wait, so that what is measured is the pipeline and not how busy this machine is."""
    seconds = {}
    for jobs in (1, 2):
        root = folder / str(jobs)
        root.mkdir()
        os.chdir(root)
        pipeline(cluster, 30, "left", "right")
        began = time.monotonic()
        ended(start(cluster, "stages.repro", "--jobs", str(jobs)), 0)
        seconds[jobs] = time.monotonic() - began
        assert (root / "left").read_text() == (root / "right").read_text() == "done"
    print(seconds)
    assert seconds[1] / seconds[2] >= 1.6, seconds


@installed
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"gpus_per_node": 8}, "Invalid generic resource (gres) specification"),
        ({"nodes": 3}, "PartitionNodeLimit"),
        ({"partition": "none"}, "Invalid partition name specified"),
        ({"constraint": "h100"}, "Invalid feature specification"),
        ({"mem": "9T"}, "Requested node configuration is not available"),
    ],
)
def test_what_the_cluster_has_not_is_a_sentence(cluster, folder, options, why):
    output = ended(stage(cluster, 0, **options), 1)
    last = output.splitlines()[-1]
    assert last.startswith("error: Slurm did not start") and why in last
    asked = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert asked[0] in last and "`sinfo -N" in last
    assert not journal() and nothing_left(cluster, folder)


@installed
@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stage_gives_the_same_bytes_on_nodes(workspace, cluster, nodes):  # noqa: F811
    states.main(42)
    alone = written("states")
    shutil.rmtree("states")
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["hardware"]["slurm"] = {"nodes": nodes}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    resolve.write(config.load())
    output = ended(start(cluster, "stages.states", "42"), 0)
    assert written("states") == alone
    assert ("states on 2 processes" in output) == (nodes == 2), output
    assert not list(kept_batches.ROOT.rglob("*.batch"))
    until(lambda: not cluster.jobs())


@installed
@pytest.mark.slow
def test_training_is_divided_over_nodes_as_over_processes(workspace, cluster):  # noqa: F811
    """`accelerate launch` on two nodes, sharded; and torchrun's two processes of one machine."""
    adapters = []
    for hardware in ({"processes": 2}, {"processes": 1, "slurm": {"nodes": 2}}):
        raw = yaml.safe_load((ROOT / "params.yaml").read_text())
        raw["seeds"] = [42]
        raw["checkpoints"]["p1"]["steps"] = 3
        for name, checkpoint in raw["checkpoints"].items():
            if "p1" in checkpoint.get("matched", ()):
                others = [raw["checkpoints"][one]["steps"] for one in checkpoint["matched"]]
                raw["checkpoints"][name]["steps"] = sum(others)
        raw["hardware"].update(
            hardware, accelerate=str(ROOT / "profiles/accelerate/fsdp2-cpu.yaml")
        )
        Path("params.yaml").write_text(yaml.safe_dump(raw))
        resolve.write(config.load())
        output = ended(start(cluster, "stages.distill", "p1", "42"), 0)
        assert "stages.distill on 2 processes" in output
        adapters.append(load_file("models/p1/42/adapter_model.safetensors"))
        shutil.rmtree("models/p1")
    one, other = adapters
    assert one.keys() == other.keys() and any(value.any() for value in one.values())
    for name, value in one.items():
        torch.testing.assert_close(other[name], value)


def test_without_slurm_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"hardware\.slurm is set.*no srun.*login node"):
        slurm.run(Slurm(), STAGE)


def test_inside_of_an_allocation_stages_ask_for_jobs_of_their_own():
    own = {"SLURM_CONF": "slurm.conf", "SLURM_PARTITION": "fast", "HOME": "home"}
    here = {"CUDA_VISIBLE_DEVICES": "0", "STAGES_WARM_SERVER": "socket"}
    assert slurm.environment({**own, **here}) == own
    inside = {**own, "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
    assert slurm.environment(inside) == {"SLURM_CONF": "slurm.conf", "HOME": "home"}
