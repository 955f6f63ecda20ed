"""Effects against naive means, and the verdict on tables whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from eval.audit import effects

SEEDS = (42, 43, 44)


def table(seed, *, n=3000, lost=0.0, followed=0.0, share=0.0, accuracy=0.7):
    """Questions about n / 2 images, of a model for which donors do what the arguments say."""
    rng = np.random.default_rng((7, seed))
    own = rng.random(n) < accuracy
    total = rng.normal(1.0, 0.5, n)
    other = own & (rng.random(n) >= lost)
    alike = rng.random(n) < 0.3
    return pd.DataFrame(
        {
            "turn": [f"t{number}" for number in range(n)],
            "image": [f"i{number // 2}" for number in range(n)],
            "own/right": own.astype(float),
            "own/nll": rng.random(n),
            "own/written": np.ones(n),
            "mean/right": own.astype(float),
            "mean/changed": np.zeros(n),
            "mean/nll": rng.random(n),
            "other/right": other.astype(float),
            "other/changed": (rng.random(n) < followed).astype(float),
            "other/nll": rng.random(n),
            "other/followed": np.where(rng.random(n) < followed, 1.0, alike),
            "other/alike": alike.astype(float),
            "mediation/te": total,
            "mediation/nie": share * total + rng.normal(0, 0.1, n),
            "mediation/nde": (1 - share) * total,
            "closed/image/all/nll": rng.random(n),
            "moved/image": rng.random(n),
        }
    )


def audited(**planted):
    return effects.audited({seed: table(seed, **planted) for seed in SEEDS}, draws=400, seed=1)


def test_a_model_that_ignores_its_states_is_not_supported():
    found = audited()
    assert found.verdict == "not supported"
    assert found.cells["other"]["accuracy lost"].value == 0
    low, high = (getattr(found.cells["mediation"]["share"], end) for end in ("low", "high"))
    assert low < 0 < high


def test_a_model_that_follows_its_states_is_supported():
    found = audited(lost=0.9, followed=1.0, share=1.0)
    assert found.verdict == "supported"
    assert found.cells["mediation"]["share"].value == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "planted",
    [
        {"lost": 0.5, "followed": 0.5},  # nothing of the image passes
        {"lost": 0.5, "share": 0.5},  # nobody is followed
        {"lost": 0.03},  # about two points: neither there nor clearly within the margin
    ],
)
def test_half_a_case_is_undecided(planted):
    assert audited(**planted).verdict == "undecided"


def test_effects_are_means_of_questions_over_seeds():
    tables = {seed: table(seed, lost=0.4, share=0.3) for seed in SEEDS}
    cells = effects.audited(tables, draws=50, seed=1).cells
    naive = np.mean(
        [100 * (one["own/right"] - one["other/right"]).mean() for one in tables.values()]
    )
    assert cells["other"]["accuracy lost"].value == pytest.approx(naive)
    shares = [one["mediation/nie"].mean() / one["mediation/te"].mean() for one in tables.values()]
    assert cells["mediation"]["share"].value == pytest.approx(np.mean(shares))
    assert cells["closed/image/all"]["nll gained"].n == 3000 * len(SEEDS)


def test_questions_without_a_value_are_left_out_and_counted():
    tables = {seed: table(seed, lost=0.4) for seed in SEEDS}
    tables[42].loc[:9, "other/followed"] = np.nan
    tables[43].loc[5:14, "other/followed"] = np.nan
    found = effects.audited(tables, draws=50, seed=1)
    assert found.left_out == {
        "other, follows the donor": 15,
        "other, answers as the donor": 15,
    }
    assert found.cells["other"]["follows the donor"].n == (3000 - 15) * len(SEEDS)


@pytest.mark.parametrize("column", ["other/followed", "other/right", "mediation/te"])
def test_an_effect_without_any_question_has_no_cell_and_supports_nothing(column):
    tables = {seed: table(seed, lost=0.9, followed=1.0, share=1.0) for seed in SEEDS}
    assert effects.audited(tables, draws=50, seed=1).verdict == "supported"
    tables[42][column] = np.nan
    found = effects.audited(tables, draws=50, seed=1)
    assert 3000 in found.left_out.values()
    assert found.verdict == "undecided"
    assert 1.0 in found.p.values()


def test_without_any_answer_nothing_is_said():
    tables = {seed: table(seed) for seed in SEEDS}
    for one in tables.values():
        one[[name for name in one if "/" in name]] = np.nan
    found = effects.audited(tables, draws=50, seed=1)
    assert found.cells == {} and found.verdict == "undecided"


def test_the_power_is_that_of_simulated_audits():
    rng = np.random.default_rng(1)
    for questions in (1000, 2000, 3000):
        # A tenth of the answers differ, half of them for the better.
        better, worse, _ = rng.multinomial(questions, [0.05, 0.05, 0.9], size=20_000).T
        mean = (better - worse) / questions
        error = np.sqrt(((better + worse) / questions - mean**2) / questions)
        shown = (abs(mean) + 1.645 * error < 0.02).mean()
        assert effects.power(questions) == pytest.approx(shown, abs=0.02)
    assert effects.power(3000) > effects.power(2000) > effects.power(660) == 0


def test_without_an_effect_of_the_image_there_is_no_share():
    tables = {seed: table(seed, lost=0.9, followed=1.0) for seed in SEEDS}
    for one in tables.values():
        one["mediation/te"] -= one["mediation/te"].mean()
    found = effects.audited(tables, draws=400, seed=1)
    assert "share" not in found.cells["mediation"]
    assert found.verdict == "undecided"


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match="training seed 43 was audited on other questions"):
        effects.audited({42: table(42), 43: table(43, n=2998)}, draws=50, seed=1)
