"""Audits of answers that are not heima's: other tags, fillers, states fed back.

What is known of planted models holds for each of them, and passes are those of training and of
decoding.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from eval.audit import answers, measures, recording
from eval.audit import planted as planted_controls
from eval.audit.passes import Passes
from heima.cot.rendering import Rendering, constant_prefix
from heima.cot.sections import COMPRESSIBLE, numbered, with_controls
from heima.cot.thinking import Thinking
from heima.data.encoding import encode_turns
from heima.data.tokens import IGNORED, Vocabulary
from heima.families.batches import Collator
from heima.families.feeding import Feed
from heima.families.registry import FAMILIES
from heima.planning import audits
from heima.training.backbone import body
from heima.vlm import generation
from tests import planted
from tests.eval.audit.asking import (
    GREEDY,
    batch_of,
    every_effect_is_nothing,
    let_it_speak,
    measured,
)


def rendering(form, tags):
    return Rendering(**dict.fromkeys(COMPRESSIBLE, form), tags=tags)


LAYOUTS = {
    "tag-tokens": (rendering("token", "token"), None),
    "filler": (rendering("filler", "text"), None),
    "bare": (rendering("token", "none"), None),
    "state": (rendering("token", "text"), "none"),
    "coconut": (rendering("token", "none"), "match"),
}


@pytest.fixture(scope="module")
def both(toy_source, params):
    """Untrained models that look at their image and end their answers, and what feeds them."""

    @functools.cache
    def made(name):
        model, processor, _, collate, images = planted.parts(name, params, toy_source)
        let_it_speak(model, processor.tokenizer)
        words = Vocabulary(processor.tokenizer, with_controls(FAMILIES[name].thinking_tokens))
        return model, processor, words, collate, images

    return made


CASES = [*(("toy-mllama", layout) for layout in LAYOUTS), ("toy-llava-next", "coconut")]
EVERY = pytest.mark.parametrize("case", CASES, ids="-".join)


@pytest.fixture
def case():
    """A family and a layout."""
    return CASES[0]


@pytest.fixture
def parts(both, case):
    return both(case[0])


@pytest.fixture
def layout(case):
    return case[1]


def feed_of(parts, layout):
    scale = LAYOUTS[layout][1]
    return scale and Feed(frozenset(parts[2].thinking_ids.values()), scale)


def prefix_of(layout, tokens=1):
    return constant_prefix(LAYOUTS[layout][0], numbered(tokens))


def passes_of(parts, layout, *, attention="open", tokens=1):
    return Passes(
        *parts[:4],
        prefix_of(layout, tokens),
        tags=LAYOUTS[layout][0].tags,
        feed=feed_of(parts, layout),
        world=planted_controls.world(parts[0], attention),
    )


def gold_of(passes, turns):
    return [answers.continuation(turn.conclusion, passes.tags) for turn in turns]


@EVERY
@pytest.mark.parametrize("tokens", [1, 2])
def test_the_nll_is_that_of_training(parts, layout, turns, tokens):
    """Of the tokens behind the prefix, in one pass of the body that a checkpoint trains with."""
    model, processor, words, _, images = parts
    feed, form = feed_of(parts, layout), LAYOUTS[layout][0]
    collate = Collator(
        FAMILIES[params_family(parts)], processor, images, thoughts=feed.ids if feed else None
    )
    samples = encode_turns(turns[:4], form, words, thinking=Thinking(tokens=tokens))
    inputs = collate(samples)
    labels = inputs.pop("labels")
    with torch.no_grad():
        logits = model.lm_head(body(model, feed=feed)(**inputs)).log_softmax(-1)
    passes = passes_of(parts, layout, tokens=tokens)
    found = passes.score(turns[:4], gold_of(passes, turns[:4])).nll
    for row, turn in enumerate(turns[:4]):
        gold = answers.continuation(turn.conclusion, form.tags)
        real = [at for at in range(labels.shape[1]) if labels[row, at] != IGNORED]
        # The end of the turn is the last label, but for what a template puts behind it.
        count = len(words.text_ids(gold)) + 1
        alone = 0.0
        for at in real[-count:]:
            before = max(one for one in range(at) if inputs["attention_mask"][row, one])
            alone -= logits[row, before, labels[row, at]].item()
        assert found[row] == pytest.approx(alone, abs=1e-5)


def params_family(parts):
    return "toy-mllama" if parts[0].config.model_type == "mllama" else "toy-llava-next"


@EVERY
def test_decoding_is_that_of_generation(parts, layout, turns):
    model, processor, words, _, images = parts
    passes = passes_of(parts, layout)
    said = passes.continuations(turns, decoding=GREEDY)
    prompts = [
        generation.Prompt(turn.question, turn.image, functools.partial(images.read, turn.image))
        for turn in turns
    ]
    found = generation.generate(
        model,
        processor,
        words,
        prompts,
        decoding=GREEDY,
        seed=0,
        prefix=passes.prefix,
        tags=passes.tags,
        feed=passes.feed,
    )
    assert said == [one.text if one.finish == "stop" else None for one in found]
    ended = np.array([text is not None for text in said])
    assert ended.sum() > 2
    assert passes.score(turns, [text or "" for text in said], of=ended).greedy[ended].all()


@EVERY
@pytest.mark.parametrize("tokens", [1, 2])
def test_ones_own_states_put_back_are_the_pass_itself(parts, layout, turns, tokens):
    """So that a replaced thinking token need not be fed."""
    passes = passes_of(parts, layout, tokens=tokens)
    own, scores = measures.states(passes, turns)
    back = passes.score(turns, gold_of(passes, turns), states=own, recorded=True)
    np.testing.assert_allclose(back.nll, scores.nll, rtol=0, atol=1e-5)
    for before, after in zip(own, back.states, strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-9)
    count = len(answers.thinking_tokens(passes.prefix)) - (passes.tags == "none")
    assert {part.shape[1] for part in own} == {count}
    # And another's are not.
    other = passes.score(turns, gold_of(passes, turns), states=[part.flip(0) for part in own])
    assert (abs(other.nll - scores.nll) > 1e-3).any()


@pytest.mark.parametrize("case", [one for one in CASES if one[1] != "coconut"], ids="-".join)
def test_where_nothing_sees_the_thinking_tokens_every_effect_is_nothing(parts, layout, turns):
    """Not of coconut: what opens its conclusion is fed a thinking token's state, seen or not."""
    _, found = measured(passes_of(parts, layout, attention="blind"), turns, windows=1)
    every_effect_is_nothing(found)


