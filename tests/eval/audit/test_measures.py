"""Measures on planted models, where every effect is known, and passes against decoding."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

from eval.audit import items, measures, recording
from eval.audit import planted as planted_controls
from eval.audit.answers import behind_opening, continuation, first_slots, opening, without_slots
from eval.audit.passes import Passes
from heima.cot.rendering import constant_prefix
from heima.cot.sections import TAGS, numbered
from heima.data.encoding import Sample
from heima.families import registry
from heima.planning import audits
from heima.training.backbone import body
from heima.vlm import generation, patching
from tests import planted
from tests.eval.audit.asking import (
    GREEDY,
    apart_as_together,
    every_effect_is_nothing,
    let_it_speak,
    measured,
)


@pytest.fixture(scope="module", params=["toy-mllama", "toy-llava-next"])
def parts(request, toy_source, params):
    """An untrained model that looks at its image and ends its answers, and what feeds it."""
    model, processor, *others = planted.parts(request.param, params, toy_source)
    let_it_speak(model, processor.tokenizer)
    return model, processor, *others


def passes_of(parts, *, attention="open", tokens=1):
    prefix = constant_prefix("p3", numbered(tokens))
    return Passes(*parts[:4], prefix, world=planted_controls.world(parts[0], attention))


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_decoding_is_that_of_generation(parts, turns, tokens):
    """Which knows nothing of questions that were read before; without a prefix, too."""
    model, processor, vocabulary, collate, images = parts
    prefix = constant_prefix("p3", numbered(tokens)) if tokens else ""
    said = Passes(model, processor, vocabulary, collate, prefix).continuations(
        turns, decoding=GREEDY
    )
    prompts = [
        generation.Prompt(turn.question, turn.image, functools.partial(images.read, turn.image))
        for turn in turns
    ]
    answers = generation.generate(
        model, processor, vocabulary, prompts, decoding=GREEDY, seed=0, prefix=prefix
    )
    assert said == [one.text if one.finish == "stop" else None for one in answers]


@pytest.mark.parametrize("wanted", [[2], [0, 3], [1, 2, 3, 7, 9], []])
def test_some_of_the_turns_are_decoded_as_all_are(parts, turns, wanted):
    """About another image, too; with states that are put in place, what a pass with them says."""
    passes = passes_of(parts)
    mask = np.isin(np.arange(len(turns)), wanted)
    images = [turn.image for turn in turns[::-1]]
    given, _ = measures.states(passes, turns[::-1])
    for how in ({}, {"images": images}, {"states": given}):
        everyone = passes.continuations(turns, decoding=GREEDY, **how)
        some = passes.continuations(turns, decoding=GREEDY, of=mask, **how)
        assert some == [one if there else None for one, there in zip(everyone, mask, strict=True)]
        ended = np.array([one is not None for one in everyone])
        assert (
            passes.score(turns, [one or "" for one in everyone], of=ended, **how)
            .greedy[ended]
            .all()
        )


def test_what_is_decoded_within_a_world_is_greedy_there(parts, turns):
    passes = passes_of(parts, attention="bottleneck")
    said = passes.continuations(turns, decoding=GREEDY)
    ended = np.array([text is not None for text in said])
    texts = [text or "" for text in said]
    assert ended.sum() > 2
    assert passes.score(turns, texts, of=ended).greedy[ended].all()


def test_turns_that_are_not_asked_for_have_no_value(parts, turns):
    passes = passes_of(parts)
    texts = [continuation(turn.conclusion) for turn in turns]
    some = np.arange(len(turns)) % 3 == 1
    for images in (None, [turn.image for turn in turns[::-1]]):
        whole = passes.score(turns, texts, images=images)
        found = passes.score(turns, texts, images=images, of=some)
        np.testing.assert_allclose(found.nll[some], whole.nll[some], atol=1e-6)
        np.testing.assert_array_equal(found.greedy[some], whole.greedy[some])
        assert np.isnan(found.nll[~some]).all() and not found.greedy[~some].any()
    assert np.isnan(passes.score(turns, texts, of=~some & some).nll).all()


def test_a_pass_finds_greedy_what_decoding_writes_and_nothing_else(parts, turns):
    passes = passes_of(parts)
    said = passes.continuations(turns, decoding=GREEDY)
    ended = [turn for turn, text in zip(turns, said, strict=True) if text is not None]
    texts = [text for text in said if text is not None]
    assert len(ended) > 2
    assert passes.score(ended, texts).greedy.all()
    assert not passes.score(ended, [f"{text} red" for text in texts]).greedy.any()


@pytest.mark.parametrize("attention", ["blind", "bottleneck"])
def test_a_planted_control_decodes_within_its_closed_ways(parts, turns, attention):
    passes = passes_of(parts, attention=attention)
    said = passes.continuations(turns, decoding=GREEDY)
    ended = [turn for turn, text in zip(turns, said, strict=True) if text is not None]
    assert passes.score(ended, [text for text in said if text is not None]).greedy.all()


def test_the_nll_is_that_of_each_token_alone(parts, turns):
    """Against the model's own forward pass over one answer, token by token."""
    passes, (model, _, vocabulary, collate, _) = passes_of(parts), parts
    found = passes.score(turns[:3], [continuation("red")] * 3).nll
    for turn, nll in zip(turns[:3], found, strict=True):
        answer = vocabulary.encode(
            turn.question, "first", dataclasses.replace(turn, conclusion="red").written("p3")
        )
        inputs = collate([Sample(answer, turn.image)])
        del inputs["labels"]
        with torch.no_grad():
            logits = model.lm_head(body(model)(**inputs))[0].log_softmax(-1)
        ids = inputs["input_ids"][0].tolist()
        count = len(vocabulary._ids([continuation("red")])[0]) + 1
        alone = -sum(logits[at - 1, ids[at]].item() for at in range(len(ids) - count, len(ids)))
        assert nll == pytest.approx(alone, abs=1e-5)


