"""Probes read what is linearly there and nothing else; words are the content words of sections."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval import probe as scoring
from heima import config
from heima.interpreting import probe
from heima.interpreting.states import SectionStates
from tests.conftest import ROOT

WORDS = 6


@pytest.fixture(scope="module")
def params():
    found = config.load(ROOT / "params.yaml")
    return found.model_copy(
        update={"similarity": found.similarity.model_copy(update={"draws": 400})}
    )


@pytest.mark.parametrize("width", [12, probe.FEW_DIMENSIONS + 8])
def test_what_is_linear_is_read_and_what_is_not_is_not(width):
    """Words that are half-spaces of a state, one that is an exclusive or, one that is chance."""
    rng = np.random.default_rng(1)
    states = rng.normal(size=(1200, width))
    axes = rng.normal(size=(width, 4))
    words = np.column_stack(
        [states @ axes > 0, (states[:, 0] > 0) ^ (states[:, 1] > 0), rng.random(1200) < 0.5]
    )
    # Scale and place of a dimension tell nothing.
    moved = states * rng.uniform(0.01, 50, width) + rng.normal(size=width)
    said = probe.read(moved[:900], words[:900], moved[900:])
    right = (said == words[900:]).mean(axis=0)
    assert right[:4].min() > (0.93 if width < 100 else 0.7) and right[4:].max() < 0.62


def test_of_several_states_the_mean_is_read():
    states = SectionStates(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([2, 1]))
    assert probe.vectors(states).tolist() == [[2.0], [5.0]]
    half = SectionStates(torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([1, 1]))
    assert probe.vectors(half).dtype == np.float64


def test_words_are_those_that_say_something():
    texts = [
        f"The {'red' if n % 2 else 'blue'}-circle at a{n % 4} is {'three' if n % 3 else 'no'}, "
        + ("always rare" if n == 7 else "always")
        for n in range(100)
    ]
    words = probe.Words(texts, 40)
    names = ["a0", "a1", "a2", "a3", "blue-circle", "no", "red-circle", "three"]
    assert words.names == names, "the rare and what all have are left out, function words too"
    assert words.there(["RED-circle, three. Three!", ""]).tolist() == [
        [name in ("red-circle", "three") for name in names],
        [False] * len(names),
    ]
    assert len(probe.Words(texts, 3).names) == 3


def naive_f1(said: np.ndarray, truth: np.ndarray) -> float:
    values = []
    for mine, true in zip(said.T.tolist(), truth.T.tolist(), strict=True):
        pairs = list(zip(mine, true, strict=True))
        right, wrong, missed = (pairs.count(one) for one in
                                ((True, True), (True, False), (False, True)))  # fmt: skip
        if right + wrong + missed:
            values.append(200 * right / (2 * right + wrong + missed))
    return sum(values) / len(values)


def test_cells_are_macro_f1_with_intervals_over_images_and_seeds(params):
    rng = np.random.default_rng(4)
    truth = rng.random((90, WORDS)) < 0.4
    truth[:, 0] = False

    def noisy(share: float) -> dict[int, np.ndarray]:
        found = {s: truth ^ (rng.random(truth.shape) < share) for s in params.seeds}
        for one in found.values():
            one[:, 0] = False
        return found

    ways = {way: noisy(0.1 if way == "own" else 0.3) for way in scoring.columns(params)[:-1]}
    ways["own"][params.seeds[0]][:, 3] = False
    images = [f"i{number // 2}" for number in range(90)]
    cells = scoring.evaluate(ways, truth, images, params)
    assert tuple(cells) == scoring.columns(params)
    for way, by_seed in ways.items():
        expected = {seed: naive_f1(said, truth) for seed, said in by_seed.items()}
        assert cells[way].seeds == pytest.approx(expected) and cells[way].n == 90 * len(expected)
        assert cells[way].low < cells[way].value < cells[way].high
    ahead = cells[scoring.AHEAD]
    assert ahead.value == pytest.approx(cells["own"].value - cells["probe"].value)
    assert ahead.low > 0 and cells["own"].value > cells["probe"].value
    perfect = scoring.evaluate(
        {way: dict.fromkeys(params.seeds, truth) for way in ways}, truth, images, params
    )
    assert (perfect["own"].value, perfect["own"].low) == (100, 100)
    assert (perfect[scoring.AHEAD].low, perfect[scoring.AHEAD].high) == (0, 0)


def test_a_word_that_a_resample_lacks_keeps_its_f1():
    """A rare word that nobody finds is no better off where a resample is without it."""
    counts = np.array([[6.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    without = np.array([[6.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    value, drawn = scoring.macro_f1(counts, np.stack([counts, without]))
    assert drawn.tolist() == [value, value] and value == pytest.approx(100 * 12 / 14 / 2)
    assert scoring.macro_f1(0 * counts, np.zeros((4, 3, 3)))[1].tolist() == [0.0] * 4
