"""Closed forms against loops over pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eval.audit import geometry


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(5)
    scales = np.array([4.0, 2.0, 1.0, 0.5, 0.1])
    return (3.0 + rng.standard_normal((12, 5)) * scales).astype(np.float32)


KINDS = ["sum"] * 5 + ["look"] * 6 + ["alone"]


def cosine(one, two):
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_the_mean_cosine_is_that_of_all_pairs(states):
    pairs = [cosine(one, two) for one, two in itertools.combinations(states, 2)]
    assert geometry.cosine(states) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert np.isnan(geometry.cosine(states[:1]))


def test_within_a_kind_only_its_own_pairs_count(states):
    pairs = [
        cosine(states[one], states[two])
        for one, two in itertools.combinations(range(len(states)), 2)
        if KINDS[one] == KINDS[two]
    ]
    assert geometry.cosine_within(states, KINDS) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert np.isnan(geometry.cosine_within(states, [str(n) for n in range(len(states))]))


def test_the_participation_ratio_is_that_of_the_eigenvalues(states):
    values = np.linalg.eigvalsh(np.cov(states.astype(np.float64).T))
    wanted = values.sum() ** 2 / np.square(values).sum()
    assert geometry.participation_ratio(states) == pytest.approx(wanted)
    assert geometry.participation_ratio(states + 100) == pytest.approx(wanted, rel=1e-4)
    assert np.isnan(geometry.participation_ratio(np.ones((4, 3))))


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_states_spread_alike_over_dimensions_use_as_many(dimensions):
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=dimensions)))
    padded = np.pad(corners, ((0, 0), (0, 3)))
    assert geometry.participation_ratio(padded) == pytest.approx(dimensions)


def test_sensitivity_is_a_ratio_of_mean_squared_distances(states):
    other = states[::-1]
    moved = np.stack([states, other], axis=-1)
    own = np.mean([np.square(one - two).sum() for one, two in zip(states, other, strict=True)])
    pairs = [np.square(one - two).sum() for one, two in itertools.combinations(states, 2)]
    assert geometry.sensitivity(states, moved) == pytest.approx(own / np.mean(pairs), rel=1e-5)
    still = np.stack([states, states], axis=-1)
    assert geometry.sensitivity(states, still) == 0.0


def test_states_of_other_questions_are_as_sensitive_as_they_differ():
    """Where an image's state is drawn anew like any other's, both distances are alike."""
    rng = np.random.default_rng(1)
    states, other = rng.standard_normal((2, 4000, 8))
    moved = np.stack([states, other], axis=-1)
    assert geometry.sensitivity(states, moved) == pytest.approx(1.0, abs=0.05)


def test_each_position_is_described_with_those_that_have_a_donor(states):
    lent = np.arange(len(states)) % 2 == 0
    shown = {"thinking-1": np.where(lent[:, None], states + 1, np.nan).astype(np.float32)}
    (found,) = geometry.described({"thinking-1": states}, shown, lent, KINDS).values()
    assert found["cosine"] == geometry.cosine_within(states, KINDS)
    centred = states - states.mean(axis=0)
    assert found["cosine, centred"] == geometry.cosine_within(centred, KINDS)
    assert found["cosine, centred"] < found["cosine"]
    assert np.isfinite(found["sensitivity"])
