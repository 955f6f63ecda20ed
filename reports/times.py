"""When each stage of the recorded results ran: `reports/<profile>/times.json`, kept by git.

`dvc.lock` has no times, and a clone gives every file that of the clone. So `stages.repro` writes
them down beside the results, each with the hash of the stage's entry in `dvc.lock`: of a stage that
ran again in another way (`dvc repro`), what is recorded is not believed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reports
from heima.results.files import read_json, write_json
from reports.finished import FinishedStage, md5, read_yaml

RECORDED = "stages.repro"
COMMITTED = "git: the commit of its metrics"
WRITTEN = "its metrics file"


@dataclass(frozen=True)
class Time:
    """When a stage ran, in seconds since 1970, and who says so: `RECORDED`, or a guess."""

    started: float
    ended: float
    source: str


def file_of(profile: str) -> Path:
    return reports.folder(profile) / "times.json"


@dataclass(frozen=True)
class Ran:
    """A stage that has just run: its entry in `dvc.lock`, and seconds since 1970."""

    entry: Mapping[str, Any]
    started: float
    ended: float


def record(root: Path, ran: Mapping[str, Ran]) -> None:
    """Note when stages ran beside what is known of others; nothing without parameters."""
    if not ran or not (root / "params.yaml").is_file():
        return
    path = root / file_of(read_yaml(root / "params.yaml")["profile"])
    found = read_json(path) if path.is_file() else {}
    for name, one in ran.items():
        found[name] = {
            "dvc_hash": md5(one.entry),
            "started": round(one.started, 1),
            "ended": round(one.ended, 1),
        }
    write_json(path, dict(sorted(found.items())))


def times(root: Path, profile: str, stages: Iterable[FinishedStage]) -> dict[str, Time]:
    """When each stage ran that has metrics.

    Where nothing is recorded, a stage has ended when its metrics were committed or, where git has
    others or none, when their file was written, and began as long before as they say.
    """
    path = root / file_of(profile)
    recorded = read_json(path) if path.is_file() else {}
    committed = _committed(root)
    found = {}
    for stage in stages:
        known = recorded.get(stage.name, {})
        if known.get("dvc_hash") == stage.dvc_hash:
            found[stage.name] = Time(known["started"], known["ended"], RECORDED)
        elif stage.metrics_files:
            file = stage.metrics_files[0]
            seconds = sum(map(_seconds, map(read_json, stage.metrics_files)))
            name = file.relative_to(root).as_posix()
            ended, source = committed.get(name, file.stat().st_mtime), WRITTEN
            if name in committed:
                source = COMMITTED
            found[stage.name] = Time(ended - seconds, ended, source)
    return found


def _seconds(content: Mapping[str, Any]) -> float:
    """What a metrics file says that its stage took: training, or decoding all samples."""
    times = [
        row["seconds_per_sample"]
        for row in content.get("cells", {}).values()
        if "seconds_per_sample" in row
    ]
    decoding = sum(time["value"] * time["n"] for time in times)
    return float(content.get("provenance", {}).get("seconds", decoding))


def _committed(root: Path) -> dict[str, float]:
    """Metrics files that are as git has them -> the time of the commit that wrote them last."""

    def git(*arguments: str) -> str:
        ended = subprocess.run(
            ["git", "-C", str(root), *arguments, "--", "metrics"],
            capture_output=True,
            text=True,
            check=False,
        )
        return "" if ended.returncode else ended.stdout

    try:
        changed = {line[3:] for line in git("status", "--porcelain").splitlines()}
        log = git("log", "--format=@%ct", "--name-only", "--relative")
    except FileNotFoundError:
        return {}
    found: dict[str, float] = {}
    when = 0.0
    for line in filter(None, log.splitlines()):
        if line.startswith("@"):
            when = float(line[1:])
        elif line not in changed:
            found.setdefault(line, when)
    return found
