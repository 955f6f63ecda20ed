"""The joint optimizer equals a naive Muon and AdamW, follows a schedule, and resumes exactly."""

import copy

import pytest
import torch
from torch import nn

from heima.toy.mllama import build_processor, build_vlm
from heima.toy.models import build_llm
from heima.toy.optim import MuonWithAdamW, orthogonalised
from heima.training.snapshots import Resume

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


def naive_step(model, state, *, rate, decay, momentum=0.95):
    """Muon as its authors wrote it down, one matrix after the other, in fp32."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" not in name:
                continue
            buffer = state.setdefault(name, torch.zeros_like(weight))
            buffer.mul_(momentum).add_(weight.grad, alpha=1 - momentum)
            x = weight.grad * (1 - momentum) + buffer * momentum
            tall = x.size(0) > x.size(1)
            x = x.T if tall else x
            x = x / x.norm()
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            x = x.T if tall else x
            weight.mul_(1 - rate * decay)
            weight.sub_(x, alpha=rate * max(1, weight.size(0) / weight.size(1)) ** 0.5)


def test_equals_a_naive_muon_and_adamw():
    model = tiny()
    twin = copy.deepcopy(model)
    optimizer = MuonWithAdamW(model, **RATES, weight_decay=0.1)
    others = [p for n, p in twin.named_parameters() if "_proj" not in n]
    adamw = torch.optim.AdamW(others, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    buffers = {}
    for _ in range(3):
        step(model, optimizer)
        ids = torch.arange(12).view(2, 6)
        twin.zero_grad()
        twin(input_ids=ids, labels=ids).loss.backward()
        naive_step(twin, buffers, rate=0.02, decay=0.1)
        adamw.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_matrices_move_as_by_torchs_muon_up_to_its_bf16():
    """Of random gradients: of those without full rank, bf16 makes other small directions."""
    model = tiny()
    twin, before = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    MuonWithAdamW(model, **RATES, weight_decay=0.1).step()
    matrices = {name: weight for name, weight in twin.named_parameters() if "_proj" in name}
    torch.optim.Muon(
        list(matrices.values()), lr=0.02, weight_decay=0.1, adjust_lr_fn="original"
    ).step()
    for name, other in matrices.items():
        start = before.get_parameter(name)
        moved, expected = model.get_parameter(name) - start, other - start
        assert (moved - expected).norm() < 0.1 * expected.norm(), name


def test_orthogonalised_pulls_singular_values_to_about_one_in_any_company():
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in ((16, 8), (8, 16), (8, 24), (16, 8))]
    together = orthogonalised(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        [alone] = orthogonalised([matrix])
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
        assert found.shape == matrix.shape
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.diagonal(left.T @ found @ right.T)
        assert ((values > 0.5) & (values < 1.3)).all()


def started(model):
    optimizer = MuonWithAdamW(model, **RATES)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1))


def test_a_schedule_scales_both_and_resuming_is_exact():
    whole = tiny()
    optimizer, schedule = started(whole)
    for _ in range(2):
        step(whole, optimizer, schedule)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02 / 3, 1e-3])
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    resumed = tiny()
    again, plan = started(resumed)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    plan.load_state_dict(saved[2])
    for _ in range(2):
        step(whole, optimizer, schedule)
        step(resumed, again, plan)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_snapshots_keep_all_of_its_state(tmp_path):
    """As `heima.training.loop` keeps them, through torch.distributed.checkpoint."""
    whole = tiny()
    optimizer, schedule = started(whole)
    for _ in range(2):
        step(whole, optimizer, schedule)
    run = Resume(tmp_path)
    run.save(whole, optimizer, {"step": 2, "scheduler": schedule.state_dict()})
    resumed = tiny()
    again, plan = started(resumed)
    plan.load_state_dict(run.load(resumed, again)["scheduler"])
    for _ in range(2):
        step(whole, optimizer, schedule)
        step(resumed, again, plan)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_without_matrices_is_refused():
    with pytest.raises(ValueError, match="Embedding has no trainable weight like"):
        MuonWithAdamW(nn.Embedding(2, 2), **RATES)
