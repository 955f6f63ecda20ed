"""Adapted layers as one matmul: peft's own function, gradients and weights, where it saves work."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.tuners import lora
from torch import nn

from heima.config import Hardware, Lora
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.families.batches import Collator
from heima.families.registry import FAMILIES
from heima.training.backbone import body
from heima.training.loop import AnswerLoss
from heima.training.merged_lora import merged_forward
from heima.vlm import models


def adapted(model, family, **settings):
    """A copy of `model` with an adapter that does something: peft's new ones give zero."""
    lora_settings = Lora(**{"rank": 16, "alpha": 32, "dropout": 0.0, **settings})
    whole = models.add_lora(copy.deepcopy(model), FAMILIES[family].vlm_lora, lora_settings, seed=1)
    for name, weight in whole.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    return whole


def merged_layers(model) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def loss_and_gradients(model, batch, *, checkpointing, merged):
    hardware = Hardware(gradient_checkpointing=checkpointing)
    answering = AnswerLoss(model, hardware, body=body(model)).train()
    answering.zero_grad()
    if merged:
        with merged_forward(answering):
            assert merged_layers(model)
            loss = answering(**batch, num_items_in_batch=7)
            loss.backward()
    else:
        loss = answering(**batch, num_items_in_batch=7)
        loss.backward()
    assert not merged_layers(model)
    return loss, {n: w.grad.clone() for n, w in model.named_parameters() if w.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["toy-mllama", "toy-llava-next"])
def test_a_merged_forward_is_pefts_with_its_gradients(
    family, checkpointing, request, toy_turns, toy_source
):
    kind = "toy" if family == "toy-mllama" else "llava"
    vlm, processor, vocabulary = (
        request.getfixturevalue(f"{kind}_{part}") for part in ("vlm", "processor", "vocabulary")
    )

    collate = Collator(FAMILIES[family], processor, ImageZip(toy_source / "images.zip"))
    batch = collate(encode_turns(toy_turns[:6], "p3", vocabulary, max_length=512))
    model = adapted(vlm, family)
    (expected, gradients), (loss, ours) = (
        loss_and_gradients(model, dict(batch), checkpointing=checkpointing, merged=merged)
        for merged in (False, True)
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.any(), name
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_layers_are_merged_only_where_it_is_less_work(toy_vlm):
    def layers(model):
        with merged_forward(model):
            return merged_layers(model)

    model = adapted(toy_vlm, "toy-mllama")
    small = layers(model)
    for name, module in model.named_modules():
        if isinstance(module, lora.Linear):
            outputs, inputs = module.base_layer.weight.shape
            assert (name in small) == (inputs * outputs <= 3 * 16 * (inputs + outputs)), name
    assert not layers(adapted(toy_vlm, "toy-mllama", rank=1))
    assert not layers(adapted(toy_vlm, "toy-mllama", dropout=0.1))
    assert not layers(adapted(copy.deepcopy(toy_vlm).to(torch.bfloat16), "toy-mllama"))
    model.add_adapter("second", model.peft_config["default"])
    assert not layers(model)
