"""Probes of states whose information is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eval.audit import information
from heima.results.cells import Cell, write_metrics
from reports.tables.states import of_interpreters

N = 400
IMAGES = [f"i{number // 2}" for number in range(N)]
LABELS = [("red", "green", "blue", "yellow")[number * 7 % 11 % 4] for number in range(N)]
TEXTS = [f"q{number % 40}" for number in range(N)]


def states(*, told: float, width=6):
    """Noise, in which the label stands so clearly."""
    rng = np.random.default_rng(3)
    codes = np.unique(LABELS, return_inverse=True)[1]
    return rng.standard_normal((N, width)) + told * np.eye(width)[codes]


def probed(given):
    return information.probe(given, LABELS, TEXTS, IMAGES, seed=1)


def test_where_states_tell_the_answer_a_probe_finds_it():
    found = probed(states(told=20.0))
    assert found.right.mean() == 1.0
    assert found.selectivity > 0.5
    assert found.bits < 0.3 * found.uniform
    assert found.uniform == 2.0


def test_where_states_tell_nothing_a_probe_finds_nothing():
    found = probed(states(told=0.0))
    assert found.right.mean() < 0.4
    assert abs(found.selectivity) < 0.15
    assert found.bits > 0.95 * found.uniform


def test_a_reader_of_question_texts_is_not_selective():
    """States that hold nothing but the text: random labels by text are read as well as true ones
    that follow from it."""
    width = np.eye(40)[np.arange(N) % 40]
    labels = [("red", "green")[number % 40 % 2] for number in range(N)]
    found = information.probe(width, labels, TEXTS, IMAGES, seed=1)
    assert found.right.mean() == 1.0
    assert found.selectivity == pytest.approx(0.0, abs=0.01)


def test_no_image_is_learnt_from_and_asked_about():
    found = probed(states(told=1.0))
    learnt = set(range(N)) - set(found.asked.tolist())
    assert not {IMAGES[row] for row in learnt} & {IMAGES[row] for row in found.asked}
    assert abs(len(learnt) - N / 2) <= 2


def test_the_code_is_that_of_each_block_by_those_before_it():
    """Against a loop over blocks with scikit-learn's own model."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    given = states(told=1.0)
    codes = np.unique(LABELS, return_inverse=True)[1]
    ends = [1, 2, 3, 6, 13, 25, 50, 100, 200, 400]
    assert ends == sorted({max(1, round(N * percent / 100)) for percent in information.BLOCKS})
    bits = ends[0] * 2.0
    for known, end in itertools.pairwise(ends):
        seen = codes[:known]
        if len(set(seen)) == 1:
            likely = np.eye(4)[np.full(end - known, seen[0])]
        else:
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
            likely = np.zeros((end - known, 4))
            found = model.fit(given[:known], seen).predict_proba(given[known:end])
            likely[:, model[-1].classes_] = found
        for row, code in zip(likely, codes[known:end], strict=True):
            bits -= np.log2((known * row[code] + 0.25) / (known + 1))
    assert information.online_code(given, codes, 4) == pytest.approx(bits)


def test_the_same_seed_probes_the_same():
    one, two = probed(states(told=1.0)), probed(states(told=1.0))
    np.testing.assert_array_equal(one.right, two.right)
    assert (one.bits, one.selectivity) == (two.bits, two.selectivity)


@pytest.mark.parametrize(
    ("labels", "probeable"),
    [
        (["yes", "no"] * 10, True),
        (["yes", "no"] * 9, False),
        (["yes"] * 100, False),
        ([f"text {number}" for number in range(100)], False),
    ],
)
def test_a_kind_needs_enough_of_each_conclusion(labels, probeable):
    assert information.probeable(labels) == probeable


def test_what_cannot_be_probed_is_refused():
    with pytest.raises(ValueError, match="two different labels and two images"):
        information.probe(np.ones((4, 2)), ["a"] * 4, ["q"] * 4, ["i", "j"] * 2, seed=1)
    with pytest.raises(ValueError, match="two different labels and two images"):
        information.probe(np.ones((4, 2)), ["a", "b"] * 2, ["q"] * 4, ["i"] * 4, seed=1)


def test_what_states_save_interpreters_is_in_bits_of_their_own_metrics(tmp_path):
    losses = {"caption": {"own": 0.5, "question-only": 1.2}, "summary": {"own": 0.1}}
    for name, of in losses.items():
        for one, nats in of.items():
            cell = Cell(nats, nats, nats, n=3)
            write_metrics(tmp_path / name / one / "42.json", {"heldout": {"loss": cell}}, {})
    found = of_interpreters(tmp_path, ["caption", "summary", "reasoning"], 42)
    assert list(found) == ["caption"]
    assert found["caption"]["saved"] == pytest.approx(0.7 / np.log(2))