def test_where_nothing_sees_the_thinking_tokens_every_effect_is_nothing(parts, turns):
    passes = passes_of(parts, attention="blind")
    _, found = measured(passes, turns)
    every_effect_is_nothing(found)


def test_where_nothing_else_is_seen_everything_passes_through_the_states(parts, turns):
    passes = passes_of(parts, attention="bottleneck")
    batch, found = measured(passes, turns)
    there = batch.lent_other
    gold = [continuation(turn.conclusion) for turn in turns]
    theirs = passes.score(batch.other, gold).nll
    np.testing.assert_allclose(found["other/nll"][there], theirs[there], atol=1e-5)
    np.testing.assert_allclose(
        found["mediation/nie"][there], found["mediation/te"][there], atol=1e-5
    )
    np.testing.assert_allclose(found["mediation/nde"][there], 0, atol=1e-5)
    assert (abs(found["mediation/te"][there]) > 1e-3).any()
    assert (found["closed/image/all/nll"] == 0).all()
    followed = found["other/followed"][np.isfinite(found["other/followed"])]
    assert len(followed) > 2
    assert followed.all()


def test_questions_do_not_depend_on_their_batch(parts, turns):
    passes = passes_of(parts)
    moments = measures.Moments.of([measures.states(passes, turns)[0]])
    apart_as_together(
        lambda batch: measures.of_batch(passes, batch, moments, decoding=GREEDY, windows=2), turns
    )


def test_several_thinking_tokens_of_a_section(parts, turns, monkeypatch):
    passes = passes_of(parts, tokens=2)
    counted, score = [], passes.score
    monkeypatch.setattr(passes, "score", lambda *a, **how: counted.append(1) or score(*a, **how))
    _, found = measured(passes, turns[:6])
    # One more is that of the moments.
    assert len(counted) == 1 + audits.audit_passes(6, 2)
    assert {"first/nll", "first-1/right", "first-5/changed"} <= found.keys()
    assert "first-6/right" not in found
    assert not np.array_equal(found["first/nll"], found["own/nll"])


