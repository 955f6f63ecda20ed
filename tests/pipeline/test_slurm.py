"""The small pipeline on a Slurm cluster gives what it gives on this machine."""

from __future__ import annotations

import sys

import pytest
import yaml

from tests.pipeline import comparing
from tests.pipeline.conftest import check_out
from tests.slurm_cluster import LACKING, WHY_NOT, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKING), reason=WHY_NOT)]


def test_the_pipeline_on_a_cluster_gives_the_same_bytes(reproduction, tmp_path, monkeypatch):
    other = check_out(tmp_path / "cluster")
    raw = yaml.safe_load((other.root / "params.yaml").read_text(encoding="utf-8"))
    raw["hardware"]["slurm"] = {"cpus_per_task": 1, "time": "2:00:00"}
    (other.root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    with Cluster(tmp_path / "slurm") as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        output = other.run(sys.executable, "-m", "stages.repro").stdout
        done = cluster.run("scontrol", "show", "job", "-o").count("JobState=COMPLETED")
        assert not cluster.jobs()
    # teach 3, distill 12, states 2, interpret 8, reconstruct 8, predict 7 or more, latency 1
    assert done > 40, output
    # The parameters say where it ran; nothing else does.
    assert comparing.differing(reproduction.root, other.root) == ["resolved.yaml"]
    assert len(comparing.outputs(other.root)) > 100
