"""Batched decoding: the batch changes nothing, and every token is counted once."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from heima.config import Decoding
from heima.cot import parsing
from heima.cot.rendering import Rendering, constant_prefix, render
from heima.cot.sections import numbered, repeated, with_controls
from heima.data.tokens import Vocabulary
from heima.families.images import ImageCache
from heima.families.mllama import Mllama
from heima.vlm.generation import Decoder, Prompt, Transformers, _Tally, generate, plan


@pytest.fixture(scope="module")
def prompts():
    """23 questions of different length about 9 images, image by image out of order."""
    rng = np.random.default_rng(5)
    images = [Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(9)]
    return [
        Prompt("what is at a1 " * (1 + i * 7 % 11), f"image {i % 9}", lambda i=i: images[i % 9])
        for i in range(23)
    ]


@pytest.fixture(scope="module")
def chatty(toy_processor, toy_vlm):
    """The toy model with its output weights scaled: answers differ and end at different places."""
    model = toy_vlm
    generator = torch.Generator().manual_seed(11)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 1, generator=generator)
        end = model.lm_head.weight[toy_processor.tokenizer.eos_token_id]
        end.mul_(4)
    yield model
    model.load_state_dict(state)


def decoding(**changes):
    return Decoding(
        **{"temperature": 0, "top_k": 50, "max_new_tokens": 24, "batch_size": 64, **changes}
    )


def run(chatty, toy_processor, toy_vocabulary, prompts, **changes):
    return generate(
        chatty, toy_processor, toy_vocabulary, prompts, decoding=decoding(**changes), seed=3
    )


def test_batch_size_changes_nothing(chatty, toy_processor, toy_vocabulary, prompts):
    together, alone, five = (
        run(chatty, toy_processor, toy_vocabulary, prompts, batch_size=size) for size in (64, 1, 5)
    )
    assert len({one.text for one in together}) > 5, "the model must say different things"
    assert {one.finish for one in together} == {"stop", "length"}
    for found in (alone, five):
        assert [one.text for one in found] == [one.text for one in together]
        assert [one.counts for one in found] == [one.counts for one in together]
        assert [one.finish for one in found] == [one.finish for one in together]


def test_agrees_with_the_processor_and_plain_generate(
    chatty, toy_processor, toy_vocabulary, prompts
):
    """One prompt through transformers' own processor gives the same tokens."""
    found = run(chatty, toy_processor, toy_vocabulary, prompts[:4])
    for prompt, one in zip(prompts, found, strict=False):
        inputs = toy_processor(
            images=[[prompt.load_image()]],
            text=[toy_vocabulary.prompt(prompt.question, "first")],
            add_special_tokens=False,
            return_tensors="pt",
        )
        output = chatty.generate(**inputs, do_sample=False, max_new_tokens=24)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert one.text == toy_vocabulary.decode(new.tolist())
        assert (one.counts.prompt, one.counts.decoded) == (inputs["input_ids"].shape[1], len(new))


def test_counts_add_up(chatty, toy_processor, toy_vocabulary, prompts):
    for one in run(chatty, toy_processor, toy_vocabulary, prompts):
        counts = asdict(one.counts)
        parts = counts["thinking"] + counts["tag"] + counts["conclusion"]
        assert 0 <= parts <= counts["decoded"] - (one.finish == "stop")
        assert counts["decoded"] == 24 or one.finish == "stop"
        assert toy_processor.tokenizer.eos_token not in one.text
        assert one.seconds > 0


def test_an_image_is_processed_once(chatty, toy_processor, toy_vocabulary, prompts, monkeypatch):
    """Also where a batch ends between two questions about it."""
    seen = []
    process = toy_processor.image_processor

    def counting(images, **options):
        seen.append(images)
        return process(images, **options)

    monkeypatch.setattr(toy_processor, "image_processor", counting)
    run(chatty, toy_processor, toy_vocabulary, prompts, batch_size=4)
    assert len(seen) == 9


