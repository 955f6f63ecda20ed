"""Controls: the same measurement with the claimed cause, the thinking state, taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from heima.config import Control


def control_states(
    control: Control,
    states: torch.Tensor,
    *,
    kinds: Sequence[str],
    train_mean: torch.Tensor,
    seed: int,
) -> torch.Tensor:
    """The states that an interpreter reads under a control, (samples, hidden_size).

    - `own`: each sample's state, unchanged.
    - `shuffled`: another sample's state of the same question kind, so that what a kind alone
      tells is kept; no sample keeps its own.
    - `mean`: the mean state of the training split, `train_mean` (hidden_size).
    - `zero`, `question-only`: zeros; a question-only prompt has no place for a state.
    """
    if control == "own":
        return states
    if control == "shuffled":
        return states[torch.from_numpy(shuffle_within(kinds, seed=seed))]
    if control == "mean":
        return train_mean.expand_as(states)
    return torch.zeros_like(states)


def shuffle_within(kinds: Sequence[str], *, seed: int) -> np.ndarray:
    """A permutation without fixed points that keeps every sample within its kind.

    Each kind is a random cycle. A kind with a single sample has no partner of its own: all such
    samples are cycled together, and a last lonely one swaps with the sample before it in line.
    Raises `ValueError` for fewer than two samples.
    """
    if len(kinds) < 2:
        raise ValueError(f"shuffling needs at least two samples, got {len(kinds)}")
    rng = np.random.default_rng(seed)
    names = np.asarray(kinds)
    groups = [rng.permutation(np.flatnonzero(names == kind)) for kind in sorted(set(kinds))]
    lonely = [group[0] for group in groups if len(group) == 1]
    cycles = [group for group in groups if len(group) > 1]
    if len(lonely) == 1:
        cycles[0] = np.append(cycles[0], lonely)
    elif lonely:
        cycles.append(np.array(lonely))
    source = np.empty(len(kinds), dtype=np.int64)
    for cycle in cycles:
        source[cycle] = np.roll(cycle, 1)
    return source
