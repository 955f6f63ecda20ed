"""Idefics3: tensors as its processor makes them, images of unequal tiles, decoding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Idefics3ForConditionalGeneration

from heima.config import Decoding
from heima.data.encoding import Sample
from heima.data.tokens import Vocabulary
from heima.families import batches, registry
from heima.families.batches import Collator
from heima.planning import flop_counts
from heima.planning.architectures import costs
from heima.toy.idefics3 import build_processor, build_vlm
from heima.training.backbone import body
from heima.vlm.added_tokens import equip, fit
from heima.vlm.generation import Prompt, generate
from heima.vlm.models import add_lora
from tests.families.test_llava_next import Pictures
from tests.planning.test_flop_counts import counted

FAMILY = registry.FAMILIES["toy-idefics3"]
SIZES = [(128, 128), (128, 30), (30, 128), (64, 128)]
"""(width, height); the longest side becomes four tiles."""
QUESTIONS = ["What is at b2?", "What is the total of a1 and b1?", "What is at a1?", "What is b1?"]


@pytest.fixture(scope="module")
def processor():
    """With images of up to four tiles a side, as SmolVLM has."""
    processor = build_processor()
    equip(processor.tokenizer, FAMILY)
    processor.image_processor.size = {"longest_edge": 128}
    return processor


@pytest.fixture(scope="module")
def vocabulary(processor):
    return Vocabulary(processor.tokenizer, FAMILY.thinking_tokens)


@pytest.fixture(scope="module")
def vlm(processor):
    model = build_vlm(build_processor(), seed=1)
    fit(model, processor.tokenizer, FAMILY)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 1, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in SIZES
    ]


@pytest.mark.parametrize("place", ["first", "last"])
def test_tensors_are_those_of_the_processor(processor, vocabulary, pictures, place):
    """Which makes a prompt and its images into ids, and fills tiles up to the most of an image."""
    texts = [vocabulary.prompt(question, place) for question in QUESTIONS]
    samples = [
        Sample(vocabulary.encode(question, place, "x"), str(image))
        for image, question in enumerate(QUESTIONS)
    ]
    found = Collator(FAMILY, processor, Pictures(pictures))(samples)
    images = [FAMILY.process(picture, processor) for picture in pictures]
    ids = [vocabulary.prompt_ids(question, place) for question in QUESTIONS]
    inputs = batches.model_inputs(FAMILY, ids, images, processor)
    expected = processor(
        text=texts,
        images=[[picture] for picture in pictures],
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    for key in ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"):
        assert torch.equal(inputs[key], expected[key]), key
    for key in ("pixel_values", "pixel_attention_mask"):
        assert torch.equal(found[key], expected[key]), key
    for row, sample in enumerate(samples):
        here = found["labels"][row] != -100
        answer = [label for label in sample.encoded.labels if label != -100]
        assert found["input_ids"][row][here].tolist() == answer
        prompt = found["input_ids"][row][: int(here.int().argmax())].tolist()
        header = len(sample.encoded.labels) - len(answer) - sample.encoded.labels.count(-100)
        assert header == 0 and prompt == inputs["input_ids"][row].tolist()[-len(prompt) - 1 : -1]


def test_rows_of_one_image_share_its_features_and_their_gradients_add_up(
    vlm, processor, vocabulary, pictures
):
    samples = [
        Sample(vocabulary.encode(question, "first", "a1 red-circle"), str(image))
        for question, image in zip(QUESTIONS, (1, 0, 1, 1), strict=True)
    ]
    found = []
    for once in (False, True):
        model = copy.deepcopy(vlm)
        batch = Collator(FAMILY, processor, Pictures(pictures), once=once)(samples)
        assert len(batch["pixel_values"]) == (2 if once else 4)
        labels = batch.pop("labels")
        hidden = body(model)(**batch)[labels != -100]
        hidden.square().mean().backward()
        found.append((hidden.detach(), model.model.connector.modality_projection.proj.weight.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def test_answers_are_those_of_plain_generate_in_any_batch(vlm, processor, vocabulary, pictures):
    prompts = [
        Prompt("What is at a1? " * (1 + i % 3), str(i % 4), lambda i=i: pictures[i % 4])
        for i in range(8)
    ]
    texts = []
    for size in (1, 3, 8):
        decoding = Decoding(temperature=0, top_k=50, max_new_tokens=8, batch_size=size)
        answers = generate(vlm, processor, vocabulary, prompts, decoding=decoding, seed=3)
        texts.append([answer.text for answer in answers])
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) > 1
    for prompt, text in zip(prompts, texts[0], strict=True):
        inputs = processor(
            text=[vocabulary.prompt(prompt.question, "first")],
            images=[[prompt.load_image()]],
            add_special_tokens=False,
            return_tensors="pt",
        )
        with torch.no_grad():
            output = vlm.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert vocabulary.decode(output[0, inputs["input_ids"].shape[1] :].tolist()) == text


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_plan_knows_the_tiles_of_an_image(vlm, processor, width, height):
    one = FAMILY.process(Image.new("RGB", (width, height), "red"), processor)
    config = copy.deepcopy(vlm.config)
    config.vision_config.size = {"longest_edge": 128}
    picture = costs(config).picture(config, height, width)
    assert picture.tiles == one["pixel_values"].shape[1]
    # The toy's words have no empty line, which is a token of SmolVLM's.
    assert picture.tokens == len(one["placeholders"]) + 1
    whole = FAMILY.process(Image.new("RGB", (32, 32)), build_processor())
    picture = costs(vlm.config).picture(vlm.config, 32, 32)
    assert (picture.tiles, picture.tokens) == (1, len(whole["placeholders"]))


@pytest.mark.parametrize("scale", [1, 2])
def test_it_runs_what_is_computed(processor, vocabulary, pictures, scale, params):
    """The tower and the projector, whose adapter is all that trains behind them; and the text."""
    config = build_vlm(processor, seed=1).config
    config.scale_factor = scale
    processor.image_seq_len = 4 // scale**2
    rank = params.distill.lora.rank
    model = add_lora(
        Idefics3ForConditionalGeneration(config), FAMILY.vlm_lora, params.distill.lora, seed=1
    )
    ids = [vocabulary.prompt_ids(QUESTIONS[0], "first")]
    images = [FAMILY.process(pictures[0], processor)]
    inputs = batches.model_inputs(FAMILY, ids, images, processor)
    processor.image_seq_len = 4
    forward, backward = counted(lambda: model(**inputs).logits, backward=True)
    length, tiles = inputs["input_ids"].shape[1], inputs["pixel_values"].shape[1]
    flops = costs(config).vision(config, tiles, rank=rank) + flop_counts.language(
        config.text_config, length, pairs=length**2, logits=length, rank=rank, reached=True
    )
    assert flops.forward == pytest.approx(forward, rel=1e-3)
    assert flops.backward == pytest.approx(backward, rel=1e-3)
