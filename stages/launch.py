"""How a stage runs on all GPUs of the machine, and who writes its results."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from heima.config import Params

T = TypeVar("T")


def on_all_devices(params: Params, module: str, *arguments: str, shard: bool = False) -> None:
    """Start the stage again, once on each device, unless that has been done; or just return.

    With `shard`, `hardware.accelerate` says how the processes divide the model. This process
    becomes the launcher: it ends as its processes do.
    """
    processes = params.hardware.processes or max(1, torch.cuda.device_count())
    if "RANK" in os.environ or processes == 1:
        return
    if shard and params.hardware.accelerate:
        launcher = ["accelerate.commands.launch", "--config_file", params.hardware.accelerate]
        command = [*launcher, "--num_processes", str(processes), "--module", module]
    else:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*launcher, "--module", module]
    print(f"{module} on {processes} processes", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", *command, *arguments])


def writes() -> bool:
    """Whether this is the process that writes the stage's results."""
    return PartialState().is_main_process


def part(values: Sequence[T]) -> Sequence[T]:
    """This process's share of `values`: a run of neighbours, those of all processes in order."""
    state = PartialState()
    edges = [i * len(values) // state.num_processes for i in range(state.num_processes + 1)]
    return values[edges[state.process_index] : edges[state.process_index + 1]]


def gathered(value: T) -> list[T] | None:
    """The values of all processes, in order, on the one that writes; None on the others."""
    state = PartialState()
    if state.num_processes == 1:
        return [value]
    values: list[Any] | None = [None] * state.num_processes if state.is_main_process else None
    dist.gather_object(value, values)
    return values
