"""Losses and gradients of a rehearsal's batch are those of transformers' own forward pass.

Nothing of ours prepares the other side: its processor gets the raw images and the chat text.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from heima.config import Hardware
from heima.cot.rendering import render
from heima.vlm import models
from tests.conftest import ROOT
from timings.rehearsal import batch as rehearsed_batch
from timings.rehearsal import make

CPU = torch.device("cpu")
IMAGES = {"llava-cot-11b": 2, "llava-next-vicuna-7b": 5}
"""Attention over 6,404 patches takes a second an image and layer on a CPU."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    make.write(folder, records=10)
    return folder


@pytest.fixture(
    scope="module",
    params=[make.FAMILIES[0], pytest.param(make.FAMILIES[1], marks=pytest.mark.slow)],
)
def rehearsed(request, made):
    params = rehearsed_batch.parameters(request.param, "fp32", ROOT / "profiles")
    return rehearsed_batch.prepare(made, request.param, params, CPU)


@pytest.fixture(scope="module")
def places(rehearsed):
    return rehearsed_batch.of_distinct_images(rehearsed, IMAGES[rehearsed.params.family])


@pytest.fixture(scope="module")
def untouched(rehearsed):
    """The same model, before a body of ours has put hooks into it."""
    return copy.deepcopy(rehearsed.model)


@pytest.fixture(scope="module")
def ours(rehearsed, places, untouched):
    return rehearsed_batch.loss_and_gradients(rehearsed, places)


def test_the_batch_has_mixed_sizes_and_modes_and_an_image_twice(rehearsed, places):
    images = [rehearsed.samples[place].image for place in places]
    assert len(set(images)) == len(images) - 1
    assert len({rehearsed.images.read(name).size for name in images}) == len(set(images))


def transformers_own(rehearsed, places):
    """Its processor on whole pictures and text, its labels by cutting the text, its loss."""
    processor, tokenizer = rehearsed.processor, rehearsed.processor.tokenizer
    reserved = models.vocabulary(tokenizer, rehearsed.params).reserved
    pictures, texts, users = [], [], []
    for place in places:
        turn = rehearsed.turns[place]
        pictures.append(rehearsed.images.read(turn.image))
        parts = [{"type": "image"}, {"type": "text", "text": turn.question}]
        message = {"role": "user", "content": parts if turn.image_first else parts[::-1]}
        user = tokenizer.apply_chat_template([message], tokenize=False)
        header = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        ).removeprefix(user)
        answer = render(turn.sections, "p3")
        for name, token in reserved.items():
            answer = answer.replace(name, token)
        users.append(user)
        texts.append((user, header, answer + tokenizer.eos_token))
    # Vicuna's tokenizer marks the beginning of whatever it is given: turns are put together of
    # what each part is alone, and the processor sees them as it decodes them.
    whole = processor(
        images=[[one] for one in pictures],
        text=["".join(parts) for parts in texts],
        padding=True,
        add_special_tokens=False,
        return_tensors="pt",
    )
    return whole, texts


def mllamas(rehearsed, places):
    """Ids, images and labels are all the processor's."""
    inputs, texts = transformers_own(rehearsed, places)
    tokenizer = rehearsed.processor.tokenizer
    labels = inputs["input_ids"].clone()
    labels[inputs["attention_mask"] == 0] = -100
    for row, (user, _, _) in enumerate(texts):
        labels[row, : len(tokenizer(user, add_special_tokens=False)["input_ids"])] = -100
    return inputs, labels


def llava_nexts(rehearsed, places):
    """Text ids are ours (the tokenizer's law about parts is tested elsewhere); image tokens, tiles
    and sizes are the processor's."""
    inputs, _ = transformers_own(rehearsed, places)
    tokenizer, token = rehearsed.processor.tokenizer, rehearsed.processor.image_token_id
    rows, labels = [], []
    for row, place in enumerate(places):
        encoded = rehearsed.samples[place].encoded
        at, count = encoded.input_ids.index(token), int((inputs["input_ids"][row] == token).sum())
        rows.append(encoded.input_ids[:at] + [token] * count + encoded.input_ids[at + 1 :])
        labels.append(encoded.labels[:at] + [-100] * count + encoded.labels[at + 1 :])
    longest = max(map(len, rows))
    inputs["input_ids"], inputs["attention_mask"], filled = (
        torch.tensor([row + [value] * (longest - len(row)) for row in some])
        for some, value in (
            (rows, tokenizer.pad_token_id),
            ([[1] * len(row) for row in rows], 0),
            (labels, -100),
        )
    )
    assert len({row.count(token) for row in rows}) > 3, "anyres grids of several shapes"
    return inputs, filled


THEIRS = {"llava-cot-11b": mllamas, "llava-next-vicuna-7b": llava_nexts}


def test_loss_and_gradients_are_transformers_own(rehearsed, places, ours, untouched):
    inputs, labels = THEIRS[rehearsed.params.family](rehearsed, places)
    loss, gradients = ours
    theirs = untouched(**inputs, labels=labels).loss
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), abs=1e-5)
    assert np.isfinite(loss) and len(gradients) > 10
    other = rehearsed_batch.gradients(untouched)
    assert rehearsed_batch.largest_difference(gradients, other) < 1e-4
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.slow
def test_recomputed_layers_leave_loss_and_gradients(rehearsed, places, ours):
    """As the profile trains: layers are computed again in the backward pass."""
    again = rehearsed_batch.loss_and_gradients(
        rehearsed, places, Hardware(gradient_checkpointing=True, logits_chunk=16)
    )
    rehearsed.model.gradient_checkpointing_disable()
    assert again[0] == pytest.approx(ours[0], abs=1e-5)
    assert rehearsed_batch.largest_difference(again[1], ours[1]) < 1e-4
