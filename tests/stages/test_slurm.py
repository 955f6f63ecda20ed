"""Stages on a Slurm cluster: a real one on loopback, with real kills, where Slurm is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from heima import config
from heima.vlm import kept_batches
from stages import resolve, states
from tests.conftest import ROOT
from tests.slurm_cluster import LACKING, WHY_NOT, Cluster
from tests.stages.conftest import until
from tests.stages.test_shared_work import ready, workspace, written  # noqa: F401

installed = pytest.mark.skipif(bool(LACKING), reason=WHY_NOT)
GONE = 30
"""Seconds within which no job may be left."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as one:
        yield one


def ask(**options) -> None:
    """Have the stages of the current folder run on the cluster."""
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["hardware"]["slurm"] = options
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    resolve.write(config.load())


def start(cluster, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@installed
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_stage_gives_the_same_bytes_on_nodes(workspace, cluster, nodes):  # noqa: F811
    states.main(42)
    alone = written("states")
    shutil.rmtree("states")
    ask(nodes=nodes)
    process = start(cluster, "stages.states", "42")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert written("states") == alone
    assert ("states on 2 processes" in output) == (nodes == 2), output
    assert not list(kept_batches.ROOT.rglob("*.batch"))
    until(lambda: not cluster.jobs())
