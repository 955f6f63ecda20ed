"""Kill the small pipeline at random moments, and see that nothing comes of it.

    python -m tests.kills [--kills 100] [--seed 1] [--folder FOLDER]

Reproduces the small pipeline (tests/pipeline/conftest.py) undisturbed in one folder, and in another
under SIGKILL: to all processes of a run at once, to `stages.repro` alone, or to any one of what it
has started, drawn by `--seed`. Where the pipeline is finished before the last kill, it starts anew.
After each kill, no process may be left; at the end, the outputs must be the undisturbed ones byte
for byte (but for times), with no temporary file, scratch folder or entry of DVC's lock left.
Prints a summary, and exits 1 where anything of this does not hold.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.pipeline import comparing
from tests.pipeline.conftest import check_out

_DYING = 10.0
"""Seconds in which everything must have ended after a kill."""
_SHORTEST = 2.0
"""Mean seconds that a run goes on once it has started, however many kills there are."""
TARGETS = ("everything", "stages.repro", "one process")


@dataclass
class Outcome:
    """What became of a killed pipeline."""

    kills: int = 0
    targets: collections.Counter[str] = field(default_factory=collections.Counter)
    under_way: collections.Counter[str] = field(default_factory=collections.Counter)
    """The stages that ran when it was killed."""
    faults: list[str] = field(default_factory=list)


class Clone:
    """A copy of the working tree with small parameters, and its own folder for temporary files.

    `of` is another one to copy: the working tree may change meanwhile.
    """

    def __init__(self, root: Path, *, of: Path | None = None) -> None:
        self.root = root / "clone"
        self.scratch = root / "tmp"
        self.scratch.mkdir(parents=True)
        if of is None:
            check_out(self.root)
        else:
            subprocess.run(["git", "clone", "--quiet", str(of), str(self.root)], check=True)

    def start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with (self.root.parent / "output").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "stages.repro"],
                cwd=self.root,
                env={**os.environ, "PATH": path, "TMPDIR": str(self.scratch)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def finish(self) -> None:
        if self.start().wait():
            raise SystemExit(f"the run failed: {self.root.parent / 'output'}")

    def processes(self) -> list[psutil.Process]:
        """All that work in the clone, whoever started them."""
        return list(_working_in(self.root))

    def left(self) -> list[str]:
        """Files that a finished pipeline has no use for."""
        found = [str(one) for one in self.scratch.iterdir()]
        for place, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if name != ".git"]
            found += [
                str(Path(place, name))
                for name in (*folders, *files)
                if name.endswith((".tmp", ".partial"))
            ]
        dvc = self.root / ".dvc" / "tmp"
        found += [str(one) for one in (dvc / "stages.before").iterdir()]
        if (dvc / "rwlock").exists():
            used = json.loads((dvc / "rwlock").read_text(encoding="utf-8"))
            found += [f"rwlock: {file}" for part in used.values() for file in part]
        training = self.root / ".cache" / "training"
        found += [str(one) for one in training.glob("*")]
        git = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=all"],
            cwd=self.root, capture_output=True, text=True, check=True,
        )  # fmt: skip
        made = ("dvc.lock", "metrics/", "reports/", "resolved.yaml")
        lines = git.stdout.splitlines()
        return found + [f"git: {line}" for line in lines if not line[3:].startswith(made)]


def _working_in(root: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(
                root
            ):
                yield process
        except psutil.Error:
            continue


def kill(clone: Clone, process: subprocess.Popen[bytes], target: str, draw: random.Random) -> str:
    """Kill; what it was."""
    if target == "stages.repro":
        process.kill()
        return target
    if target == "everything":
        for one in clone.processes():
            one.suspend()
        for one in clone.processes():
            one.kill()
        return target
    one = draw.choice(sorted(clone.processes(), key=lambda one: one.pid))
    one.kill()
    return target


def stages_under_way(clone: Clone) -> set[str]:
    """By the environment that DVC gives to a stage's command."""
    found = set()
    for one in clone.processes():
        try:
            if name := one.environ().get("DVC_STAGE"):
                found.add(name.partition("@")[0])
        except psutil.Error:
            continue
    return found


def under_kills(folder: Path, kills: int, seconds: float, draw: random.Random) -> Outcome:
    """A pipeline that is killed so often, and then finished."""
    outcome = Outcome()
    first = folder / "undisturbed" / "clone"
    clone = Clone(folder / "killed-1", of=first)
    mean = max(_SHORTEST, seconds / kills)
    started = 8.0 if kills > 1 else 0.0
    rounds = 1
    while outcome.kills < kills:
        process = clone.start()
        delay = draw.uniform(0, started) + draw.expovariate(1 / mean)
        try:
            status = process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            target = draw.choice(TARGETS)
            outcome.under_way.update(stages_under_way(clone) or {"(none)"})
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                kill(clone, process, target, draw)
            outcome.kills += 1
            outcome.targets[target] += 1
            if target == "one process":
                # The run goes on without it for a while: a stage fails, others do not.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=draw.expovariate(1 / mean))
                process.kill()
            process.wait()
            end = time.monotonic() + _DYING
            while clone.processes() and time.monotonic() < end:
                time.sleep(0.1)
            for one in clone.processes():
                outcome.faults.append(f"kill {outcome.kills}: {_told(one)} is left")
                one.kill()
            print(f"kill {outcome.kills} of {kills}: {target} after {delay:.1f} s", flush=True)
            continue
        if status:
            outcome.faults.append(f"a run after kill {outcome.kills} ended with {status}")
            break
        outcome.faults += judged(clone, folder)
        rounds += 1
        clone = Clone(folder / f"killed-{rounds}", of=first)
    clone.finish()
    outcome.faults += judged(clone, folder)
    return outcome


def _told(process: psutil.Process) -> str:
    """What a process is, for as long as it can be asked."""
    try:
        return f"{process}: {' '.join(process.cmdline())}"
    except psutil.Error:
        return str(process)


def judged(clone: Clone, folder: Path) -> list[str]:
    """What is wrong with a finished pipeline."""
    different = comparing.differing(folder / "undisturbed" / "clone", clone.root)
    return [f"{name} differs" for name in different] + [f"{name} is left" for name in clone.left()]


def main(kills: int, seed: int, folder: Path) -> int:
    undisturbed = Clone(folder / "undisturbed")
    began = time.monotonic()
    undisturbed.finish()
    seconds = time.monotonic() - began
    print(f"undisturbed: {seconds:.0f} s; left: {undisturbed.left() or 'nothing'}", flush=True)
    outcome = under_kills(folder, kills, seconds, random.Random(seed))
    print(f"kills: {outcome.kills} ({dict(outcome.targets)}), seed {seed}")
    print(f"stages under way: {dict(outcome.under_way.most_common())}")
    for fault in outcome.faults:
        print(f"fault: {fault}")
    compared = len(comparing.outputs(undisturbed.root))
    print(f"{len(outcome.faults) or 'no'} faults; files of outputs compared: {compared}")
    return len(outcome.faults)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept afterwards (default: one that is not)")
    given = parser.parse_args()
    place = given.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    faults = main(given.kills, given.seed, place.resolve())
    if not faults and given.folder is None:
        shutil.rmtree(place)
    sys.exit(1 if faults else 0)
