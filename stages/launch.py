"""How a stage runs on all GPUs of the machine."""

from __future__ import annotations

import os
import sys

import torch

from heima.config import Params


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
