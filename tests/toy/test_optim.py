"""The joint optimizer equals its parts, follows a schedule, and resumes exactly."""

import copy

import pytest
import torch
from torch import nn

from heima.toy.models import build_llm, build_processor, build_vlm
from heima.toy.optim import MuonWithAdamW

RATES = {"matrix_learning_rate": 0.02, "learning_rate": 3e-3}


def tiny():
    tokenizer = build_processor().tokenizer
    return build_llm(tokenizer, hidden_size=16, layers=1, heads=2, intermediate_size=16, seed=0)


def step(model, optimizer, schedule=None):
    ids = torch.arange(12).view(2, 6)
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    if schedule is not None:
        schedule.step()


def test_each_parameter_has_one_place_and_the_right_one():
    model = build_vlm(
        build_processor(), hidden_size=32, layers=3, cross_attention_layers=[1], heads=2, seed=0
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = (
        {names[id(p)] for p in group["params"]}
        for group in MuonWithAdamW(model, **RATES).param_groups
    )
    assert muon | adamw == set(names.values()) and not muon & adamw
    assert len(muon) == 3 * 7
    assert all("language_model.layers" in name for name in muon)


def test_equals_its_parts_stepped_by_hand():
    model = tiny()
    twin = copy.deepcopy(model)
    optimizer = MuonWithAdamW(model, **RATES, weight_decay=0.1)
    matrices = [p for n, p in twin.named_parameters() if "_proj" in n]
    others = [p for n, p in twin.named_parameters() if "_proj" not in n]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(others, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    for _ in range(3):
        step(model, optimizer)
        ids = torch.arange(12).view(2, 6)
        twin.zero_grad()
        twin(input_ids=ids, labels=ids).loss.backward()
        muon.step()
        adamw.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_schedule_scales_both_and_resuming_is_exact():
    def start(model):
        optimizer = MuonWithAdamW(model, **RATES)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1))

    whole = tiny()
    optimizer, schedule = start(whole)
    for _ in range(2):
        step(whole, optimizer, schedule)
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == pytest.approx(
        [0.02 / 3, 1e-3]
    )
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    resumed = tiny()
    again, plan = start(resumed)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    plan.load_state_dict(saved[2])
    for _ in range(2):
        step(whole, optimizer, schedule)
        step(resumed, again, plan)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_without_matrices_is_refused():
    with pytest.raises(ValueError, match="Embedding has no trainable weight like"):
        MuonWithAdamW(nn.Embedding(2, 2), **RATES)
