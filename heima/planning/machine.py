"""What a run is computed on, and how: devices, the shares of their peaks, a training's levers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A device: 1e12 FLOP/s of dense bf16 products, 1e9 bytes/s of memory, 1e9 bytes of it."""

    tflops: float
    gb_per_s: float
    memory_gb: float


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(312, 2039, 80),
    "h100": Gpu(989, 3350, 80),
    "h200": Gpu(989, 4800, 141),
    "b200": Gpu(2250, 8000, 180),
    "l40s": Gpu(362, 864, 48),
    "rtx4090": Gpu(165, 1008, 24),
}
"""As their makers state them, SXM where there are several; without sparsity."""


@dataclass(frozen=True)
class Machine:
    """`gpus` devices, and the shares of their peaks that are reached."""

    name: str
    gpu: Gpu
    gpus: int
    mfu: float
    mbu: float
    hour_price: float | None = None

    def compute_hours(self, flops: float) -> float:
        return flops / (self.gpu.tflops * 1e12 * self.mfu) / 3600

    def read_hours(self, size: float) -> float:
        return size / (self.gpu.gb_per_s * 1e9 * self.mbu) / 3600


@dataclass(frozen=True)
class Levers:
    """How a training run computes; the names are those of `training` and `hardware` of params.

    - `micro_batch_size`: samples that a device computes at once; None: its share of a batch.
    - `gradient_checkpointing`: compute activations again in the backward pass.
    - `images_once`: the turns of an image stand in one batch, which encodes it once.
    - `labelled_only`: only positions with a label go through the lm_head, `logits_chunk` at once.
    - `tiles`: `padded` up to the model's number, or only those that an image has (`real`).
    - `sharded`: the frozen weights are spread over the devices.
    """

    micro_batch_size: int | None = 6
    gradient_checkpointing: bool = True
    images_once: bool = True
    labelled_only: bool = True
    logits_chunk: int = 1024
    tiles: str = "padded"
    sharded: bool = True