@EVERY
def test_where_nothing_else_is_seen_everything_passes_through_the_states(parts, layout, turns):
    passes = passes_of(parts, layout, attention="bottleneck")
    batch, found = measured(passes, turns, windows=1)
    there = batch.lent_other
    theirs = passes.score(batch.other, gold_of(passes, turns)).nll
    np.testing.assert_allclose(found["other/nll"][there], theirs[there], atol=1e-5)
    np.testing.assert_allclose(
        found["mediation/nie"][there], found["mediation/te"][there], atol=1e-5
    )
    np.testing.assert_allclose(found["mediation/nde"][there], 0, atol=1e-5)
    assert (abs(found["mediation/te"][there]) > 1e-3).any()
    assert (found["closed/image/all/nll"] == 0).all()
    # Of the few answers that end here.
    assert found["other/followed"][np.isfinite(found["other/followed"])].all()


@EVERY
def test_open_a_donor_does_something_and_not_all(parts, layout, turns):
    """Without tags, too, where the last thinking token's state would be the donor's answer."""
    passes = passes_of(parts, layout)
    batch = batch_of(turns)
    gold, donors = gold_of(passes, turns), measures.states(passes, batch.other)[0]
    own, given = passes.score(turns, gold).nll, passes.score(turns, gold, states=donors).nll
    theirs = passes.score(batch.other, gold).nll
    assert (abs(given - own)[batch.lent_other] > 1e-4).all()
    assert (abs(given - theirs)[batch.lent_other] > 1e-4).all()


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[4]], ids="-".join)
def test_parts_that_a_layout_has(parts, layout, turns, monkeypatch):
    passes = passes_of(parts, layout, tokens=2)
    counted, score = [], passes.score
    monkeypatch.setattr(passes, "score", lambda *a, **how: counted.append(1) or score(*a, **how))
    _, found = measured(passes, turns[:6])
    # One more is that of the moments; without tags, two parts are not there.
    planned = audits.audit_passes(6, 2, fed=passes.feed is not None)
    assert len(counted) == 1 + planned - (2 if passes.tags == "none" else 0)
    assert {"first/nll", "first-1/right", "first-5/changed", "without/slots/right"} <= found.keys()
    assert ("without/both/right" in found) == (passes.tags != "none")
    assert not np.array_equal(found["first/nll"], found["own/nll"])


