"""A tiny DVC repository for `stages.repro`: real processes, real kills, DVC's own lock file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

PIPELINE = """\
stages:
  base:
    cmd: sh work.sh base
    deps: [in.txt]
    outs: [out/base, base.json: {cache: false}]
  branch:
    foreach: [x, y, z]
    do:
      cmd: sh work.sh ${item}
      deps: [out/base]
      outs: [out/x]
  measure:
    cmd: sh work.sh measure
    meta: {needs: machine}
    deps: [out/base]
    outs: [out/measure]
  risky:
    cmd: sh work.sh risky
    deps: [out/base]
    outs: [out/risky: {cache: false}]
  after:
    cmd: sh work.sh after
    deps: [out/risky]
    outs: [out/after]
  last:
    cmd: sh work.sh last
    deps: [out/x, out/y, out/z, out/measure]
    outs: [out/last]
""".replace("outs: [out/x]\n  m", "outs: ['out/${item}']\n  m")

WORK = """\
echo "start $1 $$" >> journal
echo "about to sleep"
sleep "$(cat "pause-$1" 2> /dev/null || cat pause)"
test ! -e "fail-$1" || exit 3
cat in.txt > "out/$1"
echo "$1" >> "out/$1"
test "$1" != base || echo '{}' > base.json
echo "end $1 $$" >> journal
"""

STAGES = {"base", "branch@x", "branch@y", "branch@z", "measure", "risky", "after", "last"}


class Repository:
    """A DVC repository, its journal (each command's start and end) and commands in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def repro(self, *arguments: str) -> subprocess.Popen[str]:
        return self.start(sys.executable, "-m", "stages.repro", *arguments)

    def finished(self, process: subprocess.Popen[str], status: int = 0) -> str:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == status, output
        return output

    def pause(self, seconds: float, *names: str) -> None:
        """How long these stages take from now on, or all that are not named."""
        for path in [f"pause-{name}" for name in names] or ["pause"]:
            (self.root / path).write_text(str(seconds))

    def journal(self) -> list[tuple[str, str, int]]:
        path = self.root / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(word, name, int(pid)) for word, name, pid in map(str.split, lines)]

    def ran(self) -> list[str]:
        return [name for word, name, _ in self.journal() if word == "start"]

    def lock(self) -> bytes:
        return (self.root / "dvc.lock").read_bytes()

    def outputs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.root / "out").iterdir()}


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("empty")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    (root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (root / ".gitignore").write_text("/out/\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "work.sh").write_text(WORK)
    (root / "in.txt").write_text("1\n")
    (root / "pause").write_text("0")
    (root / "out").mkdir()
    return root


@pytest.fixture
def new(empty, tmp_path) -> Callable[[str], Repository]:
    def make(name: str) -> Repository:
        return Repository(Path(shutil.copytree(empty, tmp_path / name)))

    return make


def until(true: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
