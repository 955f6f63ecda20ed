"""Planted controls in training: what the loss of a conclusion can depend on, by its gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from heima.data.encoding import encode_turns
from heima.data.tokens import IGNORED
from heima.families import registry
from heima.training.backbone import body
from heima.vlm import closed_ways
from tests import planted


@pytest.fixture(scope="module", params=["toy-mllama", "toy-llava-next"])
def case(request, toy_turns, toy_source, params):
    """A model, a batch of turns of different lengths, and what makes closed bodies of it."""
    model, processor, vocabulary, collate, _ = planted.parts(request.param, params, toy_source)
    turns = [dataclasses.replace(turn, conclusion="B", image_first=True) for turn in toy_turns[:5]]
    inputs = collate(encode_turns(turns, "p3", vocabulary))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    ids = {"thinking_ids": vocabulary.thinking_ids.values(), "image_id": processor.image_token_id}
    return model, inputs, ids


def gradients(case, attention):
    """Of the summed loss behind the last thinking token, by the embedding's output and the pixels.

    The masks of thinking columns, and of those behind the last, come with it.
    """
    model, inputs, ids = case
    batch = dict(inputs)
    labels = batch.pop("labels")
    thinking = torch.isin(batch["input_ids"], torch.tensor(sorted(ids["thinking_ids"])))
    behind = thinking.flip(1).cumsum(1).flip(1) == 0
    embedded = []

    def keep(module, args, output):
        output.retain_grad()
        embedded.append(output)

    batch["pixel_values"] = batch["pixel_values"].clone().requires_grad_()
    table = registry.of(model).language_model(model).get_input_embeddings()
    hook = table.register_forward_hook(keep)
    try:
        hidden = closed_ways.body(body(model), model, attention, **ids)(**batch)
    finally:
        hook.remove()
    # The first token behind a thinking token is predicted at its column, which sees all.
    rows, columns = (behind & (labels != IGNORED)).nonzero(as_tuple=True)
    inner = behind[rows, columns - 1]
    rows, columns = rows[inner], columns[inner]
    logits = model.lm_head(hidden[rows, columns - 1])
    torch.nn.functional.cross_entropy(logits, labels[rows, columns], reduction="sum").backward()
    model.zero_grad()
    return embedded[0].grad, batch["pixel_values"].grad, thinking, behind


def test_where_all_is_open_the_body_is_the_models_own(case):
    model, _, ids = case
    own = body(model)
    assert closed_ways.body(own, model, "open", **ids) is own


def test_a_blind_conclusion_learns_nothing_through_thinking_tokens(case):
    by_token, by_pixel, thinking, _ = gradients(case, "blind")
    assert (by_token[thinking] == 0).all()
    assert (by_token[~thinking] != 0).any()
    assert (by_pixel != 0).any()
    assert (gradients(case, "open")[0][thinking] != 0).any()


def test_all_that_a_bottlenecked_conclusion_learns_passes_through_thinking_tokens(case):
    """With their states held fast, nothing before them has a gradient, the image neither."""
    model, *_ = case
    by_token, by_pixel, thinking, behind = gradients(case, "bottleneck")
    before = ~thinking & ~behind
    assert (by_token[before] != 0).any()
    assert (by_pixel != 0).any()

    stream = [
        registry.of(model).language_model(model).get_input_embeddings(),
        *registry.of(model).language_model(model).layers,
    ]

    def held(module, args, output):
        return torch.where(thinking[..., None], output.detach(), output)

    hooks = [part.register_forward_hook(held) for part in stream]
    try:
        by_token, by_pixel, *_ = gradients(case, "bottleneck")
        open_token, *_ = gradients(case, "open")
    finally:
        for hook in hooks:
            hook.remove()
    assert (by_token[before] == 0).all()
    assert by_pixel is None or (by_pixel == 0).all()
    assert (by_token[behind] != 0).any()
    assert (open_token[before] != 0).any()
