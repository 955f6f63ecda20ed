"""Parameters whose benchmarks are given data, made from the paper's profile."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from heima import config
from tests.conftest import ROOT


def paper_params(source: str = "source", **benchmarks: dict[str, Any]) -> config.Params:
    """The paper's profile with a given folder and these benchmarks (see `paper_yaml`)."""
    return config.parse(paper_yaml(source, **benchmarks))


def paper_yaml(source: str = "source", **benchmarks: dict[str, Any]) -> str:
    """The paper's profile with a given folder and these `source.benchmarks`.

    `mmbench_v11` is the MMBench of the protocol `vlmevalkit`.
    """
    raw = yaml.safe_load((ROOT / "profiles" / "paper.yaml").read_text(encoding="utf-8"))
    given = {name.replace("_", "-"): place for name, place in benchmarks.items()}
    raw["source"] = {"kind": "folder", "path": source, "benchmarks": given}
    raw["benchmarks"] = [name for name in given if name != "mmbench-v11"]
    raw["latency"]["benchmark"] = raw["benchmarks"][0]
    raw["latency"]["protocol"] = "lmms"
    if "mmbench-v11" not in given:
        del raw["protocols"]["vlmevalkit"]
    return yaml.safe_dump(raw)


def write_source(folder: Path, images: Iterable[str] = ("a/1.png",)) -> None:
    """`train.jsonl` with a record an image, and the `images.zip` that holds them."""
    folder.mkdir(parents=True)
    records = [
        {"id": str(place), "image": name, "conversations": []} for place, name in enumerate(images)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name in dict.fromkeys(record["image"] for record in records):
            archive.writestr(zipfile.ZipInfo(name), f"not drawn: {name}")
