"""How a stage runs on all GPUs of the machine."""

from __future__ import annotations

import os
import sys

import torch

from heima import config
from heima.config import Params


def require_gpu(params: Params) -> None:
    """End this process where it would compute with a large model on a CPU, unless told to."""
    if (
        torch.cuda.is_available()
        or params.hardware.allow_cpu
        or params.family in config.TOY_FAMILIES
    ):
        return
    sys.exit(
        f"error: no GPU is seen, and models of the family {params.family} would take days on a "
        "CPU; `python -m stages.plan` says what is missing, hardware.allow_cpu: true runs it on "
        "the CPU all the same"
    )


def on_all_devices(params: Params, module: str, *arguments: str, shard: bool = False) -> None:
    """Start the stage again, once on each device, unless that has been done; or just return.

    With `shard`, `hardware.accelerate` says how the processes divide the model. This process
    becomes the launcher: it ends as its processes do. It ends at once where it needs a GPU and sees
    none (`require_gpu`).
    """
    require_gpu(params)
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
