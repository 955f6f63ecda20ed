"""The stages that touch a model, in turn: in this process, or in each one of a launch.

    torchrun --nproc-per-node 2 -m tests.rehearsal.stages

A launch of each stage would cost its imports again.
"""

from __future__ import annotations

from eval import lmms_start

lmms_start.quiet()

import torch.distributed  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402

from stages import distill, interpret, predict, reconstruct, states  # noqa: E402

CHECKPOINT, VARIANT, RECONSTRUCTION, SEED = "p3", "heima", "reasoning", 42


def leave() -> None:
    """End what training leaves of its processes' connection: each stage makes its own."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def trained() -> None:
    distill.main(CHECKPOINT, SEED)
    leave()


def read() -> None:
    """What decodes and extracts, with the adapters that are there."""
    states.main(SEED)
    predict.main(VARIANT, fresh=False)


def interpreted() -> None:
    interpret.main("shared", "own", SEED)
    leave()


def rebuilt() -> None:
    reconstruct.main(RECONSTRUCTION, SEED)


if __name__ == "__main__":
    trained()
    read()
    interpreted()
    rebuilt()
