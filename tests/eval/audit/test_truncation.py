"""Chains cut, made wrong and filled, and what passes over them must say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from eval.audit import truncation
from eval.audit.answers import continuation, opening
from eval.audit.passes import Passes
from heima.config import Decoding
from tests import planted

CHAIN = (
    "<SUMMARY> add the points . </SUMMARY>\n\n<CAPTION> a1 red-square </CAPTION>\n\n"
    "<REASONING> a1 one total one so 7 </REASONING>"
)


@pytest.fixture(scope="module")
def parts(toy_source, params):
    return planted.parts("toy-mllama", params, toy_source)


def test_a_cut_chain_is_a_beginning_with_so_many_tokens(parts):
    vocabulary = parts[2]
    whole = len(vocabulary.offsets(CHAIN))
    for fraction in truncation.FRACTIONS:
        kept = truncation.cut(CHAIN, fraction, vocabulary)
        assert CHAIN.startswith(kept)
        assert len(vocabulary.offsets(kept)) == round(whole * fraction)
    assert truncation.cut(CHAIN, 0, vocabulary) == ""
    assert truncation.cut(CHAIN, 1, vocabulary) == CHAIN


@pytest.mark.parametrize(
    ("chain", "closed"),
    [
        ("", ""),
        ("<SUMMARY> add", "<SUMMARY> add </SUMMARY>\n\n"),
        ("<SUMMARY> add </SUMMARY>", "<SUMMARY> add </SUMMARY>\n\n"),
        (
            "<SUMMARY> s </SUMMARY>\n\n<CAPTION> a",
            "<SUMMARY> s </SUMMARY>\n\n<CAPTION> a </CAPTION>\n\n",
        ),
    ],
)
def test_what_is_open_is_closed_before_the_conclusion(chain, closed):
    assert truncation._closed(chain) == closed


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        ("a1 one total one so 9", "<REASONING> a1 one total one so 9 </REASONING>"),
        ("a1 two total two so 7", "<REASONING> a1 one total two so 7 </REASONING>"),
        ("a1 one total one so 7", None),
        ("a1 one", None),
    ],
)
def test_one_word_of_the_reasoning_is_made_wrong(other, wrong):
    found = truncation.wrong_fact(CHAIN, other)
    if wrong is None:
        assert found is None
        return
    head = CHAIN[: CHAIN.index("<REASONING>")]
    assert found == head + wrong
    changed = [one != two for one, two in zip(CHAIN.split(), found.split(), strict=True)]
    assert sum(changed) == 1


def test_a_chain_without_reasoning_has_no_wrong_fact():
    assert truncation.wrong_fact("<SUMMARY> s </SUMMARY>", "a b") is None


def test_filler_has_as_many_tokens_and_no_word_of_the_sections(parts):
    vocabulary = parts[2]
    found = truncation.filled(CHAIN, vocabulary)
    assert len(vocabulary.offsets(found)) == len(vocabulary.offsets(CHAIN))
    inner = [word for word in found.split() if not word.startswith("<")]
    assert set(inner) == {truncation.FILLER}


def test_what_is_noted_is_what_passes_over_the_chains_say(parts, toy_turns, monkeypatch):
    """Against a pass a chain; where decoding writes the gold answers, one a chain short of its end,
    and one without any."""
    passes, vocabulary = Passes(*parts[:4], ""), parts[2]
    turns = [dataclasses.replace(turn, image_first=True) for turn in toy_turns[:4]]
    donors = turns[1:] + turns[:1]
    written = [turn.written("text-cot") for turn in turns]
    monkeypatch.setattr(
        passes, "continuations", lambda *_, **__: [*written[:2], None, turns[3].written("p3")[:9]]
    )
    # An untrained model never gives an answer greedily: what greedy decoding gives is told.
    asked = []
    score = passes.score

    def told(turns, texts, *, prefix, of):
        asked.append((list(prefix), list(texts), of.copy()))
        found = score(turns, texts, prefix=prefix, of=of)
        whole = np.array([one.startswith("<SUMMARY>") and "REASONING" in one for one in prefix])
        return dataclasses.replace(found, greedy=whole & of)

    monkeypatch.setattr(passes, "score", told)
    greedy = Decoding(temperature=0, top_k=1, max_new_tokens=40, batch_size=4)
    lent = np.array([True, False, True, True])
    found = pd.DataFrame(
        truncation.of_batch(passes, vocabulary, turns, donors, lent, decoding=greedy)
    )
    assert found["own/written"].tolist() == [1, 1, 0, 0]
    assert found["own/right"].tolist()[:2] == [1, 1] and found["own/right"].isna().sum() == 2
    assert found["kept-100/changed"].tolist()[:2] == [0, 0]
    assert found["kept-0/changed"].tolist()[:2] == [1, 1]
    assert np.isnan(found["wrong-fact/right"][1]) and found["filler/changed"][0] == 0
    for prefixes, texts, of in asked:
        assert not of[2:].any()
        for prefix, text, turn in zip(prefixes[:2], texts[:2], turns[:2], strict=True):
            assert opening("text") + text == continuation(turn.conclusion)
            assert prefix == opening("text") or prefix.endswith(f"\n\n{opening('text')}")
    area = truncation.aoc(found, truncation.PARTS_OF_TEXT)
    columns = [f"kept-{percent}/changed" for percent in (0, 25, 50, 75)]
    assert list(truncation.PARTS_OF_TEXT) == columns
    assert area[0] == np.mean([found[column][0] for column in columns])
