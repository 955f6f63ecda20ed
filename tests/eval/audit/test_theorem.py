"""Usable information: each entropy against a pass of its own, and differences of known tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from eval.audit import measures, theorem
from eval.audit.answers import continuation
from eval.audit.passes import Passes
from heima.cot.rendering import constant_prefix
from heima.cot.sections import numbered
from tests import planted


@pytest.fixture(scope="module")
def parts(toy_source, params):
    return planted.parts("toy-mllama", params, toy_source)


def test_each_format_is_scored_as_it_is_written(parts, toy_turns):
    """Chains of different lengths in one batch cost what each costs alone."""
    turns = [dataclasses.replace(turn, image_first=True) for turn in toy_turns[:4]]
    tokens = Passes(*parts[:4], constant_prefix("p3", numbered(1)))
    plain = Passes(*parts[:4], "")
    moments = measures.Moments.of([measures.states(tokens, turns)[0]])
    found = theorem.of_batch(theorem.Predictors(plain, tokens, plain), turns, moments)
    assert list(found) == list(theorem.ENTROPIES)
    for row, turn in enumerate(turns):
        gold = [continuation(turn.conclusion)]
        full, bare = turn.written("text-cot"), turn.written("answer-only")
        assert theorem.chain(turn) + gold[0] == full and gold[0] == bare
        for name, passes, prefix in (
            ("nothing", plain, ""),
            ("tokens/states", tokens, None),
            ("text", plain, theorem.chain(turn)),
        ):
            alone = passes.score([turn], gold, prefix=prefix).nll[0] / np.log(2)
            assert found[name][row] == pytest.approx(alone, abs=1e-4)
    mean = [part[None] for part in moments.mean]
    alone = tokens.score(turns[:1], [continuation(turns[0].conclusion)], states=mean)
    assert found["tokens/ids"][0] == pytest.approx(alone.nll[0] / np.log(2), abs=1e-4)


def test_a_mixture_is_asked_by_its_word_wherever_it_reads(parts, toy_turns):
    """What questions with the word behind them give: states, their moments, answers and costs."""
    turns = [dataclasses.replace(turn, image_first=True) for turn in toy_turns[:4]]
    prefix = constant_prefix("p3", numbered(1))
    words = {"nothing": "answer", "tokens": "thinking summary", "text": "explain"}

    def found(turns_of, asked):
        predictors = theorem.Predictors(
            **{
                part: Passes(
                    *parts[:4],
                    prefix if part == "tokens" else "",
                    word=word if asked else None,
                )
                for part, word in words.items()
            }
        )
        states = measures.states(predictors.tokens, turns_of["tokens"])[0]
        moments = measures.Moments.of([states])
        gold = [continuation(turn.conclusion) for turn in turns]
        prompt = predictors.nothing.prompt_states(turns_of["nothing"], [t.image for t in turns])
        costs = {part: getattr(predictors, part).score(turns_of[part], gold).nll for part in words}
        return predictors, moments, states, prompt, costs

    plain = dict.fromkeys(words, turns)
    written = {
        part: [dataclasses.replace(turn, question=f"{turn.question}\n{word}") for turn in turns]
        for part, word in words.items()
    }
    asking, moments, *by_word = found(plain, True)
    reading, others, *by_hand = found(written, False)
    *_, without = found(plain, False)
    for one, other in zip(by_word[0], by_hand[0], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(by_word[1], by_hand[1])
    for part in words:
        np.testing.assert_array_equal(by_word[2][part], by_hand[2][part])
        assert not np.allclose(by_word[2][part], without[part]), "the word changes what is read"
    for one, other in zip(moments.mean, others.mean, strict=True):
        assert torch.equal(one, other)
    costs = theorem.of_batch(asking, turns, moments)
    naive = theorem.of_batch(reading, written["tokens"], others)
    for name in ("tokens/ids", "tokens/states"):
        np.testing.assert_array_equal(costs[name], naive[name])


def table(seed, n=400):
    """A world in which states tell one bit of two, and text tells all."""
    rng = np.random.default_rng(seed)
    costs = {"nothing": 2.0, "tokens/ids": 2.0, "tokens/states": 1.0, "text": 0.0}
    shared = rng.normal(0, 0.5, n)
    return pd.DataFrame(
        {
            "turn": [f"t{number}" for number in range(n)],
            "image": [f"i{number // 2}" for number in range(n)],
            **{name: bits + shared + rng.normal(0, 0.1, n) for name, bits in costs.items()},
        }
    )


def test_information_is_the_difference_of_entropies_on_the_same_questions():
    tables = {seed: table(seed) for seed in (42, 43)}
    found = theorem.information(tables, draws=200, seed=1)
    wanted = {
        "thinking tokens, ids": 0.0,
        "thinking tokens, states": 1.0,
        "text chain": 2.0,
        "gap, ids": 2.0,
        "gap, states": 1.0,
    }
    for name, bits in wanted.items():
        cell = found["information"][name]
        assert cell.low - 0.02 <= bits <= cell.high + 0.02
        larger, smaller = theorem.INFORMATION[name]
        naive = np.mean([one[larger].mean() - one[smaller].mean() for one in tables.values()])
        assert cell.value == pytest.approx(naive)
        # What questions share does not widen a difference.
        entropy = found["entropy"][larger]
        assert cell.high - cell.low < entropy.high - entropy.low
    for kind in ("ids", "states"):
        text = found["information"]["text chain"].value
        tokens = found["information"][f"thinking tokens, {kind}"].value
        assert found["information"][f"gap, {kind}"].value == pytest.approx(text - tokens)


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match="training seed 43 was asked other questions"):
        theorem.information({42: table(42), 43: table(43, n=398)}, draws=50, seed=1)
