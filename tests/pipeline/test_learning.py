"""The toy profile as it is committed, with all of its training seeds: what it promises to learn."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path

import pytest

from heima import config
from heima.results.cells import read_metrics
from heima.results.scores import score_group
from tests.conftest import ROOT
from tests.pipeline.conftest import check_out

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy(request, tmp_path_factory) -> Path:
    """The folder of a finished reproduction; `HEIMA_REPRODUCTION` names one that is there."""
    if finished := os.environ.get("HEIMA_REPRODUCTION"):
        return Path(finished)
    checkout = check_out(tmp_path_factory.mktemp("toy"))
    shutil.copy(ROOT / "params.yaml", checkout.root)
    checkout.run(sys.executable, "-m", "stages.repro", "tables")
    request.addfinalizer(lambda: shutil.rmtree(checkout.root / ".dvc" / "cache"))
    return checkout.root


@pytest.fixture(scope="module")
def params(toy) -> config.Params:
    return config.load(toy / "params.yaml")


def scores(root: Path, variant: str):
    cells, _ = read_metrics(root / "metrics" / "score" / f"{variant}.json")
    return cells


@pytest.mark.parametrize("protocol", ["lmms", "vlmevalkit"])
def test_text_cot_is_above_chance_everywhere_and_good_on_the_mean(toy, params, protocol):
    cells = scores(toy, "text-cot")
    for benchmark in params.benchmarks:
        found = cells[score_group(protocol, benchmark)]
        assert found["accuracy"].low > found["chance"].value, benchmark
    assert cells[score_group(protocol, "mean")]["accuracy"].value >= 85


def test_heima_decodes_a_third_of_the_tokens_at_most(toy):
    heima, text_cot = (
        scores(toy, name)[score_group("lmms", "mean")]["decoded_tokens"]
        for name in ("heima", "text-cot")
    )
    assert max(heima.seeds.values()) <= text_cot.value / 3


@pytest.mark.parametrize("section", ["caption", "reasoning"])
def test_interpreters_use_their_states_with_every_training_seed(toy, params, section):
    """Another sample's state costs likelihood, by at least three standard errors over seeds."""
    cells, _ = read_metrics(toy / "metrics" / "similarity" / f"{section}.json")
    gain = cells["own-minus-shuffled"]["nll_gain"]
    assert list(gain.seeds) == list(params.seeds) and min(gain.seeds.values()) > 0
    assert gain.value > 3 * gain.sd / math.sqrt(len(gain.seeds))
