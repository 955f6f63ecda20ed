"""LLaVA-NeXT: tensors as its processor makes them, images of unequal size, decoding, states."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from heima.config import Decoding, Hardware
from heima.cot.rendering import render
from heima.cot.sections import COMPRESSIBLE, thinking_token
from heima.cot.thinking import ONE_TOKEN
from heima.data.encoding import Sample
from heima.families import batches, registry
from heima.families.batches import Collator
from heima.interpreting import states
from heima.training.loop import AnswerLoss
from heima.vlm import processes
from heima.vlm.generation import Prompt, generate

FAMILY = registry.FAMILIES["toy-llava-next"]

SIZES = [(32, 32), (64, 26), (26, 64), (20, 21)]
"""(width, height) of images of one and of two tiles, with and without a border to take off."""


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(5)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in SIZES
    ]


class Pictures:
    """Stands for an `ImageZip` whose images are named by their number."""

    def __init__(self, pictures):
        self._pictures = pictures

    def read(self, name):
        return self._pictures[int(name)]


@pytest.fixture(scope="module")
def collate(llava_processor, pictures):
    return Collator(FAMILY, llava_processor, Pictures(pictures))


QUESTIONS = [
    "What is at b2?",
    "What is the total of a1 and b1?",
    "What is at a1?",
    "What is b1?",
]
ANSWER = render(
    {"summary": "s", "caption": "a1 red-circle", "reasoning": "so 8", "conclusion": "8"}, "p3"
)


@pytest.fixture(scope="module")
def samples(llava_vocabulary):
    return [
        Sample(llava_vocabulary.encode(question, place, ANSWER), str(image))
        for image, (question, place) in enumerate(
            zip(QUESTIONS, ("first", "last", "first", "last"), strict=True)
        )
    ]


@pytest.mark.parametrize("place", ["first", "last"])
def test_tensors_are_those_of_the_processor(
    llava_processor, llava_vocabulary, collate, pictures, place
):
    """Which makes a prompt and the images into ids, and each image into as many tokens."""
    texts = [llava_vocabulary.prompt(question, place) for question in QUESTIONS]
    asked = [
        Sample(llava_vocabulary.encode(question, place, "x"), str(image))
        for image, question in enumerate(QUESTIONS)
    ]
    found = collate(asked)
    ids = [llava_vocabulary.prompt_ids(question, place) for question in QUESTIONS]
    images = [FAMILY.process(picture, llava_processor) for picture in pictures]
    inputs = batches.model_inputs(FAMILY, ids, images, llava_processor)
    for row, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        expected = llava_processor(
            images=[picture], text=[text], add_special_tokens=False, return_tensors="pt"
        )
        wanted = expected["input_ids"][0]
        # The answer's word and the end of turn follow.
        length = int(found["attention_mask"][row].sum())
        assert torch.equal(found["input_ids"][row, : length - 2], wanted)
        assert torch.equal(inputs["input_ids"][row, -len(wanted) :], wanted)
        assert int(inputs["attention_mask"][row].sum()) == len(wanted)
        assert torch.equal(found["image_sizes"][row], expected["image_sizes"][0])
        first = sum(one["pixel_values"].shape[1] for one in images[:row])
        tiles = expected["pixel_values"][0]
        assert torch.equal(found["pixel_values"][first : first + len(tiles)], tiles)
    assert torch.equal(found["pixel_values"], inputs["pixel_values"])
    assert len({len(one["placeholders"]) for one in images}) > 1, "images must differ in tokens"


def test_labels_are_the_answer_whatever_the_image_takes(llava_processor, samples, collate):
    batch = collate(samples)
    for row, sample in enumerate(samples):
        labelled = [label for label in sample.encoded.labels if label != -100]
        here = batch["labels"][row] != -100
        assert batch["labels"][row][here].tolist() == labelled
        assert batch["input_ids"][row][here].tolist() == labelled
        assert not (here & (batch["input_ids"][row] == llava_processor.image_token_id)).any()


def test_a_turn_has_exactly_one_image():
    with pytest.raises(ValueError, match="exactly one image token, not 2"):
        batches.image_place([7, 1, 7], 7)


def plain(batch, vlm):
    """The hidden states of a batch with an image a row, by transformers' own forward pass."""
    return vlm.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        pixel_values=batch["pixel_values"],
        image_sizes=batch["image_sizes"],
    ).last_hidden_state