@pytest.mark.parametrize(("room", "times"), [(2**29, 9), (2**14, 46), (3 * 48 * 48, 46)])
def test_models_share_processed_images_as_far_as_there_is_room(
    chatty, toy_processor, toy_vocabulary, prompts, monkeypatch, room, times
):
    """Two models, a prompt a batch; room for all images, for one, for none: the same answers."""
    monkeypatch.setattr("heima.families.images.IMAGE_CACHE_BYTES", room)
    seen = []

    class Counting(Mllama):
        def process(self, image, processor):
            seen.append(image)
            return super().process(image, processor)

    cache = ImageCache()
    limit = {"max_new_tokens": 8}
    planned = plan(toy_vocabulary, prompts, decoding=decoding(batch_size=64, **limit), seed=3)
    planned = replace(planned, batches=[[i] for i in range(len(prompts))])
    expected = [one.text for one in run(chatty, toy_processor, toy_vocabulary, prompts, **limit)]
    assert len(set(expected)) > 5
    for _ in range(2):
        engine = Transformers(chatty, toy_processor, cache)
        monkeypatch.setattr(engine, "_family", Counting())
        decode = Decoder(engine, toy_vocabulary)
        found = planned.in_order(decode(planned, i) for i in range(len(prompts)))
        assert [one.text for one in found] == expected
    assert len(seen) == times


def test_an_image_is_encoded_once_in_a_batch(
    chatty, toy_processor, toy_vocabulary, prompts, monkeypatch
):
    """9 images of 23 prompts; the answers are those to an image of one's own for each."""
    encoded = []
    forward = chatty.model.vision_model.forward

    def counting(pixel_values, **options):
        encoded.append(len(pixel_values))
        return forward(pixel_values=pixel_values, **options)

    monkeypatch.setattr(chatty.model.vision_model, "forward", counting)
    own = [replace(prompt, image_key=str(i)) for i, prompt in enumerate(prompts)]
    shared, apart = (run(chatty, toy_processor, toy_vocabulary, those) for those in (prompts, own))
    assert encoded == [9, 23]
    assert [one.text for one in shared] == [one.text for one in apart]
    assert not chatty.model.multi_modal_projector._forward_hooks


def test_a_prefix_is_read_and_not_decoded(chatty, toy_processor, toy_vocabulary, prompts):
    """It continues as plain `generate` does after the same token ids."""
    prefix = constant_prefix("p3")
    found = generate(
        chatty,
        toy_processor,
        toy_vocabulary,
        prompts[:4],
        decoding=decoding(),
        seed=3,
        prefix=prefix,
    )
    free = run(chatty, toy_processor, toy_vocabulary, prompts[:4])
    assert [one.text for one in found] != [one.text for one in free]
    for prompt, one, without in zip(prompts, found, free, strict=False):
        ids = toy_vocabulary.prompt_ids(prompt.question, "first", prefix)
        bare = toy_vocabulary.prompt_ids(prompt.question, "first")
        assert ids[: len(bare)] == bare
        # Three tags, thinking tokens and tags again.
        assert len(ids) - len(bare) == 9
        images = toy_processor.image_processor([[prompt.load_image()]], return_tensors="pt")
        seen = (torch.tensor(ids) == toy_processor.image_token_id).cumsum(0)
        output = chatty.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            # Text sees the image that it follows.
            cross_attention_mask=seen.long()[None, :, None, None],
            **{
                key: images[key]
                for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
            },
            do_sample=False,
            max_new_tokens=24,
        )
        new = output[0, len(ids) :].tolist()
        assert one.text == toy_vocabulary.decode(new)
        assert one.counts.decoded == len(new)
        assert one.counts.prompt == len(ids) == without.counts.prompt + 9
        assert one.counts.thinking == sum(
            token in toy_vocabulary.thinking_ids.values() for token in new
        )


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_a_batch_has_one_outcome(chatty, toy_processor, toy_vocabulary, prompts, temperature):
    """Whatever was decoded before it: batches can be shared out and resumed."""
    whole = run(
        chatty, toy_processor, toy_vocabulary, prompts, temperature=temperature, batch_size=5
    )
    planned = plan(
        toy_vocabulary, prompts, decoding=decoding(temperature=temperature, batch_size=5), seed=3
    )
    found = {}
    for batches in [(4, 1), (3,), (0, 2)]:
        decode = Decoder(Transformers(chatty, toy_processor), toy_vocabulary)
        for batch in batches:
            torch.rand(batch + 1)
            found[batch] = decode(planned, batch)
    again = planned.in_order(found[batch] for batch in range(5))
    assert [(one.text, one.counts, one.finish) for one in again] == [
        (one.text, one.counts, one.finish) for one in whole
    ]


def test_in_order_wants_every_batch(toy_vocabulary, prompts):
    planned = plan(toy_vocabulary, prompts, decoding=decoding(batch_size=5), seed=3)
    with pytest.raises(ValueError, match="shorter"):
        planned.in_order([])


def test_sampling_follows_the_seed(chatty, toy_processor, toy_vocabulary, prompts):
    def texts(seed, **changes):
        found = generate(
            chatty,
            toy_processor,
            toy_vocabulary,
            prompts[:6],
            decoding=decoding(**changes),
            seed=seed,
        )
        return [one.text for one in found]

    first = texts(3, temperature=0.6)
    assert first == texts(3, temperature=0.6)
    assert first != texts(4, temperature=0.6)
    assert first != texts(3)
    assert texts(3) == texts(4)


