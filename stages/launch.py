"""How a stage runs on all GPUs of the machine, or on nodes of a cluster."""

from __future__ import annotations

import os
import sys

import torch

from heima import config
from heima.config import Params
from stages import slurm


def require_gpu(params: Params) -> None:
    """End this process where it would compute with a large model on a CPU, unless told to."""
    if (
        torch.cuda.is_available()
        or params.hardware.allow_cpu
        or params.family in config.TOY_FAMILIES
    ):
        return
    ask = "hardware.slurm.gpus_per_node asks for them, " if slurm.on_node() else ""
    sys.exit(
        f"error: no GPU is seen, and models of the family {params.family} would take days on a "
        f"CPU; {ask}`python -m stages.plan` says what is missing, hardware.allow_cpu: true runs it "
        "on the CPU all the same"
    )


def on_all_devices(params: Params, module: str, *arguments: str, shard: bool = False) -> None:
    """Start the stage again, once on each device, unless that has been done; or just return.

    With `shard`, `hardware.accelerate` says how the processes divide the model. This process
    becomes the launcher: it ends as its processes do. It ends at once where it needs a GPU and sees
    none (`require_gpu`). With `hardware.slurm` the devices are those of the cluster's nodes.
    """
    _on_nodes(params, module, arguments, nodes=params.hardware.nodes)
    require_gpu(params)
    processes = params.hardware.processes or max(1, torch.cuda.device_count())
    nodes = slurm.place()
    if "RANK" in os.environ or processes * nodes.count == 1:
        return
    if shard and params.hardware.accelerate:
        launcher = ["accelerate.commands.launch", "--config_file", params.hardware.accelerate]
        command = [*launcher, "--num_processes", str(processes * nodes.count), *nodes.accelerate()]
    else:
        launcher = ["torch.distributed.run", "--nproc-per-node", str(processes)]
        command = [*launcher, *nodes.torchrun()]
    print(f"{module} on {processes * nodes.count} processes", flush=True)
    started = [*command, "--module", module, *arguments]
    os.execv(sys.executable, [sys.executable, "-m", *started])


def on_one_device(params: Params, module: str, *arguments: str) -> None:
    """As `on_all_devices`, for a stage that computes in one process."""
    _on_nodes(params, module, arguments, nodes=1)
    require_gpu(params)


def _on_nodes(params: Params, module: str, arguments: tuple[str, ...], *, nodes: int) -> None:
    options = params.hardware.slurm
    if options and not slurm.on_node():
        slurm.run(options.model_copy(update={"nodes": nodes}), module, *arguments)
