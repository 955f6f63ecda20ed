"""The loop: determinism, frozen weights, adapters that chain exactly, losses as a naive sum."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from heima.config import Hardware, Schedule
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.data.tokens import IGNORED
from heima.families.batches import Collator
from heima.families.registry import FAMILIES, pretrained
from heima.toy.mllama import build_vlm
from heima.training import loop
from heima.training.backbone import body
from heima.vlm import models

SCHEDULE = Schedule(
    steps=3,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=1,
    weight_decay=0.01,
    max_grad_norm=1.0,
)


@pytest.fixture
def collate(toy_processor, toy_source):
    return Collator(FAMILIES["toy-mllama"], toy_processor, ImageZip(toy_source / "images.zip"))


@pytest.fixture
def samples(toy_turns, toy_vocabulary):
    return encode_turns(toy_turns, "p3", toy_vocabulary, max_length=512)


@pytest.fixture
def root(tmp_path, toy_vlm, toy_processor):
    """A models folder with an untrained `text-cot`."""
    toy_vlm.save_pretrained(tmp_path / "text-cot")
    toy_processor.save_pretrained(tmp_path / "text-cot")
    return tmp_path


def distilled(root, params, samples, collate, init="text-cot"):
    model = models.trainable_vlm(root, init, params, seed=params.seed)
    return model, fit(model, params, samples, collate)


def answering(model, hardware) -> loop.AnswerLoss:
    return loop.AnswerLoss(model, hardware, body=body(model))


def fit(model, params, samples, collate, schedule=SCHEDULE, **options):
    hardware = options.pop("hardware", params.hardware)
    return loop.train(
        answering(model, hardware),
        samples,
        collate,
        schedule,
        seed=3,
        precision="fp32",
        training=params.training,
        hardware=hardware,
        **options,
    )


def weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_the_same_seed_gives_the_same_bits(root, params, samples, collate):
    (one, curve), (other, again) = (distilled(root, params, samples, collate) for _ in range(2))
    assert curve == again and [row["step"] for row in curve] == [1, 2, 3]
    for name, weight in weights(one).items():
        assert torch.equal(weight, dict(other.named_parameters())[name]), name


def test_only_the_adapter_learns_within_the_papers_scope(root, params, samples, collate):
    model = models.trainable_vlm(root, "text-cot", params, seed=params.seed)
    before = weights(model)
    fit(model, params, samples, collate)
    for name, weight in model.named_parameters():
        assert ("lora_" in name) == weight.requires_grad
        if not weight.requires_grad:
            assert torch.equal(weight, before[name]), f"{name} is frozen, and changed"
    adapted = {name.split(".lora_")[0] for name, w in model.named_parameters() if w.requires_grad}
    assert any(name.endswith("lm_head") for name in adapted)
    assert any("multi_modal_projector" in name for name in adapted)
    assert any("cross_attn.q_proj" in name for name in adapted)
    assert any("global_transformer" in name for name in adapted)
    assert not any("vision_model.transformer" in name for name in adapted)
    assert not any("embed" in name for name in adapted)


@torch.no_grad()
def logits(model, samples, collate):
    batch = collate(samples[:4])
    del batch["labels"]
    return pretrained(model.eval()).lm_head(body(model)(**batch))


def test_phases_chain_exactly_through_the_saved_adapter(root, params, samples, collate):
    model, _ = distilled(root, params, samples, collate)
    models.save_adapter(model, root / "p1")
    expected = logits(model, samples, collate)
    continued = models.trainable_vlm(root, "p1", params, seed=params.seed)
    assert torch.equal(logits(continued, samples, collate), expected)
    assert models.trainable_parameters(continued) == models.trainable_parameters(model)
    merged, _ = models.load_vlm(root, "p1", params)
    torch.testing.assert_close(logits(merged, samples, collate), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits(models.load_vlm(root, "text-cot", params)[0],
                                               samples, collate), atol=1e-4)  # fmt: skip


def test_a_model_that_is_missing_names_the_stage_that_makes_it(tmp_path, params):
    with pytest.raises(FileNotFoundError, match="dvc repro teach@text-cot"):
        models.load_vlm(tmp_path, "text-cot", params)


def test_a_checkpoint_of_another_family_is_refused_by_name(root, toy_processor, params):
    """A wider model, and a model of another architecture: named before peft loads anything."""
    narrow = build_vlm(toy_processor, hidden_size=32, seed=1)
    models.save_adapter(
        models.add_lora(narrow, FAMILIES[params.family].vlm_lora, params.distill.lora, seed=1),
        root / "p1",
    )
    for load in (models.load_vlm, lambda *one: models.trainable_vlm(*one, seed=1)):
        with pytest.raises(ValueError, match=r"p1 does not belong to the family toy-mllama: .*64"):
            load(root, "p1", params)
    path = root / "p1" / "adapter_model.safetensors"
    found = {key: tensor for key, tensor in load_file(path).items() if "cross_attn" in key}
    save_file({key.replace("cross_attn", "x_attn"): one for key, one in found.items()}, path)
    with pytest.raises(ValueError, match=r"x_attn.* there does not exist; `dvc repro distill@p1`"):
        models.load_vlm(root, "p1", params)


def test_a_model_of_another_architecture_is_refused(root, params):
    config = LlavaNextConfig(
        text_config=LlamaConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=28, patch_size=14,
        ),
    )  # fmt: skip
    LlavaNextForConditionalGeneration(config).save_pretrained(root / "base")
    with pytest.raises(ValueError, match=r"'llava_next', the family toy-mllama needs 'mllama'"):
        models.load_vlm(root, "base", params)


@pytest.mark.parametrize("settings", [{}, {"labelled_only": False}, {"logits_chunk": 3}])
def test_heldout_losses_equal_a_naive_sum_and_do_not_depend_on_the_batch(
    toy_vlm, samples, collate, settings
):
    plain = copy.deepcopy(toy_vlm)
    loss = answering(copy.deepcopy(toy_vlm), Hardware(**settings))
    batched = loop.heldout_losses(loss, samples, collate, batch_size=7)
    for sample, value in list(zip(samples, batched, strict=True))[:5]:
        batch = collate([sample])
        labels = batch.pop("labels")[0].tolist()
        del batch["image_rows"]
        with torch.inference_mode():
            logprobs = plain(**batch).logits[0].log_softmax(-1)
        terms = [-logprobs[i, label] for i, label in enumerate(labels[1:]) if label != IGNORED]
        assert value == pytest.approx(float(sum(terms) / len(terms)), rel=1e-4)


def test_text_attends_to_an_image_from_its_place_on_and_padding_to_none(
    toy_vlm, samples, collate, toy_processor
):
    lengths = [len(sample) for sample in samples]
    batch = collate(samples)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        seen = batch["cross_attention_mask"][row, :length, 0, 0].tolist()
        at = sample.encoded.input_ids.index(toy_processor.image_token_id)
        assert seen == [0] * at + [1] * (length - at)
        assert not batch["attention_mask"][row, length:].any()


def test_the_pixels_are_those_of_the_processor(collate, samples, toy_processor, toy_source):
    batch = collate(samples[:3])
    images = ImageZip(toy_source / "images.zip")
    naive = toy_processor(
        images=[[images.read(sample.image)] for sample in samples[:3]],
        text=["<|image|>"] * 3,
        return_tensors="pt",
    )
    for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"):
        assert torch.equal(batch[key][batch["image_rows"]], naive[key]), key


def test_flops_grow_with_the_text(toy_vlm, toy_turns, toy_vocabulary, collate):
    short, long = (
        loop.flops_per_sample(
            answering(copy.deepcopy(toy_vlm), Hardware()),
            encode_turns(toy_turns, rendering, toy_vocabulary, max_length=512),
            collate,
            batch_size=8,
        )
        for rendering in ("answer-only", "text-cot")
    )
    assert 0 < short < long


def test_a_loss_that_is_not_finite_is_an_error(root, params, samples, collate):
    wild = SCHEDULE.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30})
    model = models.trainable_vlm(root, "text-cot", params, seed=params.seed)
    with pytest.raises(RuntimeError, match="lower the learning_rate"):
        fit(model, params, samples, collate, wild)
