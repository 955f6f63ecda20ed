"""The GPUs of this machine, and how many of them a stage takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from heima import config


def visible() -> tuple[str, ...]:
    """The GPUs that stages may use, by their name for CUDA."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ()
    rows = [line.split(", ") for line in lines.splitlines()]
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return tuple(index for index, _ in rows)
    found = {name for row in rows for name in row}
    names = [name for name in chosen.split(",") if name]
    if unknown := [name for name in names if name not in found]:
        raise SystemExit(f"error: CUDA_VISIBLE_DEVICES: nvidia-smi lists no {', '.join(unknown)}")
    return tuple(names)


def on_a_cluster() -> bool:
    """Whether stages compute on other machines, whose GPUs are not shared out here."""
    if not Path("params.yaml").exists():
        return False
    try:
        return config.load().hardware.slurm is not None
    except config.ConfigError as error:
        sys.exit(f"error: {error}")


def wanted(gpus: Sequence[str]) -> Callable[[str], int]:
    """How many of these GPUs a stage uses, by its name: one for each process that it starts.

    That is what `stages.launch` goes by. Stages that have but one process get one.
    """
    if not gpus:
        return lambda name: 0
    params = config.load()
    alone = {"teach"} | ({"predict"} if params.predict.engine == "vllm" else set())
    several = params.hardware.processes or len(gpus)
    return lambda name: 1 if name.partition("@")[0] in alone else several
