"""The savings of training are exact: transformers' own forward pass is the law."""

from __future__ import annotations

import copy
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import MllamaProcessor

from heima.config import Hardware, Lora
from heima.data.encoding import Sample
from heima.data.images import ImageZip
from heima.families.batches import Collator
from heima.families.registry import FAMILIES, pretrained
from heima.toy.mllama import CHAT_TEMPLATE, IMAGE_SIDE, build_vlm
from heima.training import loop
from heima.training.backbone import body, tile_shift
from heima.vlm.models import add_lora

SIZES = {"one.png": (32, 26), "two.png": (64, 26), "four.png": (60, 64)}
"""Images that a model of up to four tiles of 32 pixels sees as one, two and four of them."""
LORA = Lora(rank=4, alpha=8, dropout=0.0)


@pytest.fixture(scope="module")
def processor(toy_processor):
    """The toy's processor with up to four tiles an image."""
    image_processor = type(toy_processor.image_processor)(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}, max_image_tiles=4
    )
    return MllamaProcessor(image_processor, toy_processor.tokenizer, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def vlm(processor):
    """A model of four tiles whose gates are open, so that every embedding counts."""
    model = build_vlm(processor, hidden_size=32, max_tiles=4, seed=3).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate") or "embedding" in name:
                nn.init.normal_(weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.zip"
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(path, "w") as archive:
        for name, (width, height) in SIZES.items():
            file = io.BytesIO()
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            archive.writestr(name, file.getvalue())
    return ImageZip(path)


@pytest.fixture(scope="module")
def samples(toy_vocabulary):
    """Turns of unequal length, two of them about the same image, which stand apart."""
    asked = [("one.png", "What is b2?"), ("two.png", "What is the total of a1 and b1?"),
             ("four.png", "What is at a1?"), ("one.png", "What is b1?")]  # fmt: skip
    return [
        Sample(toy_vocabulary.encode(question, "first", answer), image)
        for (image, question), answer in zip(
            asked, ("red-circle", "a1 two total two b1", "red", "so 8"), strict=True
        )
    ]


def plain(batch: dict) -> dict:
    return {key: value for key, value in batch.items() if key != "image_rows"}


def test_the_test_has_images_of_one_two_and_four_tiles(processor, images, samples):
    batch = Collator(FAMILIES["toy-mllama"], processor, images)(samples)
    assert batch["aspect_ratio_mask"].sum(dim=-1).flatten().tolist() == [1, 2, 4]
    assert batch["image_rows"].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [0, 3], [1, 0]])
def test_images_once_gives_transformers_states(vlm, processor, images, samples, chosen):
    some = [samples[i] for i in chosen]
    expected = Collator(FAMILIES["toy-mllama"], processor, images, once=False)(some)
    labels = expected.pop("labels")
    once = Collator(FAMILIES["toy-mllama"], processor, images)(some)
    del once["labels"]
    with torch.no_grad():
        states = vlm.model(**plain(expected)).last_hidden_state
        found = body(vlm)(**once)
    here = labels != -100
    torch.testing.assert_close(found[here], states[here], rtol=1e-4, atol=1e-5)


def gradients(vlm, parts, hardware):
    """The loss of a batch, given in parts, and its gradients."""
    model = add_lora(copy.deepcopy(vlm), FAMILIES["toy-mllama"].vlm_lora, LORA, seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    answering = loop.AnswerLoss(model, hardware, body=body(model)).train()
    items = sum(int((part["labels"][:, 1:] != -100).sum()) for part in parts)
    losses = []
    for part in parts:
        loss = answering(**part, num_items_in_batch=items)
        loss.backward()
        losses.append(loss.item())
    found = {n: w.grad for n, w in model.named_parameters() if w.requires_grad}
    return sum(losses), found


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_checkpointing": True}, {"logits_chunk": 2}, {"labelled_only": False}],
)
def test_every_exact_saving_leaves_loss_and_gradients(vlm, processor, images, samples, settings):
    """Against transformers' own loss with an image a row."""
    expected = Collator(FAMILIES["toy-mllama"], processor, images, once=False)(samples)
    model = add_lora(copy.deepcopy(vlm), FAMILIES["toy-mllama"].vlm_lora, LORA, seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    reference = pretrained(model)(**plain(expected)).loss
    reference.backward()
    batch = Collator(FAMILIES["toy-mllama"], processor, images)(samples)
    loss, found = gradients(vlm, [batch], Hardware(**settings))
    assert loss == pytest.approx(reference.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-6)


def test_gradients_of_micro_batches_add_up(vlm, processor, images, samples):
    collate = Collator(FAMILIES["toy-mllama"], processor, images)
    whole, expected = gradients(vlm, [collate(samples)], Hardware())
    parts, found = gradients(vlm, [collate(samples[:1]), collate(samples[1:])], Hardware())
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_real_tiles_are_exact_where_nothing_is_padded(vlm, processor, images, samples):
    batch = Collator(FAMILIES["toy-mllama"], processor, images)([samples[2]])
    del batch["labels"]
    with torch.no_grad():
        torch.testing.assert_close(
            body(vlm)(**batch), body(vlm, tiles="real")(**batch), rtol=1e-4, atol=1e-5
        )


def test_real_tiles_are_what_an_encoder_of_fewer_tiles_would_see(vlm, processor, images, samples):
    """A model made for one tile, with the embeddings of its ratio, sees one tile alone."""
    small = build_vlm(processor, hidden_size=32, max_tiles=1, seed=3).eval()
    weights = vlm.state_dict()
    for name, weight in small.state_dict().items():
        given = weights[name]
        if given.shape != weight.shape:
            # The first tile of the ratios of none and of one tile.
            given = given[: weight.shape[0], : weight.shape[1]]
        weights[name] = given
    small.load_state_dict(weights)
    batch = Collator(FAMILIES["toy-mllama"], processor, images)([samples[0]])
    del batch["labels"]
    seen = []
    text = vlm.model.language_model
    hook = text.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["cross_attention_states"]), with_kwargs=True
    )
    with torch.no_grad():
        body(vlm, tiles="real")(**batch)
        hook.remove()
        expected = small.model.multi_modal_projector(
            small.model.vision_model(
                batch["pixel_values"][:, :, :1],
                batch["aspect_ratio_ids"],
                batch["aspect_ratio_mask"][:, :, :1],
            ).last_hidden_state
        )[0, 0, 0]
    torch.testing.assert_close(seen[0][0, : len(expected)], expected, rtol=1e-4, atol=1e-5)
    assert not seen[0][0, len(expected) :].any()


def test_the_shift_of_real_tiles_is_that_of_the_logits(vlm, processor, images, samples):
    collate = Collator(FAMILIES["toy-mllama"], processor, images)
    answering = loop.AnswerLoss(vlm, Hardware(), body=body(vlm))
    shift = tile_shift(answering, samples, collate, batch_size=2)
    padded = loop.heldout_losses(answering, samples, collate, batch_size=2)
    counts = [sample.labelled for sample in samples]
    assert shift["loss_padded"] == pytest.approx(np.average(padded, weights=counts), rel=1e-5)
    assert 0 < shift["logits_mean_abs"] < shift["logits_max_abs"]
    whole = tile_shift(answering, [samples[2]], collate, batch_size=1)
    assert whole["logits_max_abs"] < 1e-4


def test_a_body_leaves_nothing_behind_without_gradients(vlm, processor, images, samples):
    batch = Collator(FAMILIES["toy-mllama"], processor, images)(samples[:2])
    del batch["labels"]
    with torch.no_grad():
        body(vlm)(**batch)
    assert not any(module._forward_hooks for module in vlm.modules())
