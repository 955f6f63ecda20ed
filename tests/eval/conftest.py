"""A tiny edition of the benchmarks, and a gateway that each test may have for itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from eval import lmms_start

lmms_start.quiet()

SIZES = {
    "mmstar": 13,
    "mmbench": 3,
    "mmvet": 12,
    "mathvista": 12,
    "ai2d": 12,
    "hallusionbench": 12,
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def edition(tmp_path_factory):
    """params.yaml (one training seed, two decoding seeds) and data/benchmarks/, to be read."""
    from heima.toy.benchmarks import write_benchmarks

    folder = tmp_path_factory.mktemp("edition")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["seeds"] = [42]
    raw["protocols"]["vlmevalkit"]["seeds"] = [42, 43]
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    write_benchmarks(folder / "data" / "benchmarks", sizes=SIZES, seed=3)
    return folder


@pytest.fixture
def workspace(edition, tmp_path, monkeypatch):
    """The current folder of a test: the edition's data, everything else its own."""
    (tmp_path / "data").symlink_to(edition / "data")
    (tmp_path / "params.yaml").write_bytes((edition / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    from heima import config
    from stages import resolve

    resolve.write(config.load())
    return tmp_path


@pytest.fixture
def open_gateway(monkeypatch):
    """Open a gateway for a judge's parameters, with lmms-eval's tasks sent to it."""
    from eval import gateway as module

    opened = []

    def open_one(judge):
        # The tasks keep the URL of their first import; a pipeline has one gateway a process.
        for name in module._TASKS_THAT_KEEP_THE_URL:
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name in ("API_TYPE", "OPENAI_API_URL", "OPENAI_API_KEY", "NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        gateway = module.Gateway(judge)
        opened.append(gateway.__enter__())
        gateway.route_lmms_eval()
        return gateway

    yield open_one
    for gateway in opened:
        gateway.__exit__()
