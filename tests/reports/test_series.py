"""The series of thinking tokens and retained shares: ours where trained, and the paper's."""

from __future__ import annotations

import pytest

from heima import config
from reports.tables import series
from tests import fabricated


def test_a_point_is_a_variant_with_heima_s_curriculum(params, paper_results):
    assert series.points(params, "tokens_per_stage") == {"1": "heima"}
    assert series.points(params, "retention_ratio") == {}
    paper = paper_results.params
    assert series.points(paper, "tokens_per_stage") == {"1": "heima", "4": "heima-4"}
    assert series.points(paper, "retention_ratio") == {"0.3": "heima-adaptive"}


@pytest.mark.parametrize("name", series.SERIES)
def test_the_toy_shows_the_paper_s_alone(built, name):
    (theirs,) = built[name].blocks
    assert theirs.origin.startswith("paper (llava-cot-11b")
    (panel,) = theirs.panels
    assert len(panel.rows) == {"tokens_per_stage": 6, "retention_ratio": 9}[name]
    assert panel.entries["1", "mmstar"].value == 49.9 if name == "tokens_per_stage" else True


def test_ours_stands_beside_it_where_it_was_trained(paper_results, paper_built):
    *ours, theirs = paper_built["tokens_per_stage"].blocks
    assert [block.origin for block in ours] == [
        f"paper profile, protocol {name}" for name in paper_results.params.protocols
    ]
    accuracy, tokens = ours[1].panels
    assert accuracy.rows == ("1", "4") and tuple(accuracy.digits)[-1] == "mean"
    cells, source = paper_results.scores["heima-4"]
    for panel, metric in ((accuracy, "accuracy"), (tokens, "decoded_tokens")):
        entry = panel.entries["4", "ai2d"]
        assert entry.value == cells["vlmevalkit/ai2d"][metric].value
        assert entry.source == source
    assert "4: heima-4" in ours[0].caption
    assert theirs.origin.startswith("paper (")


def test_the_toy_s_short_form_has_a_point_of_each():
    toy = config.load(fabricated.ROOT / "profiles" / "toy-thinking.yaml")
    assert series.points(toy, "tokens_per_stage") == {"1": "heima", "4": "heima-4"}
    assert series.points(toy, "retention_ratio") == {"0.3": "heima-share"}
    updates = {
        name: sum(one.steps for _, one in series.lineage(toy, toy.variants[name].model))
        for name in ("heima", "heima-4", "heima-share")
    }
    assert len(set(updates.values())) == 1, "they differ in nothing but their thinking"
