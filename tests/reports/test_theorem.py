"""The table of Theorem 3.1: every cell with its source, in every form."""

from __future__ import annotations

import pytest

from heima import config
from heima.results.cells import Cell
from reports import tables
from reports.tables.theorem import ENTROPIES, EXACT, predicting, theorem_table
from tests.conftest import ROOT


@pytest.fixture
def cells():
    from eval.audit import theorem

    def cell(bits):
        return Cell(bits, bits - 0.1, bits + 0.1, n=600, seeds={42: bits, 43: bits})

    bits = {"nothing": 2.0, "tokens/ids": 1.9, "tokens/states": 1.5, "text": 0.25}
    return {
        "entropy": {name: cell(bits[name]) for name in theorem.ENTROPIES},
        "information": {
            name: cell(bits[larger] - bits[smaller])
            for name, (larger, smaller) in theorem.INFORMATION.items()
        },
    }


def asked(params, **named):
    predictors = config.Predictors(**{"nothing": "answer-only", "tokens": "one-shot", **named})
    return params.model_copy(
        update={"audit": params.audit.model_copy(update={"predictors": predictors})}
    )


def test_the_table_names_who_predicted_and_what_is_exact(params, cells):
    table = theorem_table(asked(params), cells, "theorem/cells.json")
    (block,) = table.blocks
    costs, information = block.panels
    assert list(costs.rows) == list(ENTROPIES.values())
    named = [costs.entries[row, "predicted by"].text for row in costs.rows]
    assert named == ["answer-only", "one-shot", "one-shot", "text-cot"]
    assert information.entries[EXACT, "bits"].value == 0.0
    assert information.entries["text chain", "bits"].value == 1.75
    assert information.entries["gap, states", "bits"].value == 1.25
    assert "No one predictor was asked for all formats" in block.caption
    for render in (tables.markdown, tables.latex, tables.comma_separated):
        text = render(table)
        assert ("one-shot" in text and "1.75" in text and "[1.65, 1.85]" in text) or "1.65" in text


def test_the_table_says_that_one_predicted_in_all_formats(params, cells):
    """And of how many turns it learnt each."""
    formats = {"nothing": "answer-only", "tokens": "p3", "text": "text-cot"}
    recipe = config.written_out(ROOT / "profiles" / "toy-audit.yaml")
    audited = config.parse(recipe)
    one = asked(
        audited, **{part: {"model": "predictor", "asks": name} for part, name in formats.items()}
    )
    assert one.audit.predictors == audited.audit.predictors
    (block,) = theorem_table(one, cells).blocks
    named = [block.panels[0].entries[row, "predicted by"].text for row in block.panels[0].rows]
    assert named == [
        f"predictor, asked for {formats[name.partition('/')[0]]}" for name in ENTROPIES
    ]
    assert "predictor, predicts in all formats" in block.caption
    assert "(answer-only 33.3 %, p3 33.3 %, text-cot 33.3 % of the turns)" in block.caption
    assert predicting(one) == "predictor in all formats"
    partly = asked(audited, tokens={"model": "predictor", "asks": "p3"})
    (block,) = theorem_table(partly, cells).blocks
    assert "No one predictor" in block.caption
    assert predicting(partly) == (
        "answer-only after nothing, predictor, asked for p3 after tokens, text-cot after text"
    )
    assert predicting(params) == ""


def test_without_predictors_there_is_no_table(params, cells):
    with pytest.raises(ValueError, match=r"audit\.predictors is not given"):
        theorem_table(params, cells, "theorem/cells.json")
