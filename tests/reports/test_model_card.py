"""The card of an exported checkpoint says what the result files say."""

from __future__ import annotations

import re

import pytest
import yaml

from heima.results.cells import read_metrics
from reports.model_card import model_card
from tests.conftest import ROOT

HUB = ("Xkev/Llama-3.2V-11B-cot", "a" * 40)


@pytest.mark.parametrize("base", [None, HUB])
@pytest.mark.parametrize("merged", [False, True])
def test_its_numbers_are_those_of_the_result_files(params, base, merged):
    seed = params.seeds[0]
    card = model_card(ROOT, params, "recover", seed, base, merged=merged)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == ("transformers" if merged else "peft")
    assert front.get("base_model") == (base and base[0])
    assert ("Terms of" in card) is (base is not None)
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if " | lmms/" in line]
    variants = {name for name, one in params.variants.items() if one.model == "recover"}
    assert {row[0] for row in rows} == variants
    for variant, group, n, failed, own, _ in rows:
        cells, _ = read_metrics(ROOT / "metrics" / "score" / f"{variant}.json")
        cell = cells[group]["accuracy"]
        assert (int(n), int(failed)) == (cell.n, cell.n_failed)
        assert float(own) == pytest.approx(cell.seeds[seed], abs=0.05)
    chain = re.findall(r"^- ([\w-]+): trained on", card, re.MULTILINE)
    assert chain == ["p1", "p2", "p3", "recover"]


def test_without_results_it_says_so(params, tmp_path):
    card = model_card(tmp_path, params, "recover", 42, None, merged=True)
    assert "No result of this checkpoint" in card
