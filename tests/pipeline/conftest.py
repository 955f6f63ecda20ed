"""One real reproduction of the toy pipeline, only smaller, that all tests here look at."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT


@dataclass(frozen=True)
class Checkout:
    """A copy of the working tree with small parameters, in a git repository of its own."""

    root: Path

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command as `make` does, in a process group of its own.

        The environment's own programs come first.
        """
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*command)
        output, _ = process.communicate()
        if check and process.returncode:
            pytest.fail(f"{' '.join(command)} failed:\n{output[-6000:]}")
        return subprocess.CompletedProcess(command, process.returncode, output)

    def repro(self, *targets: str) -> list[str]:
        """`dvc repro`, and the names of the stages that it ran."""
        return ran(self.run("dvc", "repro", *targets).stdout)

    def restore(self, *targets: str) -> None:
        """Bring back what a test has changed: side by side, from the run cache where it can."""
        self.run(sys.executable, "-m", "stages.repro", "--no-live", *targets)


def ran(output: str) -> list[str]:
    """The stages that ran, in the words of `dvc repro` or of `stages.repro`."""
    found = re.findall(r"^(?:Running stage '(\S+)':|\[ *\d+/\d+\] (\S+) ran in )", output, re.M)
    return [one or other for one, other in found]


def smaller(raw: dict) -> dict:
    """The same pipeline with few samples and updates: every stage stays real."""
    raw["seeds"] = [42, 43]
    raw["source"]["records"] = 120
    raw["source"]["benchmark_sizes"] = dict.fromkeys(raw["source"]["benchmark_sizes"], 8)
    raw["rewrite"]["heldout"] = 0.1
    raw["teach"]["vlm"].update(steps=12, vision_steps=5)
    raw["teach"]["llm"]["steps"] = 6
    for checkpoint in raw["checkpoints"].values():
        checkpoint["steps"] = 3
    for checkpoint in raw["checkpoints"].values():
        if "matched" in checkpoint:
            checkpoint["steps"] = 3 * len(checkpoint["matched"])
    raw["interpret"]["steps"] = 3
    # The shared interpreter reads all sections, one of its own the reasoning.
    raw["interpreters"] = {name: raw["interpreters"][name] for name in ("reasoning", "shared")}
    raw["interpreters"]["shared"]["steps"] = 3
    raw["reconstructions"] = {
        "summary": {"interpreter": "shared", "section": "summary"},
        "caption": {"interpreter": "shared", "section": "caption"},
        "reasoning": {"interpreter": "reasoning", "section": "reasoning"},
        "shared-reasoning": {"interpreter": "shared", "section": "reasoning"},
    }
    raw["reconstruct"]["max_new_tokens"] = 12
    raw["predict"]["max_new_tokens"] = 12
    raw["latency"].update(batch_sizes=[1, 4], rounds=1)
    raw["similarity"]["draws"] = 200
    raw["audit"].update(items=24, fitted=8, batch_size=16)
    return raw


def check_out(folder: Path) -> Checkout:
    """Copy what git tracks or would track; start a repository there."""
    names = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        source = ROOT / name
        # A reproduction's own results are not part of the copy.
        own_result = name == "dvc.lock" or name.startswith(("metrics/", "reports/toy/"))
        if source.is_file() and not own_result:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    raw = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(
        yaml.safe_dump(smaller(raw), sort_keys=False), encoding="utf-8"
    )
    checkout = Checkout(folder)
    checkout.run(sys.executable, "-m", "stages.runs")
    checkout.run("git", "init", "--quiet")
    checkout.run("git", "add", "--all")
    checkout.run(
        "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit",
        "--quiet", "--message", "the tree under test",
    )  # fmt: skip
    return checkout


@dataclass(frozen=True)
class Reproduction:
    checkout: Checkout
    output: str
    seconds: float

    @property
    def root(self) -> Path:
        return self.checkout.root


@pytest.fixture(scope="session")
def reproduction(tmp_path_factory) -> Reproduction:
    checkout = check_out(tmp_path_factory.mktemp("reproduction"))
    started = time.monotonic()
    output = checkout.run(sys.executable, "-m", "stages.repro").stdout
    return Reproduction(checkout, output, time.monotonic() - started)
