"""Controls: the same measurement with the claimed cause, the thinking state, taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from heima.config import Control
from heima.data.turns import Turn
from heima.interpreting.states import SectionStates

_SAME_GOLD = 1
"""Sets these draws apart from those of the other controls, which have the same seed."""


@dataclass(frozen=True)
class Moments:
    """Of a section's training states, fp32: `mean` and `variance` of each dimension.

    Both are (count, hidden_size) where all turns have `count` states, of each place by itself;
    otherwise (1, hidden_size), of all.
    """

    mean: torch.Tensor
    variance: torch.Tensor

    @classmethod
    def of(cls, states: SectionStates) -> Moments:
        numbers = states.counts.unique()
        places = int(numbers[0]) if len(numbers) == 1 else 1
        each = states.values.unflatten(0, (-1, places))
        return cls(each.mean(dim=0, dtype=torch.float32), each.float().var(dim=0, correction=0))


def control_states(
    control: Control,
    states: SectionStates,
    *,
    turns: Sequence[Turn],
    train: Moments,
    seed: int,
) -> SectionStates:
    """The states that an interpreter reads under a control; `turns` are the states' own.

    - `own`: each sample's states, unchanged.
    - `shuffled`: another sample's states of the same question kind, so that what a kind alone
      tells is kept; no sample keeps its own.
    - `shuffled-same-gold`: those of another sample of the kind, about another image, with the same
      conclusion: what the kind and the answer tell is kept (`same_gold`).
    - `mean`: the training split's mean.
    - `noise`: drawn for each state by itself from normal distributions with the training split's
      mean and variance of each dimension, then scaled to the norm of the state that it replaces.
    - `zero`, `question-only`: zeros; a question-only prompt has no place for a state.

    Every sample keeps the number of its states, which tells something itself where it follows the
    section's length: a control takes away the states alone. Where another sample has more or fewer,
    each state is the one at the same part of the way through them. What is drawn depends on `seed`
    and the control alone.
    """
    if control == "own":
        return states
    if control in ("zero", "question-only"):
        return SectionStates(torch.zeros_like(states.values), states.counts)
    if control == "noise":
        return SectionStates(_noise(states, train, seed=seed), states.counts)
    if control == "mean":
        return SectionStates(_along([train.mean] * len(states), states), states.counts)
    if control == "shuffled":
        source = shuffle_within([turn.kind for turn in turns], seed=seed)
    else:
        source, _ = same_gold(turns, seed=seed)
    each = states.by_turn()
    return SectionStates(_along([each[other] for other in source], states), states.counts)


def _along(given: Sequence[torch.Tensor], states: SectionStates) -> torch.Tensor:
    """(all states, hidden_size): for each sample as many of the given ones as it has states."""
    return torch.cat(
        [
            other[torch.arange(count) * len(other) // count]
            for other, count in zip(given, states.counts.tolist(), strict=True)
        ]
    )


def _noise(states: SectionStates, train: Moments, *, seed: int) -> torch.Tensor:
    """(all states, hidden_size), each as long as the state in its place."""
    mean, variance = (_along([one] * len(states), states) for one in (train.mean, train.variance))
    drawn = np.random.default_rng(seed).standard_normal(states.values.shape, dtype=np.float32)
    noise = mean + variance.sqrt() * torch.from_numpy(drawn)
    length = states.values.float().norm(dim=-1, keepdim=True)
    # A state that no training turn differs in, of mean 0, has no direction to draw.
    scaled = noise * (length / noise.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    return scaled.to(states.values.dtype)


def same_gold(turns: Sequence[Turn], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each turn another of its kind, about another image, with the same conclusion.

    Returns the places, (turns,), and whether there was such a turn, (turns,). Where there was none
    another turn of the kind is drawn, about another image if there is one; for the only turn of its
    kind, any other. A turn may be drawn for several. Conclusions are compared without case and
    spaces around them. Raises `ValueError` for fewer than two turns.
    """
    if len(turns) < 2:
        raise ValueError(f"shuffling needs at least two samples, got {len(turns)}")
    rng = np.random.default_rng((seed, _SAME_GOLD))
    kinds, images, golds = (
        np.unique(values, return_inverse=True)[1]
        for values in (
            [turn.kind for turn in turns],
            [turn.image for turn in turns],
            [turn.conclusion.strip().casefold() for turn in turns],
        )
    )
    source = np.empty(len(turns), dtype=np.int64)
    found = np.empty(len(turns), dtype=bool)
    for kind in range(kinds.max() + 1):
        members = np.flatnonzero(kinds == kind)
        for place in members:
            elsewhere = members[images[members] != images[place]]
            alike = elsewhere[golds[elsewhere] == golds[place]]
            found[place] = len(alike) > 0
            others = members[members != place]
            pool = next(
                (one for one in (alike, elsewhere, others) if len(one)),
                np.delete(np.arange(len(turns)), place),
            )
            source[place] = rng.choice(pool)
    return source, found


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
