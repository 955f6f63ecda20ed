"""Say what the profile in params.yaml will take, before anything is spent.

    python -m stages.plan                        # 8 H100 for the full-size families, else this CPU
    python -m stages.plan --gpus 4 --gpu a100 --mfu 0.3 --gpu-hour-price 1.8
    python -m stages.plan --json > plan.json

For each stage of dvc.yaml: samples, tokens, FLOPs, GPU-hours, the peak of a GPU's memory, what it
writes, judge calls and their price; then what is missing on this machine, and what to do about it.
Reads params.yaml and, where they are, metrics/rewrite.json and data/rewritten. It needs no data, no
weights and no network, loads no model, and writes nothing; it is no stage of dvc.yaml.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from dataclasses import asdict, fields

import psutil
from tabulate import tabulate

from heima import config
from heima.planning import architectures, preflight, sharding, workload
from heima.planning.estimate import Estimate
from heima.planning.machine import GPUS, Gpu, Levers, Machine
from heima.planning.parts import Stage, total

CPU = Gpu(tflops=0.1, gb_per_s=20, memory_gb=psutil.virtual_memory().total / 1e9)
"""Two cores with AVX2, about, in fp32."""


def machine(arguments: argparse.Namespace, params: config.Params) -> Machine:
    """The hardware that is asked for, or what suits the family."""
    full_size = params.family in architectures.FULL_SIZE
    name = arguments.gpu or ("h100" if full_size else "cpu")
    gpu = CPU if name == "cpu" else GPUS[name]
    # Models that are drawn or made here are small.
    usual = 1 if params.source.kind == "toy" else 8
    gpus = arguments.gpus or ((params.hardware.processes or 1) if name == "cpu" else usual)
    if (slurm := params.hardware.slurm) and not arguments.gpus:
        gpus = slurm.nodes * (params.hardware.processes or slurm.gpus_per_node or gpus)
    return Machine(name, gpu, gpus, arguments.mfu, arguments.mbu, arguments.gpu_hour_price)


def levers(params: config.Params) -> Levers:
    """How training computes, as params say."""
    stated = params.training.model_dump() | params.hardware.model_dump()
    known = {field.name for field in fields(Levers)} & stated.keys()
    return Levers(**{name: stated[name] for name in known}, sharded=sharding.shards(params))


def divided(choice: sharding.Choice) -> str:
    """How training is best divided over the GPUs, in words."""
    lines = [f"Training is best divided by {sharding.FILES[choice.way]}: {choice.why}."]
    for way, one in choice.needed.items():
        line = f"- {sharding.FILES[way]}: up to {one.memory / 1e9:,.0f} GB of a GPU ({one.stage})"
        if one.gathered:
            line += f", and {one.gathered / 1e9:,.0f} GB of weights reach it for each micro-batch"
        lines.append(line + ("" if one.fits else "; does not fit"))
    return "\n".join(lines)


def resources(similarity: config.Similarity) -> list[str]:
    """What the metrics of reconstructions lack."""
    from eval import bertscore, wordnet
    from eval.resources import MissingResource

    checks = [lambda: bertscore.model_folder(similarity)]
    if similarity.meteor != "exact-stem":
        checks.append(lambda: wordnet.find(similarity.wordnet_path))
    found = []
    for check in checks:
        try:
            check()
        except MissingResource as error:
            found.append(f"similarity: {error}")
    return found


def described(hardware: Machine) -> str:
    gpu = hardware.gpu
    return (
        f"{hardware.gpus} x {hardware.name} ({gpu.tflops:g} TFLOP/s, {gpu.gb_per_s:g} GB/s, "
        f"{gpu.memory_gb:.0f} GB), at {hardware.mfu:.0%} of the FLOP/s (MFU, recomputation "
        f"counted) and {hardware.mbu:.0%} of the bandwidth"
    )


def summary(planned: Estimate, whole: Stage) -> str:
    """The totals in words."""
    hours = sum(stage.hours for stage in planned.stages)
    lines = [
        f"{whole.gpu_hours:,.1f} GPU-hours, {hours:,.1f} hours on these devices; teach and latency "
        "use one."
    ]
    if (price := planned.machine.hour_price) is not None:
        lines.append(f"${price * whole.gpu_hours:,.0f} for GPUs at ${price:g} an hour.")
    if whole.usd:
        lines.append(f"${whole.usd:,.0f} for {whole.judge_calls:,} judge calls, asked once.")
    lines.append(
        f"{whole.disk / 1e9:,.1f} GB of files (weights in the hub's cache); DVC's cache copies "
        "what stages write, where the file system cannot share it."
    )
    most = max(planned.stages, key=lambda stage: sum(stage.memory.values()))
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in most.memory.items())
    lines.append(f"Most memory: {most.name} ({parts} GB).")
    return "\n".join(lines)


_UPDATE, _STEP, _START = 0.1, 0.03, 10.0
"""Seconds of an update, of a decoded token of a batch, and of a stage's start, where a GPU waits
for kernels to be launched: about what 34 narrow layers take. Assumed, not measured."""


def launches(params: config.Params, planned: Estimate) -> str | None:
    """How long a run takes that FLOPs say little about, for the model is so small; else None."""
    vlm = params.teach.vlm
    if planned.machine.name == "cpu" or not isinstance(vlm, config.GrownVlm):
        return None
    # `base` has bare answers, and so about twice as many updates for the same FLOPs.
    updates = vlm.vision_steps * 2 + vlm.steps * 3
    trained = [
        *(one.steps or 0 for one in params.checkpoints.values() if hasattr(one, "steps")),
        *(2 * (params.interpret.of(one).steps or 0) for one in params.interpreters.values()),
    ]
    updates += sum(trained) * len(params.seeds)
    steps = 0.0
    for kind, decoding in (("predict", params.predict), ("reconstruct", params.reconstruct)):
        stages = [one for one in planned.stages if one.name.startswith(f"{kind}@")]
        batches = sum(math.ceil(one.samples / decoding.batch_size) for one in stages)
        # Half of what an answer may have, about.
        steps += batches * decoding.max_new_tokens / 2
    starts = len(planned.stages)
    minutes = (updates * _UPDATE + steps * _STEP + starts * _START) / 60
    return (
        f"With a model this small a GPU waits for its launches: about {minutes:.0f} minutes in "
        f"all, for {updates:,} updates at {_UPDATE} s, {steps:,.0f} decoding steps at {_STEP} s "
        f"and {starts} stages that start in {_START:.0f} s (assumed, not measured). The profile is "
        "meant for 30 minutes on one GPU."
    )


def table(stages: list[Stage], total: Stage) -> str:
    rows = [
        (
            stage.name,
            _number(stage.samples),
            _number(stage.tokens),
            _number(stage.flops / 1e15),
            _number(stage.gpu_hours),
            f"{sum(stage.memory.values()) / 1e9:,.1f}" if stage.memory else "",
            f"{stage.disk / 1e9:,.2f}" if stage.disk else "",
            f"{stage.judge_calls:,}" if stage.judge_calls else "",
            f"{stage.usd:,.2f}" if stage.usd else "",
            stage.note,
        )
        for stage in (*stages, total)
    ]
    columns = "stage samples tokens PFLOP GPU-hours GB/GPU disk-GB judged $ note".split()
    return tabulate(rows, columns, disable_numparse=True, colalign=("left", *["right"] * 8, "left"))


def _number(value: float) -> str:
    """Three digits, and what they are multiplied by.

    >>> _number(1234567), _number(0.00123), _number(0)
    ('1.23M', '0.00123', '')
    """
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}" if value else ""


def main() -> None:
    # peft asks transformers for an attribute by its old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, help="how many (default: 8, and 1 CPU for the toy)")
    parser.add_argument("--gpu", choices=[*GPUS, "cpu"], help="which (default: h100, cpu)")
    parser.add_argument("--mfu", type=float, default=0.35, help="share of the peak FLOP/s reached")
    parser.add_argument("--mbu", type=float, default=0.25, help="share of the bandwidth, decoding")
    parser.add_argument("--gpu-hour-price", type=float, help="US dollars")
    parser.add_argument("--json", action="store_true", help="for a program to read")
    arguments = parser.parse_args()
    if (arguments.gpus or 1) < 1 or not 0 < arguments.mfu <= 1 or not 0 < arguments.mbu <= 1:
        parser.error("--gpus must be at least 1, --mfu and --mbu shares between 0 and 1")
    try:
        params = config.load()
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    machine_ = machine(arguments, params)
    work = workload.of(params, workload.tokenizer(params))
    try:
        how = levers(params)
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    planned = Estimate(params, architectures.of(params), work, machine_, how)
    sharing = sharding.choice(planned)
    lacking = [*preflight.missing(params, planned), *resources(params.similarity)]
    whole = total(planned.stages)
    if arguments.json:
        print(
            json.dumps(
                {
                    "profile": params.profile,
                    "family": params.family,
                    "machine": asdict(machine_),
                    "training": asdict(how),
                    "sharding": sharing and asdict(sharing),
                    "workload": asdict(work),
                    "stages": [{**asdict(stage), "hours": stage.hours} for stage in planned.stages],
                    "total": asdict(whole),
                    "missing": lacking,
                },
                indent=1,
            )
        )
        return
    print(f"{params.profile}: {params.family} on {described(machine_)}")
    print(f"- training: {', '.join(f'{key} {value}' for key, value in asdict(how).items())}")
    for fact in work.facts:
        print(f"- {fact}")
    print()
    print(table(planned.stages, whole))
    print()
    print(summary(planned, whole))
    print()
    if slow := launches(params, planned):
        print(slow)
        print()
    if sharing is None:
        print("Nothing is trained: all adapters are given.")
        print()
    elif planned.processes > 1:
        print(divided(sharing))
        print()
    print("Missing here:" if lacking else "Nothing is missing here.")
    for line in lacking:
        print(f"- {line}")


if __name__ == "__main__":
    main()