def test_equal_prompts_in_two_batches_are_drawn_apart(
    chatty, toy_processor, toy_vocabulary, prompts
):
    twice = [prompts[0]] * 4
    found = run(chatty, toy_processor, toy_vocabulary, twice, temperature=2.0, batch_size=1)
    assert len({one.text for one in found}) > 1


class TestTally:
    def test_one_token_a_tag(self, toy_vocabulary):
        answer = render(
            {"summary": "-", "caption": "-", "reasoning": "-", "conclusion": "yes no"}, "p3"
        )
        encoded = toy_vocabulary.encode("what", "first", answer)
        ids = encoded.input_ids[encoded.body : -1]
        assert _Tally(toy_vocabulary)(ids) == {"thinking": 3, "tag": 8, "conclusion": 2}

    @pytest.mark.parametrize(
        "thinking",
        [
            numbered(2),
            numbered(32),
            repeated({"summary": 1, "caption": 7, "reasoning": 40}),
        ],
    )
    def test_every_thinking_token_counts(self, toy_vocabulary, thinking):
        parts = {"summary": "-", "caption": "-", "reasoning": "-", "conclusion": "yes no"}
        encoded = toy_vocabulary.encode("what", "first", render(parts, "p3", thinking))
        ids = encoded.input_ids[encoded.body : -1]
        number = sum(map(len, thinking.values()))
        assert _Tally(toy_vocabulary)(ids) == {"thinking": number, "tag": 8, "conclusion": 2}
        assert len(ids) == number + 10

    @pytest.mark.parametrize("tags", ["text", "token", "none"])
    @pytest.mark.parametrize("form", ["token", "filler", "omit"])
    def test_every_layout_is_accounted_for(self, toy_processor, toy_vocabulary, form, tags):
        """Thinking, tags and conclusion are all of an answer, and decode to what was rendered."""
        rendering = Rendering(summary=form, caption="omit", reasoning=form, tags=tags)
        words = Vocabulary(toy_processor.tokenizer, with_controls(toy_vocabulary.reserved))
        parts = {"summary": "-", "caption": "-", "reasoning": "-", "conclusion": "yes no"}
        answer = render(parts, rendering, numbered(2))
        encoded = words.encode("what", "first", answer)
        ids = encoded.input_ids[encoded.body : -1]
        thinking = 0 if form == "omit" else 4
        tag = {"none": 0, "text": 2, "token": 2}[tags] * (1 if form == "omit" else 3)
        expected = {"thinking": thinking, "tag": tag, "conclusion": 2}
        assert _Tally(words, tags)(ids) == expected
        assert sum(expected.values()) == len(ids)
        assert "".join(words.decode(ids).split()) == "".join(answer.split())
        assert parsing.conclusion(words.decode(ids), tags) == "yes no"
        # An answer that the limit cut is closed by its tag alone.
        cut = _Tally(words, tags)(ids, ended=False)
        assert cut == {**expected, "conclusion": 0 if tags == "none" else 2}

    @pytest.mark.parametrize(
        ("pieces", "expected"),
        [
            # A tag of several tokens; "> i" and ">\n\n" reach beyond it.
            (["<", "SUM", "MARY", "> i", " see", " </", "SUMMARY", ">\n\n"], (7, 0)),
            (["<CON", "CLUSION>", " ", "B", " </", "CONCLUSION", ">"], (5, 2)),
            # Cut off within the conclusion, and before it.
            (["<CONCLUSION>", " 1", "2"], (1, 0)),
            (["<CONC"], (0, 0)),
            (["<CONCLUSION>", "</CONCLUSION>"], (2, 0)),
            # The first closed conclusion counts, as in `parsing.conclusion`.
            (["<CONCLUSION>", "A", "</CONCLUSION>", "<CONCLUSION>", "B"], (3, 1)),
            (["<CONCLUSION>", "A", "B", "</CONCLUSION>", "<CONCLUSION>", "</CONCLUSION>"], (4, 2)),
            ([], (0, 0)),
        ],
    )
    def test_several_tokens_a_tag(self, pieces, expected):
        tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(pieces[place] for place in ids))
        vocabulary = SimpleNamespace(tokenizer=tokenizer, thinking_ids={}, tag_ids={})
        counts = _Tally(vocabulary)(range(len(pieces)))
        assert (counts["tag"], counts["conclusion"]) == expected
