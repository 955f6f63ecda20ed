"""`stages.repro --jobs 2` against `--jobs 1`: a whole short reproduction each, in turns.

    python -m timings.jobs            # about twelve minutes a round on two idle cores

Each run is of a fresh clone of HEAD, with every stage, and training shortened to `--updates` of
each schedule's. What has no times in it must be the same in all runs, to the byte. Prints a table
and, last, JSON: `ratio` is the sum of one job's seconds over that of two jobs'.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from tabulate import tabulate

UNTIMED = (
    "data/",
    "models/",
    "states/",
    "interpreters/",
    "reconstructions/",
    "judgements/",
    "predictions/",
)
"""What a run's lock file must agree on; metrics, latencies and tables hold times."""


def shortened(raw: dict, share: float) -> dict:
    """The profile with this share of its updates, and few questions."""

    def cut(steps: int) -> int:
        return max(2, round(steps * share))

    raw["source"]["benchmark_sizes"] = dict.fromkeys(raw["source"]["benchmark_sizes"], 24)
    raw["teach"]["vlm"]["steps"] = cut(raw["teach"]["vlm"]["steps"])
    raw["teach"]["llm"]["steps"] = cut(raw["teach"]["llm"]["steps"])
    checkpoints = raw["checkpoints"]
    for one in checkpoints.values():
        one["steps"] = cut(one["steps"])
    for one in checkpoints.values():
        if "matched" in one:
            one["steps"] = sum(checkpoints[name]["steps"] for name in one["matched"])
    raw["interpret"]["steps"] = cut(raw["interpret"]["steps"])
    for one in raw["interpreters"].values():
        if "steps" in one:
            one["steps"] = cut(one["steps"])
    raw["similarity"]["draws"] = 200
    return raw


def timed(folder: Path, jobs: int, share: float) -> tuple[float, dict[str, str]]:
    """Seconds of one run in a fresh clone at `folder`, and path -> hash of what it made."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(Path.cwd()), str(folder)], check=True)
    params = folder / "params.yaml"
    raw = shortened(yaml.safe_load(params.read_text(encoding="utf-8")), share)
    params.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    (folder / "dvc.lock").unlink(missing_ok=True)
    log = folder / "run.log"
    started = time.monotonic()
    with log.open("w") as out:
        status = subprocess.run(
            [sys.executable, "-m", "stages.repro", "--jobs", str(jobs)],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        ).returncode
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"error: --jobs {jobs} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    stages = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    made = {
        out["path"]: out["md5"]
        for stage in stages.values()
        for out in stage.get("outs", [])
        if out["path"].startswith(UNTIMED)
    }
    return seconds, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=float, default=0.04, help="share of each schedule's")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    made: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(options.rounds):
            for jobs in seconds:
                took, outs = timed(Path(name) / "run", jobs, options.updates)
                seconds[jobs].append(took)
                made.append(outs)
    first = made[0]
    differing = sorted(path for path in first if any(one.get(path) != first[path] for one in made))
    rows = [[jobs, *each] for jobs, each in seconds.items()]
    rounds = [f"round {one + 1}, s" for one in range(options.rounds)]
    print(tabulate(rows, headers=["jobs", *rounds], floatfmt=".1f"))
    print(f"{len(first)} outputs without times, {len(differing)} differ {differing or ''}")
    print(
        json.dumps(
            {
                "benchmark": "stages.repro --jobs 2",
                "baseline": "stages.repro --jobs 1",
                "ratio": round(sum(seconds[1]) / sum(seconds[2]), 2),
                "seconds": seconds,
                "outputs": len(first),
                "differing": differing,
            }
        )
    )


if __name__ == "__main__":
    main()
