"""Controls: the same measurement with the claimed cause, the thinking state, taken away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from heima.config import Control
from heima.interpreting.states import SectionStates


def control_states(
    control: Control,
    states: SectionStates,
    *,
    kinds: Sequence[str],
    train_mean: torch.Tensor,
    seed: int,
) -> SectionStates:
    """The states that an interpreter reads under a control.

    - `own`: each sample's states, unchanged.
    - `shuffled`: another sample's states of the same question kind, so that what a kind alone
      tells is kept; no sample keeps its own.
    - `mean`: the training split's `mean_states`.
    - `noise`: Gaussian vectors, by expectation as long as the mean of this split's states.
    - `zero`, `question-only`: zeros; a question-only prompt has no place for a state.

    Every sample keeps the number of its states, which tells something itself where it follows the
    section's length: a control takes away the states alone. Where another sample has more or fewer,
    each state is the one at the same part of the way through them.
    """
    if control == "own":
        return states
    if control == "shuffled":
        each = states.by_turn()
        given = [each[other] for other in shuffle_within(kinds, seed=seed)]
    elif control == "noise":
        return SectionStates(_noise(states.values, seed=seed), states.counts)
    elif control == "mean":
        given = [train_mean] * len(states)
    else:
        return SectionStates(torch.zeros_like(states.values), states.counts)
    resized = [
        other[torch.arange(count) * len(other) // count]
        for other, count in zip(given, states.counts.tolist(), strict=True)
    ]
    return SectionStates(torch.cat(resized), states.counts)


def mean_states(states: SectionStates) -> torch.Tensor:
    """The mean states of a section, fp32: (count, hidden_size) where all turns have `count` states,
    one mean for each place; otherwise (1, hidden_size), the mean of all.
    """
    numbers = states.counts.unique()
    places = int(numbers[0]) if len(numbers) == 1 else 1
    return states.values.unflatten(0, (-1, places)).mean(dim=0, dtype=torch.float32)


def _noise(values: torch.Tensor, *, seed: int) -> torch.Tensor:
    """(n, hidden_size): independent N(0, m / sqrt(hidden_size)), m the mean norm of `values`."""
    scale = values.float().norm(dim=-1).mean() / values.shape[-1] ** 0.5
    drawn = np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
    return (torch.from_numpy(drawn) * scale).to(values.dtype)


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
