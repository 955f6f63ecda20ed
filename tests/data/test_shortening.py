"""Short texts: the words that say most, no more tokens than thinking tokens would be."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heima.cot.rendering import Rendering, render, text_spans
from heima.cot.sections import COMPRESSIBLE
from heima.cot.thinking import Thinking
from heima.data.encoding import fit_turns, thinking_count
from heima.data.shortening import Word, kept, shorten, words

CANDIDATES = st.lists(st.tuples(st.integers(1, 4), st.floats(0, 9)), min_size=1, max_size=9).map(
    lambda rows: [Word(3 * i, 3 * i + 2, *row) for i, row in enumerate(rows)]
)


@given(CANDIDATES, st.integers(1, 12))
def test_the_words_that_say_most_fill_the_budget(candidates, budget):
    chosen = kept(candidates, budget)
    assert chosen == sorted(chosen) and set(chosen) <= set(candidates)
    used = sum(word.tokens for word in chosen)
    assert used <= budget or len(chosen) == 1
    density = {word: word.nats / word.tokens for word in candidates}
    assert max(density.values()) in {density[word] for word in chosen}
    # Whatever was left out for less than another one did not fit when its turn came.
    for word in set(candidates) - set(chosen):
        better = [one for one in chosen if density[one] >= density[word]]
        assert sum(one.tokens for one in better) + word.tokens > budget


def test_of_one_length_they_are_the_best_of_all_choices():
    draw = random.Random(1)
    candidates = [Word(2 * i, 2 * i + 1, 1, draw.random()) for i in range(8)]
    for budget in range(1, 9):
        best = max(
            itertools.combinations(candidates, budget),
            key=lambda those: sum(word.nats for word in those),
        )
        assert kept(candidates, budget) == list(best)


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("ab cd", ["ab", " ", "cd"], ["ab", "cd"]),
        ("ab cd", ["ab", " cd"], ["ab", "cd"]),
        ("abc, d", ["ab", "c", ",", " d"], ["abc,", "d"]),
        ("a b c", ["a b", " c"], ["a b", "c"]),
        ("a\n\nb", ["a", "\n\n", "b"], ["a", "b"]),
        ("a\n\nb", ["a\n", "\nb"], ["a", "b"]),
    ],
)
def test_tokens_make_words(text, pieces, expected):
    ends = list(itertools.accumulate(map(len, pieces)))
    offsets = list(zip([0, *ends], ends, strict=False))
    found = words(text, offsets, [1.0] * len(pieces), within=(0, len(text)))
    assert [text[word.start : word.end] for word in found] == expected
    # White space alone belongs to no word; all else is counted once.
    assert sum(word.tokens for word in found) == sum(bool(piece.strip()) for piece in pieces)


@pytest.mark.parametrize("thinking", [Thinking(tokens=1), Thinking(tokens=4), Thinking(ratio=0.5)])
def test_short_sections_have_no_more_tokens(toy_vocabulary, toy_turns, thinking):
    draw = random.Random(3)
    for turn in toy_turns:
        answer = render(turn.sections, "text-cot")
        nats = [draw.random() for _ in toy_vocabulary.offsets(answer)]
        short = shorten(turn.sections, nats, toy_vocabulary, thinking)
        for section in COMPRESSIBLE:
            whole = turn.sections[section]
            budget = thinking_count(thinking, toy_vocabulary.length(whole))
            assert 1 <= toy_vocabulary.length(short[section]) <= budget
            order = iter(whole.split())
            assert all(word in order for word in short[section].split())
        [sample] = fit_turns(
            [turn],
            Rendering(summary="omit", caption="short", reasoning="token"),
            toy_vocabulary,
            max_length=None,
            too_long="refuse",
            short=[short],
        ).samples
        answer = toy_vocabulary.decode(sample.encoded.input_ids[sample.encoded.body :])
        inner = answer.partition("<CAPTION>")[2].partition("</CAPTION>")[0]
        assert inner.split() == short["caption"].split()


def test_the_most_surprising_word_is_kept(toy_vocabulary, toy_turns):
    turn = toy_turns[0]
    answer = render(turn.sections, "text-cot")
    offsets = toy_vocabulary.offsets(answer)
    start, end = text_spans(turn.sections)["caption"]
    inside = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= end]
    for place in inside:
        nats = [float(i == place) for i in range(len(offsets))]
        short = shorten(turn.sections, nats, toy_vocabulary, Thinking(tokens=1))
        assert answer[slice(*offsets[place])].strip() in short["caption"]


def test_surprisals_of_another_text_are_refused(toy_vocabulary, toy_turns):
    with pytest.raises(ValueError, match="there are 3 surprisals of"):
        shorten(toy_turns[0].sections, [1, 2, 3], toy_vocabulary, Thinking(tokens=1))


def test_a_text_that_names_a_special_token_has_offsets_of_its_own(toy_vocabulary):
    text = "see <|eot_id|> here"
    offsets = toy_vocabulary.offsets(text)
    assert len(offsets) == toy_vocabulary.length(text)
    assert next(text[a:b] for a, b in offsets) == "see"
