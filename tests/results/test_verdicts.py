"""Verdicts on numbers: Holm against its definition, equivalence against scipy, sides of a bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from heima.results import verdicts
from heima.results.cells import Cell


def cell(*seeds: float, half: float = 0.0) -> Cell:
    """A cell of training seeds with these values, and an interval of its questions."""
    mean = sum(seeds) / len(seeds)
    values = dict(enumerate(seeds)) if len(seeds) > 1 else {}
    return Cell(mean, mean - half, mean + half, n=100, seeds=values)


def stepwise(probabilities: list[float], level: float) -> set[int]:
    """Holm by his own words: reject the least while it is at most level / (those that are left)."""
    rejected: set[int] = set()
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    for rank, place in enumerate(order):
        if probabilities[place] > level / (len(order) - rank):
            break
        rejected.add(place)
    return rejected


@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_holm_rejects_what_its_steps_reject(size):
    draw = np.random.default_rng(size)
    for _ in range(50):
        given = (draw.random(size) ** 4).tolist()
        adjusted = verdicts.holm(given)
        assert all(before <= after <= 1 for before, after in zip(given, adjusted, strict=True))
        for level in (0.01, 0.05, 0.3):
            assert {p for p, a in enumerate(adjusted) if a <= level} == stepwise(given, level)
    assert verdicts.holm([]) == []


@pytest.mark.parametrize("bound", [-1.0, 0.0, 2.1])
def test_of_training_seeds_it_is_the_t_test(bound):
    values = (1.0, 2.5, 3.0)
    found = verdicts.above(cell(*values), bound)
    expected = stats.ttest_1samp(values, bound, alternative="greater").pvalue
    assert found == pytest.approx(expected)
    turned = verdicts.below(verdicts.negated(cell(*values)), -bound)
    assert turned == pytest.approx(expected)
    two_sided = stats.ttest_1samp(values, bound).pvalue
    assert verdicts.differs(cell(*values), bound) == pytest.approx(two_sided)


def test_of_questions_it_is_that_of_the_interval():
    """The interval of a single model touches 0: p is 5 %, whatever its width."""
    for half in (0.1, 3.0, 40.0):
        assert verdicts.differs(cell(half, half=half), 0.0) == pytest.approx(0.05)
    assert verdicts.above(cell(3.0, half=1e-9), 0.0) < 1e-12


def test_the_less_certain_of_both_counts():
    seeds, questions, both = cell(1, 2, 3), cell(2.0, half=5.0), cell(1, 2, 3, half=5.0)
    for test in (verdicts.above, verdicts.differs):
        single = [test(one, 0.0) for one in (seeds, questions)]
        assert test(both, 0.0) == pytest.approx(max(single))


def test_equivalence_is_both_sides():
    inside, wide = cell(0.1, -0.1, 0.0, half=0.2), cell(0.1, -0.1, 0.0, half=9.0)
    assert verdicts.equivalent(inside, 0.0, 3.0) < 0.01
    assert verdicts.equivalent(wide, 0.0, 3.0) > 0.05, "not known well enough"
    assert verdicts.equivalent(cell(2.9, half=0.2), 0.0, 3.0) > 0.05, "at the edge"
    assert verdicts.equivalent(cell(52.0, half=0.2), 50.0, 3.0) < 1e-6
    assert verdicts.equivalent(cell(47.0, half=0.2), 50.0, 3.0) > 0.4
    one = cell(1.0, 1.2, 1.1, half=0.3)
    below = stats.ttest_1samp((1.0, 1.2, 1.1), 3.0, alternative="less").pvalue
    assert verdicts.equivalent(one, 0.0, 3.0) == pytest.approx(below, abs=1e-3)


def test_a_number_without_spread_is_itself():
    exact = cell(13.0, 13.0, 13.0)
    assert verdicts.above(exact, 12.0) == verdicts.below(exact, 14.0) == 0
    assert verdicts.above(exact, 14.0) == 1
    assert verdicts.equivalent(exact, 13.0, 1.0) == 0
    assert not math.isnan(verdicts.differs(exact, 13.0)) and verdicts.differs(exact, 13.0) == 1


@pytest.mark.parametrize(
    ("found", "trained", "side"),
    [
        (cell(2, 3, 4, half=1), True, 1),
        (cell(-2, -3, -4, half=1), True, -1),
        (cell(-0.1, 3, 4, half=1), True, 0),
        (cell(2, 3, 4, half=9), True, 0),
        (cell(5.0, 7.9, 14.3, half=4), True, 0),
        (cell(3.0, half=1), True, None),
        (cell(3.0, half=1), False, 1),
        (cell(-3.0, half=1), False, -1),
        (cell(3.0, half=4), False, 0),
    ],
)
def test_on_one_side_is_all_of_it(found, trained, side):
    """All training seeds, the interval and the t interval; nothing of one seed."""
    assert verdicts.sides(found, 0.0, trained=trained) == side
    moved = verdicts.minus(found, -10.0)
    assert verdicts.sides(moved, 10.0, trained=trained) == side
    turned = verdicts.sides(verdicts.negated(found), 0.0, trained=trained)
    assert turned == (None if side is None else -side)
