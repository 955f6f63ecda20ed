"""Verdicts on numbers, by rules that stand in docs/verdicts.md: equivalence, difference, Holm.

A cell has two uncertainties: its bootstrap interval (questions, and training seeds where there are
several), and the t interval of the training seeds' means. A test here is done with both, and the
larger p counts, as a verdict on training seeds asks of both intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from heima.results.cells import Cell
from heima.results.statistics import agreed

LEVEL = 0.05

_NORMAL = 1.959963984540054
"""Half of a 95 % interval in standard errors."""


def minus(cell: Cell, value: float) -> Cell:
    """The cell less a number that has no uncertainty."""
    return Cell(
        cell.value - value,
        cell.low - value,
        cell.high - value,
        n=cell.n,
        n_failed=cell.n_failed,
        seeds={seed: one - value for seed, one in cell.seeds.items()},
    )


def negated(cell: Cell) -> Cell:
    """The difference the other way round."""
    return Cell(
        -cell.value,
        -cell.high,
        -cell.low,
        n=cell.n,
        n_failed=cell.n_failed,
        seeds={seed: -one for seed, one in cell.seeds.items()},
    )


def holm(probabilities: Sequence[float]) -> list[float]:
    """The p values of a family, adjusted for its size (Holm 1979, Scand. J. Statist. 6), in order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(probabilities)), key=lambda place: probabilities[place])
    adjusted = [0.0] * len(probabilities)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[place]))
        adjusted[place] = largest
    return adjusted


def above(cell: Cell, bound: float) -> float:
    """One-sided p of the hypothesis that what the cell estimates is at most `bound`.

    A cell without spread is compared as it is: 0 above the bound, 1 below, and 0.5 on it.
    """
    return max(_tail(distance, freedom) for distance, freedom in _distances(cell, bound))


def below(cell: Cell, bound: float) -> float:
    """One-sided p of the hypothesis that what the cell estimates is at least `bound`."""
    return max(_tail(-distance, freedom) for distance, freedom in _distances(cell, bound))


def differs(cell: Cell, value: float) -> float:
    """Two-sided p of the hypothesis that what the cell estimates is `value`."""
    return min(1.0, 2 * min(above(cell, value), below(cell, value)))


def equivalent(cell: Cell, value: float, margin: float) -> float:
    """p of the hypothesis that the cell's value is further than `margin` from `value`.

    Two one-sided tests (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15).
    """
    return max(above(cell, value - margin), below(cell, value + margin))


def _distances(cell: Cell, bound: float) -> list[tuple[float, float]]:
    """(standard errors above the bound, degrees of freedom) by each uncertainty of a cell."""
    errors = [((cell.high - cell.low) / (2 * _NORMAL), math.inf)]
    if cell.sd is not None:
        errors.append((cell.sd / math.sqrt(len(cell.seeds)), len(cell.seeds) - 1))
    distance = cell.value - bound
    return [
        (math.copysign(math.inf, distance) if distance else 0.0, freedom)
        if error == 0
        else (distance / error, freedom)
        for error, freedom in errors
    ]


def _tail(distance: float, freedom: float) -> float:
    """The probability of a value beyond `distance` standard errors, by t or, of infinitely many
    degrees of freedom, by the normal distribution."""
    from scipy.special import ndtr, stdtr

    if math.isinf(distance):
        return 0.0 if distance > 0 else 1.0
    if math.isinf(freedom):
        return float(ndtr(-distance))
    return float(stdtr(freedom, -distance))


def sides(cell: Cell, bound: float, *, trained: bool) -> int | None:
    """Whether a cell lies wholly above `bound` (1), wholly below (-1), or on no one side (0).

    `trained` cells depend on training seeds: all seeds and both intervals must lie on that side, by
    docs/training-seeds.md; of one seed there is no verdict (None). Others are told by their
    interval.
    """
    if not trained:
        return 1 if cell.low > bound else -1 if cell.high < bound else 0
    if cell.t_interval is None:
        return None
    low, high = cell.t_interval
    if not agreed(minus(cell, bound)) or low <= bound <= high:
        return 0
    return 1 if cell.value > bound else -1
