"""What training took: the plan's FLOPs of an update, times the updates that were made."""

from __future__ import annotations

import pytest

from heima import config
from heima.cot.rendering import RENDERINGS
from heima.planning import architectures, workload
from heima.planning.estimate import Estimate
from heima.planning.machine import GPUS, Levers, Machine
from heima.results.cells import read_metrics
from stages import flops

CPU = Machine("any", GPUS["h100"], 1, 1, 1)
BARE = Levers(gradient_checkpointing=False, sharded=False)


@pytest.fixture(scope="module")
def work(params):
    return workload.of(params, workload.tokenizer(params))


@pytest.fixture(scope="module")
def estimate(params, work):
    return Estimate(params, architectures.of(params), work, CPU, BARE)


def test_flops_follow_from_the_updates_that_were_made(params, estimate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    updates = {"p1": {42: 30, 43: 20}, "p3": {42: 880, 43: 880}}
    flops.write(params, updates)
    cells, origin = read_metrics("metrics/flops.json")
    assert origin["stage"] == "flops" and origin["workload"]
    assert dict(cells["p1"]["updates"].seeds) == updates["p1"]
    for name, by_seed in updates.items():
        one = params.checkpoints[name]
        stage = estimate._distill(name, one)
        held = estimate.workload.heldout * estimate.training(name, one).one.forward
        update = (stage.flops - held) / one.steps
        for seed, made in by_seed.items():
            assert cells[name]["flops"].seeds[seed] == pytest.approx(made * update)


@pytest.mark.parametrize("losses", [{"align": 1.0}, {"explain": 0.5}])
def test_a_term_of_the_loss_costs(params, estimate, losses):
    plain = params.checkpoints["p3"]
    more = plain.model_copy(update={"losses": config.Losses(**losses)})
    without, found = (estimate.training("p3", one) for one in (plain, more))
    assert without.terms == 0 < found.terms < found.one.forward * 4
    assert found.one == without.one


def test_states_fed_back_cost_one_pass(params, estimate):
    plain = params.checkpoints["p3"]
    fed = plain.model_copy(update={"feed": "state"})
    assert estimate.training("p3", fed) == estimate.training("p3", plain)
    assert "segments" in estimate._distill("p3", fed).note


def test_an_explainer_reads_what_stands_for_each_section(params, estimate):
    one = params.checkpoints["p3"]
    none, two, three = (estimate._explained(RENDERINGS[n], one) for n in ("text-cot", "p2", "p3"))
    assert none == 0 < two < three
