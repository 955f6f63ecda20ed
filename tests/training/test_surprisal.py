"""Surprisals are what the whole softmax says of each token, one answer after the other."""

from __future__ import annotations

import pytest
import torch

from heima.cot.rendering import render
from heima.cot.sections import COMPRESSIBLE
from heima.cot.thinking import Thinking
from heima.data.encoding import Sample, encode_turns
from heima.data.images import ImageZip
from heima.families.batches import Collator
from heima.families.registry import FAMILIES
from heima.training.backbone import body
from heima.training.loop import AnswerLoss
from heima.training.surprisal import short_texts, surprisals


@pytest.fixture
def collate(toy_processor, toy_source):
    return Collator(FAMILIES["toy-mllama"], toy_processor, ImageZip(toy_source / "images.zip"))


@pytest.fixture
def reading(toy_vlm, params):
    return AnswerLoss(toy_vlm, params.hardware, body=body(toy_vlm))


@torch.no_grad()
def test_each_token_has_its_own_surprisal(reading, collate, toy_turns, toy_vocabulary):
    samples = encode_turns(toy_turns[:7], "text-cot", toy_vocabulary)
    found = surprisals(reading, samples, collate, batch_size=3)
    for sample, row in zip(samples, found, strict=True):
        batch = collate([sample])
        labels = batch.pop("labels")[0]
        chances = reading(**batch)[0].log_softmax(-1)
        expected = [
            -chances[place - 1, label].item() for place, label in enumerate(labels) if label >= 0
        ]
        assert row == pytest.approx(expected, abs=1e-4)
        assert len(row) == sample.labelled


def test_short_texts_keep_what_the_model_expects_least(reading, collate, toy_turns, toy_vocabulary):
    """By hand: the likeliest words of a section go first."""
    turns = toy_turns[:5]
    short = short_texts(reading, turns, toy_vocabulary, collate, Thinking(tokens=1), batch_size=2)
    for turn, texts in zip(turns, short, strict=True):
        answer = render(turn.sections, "text-cot")
        encoded = toy_vocabulary.encode(turn.question, "first", answer)
        [nats] = surprisals(reading, [Sample(encoded, turn.image)], collate, batch_size=1)
        tokens = toy_vocabulary.offsets(answer)
        said = dict(zip(tokens, nats[-1 - len(tokens) : -1], strict=True))
        for section in COMPRESSIBLE:
            start = answer.index(f"<{section.upper()}> ") + len(section) + 3
            inside = {
                answer[a:b]: said[a, b]
                for a, b in tokens
                if start <= a and b <= start + len(turn.sections[section])
            }
            assert texts[section] and texts[section].split(" ")[0] in answer
            # One token at most, or one word of several: none that follows without a blank.
            if max(inside, key=inside.get) in turn.sections[section].split():
                assert texts[section] in inside
