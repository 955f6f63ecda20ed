"""Whether audits are trusted, by what planted controls read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from eval.audit import effects, trust
from tests.eval.audit.test_effects import SEEDS, table


def of_control(attention):
    """The effects of a control that reads what was planted, to rounding."""
    tables = {}
    for seed in SEEDS:
        one = table(seed)
        rng = np.random.default_rng(seed)
        if attention == "blind":
            for name in ("mean", "other"):
                one[f"{name}/right"], one[f"{name}/nll"] = one["own/right"], one["own/nll"]
                one[f"{name}/changed"] = 0.0
            one["other/followed"], one["mediation/nie"] = one["other/alike"], 0.0
            one["closed/thinking/all/nll"] = 0.0
        else:
            one["other/followed"] = 1.0
            one["mediation/nie"] = one["mediation/te"] * (1 + 1e-6 * rng.standard_normal(len(one)))
            one["mediation/nde"] = 1e-6 * rng.standard_normal(len(one))
            one["closed/image/all/nll"] = 0.0
        tables[seed] = one
    return effects.audited(tables, draws=200, seed=1).cells


@pytest.fixture(scope="module")
def controls():
    return {attention: of_control(attention) for attention in ("blind", "bottleneck")}


def changed(controls, attention, measure, what, by):
    cells = {name: dict(of) for name, of in controls[attention].items()}
    cell = cells[measure][what]
    cells[measure][what] = dataclasses.replace(
        cell, value=cell.value + by, low=cell.low + by, high=cell.high + by
    )
    return {**controls, attention: cells}


def test_controls_that_read_what_was_planted_are_trusted(controls):
    assert trust.trusted(controls) == (True, "The planted controls read what was planted.")


@pytest.mark.parametrize(
    ("attention", "measure", "what", "by"),
    [
        ("blind", "mean", "answers changed", 0.1),
        ("blind", "other", "nll gained", -0.01),
        ("blind", "other", "follows the donor", 1.0),
        ("blind", "mediation", "share", 0.1),
        ("blind", "closed/thinking/all", "nll gained", 0.01),
        ("bottleneck", "other", "answers as the donor", -0.5),
        ("bottleneck", "mediation", "share", -0.05),
        ("bottleneck", "mediation", "nde", 0.01),
        ("bottleneck", "closed/image/all", "nll gained", 0.01),
    ],
)
def test_one_reading_beside_what_was_planted_ends_the_trust(controls, attention, measure, what, by):
    trusts, reason = trust.trusted(changed(controls, attention, measure, what, by))
    assert not trusts
    assert f"{measure}, {what}, of the {attention} control, reads" in reason


def test_within_its_interval_a_reading_is_as_planted(controls):
    cell = controls["bottleneck"]["other"]["answers as the donor"]
    cells = {**controls["bottleneck"], "other": {"answers as the donor": cell}}
    for high, trusts in ((100.0, True), (99.95, True), (99.8, False)):
        cells["other"] = {
            "answers as the donor": dataclasses.replace(cell, value=99.7, low=99.5, high=high)
        }
        assert trust.trusted({**controls, "bottleneck": cells})[0] == trusts


def test_a_control_whose_image_has_no_effect_proves_nothing(controls):
    cells = {name: dict(of) for name, of in controls["bottleneck"].items()}
    del cells["mediation"]["share"]
    trusts, reason = trust.trusted({**controls, "bottleneck": cells})
    assert not trusts
    assert "has no mediation, share, of the bottleneck control" in reason


def test_without_both_controls_nothing_is_proved(controls):
    trusts, reason = trust.trusted({"blind": controls["blind"]})
    assert not trusts
    assert "none of a checkpoint with attention = 'bottleneck'" in reason