def test_donors_are_of_the_kind_and_about_another_image(turns):
    for same in (True, False):
        for own, other in enumerate(items.partners(turns, same_gold=same, seed=1)):
            if other == items.NOBODY:
                assert not any(
                    turn.kind == turns[own].kind
                    and turn.image != turns[own].image
                    and (turn.conclusion == turns[own].conclusion) == same
                    for turn in turns
                )
                continue
            assert turns[other].kind == turns[own].kind
            assert turns[other].image != turns[own].image
            assert (turns[other].conclusion == turns[own].conclusion) == same


def test_every_layer_is_in_one_window():
    for layers in (1, 4, 5, 40):
        for windows in (1, 2, 3, 4):
            found = measures.layer_windows(layers, windows)
            inner = [layer for name, part in found.items() if part for layer in part]
            assert found["all"] is None
            assert inner == ([] if windows == 1 else list(range(layers)))


def test_the_model_has_layers_of_the_family(parts):
    model = parts[0]
    assert len(patching.stream(model)) == 1 + len(registry.of(model).language_model(model).layers)


def test_recorded_states_are_those_of_a_whole_pass(parts, turns):
    """Against the last hidden states of the answer, at the columns of its tokens."""
    passes, (model, _, vocabulary, collate, _) = passes_of(parts), parts
    found = recording.of_batch(passes, turns[:3])
    thinking = set(vocabulary.thinking_ids.values())
    tags = [f"{side}-{number}" for number in (1, 2, 3) for side in ("before", "thinking", "behind")]
    assert list(found) == ["prompt", *tags, "conclusion"]
    for row, turn in enumerate(turns[:3]):
        answer = vocabulary.encode(turn.question, "first", turn.written("p3"))
        ids = collate([Sample(answer, turn.image)])
        del ids["labels"]
        with torch.no_grad():
            hidden = body(model)(**ids)[0]
        tokens = ids["input_ids"][0].tolist()
        header = vocabulary.prompts_ids([turn.question], "first")[0]
        opening = vocabulary.text_ids(TAGS["conclusion"][0])
        prompt = len(tokens) - len(answer) + len(header) - 1
        wanted = {"prompt": prompt, "conclusion": _last_of(tokens, opening)}
        for number, at in enumerate((n for n, one in enumerate(tokens) if one in thinking), 1):
            wanted |= {f"before-{number}": at - 1, f"thinking-{number}": at}
            wanted[f"behind-{number}"] = at + 1
        for position, at in wanted.items():
            np.testing.assert_allclose(found[position][row], hidden[at], atol=1e-4)
    other = [turn.image for turn in turns[:3]][::-1]
    moved = recording.of_batch(passes, turns[:3], other)
    assert not np.allclose(moved["conclusion"], found["conclusion"], atol=1e-4)


def _last_of(tokens, part):
    """The column of the last token of the last occurrence of a part."""
    starts = [at for at in range(len(tokens)) if tokens[at : at + len(part)] == part]
    return starts[-1] + len(part) - 1


@pytest.mark.parametrize("wanted", [[2], [0, 3], [1, 2, 3], []])
def test_some_of_the_turns_score_as_all_do(parts, turns, wanted):
    """One alone, too; the others have no value."""
    passes = passes_of(parts)
    texts = [continuation(turn.conclusion) for turn in turns[:4]]
    mask = np.isin(np.arange(4), wanted)
    some, everyone = passes.score(turns[:4], texts, of=mask), passes.score(turns[:4], texts)
    np.testing.assert_allclose(some.nll[mask], everyone.nll[mask], atol=1e-5)
    assert np.isnan(some.nll[~mask]).all() and not some.greedy[~mask].any()


def test_a_conclusion_is_asked_for_behind_its_tag_where_parts_are_missing(parts, turns):
    """A model that would go on with the next section still has a conclusion: its tag is forced."""
    passes = passes_of(parts)
    gold = [continuation(turn.conclusion) for turn in turns]
    for name, prefix in (
        ("both", ""),
        ("slots", without_slots(passes.prefix)),
        ("first-1", first_slots(passes.prefix, 1)),
    ):
        whole = passes.score(turns, gold, prefix=prefix).nll
        tag = passes.score(turns, behind_opening(gold), prefix=prefix + opening("text")).nll
        assert (tag < whole).all(), name
