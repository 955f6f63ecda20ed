"""What one GPU does, in eight minutes at most: `python -m timings.device`

    python -m timings.device --dry-run   # say what will be run, and what is missing for it
    python -m timings.device             # on a GPU
    python -m timings.device --quick     # on a CPU, in minutes: to see that all of it runs

Runs, one after the other and each in a process of its own with a limit:

- `rehearsal`: losses and gradients of one batch on the CPU and on the GPU, training and prediction
  (`timings.rehearsal.on_device`);
- `train`: what each lever of training gives, on the 11B's architecture (`timings.train`);
- `latency`: answers at batch 1 to 64 against the roofline (`timings.latency`).

A part that fails or runs out of time is named, and the others run; the exit code is then 1. Writes
`<card>.md` and `<card>.json` into timings/results, or where --out says; --quick without --out
writes nothing.

A GPU machine often has no package registry. What its image is taken to have is in `IMAGE`; what it
lacks is in requirements-device.txt, which `make device-wheels` downloads into .wheels to be carried
along, and there:

    python3 -m pip install --no-index --no-deps --target .site .wheels/*.whl
    PYTHONPATH=.site python3 -m timings.device
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULTS = Path("timings/results")
MOST_SECONDS = 480
_LEAST_SECONDS = 2
"""With less left, a part is not begun."""
IMAGE = (
    *("torch", "transformers", "peft", "accelerate", "pandas", "numpy", "pyarrow"),
    *("PIL", "psutil", "safetensors", "tokenizers", "tabulate", "yaml"),
)
"""Modules that a machine-learning image brings."""
CARRIED = ("pydantic", "pydantic_core", "cachetools", "orjson", "ruamel.yaml")
"""Modules of requirements-device.txt."""


@dataclass(frozen=True)
class Part:
    """A command by its module, and the seconds that it may take."""

    name: str
    module: str
    arguments: tuple[str, ...]
    quick: tuple[str, ...]
    limit: int

    def command(self, quick: bool) -> list[str]:
        return [sys.executable, "-m", self.module, *(self.quick if quick else self.arguments)]


PARTS = (
    Part("rehearsal", "timings.rehearsal.on_device", (), ("--quick",), 100),
    Part("train", "timings.train", ("--size", "11b"), ("--quick",), 170),
    Part(
        "latency",
        "timings.latency",
        ("--size", "11b", "--rounds", "2", "--batch-sizes", "1", "8", "32", "64"),
        ("--quick",),
        200,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What a part printed, the JSON of its last line, and why there is none."""

    text: str
    result: dict[str, Any] | None
    seconds: float
    fault: str | None


def lacking() -> list[str]:
    """The modules that are not here."""
    return [name for name in (*IMAGE, *CARRIED) if not _is_here(name)]


def _is_here(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False


def run(part: Part, quick: bool, left: float) -> Outcome:
    """Run a part to its end or its limit, at most for the seconds that are left."""
    limit = min(part.limit, left) if not quick else None
    if limit is not None and limit < _LEAST_SECONDS:
        return Outcome("", None, 0, "no time was left")
    started = time.monotonic()
    try:
        done = subprocess.run(
            part.command(quick),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=limit,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    except subprocess.TimeoutExpired as error:
        seconds = time.monotonic() - started
        told = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return Outcome(told, None, seconds, f"stopped after {seconds:.0f} s")
    seconds = time.monotonic() - started
    *text, last = done.stdout.splitlines() or [""]
    fault = None
    if done.returncode:
        end = done.stderr.strip().splitlines()[-1:] or [""]
        fault = f"exit code {done.returncode}: {end[0]}"
        sys.stderr.write(done.stderr[-4000:])
    result = json.loads(last) if last.startswith("{") else None
    if result is None and fault is None:
        fault = "it printed no result"
    return Outcome("\n".join(text), result, seconds, fault)


def card() -> dict[str, Any]:
    """The device and the versions that count."""
    import accelerate
    import peft
    import torch
    import transformers

    found: dict[str, Any] = {"device": "cpu", "python": sys.version.split()[0]}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    modules = (torch, transformers, peft, accelerate)
    return found | {module.__name__: module.__version__ for module in modules}


def report(facts: dict[str, Any], outcomes: dict[str, Outcome]) -> str:
    """The page of results."""
    lines = [f"# {facts['device']}", ""]
    lines += [", ".join(f"{key} {value}" for key, value in facts.items() if key != "device"), ""]
    for name, one in outcomes.items():
        lines += [f"## {name}: {one.seconds:.0f} s", ""]
        lines += [f"**{one.fault}**", ""] if one.fault else []
        lines += ["```", one.text, "```", ""] if one.text else []
    return "\n".join(lines)


def write(folder: Path, facts: dict[str, Any], outcomes: dict[str, Outcome]) -> Path:
    """Write both files; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    parts = {
        part: {"seconds": round(one.seconds, 1), "fault": one.fault, "result": one.result}
        for part, one in outcomes.items()
    }
    whole = json.dumps({"card": facts, "parts": parts}, indent=1) + "\n"
    (folder / f"{name}.json").write_text(whole, encoding="utf-8")
    page = folder / f"{name}.md"
    page.write_text(report(facts, outcomes), encoding="utf-8")
    return page


def describe(parts: Sequence[Part], quick: bool) -> str:
    """What would be run, and whether it can."""
    lines = [f"{sum(part.limit for part in parts)} s at most in all" if not quick else "no limits"]
    for part in parts:
        limit = "" if quick else f", {part.limit} s at most"
        lines.append(f"{part.name}{limit}: {' '.join(['python', *part.command(quick)[1:]])}")
    missing = lacking()
    lines.append(
        f"missing here: {', '.join(missing)} (make device-wheels)" if missing else "nothing missing"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument("--quick", action="store_true", help="small, on a CPU")
    parser.add_argument("--out", type=Path, help=f"where results go; default: {RESULTS}")
    parser.add_argument("--part", choices=[part.name for part in PARTS], action="append")
    given = parser.parse_args()
    parts = [part for part in PARTS if not given.part or part.name in given.part]
    if given.dry_run:
        print(describe(parts, given.quick))
        return
    if missing := lacking():
        sys.exit(f"error: missing here: {', '.join(missing)} (make device-wheels)")
    import torch

    if not torch.cuda.is_available() and not given.quick:
        sys.exit("error: PyTorch sees no GPU here; --quick shows on a CPU that all of it runs")
    facts = card()
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    for part in parts:
        left = MOST_SECONDS - (time.monotonic() - started)
        outcomes[part.name] = run(part, given.quick, left)
        one = outcomes[part.name]
        print(f"{part.name}: {one.seconds:.0f} s, {one.fault or 'done'}", flush=True)
        if out := given.out or (None if given.quick else RESULTS):
            # After each part: what was measured stays should the machine be taken back.
            write(out, facts, outcomes)
    print(report(facts, outcomes))
    if any(one.fault for one in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
