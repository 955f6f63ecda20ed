"""Audits of answers with words between the thinking tokens and the conclusion.

What is known of planted models holds through the words, too, and what is guessed instead of decoded
is what decoding writes.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
import torch

from eval.audit import answers, effects, measures, planted, words
from eval.audit.passes import Passes
from heima.config import Decoding
from heima.data.encoding import encode_turns
from heima.planning import audits
from heima.training.backbone import body
from heima.vlm import closed_ways
from tests import planted as models
from tests.eval.audit.asking import apart_as_together, batch_of, every_effect_is_nothing

DECODING = Decoding(temperature=0, top_k=50, max_new_tokens=20, batch_size=4)
PREFIX = "<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY>\n\n"


@pytest.fixture(scope="module")
def asked(turns):
    """Short answers, whose words say the conclusion."""
    return [
        dataclasses.replace(turn, caption=f"c1 {turn.conclusion}", reasoning="so") for turn in turns
    ]


STEPS = {"open": 30, "bottleneck": 60}


@pytest.fixture(scope="module")
def learnt(asked, toy_source, params):
    """Models that have learnt the answers by heart as phase 1 renders them, by the world that they
    have learnt in."""

    @functools.cache
    def made(attention):
        model, processor, vocabulary, collate, _ = models.parts("toy-mllama", params, toy_source)
        inputs = collate(encode_turns(asked, "p1", vocabulary))
        labels, ids = inputs.pop("labels")[:, 1:], inputs["input_ids"]
        where = {
            "thinking": torch.isin(ids, torch.tensor(list(vocabulary.thinking_ids.values()))),
            "image": ids == processor.image_token_id,
            "conclusion": (ids == vocabulary.text_ids("<CAPTION>")[0]).cumsum(dim=1) > 0,
        }
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(STEPS[attention]):
            with closed_ways.closed(model, attention, **where):
                hidden = body(model)(**inputs)[:, :-1]
            logits = model.lm_head(hidden[labels >= 0])
            torch.nn.functional.cross_entropy(logits, labels[labels >= 0]).backward()
            optimizer.step()
            optimizer.zero_grad()
        # Training leaves hooks in a model.
        read, *_ = models.parts("toy-mllama", params, toy_source)
        read.load_state_dict(model.state_dict())
        return read, processor, vocabulary, collate

    return made


def passes_of(parts, attention="open"):
    return Passes(*parts, PREFIX, world=planted.world(parts[0], attention))


def measured(passes, turns):
    moments = measures.Moments.of([measures.states(passes, turns)[0]])
    batch = batch_of(turns)
    return batch, words.of_batch(passes, batch, moments, decoding=DECODING, windows=2)


def test_where_nothing_sees_the_thinking_tokens_no_word_changes(learnt, asked):
    _, found = measured(passes_of(learnt("open"), "blind"), asked)
    assert found["own/written"].all() and found["own/right"].sum() > 4
    every_effect_is_nothing(found)
    for name in ("zero", "mean", "noise", "same", "other"):
        assert not np.nansum(found[f"{name}/changed"]), name


def test_where_nothing_else_is_seen_a_donors_states_say_its_words(learnt, asked):
    passes = passes_of(learnt("bottleneck"), "bottleneck")
    batch, found = measured(passes, asked)
    there = np.isfinite(found["other/followed"])
    assert there.sum() > 4 and found["other/followed"][there].all()
    assert not found["other/alike"][there].all(), "own words would do as well"
    assert found["other/changed"][there].any() and (found["other/right"] < found["own/right"]).any()
    # What is said is the donor's, and costs what it costs the donor.
    gold = [answers.continuation(turn.conclusion) for turn in asked]
    theirs = passes.continuations(batch.other, decoding=DECODING)
    led = [answers.split(text)[0] for text in theirs]
    nll = passes.score(batch.other, gold, words=led).nll
    np.testing.assert_allclose(found["other/nll"][there], nll[there], atol=1e-5)
    total = found["mediation/te"][batch.lent_other]
    assert (abs(total) > 1e-3).any()
    np.testing.assert_allclose(found["mediation/nie"][batch.lent_other], total, atol=1e-5)
    np.testing.assert_allclose(found["mediation/nde"][batch.lent_other], 0, atol=1e-5)
    assert (found["closed/image/all/nll"] == 0).all()


@pytest.mark.parametrize("world", ["open", "bottleneck"])
def test_what_is_guessed_is_what_decoding_writes(learnt, asked, world, monkeypatch):
    """And of a guess that is right nothing is decoded."""
    passes = passes_of(learnt(world), world)
    batch, found = measured(passes, asked)
    moments = measures.Moments.of([measures.states(passes, asked)[0]])
    decoded, scored = [], []
    continuations, score = passes.continuations, passes.score

    def counting(turns, *, of, **how):
        decoded.append(int(of.sum()))
        return continuations(turns, of=of, **how)

    monkeypatch.setattr(passes, "continuations", counting)
    monkeypatch.setattr(passes, "score", lambda *a, **how: scored.append(1) or score(*a, **how))
    words.of_batch(passes, batch, moments, decoding=DECODING, windows=2)
    assert len(decoded) + len(scored) == audits.audit_passes(3, 2, words=True)
    by_guess = sum(decoded)
    decoded.clear()
    written = words._Asked.written
    monkeypatch.setattr(
        words._Asked, "written", lambda self, of, guess=None, **how: written(self, of, **how)
    )
    naive = words.of_batch(passes, batch, moments, decoding=DECODING, windows=2)
    assert by_guess < sum(decoded)
    assert naive.keys() == found.keys()
    for name, values in naive.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_the_nll_is_that_of_the_conclusion_behind_the_words(learnt, asked):
    """As if the words stood in the prefix; with states put back that are the own ones, too."""
    passes = passes_of(learnt("open"))
    _, found = measured(passes, asked)
    texts = passes.continuations(asked, decoding=DECODING)
    gold = [answers.continuation(turn.conclusion) for turn in asked]
    led = [answers.split(text)[0] for text in texts]
    begun = [PREFIX + one for one in led]
    own, _ = measures.states(passes, asked)
    np.testing.assert_allclose(
        found["own/nll"], passes.score(asked, gold, prefix=begun).nll, atol=1e-6
    )
    back = passes.score(asked, gold, words=led, states=own)
    np.testing.assert_allclose(found["own/nll"], back.nll, atol=1e-6)
    assert passes.continuations(asked, decoding=DECODING, states=own) == texts


def test_an_answer_that_does_not_end_is_another_one_and_not_right(learnt, asked):
    """Here because the limit is met; its cost is not known, and no other's is."""
    passes = passes_of(learnt("open"))
    moments = measures.Moments.of([measures.states(passes, asked)[0]])
    short = DECODING.model_copy(update={"max_new_tokens": 4})
    found = words.of_batch(passes, batch_of(asked), moments, decoding=short, windows=2)
    assert not found["own/written"].any() and not found["own/right"].any()
    assert np.isnan(found["own/nll"]).all() and np.isnan(found["other/changed"]).all()
    assert np.isnan(found["mediation/te"]).all()


def test_questions_do_not_depend_on_their_batch(learnt, asked):
    passes = passes_of(learnt("bottleneck"), "bottleneck")
    moments = measures.Moments.of([measures.states(passes, asked)[0]])
    apart_as_together(
        lambda batch: words.of_batch(passes, batch, moments, decoding=DECODING, windows=2), asked
    )


def test_the_effects_of_such_an_audit_have_a_verdict(learnt, asked):
    """By the rule of all audits; no cell where nothing was left out."""
    passes = passes_of(learnt("bottleneck"), "bottleneck")
    _, found = measured(passes, asked)
    table = pd.DataFrame(
        {"turn": [turn.id for turn in asked], "image": [turn.image for turn in asked], **found}
    )
    audited = effects.audited({42: table, 43: table}, draws=200, seed=0)
    assert audited.cells["other"]["answers as the donor"].value == 100
    assert not any(name.startswith(("without", "first")) for name in audited.cells)