def test_rows_of_one_image_share_its_features_and_their_gradients_add_up(
    llava_vlm, llava_processor, llava_vocabulary, pictures
):
    rows = [1, 0, 1, 1]
    ids = [llava_vocabulary.prompt_ids(question, "first") for question in QUESTIONS]
    images = [FAMILY.process(picture, llava_processor) for picture in pictures[:2]]
    apart = batches.model_inputs(FAMILY, ids, [images[row] for row in rows], llava_processor)
    shared = batches.model_inputs(FAMILY, ids, images, llava_processor, rows)
    assert torch.equal(apart["input_ids"], shared["input_ids"])
    assert len(shared["image_sizes"]) == 2 < len(apart["image_sizes"])
    found = []
    for inputs, looks in ((apart, range(4)), (shared, rows)):
        model = copy.deepcopy(llava_vlm)
        with FAMILY.spread(model, looks):
            hidden = plain(inputs, model)
        here = inputs["attention_mask"].bool()
        hidden[here].square().mean().backward()
        found.append((hidden[here].detach(), model.model.multi_modal_projector.linear_1.weight))
        assert "get_image_features" not in vars(model.model)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][1].grad, found[1][1].grad, rtol=1e-3, atol=1e-6)


def test_only_layers_that_the_model_has_are_sharded(llava_vlm):
    """transformers names CLIP's text part, too, of which LLaVA-NeXT has none."""
    layers = AnswerLoss(llava_vlm, Hardware())._no_split_modules
    assert {"LlamaDecoderLayer", "CLIPEncoderLayer"} <= set(layers)
    assert set(layers) <= {type(module).__name__ for module in llava_vlm.modules()}


def test_a_family_is_found_by_the_model_and_an_unknown_one_told(llava_vlm, toy_llm):
    assert registry.of(AnswerLoss(llava_vlm, Hardware())) is FAMILY
    with pytest.raises(ValueError, match="type 'llama' is none of mllama, llava_next"):
        registry.of(toy_llm)


@pytest.fixture(scope="module")
def chatty(llava_vlm, llava_processor):
    """The toy model with output weights that make answers differ and end at different places."""
    model = copy.deepcopy(llava_vlm)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 1, generator=generator)
        model.lm_head.weight[llava_processor.tokenizer.eos_token_id].mul_(4)
    return model


@pytest.fixture(scope="module")
def prompts(pictures):
    return [
        Prompt("what is at a1 " * (1 + i * 7 % 5), f"image {i % 4}", lambda i=i: pictures[i % 4])
        for i in range(10)
    ]


def run(chatty, processor, vocabulary, prompts, **changes):
    decoding = Decoding(
        **{"temperature": 0, "top_k": 50, "max_new_tokens": 12, "batch_size": 64, **changes}
    )
    return generate(chatty, processor, vocabulary, prompts, decoding=decoding, seed=3)


def test_answers_are_those_of_plain_generate_in_any_batch(
    chatty, llava_processor, llava_vocabulary, prompts
):
    together, three = (
        run(chatty, llava_processor, llava_vocabulary, prompts, batch_size=size) for size in (64, 3)
    )
    own = [replace(prompt, image_key=str(i)) for i, prompt in enumerate(prompts)]
    apart = run(chatty, llava_processor, llava_vocabulary, own)
    assert len({one.text for one in together}) > 3, "the model must say different things"
    for found in (three, apart):
        assert [(one.text, one.counts) for one in found] == [
            (one.text, one.counts) for one in together
        ]
    for prompt, one in zip(prompts[:4], together, strict=False):
        inputs = llava_processor(
            images=[prompt.load_image()],
            text=[llava_vocabulary.prompt(prompt.question, "first")],
            add_special_tokens=False,
            return_tensors="pt",
        )
        output = chatty.generate(**inputs, max_new_tokens=12, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert llava_vocabulary.decode(answer) == one.text
        # An image is one token of a prompt, whatever the model makes of it.
        ids = llava_vocabulary.prompt_ids(prompt.question, "first")
        assert one.counts.prompt == len(ids) < inputs["input_ids"].shape[1]


def test_an_image_is_encoded_once_in_a_batch(
    chatty, llava_processor, llava_vocabulary, prompts, monkeypatch
):
    encoded = []
    forward = chatty.model.vision_tower.forward

    def counting(pixel_values, **options):
        encoded.append(len(pixel_values))
        return forward(pixel_values, **options)

    monkeypatch.setattr(chatty.model.vision_tower, "forward", counting)
    run(chatty, llava_processor, llava_vocabulary, prompts)
    # A whole image each, and a tile, or two of the long ones.
    assert encoded == [2 + 3 + 3 + 2]


@pytest.mark.parametrize(("position", "offset"), [("at", 0), ("predicting", 1)])
def test_states_are_those_of_step_by_step_decoding(
    llava_vlm, llava_vocabulary, samples, collate, position, offset
):
    found = states.join(
        [
            states.extract(
                llava_vlm, collate(batch), llava_vocabulary, ONE_TOKEN, position=position
            )
            for batch in processes.batches(samples, 3)
        ]
    )
    for row, sample in enumerate(samples):
        batch = collate([sample])
        with torch.inference_mode():
            hidden = plain(batch, llava_vlm)[0]
        for section in COMPRESSIBLE:
            token = llava_vocabulary.thinking_ids[thinking_token(section)]
            place = batch["input_ids"][0].tolist().index(token) - offset
            torch.testing.assert_close(
                found[section].values[row], hidden[place], rtol=1e-4, atol=1e-5
            )
