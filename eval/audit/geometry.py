"""How states lie to each other, and how far another image moves them: descriptive alone.

Of states at one position. Sums run over pairs of different questions; closed forms make them as
fast as one pass over the states.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.audit.recording import States


def cosine(states: np.ndarray) -> float:
    """The mean cosine of two of the states, (n, hidden); NaN for less than two, or a state of 0."""
    n = len(states)
    if n < 2:
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        units = states.astype(np.float64) / np.linalg.norm(states, axis=1, keepdims=True)
        return float((np.square(units.sum(axis=0)).sum() - n) / (n * (n - 1)))


def cosine_within(states: np.ndarray, kinds: Sequence[str]) -> float:
    """The mean of `cosine` over kinds of question, each by its number of pairs; NaN without any."""
    members = _members(kinds)
    pairs = np.array([len(one) * (len(one) - 1) for one in members], dtype=np.float64)
    if not pairs.sum():
        return float("nan")
    several = pairs > 0
    means = [cosine(states[one]) for one, some in zip(members, several, strict=True) if some]
    return float(np.average(means, weights=pairs[several]))


def participation_ratio(states: np.ndarray) -> float:
    """(Σλ)² / Σλ² of the eigenvalues of the states' covariance: about how many dimensions they use.

    NaN where they do not vary.
    """
    centred = states.astype(np.float64) - states.mean(axis=0, dtype=np.float64)
    covariance = centred.T @ centred
    with np.errstate(invalid="ignore"):
        return float(np.trace(covariance) ** 2 / np.square(covariance).sum())


def sensitivity(states: np.ndarray, moved: np.ndarray) -> float:
    """E|Z(X) - Z(X')|² / E|Z_i - Z_j|²: how far another image moves a state, by how far two lie.

    `moved` (m, hidden, 2) are the states of the same questions about their own and about another
    image, side by side; pairs are of all `states`. NaN where they do not vary.
    """
    spread = 2 * states.astype(np.float64).var(axis=0, ddof=1).sum()
    distance = np.square(moved[..., 0].astype(np.float64) - moved[..., 1]).sum(axis=1).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(distance) / spread)


def described(
    own: States, shown: States, lent: np.ndarray, kinds: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Position -> what its states are like.

    `shown` are the states under the donors' images, `lent` where there is a donor. `centred` are
    cosines after the mean of all states at the position was taken away.
    """
    return {
        position: {
            "cosine": cosine_within(states, kinds),
            "cosine, centred": cosine_within(states - states.mean(axis=0), kinds),
            "participation ratio": participation_ratio(states),
            "sensitivity": sensitivity(
                states, np.stack([states[lent], shown[position][lent]], axis=-1)
            ),
        }
        for position, states in own.items()
    }


def _members(kinds: Sequence[str]) -> list[np.ndarray]:
    names = np.array(kinds, dtype=object)
    return [np.flatnonzero(names == kind) for kind in sorted(set(kinds))]
