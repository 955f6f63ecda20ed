"""What two reproductions of the same must have in common: the bytes of all outputs but times."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

TIMES = ("seconds", "seconds_per_sample", "machine")
"""Keys of provenance, and metrics, that measure a run (docs/reproducing.md)."""
MEASUREMENTS = ("latency", "metrics/latency.json")
"""Outputs that are times as a whole."""
QUOTING = ("tables", "figures")
"""Stages whose outputs quote measurements."""
SAY_TIMES = ("tracking.json", "index.html")


def measure_alike(one: Path, other: Path) -> None:
    """Give `other` the times that `one` has measured, and make what quotes them anew of these."""
    for name in MEASUREMENTS:
        target = other / name
        if target.is_dir():
            shutil.rmtree(target)
            shutil.copytree(one / name, target)
        else:
            shutil.copy2(one / name, target)
    for stage in QUOTING:
        subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"], cwd=other, check=True, capture_output=True
        )


def outputs(root: Path) -> dict[str, str]:
    """Each file of every output that dvc.lock names -> a hash of its content without times.

    Left out are measurements; the page, which says what each stage took; and what MLflow was given:
    it names the hashes of metrics files, in which times stand.
    """
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    found = {}
    for entry in lock["stages"].values():
        for out in entry.get("outs", ()):
            if out["path"] in MEASUREMENTS or out["path"].endswith(SAY_TIMES):
                continue
            path = root / out["path"]
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    found[file.relative_to(root).as_posix()] = _digest(file)
    return found


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix == ".json":
        content = json.dumps(_timeless(json.loads(content))).encode()
    return hashlib.sha256(content).hexdigest()


def _timeless(value: Any) -> Any:
    """JSON without what is named as a time, in provenance or as a metric (`seconds`)."""
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in TIMES}
    return value


def differing(one: Path, other: Path) -> list[str]:
    """The files that are not the same in both, or in one alone, had both measured the same times.

    Changes `other` (`measure_alike`).
    """
    measure_alike(one, other)
    first, second = outputs(one), outputs(other)
    return sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )
