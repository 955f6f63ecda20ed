"""The card of an exported checkpoint says what the result files say."""

from __future__ import annotations

import re

import pytest
import yaml

from heima import config
from heima.results.cells import read_metrics
from reports.model_card import _training, model_card
from reports.tables import ablation
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


def test_of_a_given_adapter_no_training_is_told(raw_params):
    raw_params["checkpoints"]["released"] = {"adapter": {"id": "some/body", "within": "a/b.pt"}}
    raw_params["checkpoints"]["more"] = raw_params["checkpoints"]["p2"] | {"init": "released"}
    params = config.parse(yaml.safe_dump(raw_params))
    lines = _training(params, "more")
    assert lines[2] == "- released: not trained here; the adapter of `some/body`, `a/b.pt`"
    assert lines[3].startswith("- more: trained on `p2`, 30 updates")
    chain = [one for _, one in ablation.lineage(params, "more")]
    assert ablation._updates(chain) == "given + 30"
    assert ablation._updates(chain[:1]) == ablation._learning_rates(chain[:1]) == "given"
    assert ablation._learning_rates(chain) == "given, 0.003"
