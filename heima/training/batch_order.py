"""Which samples each update trains on, and which process computes them.

The order depends on the seed alone: not on the number of processes, nor on where a run was
interrupted.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_POOL = 16
"""Batches that are sorted by length together: little padding, and yet batches differ."""


def batches(
    lengths: Sequence[int],
    groups: Sequence[Hashable],
    batch_size: int,
    *,
    seed: int,
    by_length: bool,
) -> Iterator[list[int]]:
    """Batches of indices, epoch after epoch without end; an epoch has every sample once.

    Samples with an equal entry in `groups` stand together (but where the edge of a batch parts
    them). With `by_length`, every `_POOL` batches of a fresh shuffle are sorted by length, cut into
    batches, and the batches shuffled. The last batch of an epoch may be short.

    (The Trainer's own grouping runs from long to short within each pool, which here means from one
    question kind to the next; the one trial of the toy teacher with it learnt next to nothing.)
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    for epoch in itertools.count():
        yield from _epoch(
            lengths,
            list(members.values()),
            batch_size,
            rng=np.random.default_rng([seed, epoch]),
            by_length=by_length,
        )


def _epoch(
    lengths: Sequence[int],
    members: Sequence[list[int]],
    batch_size: int,
    *,
    rng: np.random.Generator,
    by_length: bool,
) -> list[list[int]]:
    order = [members[place] for place in rng.permutation(len(members))]
    if by_length:
        longest = [max(lengths[index] for index in group) for group in order]
        # A group belongs to the pool in which its first sample falls.
        starts = itertools.accumulate((len(group) for group in order), initial=0)
        pool = [start // (_POOL * batch_size) for start in itertools.islice(starts, len(order))]
        ranked = sorted(range(len(order)), key=lambda place: (pool[place], longest[place]))
        order = [order[place] for place in ranked]
    flat = [index for group in order for index in group]
    found = [flat[first : first + batch_size] for first in range(0, len(flat), batch_size)]
    if by_length:
        # A short batch anywhere but at the end would shift all that follow it.
        short = [found.pop()] if len(found[-1]) < batch_size else []
        found = [found[place] for place in rng.permutation(len(found))] + short
    return found


@dataclass(frozen=True)
class Micro:
    """Samples that a process computes at once; not `counted`: they only keep it busy."""

    indices: tuple[int, ...]
    counted: bool = True


def share(
    batch: Sequence[int], *, process: int, processes: int, micro_batch_size: int | None
) -> list[Micro]:
    """One process's part of a batch, in micro-batches.

    All processes have equally many, none larger than `micro_batch_size`; together they have every
    sample once. Neighbours stay together. Where a batch has too few samples for everybody, a
    process computes one that does not count, because sharded processes must keep step.
    """
    largest = -(-len(batch) // processes)
    count = -(-largest // min(largest, micro_batch_size or largest))
    parts = np.array_split(np.asarray(batch), processes)[process]
    return [
        Micro(tuple(part.tolist())) if len(part) else Micro((batch[0],), counted=False)
        for part in np.array_split(parts, count)
    ]
