"""A rehearsal in a scratch folder: a copy of the tree, a profile, data, a judge on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from heima.config.profiles import written_out

ROOT = Path(__file__).parents[2]
KEY = "REHEARSAL_KEY"
"""`judge.api_key_env` of the profiles."""


def copy_tree(folder: Path) -> None:
    """What git tracks or would track, without results, in a repository of its own."""
    names = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        own_result = name == "dvc.lock" or name.startswith(("metrics/", "reports/toy/"))
        if (ROOT / name).is_file() and not own_result:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "the tree under test"],
    ):
        subprocess.run([*git, *command], cwd=folder, check=True)


def set_up(folder: Path, profile: str, made: Path, judge: str) -> None:
    """Make `folder` the working tree of a rehearsal, unless it is one, and give it a judge.

    `made` is what `timings.rehearsal.make.write` has made, `judge` the judge's address.
    """
    if not folder.exists():
        copy_tree(folder)
        (folder / "data").mkdir()
        (folder / "data" / "rehearsal").symlink_to(made.resolve(), target_is_directory=True)
    raw = yaml.safe_load(written_out(ROOT / "profiles" / f"{profile}.yaml"))
    raw["judge"]["base_url"] = judge
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def repro(folder: Path, targets: Sequence[str] = (), jobs: int = 2) -> tuple[int, float]:
    """`stages.repro`: its exit code and the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "stages.repro", "--jobs", str(jobs), *targets],
        cwd=folder,
        env={
            **os.environ,
            KEY: "none",
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "NO_PROXY": "127.0.0.1",
            # Two processes share the cores, each with one.
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, time.monotonic() - started