def test_states_that_do_not_fit_are_refused(parts, turns):
    passes = passes_of(parts, "bare")
    own, _ = measures.states(passes, turns)
    more = [torch.cat([part, part[:, :1]], dim=1) for part in own]
    with pytest.raises(ValueError, match=r"have 2 thinking tokens .* not 3"):
        passes.score(turns, gold_of(passes, turns), states=more)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], ("toy-llava-next", "filler")], ids="-".join)
def test_states_are_described_beside_those_of_tags(parts, layout, turns):
    """The same thinking columns as those whose states are replaced, after the final norm."""
    passes = passes_of(parts, layout)
    found = recording.of_batch(passes, turns[:3])
    own, _ = measures.states(passes, turns[:3])
    text = FAMILIES[params_family(parts)].language_model(parts[0])
    with torch.no_grad():
        normed = text.norm(own[-1]).float().numpy()
    for number in (1, 2, 3):
        np.testing.assert_allclose(found[f"thinking-{number}"], normed[:, number - 1], atol=1e-5)
    assert found.keys() >= {"prompt", "before-1", "behind-3", "conclusion"}


@pytest.mark.parametrize("tags", ["text", "token", "none"])
@pytest.mark.parametrize("form", ["token", "filler"])
def test_a_beginning_in_parts_is_that_of_an_answer(form, tags):
    """All but the conclusion of an answer is its prefix; what opens it stands before the rest."""
    wanted = rendering(form, tags)
    for tokens in (1, 2):
        prefix = constant_prefix(wanted, numbered(tokens))
        slots = answers.thinking_tokens(prefix)
        assert len(slots) == 3 * tokens
        assert answers.first_slots(prefix, len(slots), tags) == prefix
        assert answers.thinking_tokens(answers.first_slots(prefix, 2, tags)) == slots[:2]
        assert answers.thinking_tokens(answers.without_slots(prefix)) == ()
        whole = answers.continuation("a red B", tags)
        [behind] = answers.behind_opening([whole], tags)
        assert answers.opening(tags) + behind == whole
        assert answers.behind_opening([behind], tags) == [behind]


def test_a_word_level_decoder_writes_blanks_around_tags_that_are_tokens():
    """What it decoded is taken apart as what was rendered."""
    opening, closing = "<OPENING_OF_CONCLUSION>", "<CLOSING_OF_CONCLUSION>"
    decoded = answers.meant(f"{opening} B {closing}")
    assert answers.behind_opening([decoded], "token")[0].parts == (" B ", closing, "")


def test_a_thinking_token_behind_the_conclusion_is_still_one():
    whole = answers.meant("<CONCLUSION> B </CONCLUSION> <THINKING_OF_CAPTION>")
    [behind] = answers.behind_opening([whole])
    assert behind.parts == (" B </CONCLUSION> ", "<THINKING_OF_CAPTION>", "")


def test_a_thinking_token_that_the_model_writes_itself_is_fed_as_in_decoding(parts, turns):
    """In some rows and not in others."""
    passes = passes_of(parts, "state")
    token = "<THINKING_OF_CAPTION>"
    texts = [answers.meant(f"red {token} two" if row % 2 else "red red two") for row in range(4)]
    together = passes.score(turns[:4], texts).nll
    alone = [
        passes.score([turn], [text]).nll[0] for turn, text in zip(turns[:4], texts, strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-8)
    plain = Passes(*parts[:4], passes.prefix).score(turns[:4], texts).nll
    assert (abs(plain - together) > 1e-6).all()
