"""Turns of a mixture: shares kept, the same every time, asked with the word of their rendering."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from heima import config
from heima.config.profiles import written_out
from heima.cot.mixtures import asked, assigned
from heima.data.encoding import encode_turns, fit_turns
from heima.data.mixing import as_trained
from heima.families import registry
from heima.families.batches import Collator
from heima.training.backbone import body
from heima.training.batch_order import batches
from heima.training.loop import AnswerLoss
from heima.vlm.generation import Prompt, generate
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def mixed():
    """The profile with all methods; `adaptive` is trained on seven renderings."""
    return config.parse(written_out(ROOT / "profiles" / "toy-methods.yaml"))


def test_shares_are_kept_to_one_turn():
    draw = np.random.default_rng(4)
    for count in (1, 7, 100, 1001):
        for _ in range(20):
            parts = draw.dirichlet(np.ones(4))
            shares = {name: float(part) for name, part in zip("abcd", parts, strict=True)}
            found = assigned(shares, count, seed=3)
            counts = Counter(found)
            turned = dict(reversed(shares.items()))
            assert len(found) == count and found == assigned(turned, count, seed=3)
            assert all(abs(counts[name] - share * count) < 1 for name, share in shares.items())
    assert assigned({"a": 0.5, "b": 0.5}, 40, seed=1) != assigned({"a": 0.5, "b": 0.5}, 40, seed=2)


def test_each_turn_is_asked_with_its_word_and_answered_as_it_says(mixed, toy_turns, toy_vocabulary):
    turns, renderings = as_trained(toy_turns, mixed, "adaptive", toy_vocabulary, seed=42)
    words = {word: name for name, word in mixed.control_words.items()}
    seen = set()
    for before, turn, rendering in zip(toy_turns, turns, renderings, strict=True):
        question, _, word = turn.question.rpartition("\n")
        assert (question, turn.sections, turn.image) == (
            before.question,
            before.sections,
            before.image,
        )
        assert rendering == mixed.rendering("adaptive", words[word])
        seen.add(words[word])
    assert seen == set(mixed.checkpoints["adaptive"].data)
    same, plain = as_trained(toy_turns, mixed, "recover", toy_vocabulary, seed=42)
    assert same is toy_turns and set(plain) == {mixed.rendering("recover")}


def test_words_that_a_tokenizer_does_not_know_are_refused(mixed, toy_turns, toy_vocabulary):
    words = {**mixed.control_words, "p3": "unheard", "tokens-1": "unseen"}
    other = mixed.model_copy(update={"control_words": words})
    with pytest.raises(ValueError, match="are the same tokens to this tokenizer"):
        as_trained(toy_turns, other, "adaptive", toy_vocabulary, seed=42)


def test_rendering_each_turn_is_rendering_them_one_by_one(mixed, toy_turns, toy_vocabulary):
    turns, renderings = as_trained(toy_turns, mixed, "adaptive", toy_vocabulary, seed=42)
    fitted = fit_turns(turns, renderings, toy_vocabulary, max_length=512, too_long="refuse")
    alone = [
        encode_turns([turn], rendering, toy_vocabulary)[0]
        for turn, rendering in zip(turns, renderings, strict=True)
    ]
    assert fitted.samples == alone


def test_the_order_of_batches_is_the_same_every_time(mixed, toy_turns, toy_vocabulary):
    def order() -> list[list[int]]:
        turns, renderings = as_trained(toy_turns, mixed, "adaptive", toy_vocabulary, seed=43)
        samples = fit_turns(
            turns, renderings, toy_vocabulary, max_length=512, too_long="refuse"
        ).samples
        lengths, groups = [len(one) for one in samples], [one.image for one in samples]
        drawn = batches(lengths, groups, 8, seed=43, by_length=True)
        return [next(drawn) for _ in range(12)]

    assert order() == order()


@pytest.mark.parametrize("family", ["toy", "llava"])
def test_one_model_is_trained_on_and_asked_for_each(request, mixed, toy_source, toy_turns, family):
    """Both families: a loss over a batch of all renderings is that of its rows; words are read."""
    from heima.data.images import ImageZip

    vlm, processor, vocabulary = (
        request.getfixturevalue(f"{family}_{name}") for name in ("vlm", "processor", "vocabulary")
    )
    turns, renderings = as_trained(toy_turns[:16], mixed, "adaptive", vocabulary, seed=42)
    assert len(set(renderings)) > 4
    samples = fit_turns(turns, renderings, vocabulary, max_length=512, too_long="refuse").samples
    images = ImageZip(toy_source / "images.zip")
    collate = Collator(registry.of(vlm), processor, images)
    loss = AnswerLoss(vlm, mixed.hardware, body=body(vlm))
    # With gradients a body would leave hooks in a model that other tests share.
    with torch.no_grad():
        whole = loss.each_token(**collate(samples))
        for row, sample in enumerate(samples[:4]):
            [alone] = loss.each_token(**collate([sample]))
            assert whole[row].tolist() == pytest.approx(alone.tolist(), abs=1e-4)
    image = images.read(turns[0].image)
    decoding = config.Decoding(temperature=0, top_k=1, max_new_tokens=4, batch_size=2)
    prompts = [
        Prompt(asked(toy_turns[0].question, word), "image", lambda: image)
        for word in mixed.control_words.values()
    ]
    answers = generate(vlm, processor, vocabulary, prompts, decoding=decoding, seed=1)
    plain = vocabulary.prompt_ids(toy_turns[0].question, "first")
    lengths = [one.counts.prompt - len(plain) for one in answers]
    assert min(lengths) >= 1 and len(set(lengths)) > 1, "each word is read"
