"""How the processes of one launch share work: whole batches, each computed by one of them.

What a batch gives depends on its samples, on how they are padded and on its own seed, never on
another batch. So one process and many give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch.distributed

T = TypeVar("T")

_START = timedelta(minutes=10)
"""How long a process waits for the others to start."""

_PATIENCE = timedelta(days=30)
"""How long it then waits for those that live; one that dies is noticed at once."""


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` from 0, among `world` that meet in `group`."""

    rank: int = 0
    world: int = 1
    group: torch.distributed.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes results."""
        return self.rank == 0

    def share(self, batches: Sequence[T]) -> Sequence[T]:
        """This process's part of all batches: the i-th is for process i % world."""
        return batches[self.rank :: self.world]

    def meet(self) -> None:
        """Wait for all processes. Raises `RuntimeError` where one of them has died."""
        if self.world == 1:
            return
        try:
            torch.distributed.barrier(group=self.group)
        except RuntimeError as error:
            raise RuntimeError(
                "another process of this run has died, see its own output; finished batches are "
                "kept, and the same command goes on from them"
            ) from error


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun or accelerate started (RANK, WORLD_SIZE), together.

    They meet through gloo, on the CPU: a GPU may be busy for hours until then.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes()
        return
    torch.distributed.init_process_group("gloo", timeout=_START)
    try:
        # The limit is a group's own: `monitored_barrier` heeds its argument on the first alone.
        group = torch.distributed.new_group(timeout=_PATIENCE)
        yield Processes(rank, world, group)
    finally:
        torch.distributed.destroy_process_group()


def batches(values: Sequence[T], size: int) -> list[Sequence[T]]:
    """Neighbours together, `size` at a time.

    >>> batches("abcde", 2)
    ['ab', 'cd', 'e']
    """
    return [values[start : start + size] for start in range(0, len(values), size)]


def batch_seed(seed: int, batch: int) -> int:
    """The seed of a run's batch; those of other batches and of other runs are unrelated to it."""
    return int(np.random.SeedSequence((seed, batch)).generate_state(1, np.uint64)[0])
