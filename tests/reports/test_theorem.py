"""The table of Theorem 3.1: every cell with its source, in every form."""

from __future__ import annotations

import pytest

from heima import config
from heima.results.cells import Cell
from reports import tables
from reports.tables.theorem import ENTROPIES, EXACT, theorem_table


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
    assert "no checkpoint was trained on all of them" in block.caption
    for render in (tables.markdown, tables.latex, tables.comma_separated):
        text = render(table)
        assert ("one-shot" in text and "1.75" in text and "[1.65, 1.85]" in text) or "1.65" in text


def test_without_predictors_there_is_no_table(params, cells):
    with pytest.raises(ValueError, match=r"audit\.predictors is not given"):
        theorem_table(params, cells, "theorem/cells.json")
