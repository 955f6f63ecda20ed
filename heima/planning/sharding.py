"""How the GPUs of a machine divide a model that trains: not at all (DDP), or by layers (FSDP2).

Where the whole model fits on each GPU, DDP is the better way: only gradients of adapters travel.
FSDP2 gathers all frozen weights of every micro-batch, forward and backward, over what connects the
GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from heima.config import ConfigError, Params
from heima.planning.estimate import Estimate

Way = Literal["ddp", "fsdp2"]

FILES: Mapping[Way, str] = {
    "ddp": "profiles/accelerate/ddp.yaml",
    "fsdp2": "profiles/accelerate/fsdp2.yaml",
}
"""What `hardware.accelerate` is for each way."""

SPARE = 1.1
"""A GPU's memory holds what was estimated, and this much of it in all."""

TRAINED = ("distill", "interpret")
"""The stages that train on several GPUs."""


@dataclass(frozen=True)
class Needed:
    """What training needs in one way: the stage that needs most of a GPU, in bytes, `SPARE`
    included, whether that fits, and the bytes of weights that reach a GPU for a micro-batch."""

    stage: str
    memory: float
    fits: bool
    gathered: float


@dataclass(frozen=True)
class Choice:
    """The way to divide training, why, and what either way needs."""

    way: Way
    why: str
    needed: Mapping[Way, Needed]


def shards(params: Params) -> bool:
    """Whether `hardware.accelerate` shards a model that trains.

    Raises `ConfigError` for a file that is not there, or is no configuration of accelerate.
    """
    name = params.hardware.accelerate
    if name is None:
        return False
    try:
        found = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        return found["distributed_type"] == "FSDP"
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"hardware.accelerate = {name!r} must be a configuration of accelerate, such as "
            f"{' or '.join(FILES.values())}: {error!r}"
        ) from error


def choice(estimate: Estimate) -> Choice | None:
    """Which way suits the machine that a plan is for; None: all adapters are given."""
    if not any(one.name.partition("@")[0] in TRAINED for one in estimate.stages):
        return None
    needed = {way: _needed(estimate, way) for way in FILES}
    room = f"the {estimate.machine.gpu.memory_gb:.0f} GB of a card"
    whole, parts = needed["ddp"], needed["fsdp2"]
    if whole.fits:
        why = f"{whole.stage} needs about {whole.memory / 1e9:,.0f} GB whole, which {room} hold"
        return Choice("ddp", why, needed)
    why = f"{whole.stage} needs about {whole.memory / 1e9:,.0f} GB whole, more than {room}"
    if not parts.fits:
        why += f"; sharded, {parts.stage} still needs {parts.memory / 1e9:,.0f} GB"
    return Choice("fsdp2", why, needed)


def _needed(estimate: Estimate, way: Way) -> Needed:
    sharded = way == "fsdp2"
    other = estimate.with_levers(replace(estimate.levers, sharded=sharded))
    stages = [one for one in other.stages if one.name.partition("@")[0] in TRAINED]
    most = max(stages, key=lambda one: sum(one.memory.values()))
    memory = SPARE * sum(most.memory.values())
    return Needed(
        most.name,
        memory,
        memory <= estimate.machine.gpu.memory_gb * 1e9,
        2 * other.frozen_bytes(most.name) if sharded and estimate.processes > 1 else 0.0,
    )
