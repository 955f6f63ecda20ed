"""Parameters whose benchmarks are given data, made from the paper's profile."""

from __future__ import annotations

from typing import Any

import yaml

from heima import config
from tests.conftest import ROOT


def paper_params(source: str = "source", **benchmarks: dict[str, Any]) -> config.Params:
    """The paper's profile with these `source.benchmarks` (see `paper_yaml`)."""
    return config.parse(paper_yaml(source, **benchmarks))


def paper_yaml(source: str = "source", **benchmarks: dict[str, Any]) -> str:
    """params.yaml with these `source.benchmarks`; `mmbench_v11` is the paper protocol's MMBench."""
    raw = yaml.safe_load((ROOT / "profiles" / "paper.yaml").read_text(encoding="utf-8"))
    given = {name.replace("_", "-"): place for name, place in benchmarks.items()}
    raw["source"] |= {"path": source, "benchmarks": given}
    raw["benchmarks"] = [name for name in given if name != "mmbench-v11"]
    raw["latency"]["benchmark"] = raw["benchmarks"][0]
    raw["latency"]["protocol"] = "lmms"
    if "mmbench-v11" not in given:
        del raw["protocols"]["paper"]
    return yaml.safe_dump(raw)
