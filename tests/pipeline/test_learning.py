"""The toy profile as it is committed, over seeds: what it promises to learn (about 45 min each)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from heima import config
from heima.results import read_metrics
from heima.scores import score_group
from tests.conftest import ROOT
from tests.pipeline.conftest import check_out

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[42, 1, 2], ids=lambda seed: f"seed{seed}")
def toy(request, tmp_path_factory) -> Path:
    """The folder of a finished reproduction with this seed.

    `HEIMA_REPRODUCTION` names one of the committed seed that is finished already.
    """
    finished = os.environ.get("HEIMA_REPRODUCTION")
    if finished and config.load(Path(finished) / "params.yaml").seed == request.param:
        return Path(finished)
    checkout = check_out(tmp_path_factory.mktemp("toy"))
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["seed"] = request.param
    (checkout.root / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    checkout.run("dvc", "repro")
    request.addfinalizer(lambda: shutil.rmtree(checkout.root / ".dvc" / "cache"))
    return checkout.root


def scores(root: Path, variant: str):
    cells, _ = read_metrics(root / "metrics" / "score" / f"{variant}.json")
    return cells


def test_text_cot_is_above_chance_everywhere_and_good_on_the_mean(toy):
    cells = scores(toy, "text-cot")
    for benchmark in config.load(toy / "params.yaml").benchmarks:
        found = cells[score_group("lmms", benchmark)]
        assert found["accuracy"].low > found["chance"].value, benchmark
    assert cells[score_group("lmms", "mean")]["accuracy"].value >= 70


def test_heima_decodes_a_quarter_of_the_tokens_at_most(toy):
    heima, text_cot = (
        scores(toy, name)[score_group("lmms", "mean")]["decoded_tokens"].value
        for name in ("heima", "text-cot")
    )
    assert heima <= text_cot / 4


def test_the_reasoning_interpreter_uses_its_state(toy):
    cells, _ = read_metrics(toy / "metrics" / "similarity" / "reasoning.json")
    assert cells["own-minus-shuffled"]["nll_gain"].low > 0
