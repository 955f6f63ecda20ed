"""What the official script keeps of odd answers, and that its text is kept."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from heima.cot.sections import COMPRESSIBLE, TAGS, thinking_token
from heima.data import official
from heima.data.arrangements import officially
from heima.data.official import TokenizerMerges
from heima.data.turns import Turn

PARTS = ("sum “up” 🚗", "red car 图像 4", "them naïve $x^2$ so", "a 7 B) next")


def answer(left=" ", right=" ", separator="\n\n", order=(0, 1, 2, 3), parts=PARTS, after="") -> str:
    tags = list(TAGS.values())
    blocks = [f"{tags[n][0]}{left}{parts[n]}{right}{tags[n][1]}" for n in order]
    return separator.join(blocks) + after


KEPT = {
    "plain": answer(),
    "text after the conclusion": answer(after="\n\nHope this helps."),
    "much after it": answer(after=" x <b>y</b>\n" * 3),
    "letters before the first tag": "Well" + answer(),
    "line breaks before it": "\n\n" + answer(),
    "two blanks": answer("  ", "  "),
    "three blanks and a tab": answer("   ", "\t"),
    "a line break before the closing tag": answer(" ", "\n"),
    "no blanks": answer("", ""),
    "no blank behind the opening tag": answer("", " "),
    "no blank before the closing tag": answer(" ", "", parts=("sum", "car", "so", "7")),
    "no conclusion": answer(order=(0, 1, 2)) + "\n\n",
    **{
        f"order {order}": answer(order=order, after="\n\n")
        for order in itertools.permutations(range(4))
    },
}
DROPPED = {
    "a blank before the first tag": " " + answer(),
    "a sign before it": "*" + answer(),
    "one line break between": answer(separator="\n"),
    "three line breaks between": answer(separator="\n\n\n"),
    "a blank line with a blank": answer(separator="\n \n"),
    "nothing between": answer(separator=""),
    "a line break behind the opening tag": answer("\n"),
    "a joined word": answer("", parts=("The sum", *PARTS[1:])),
    "a joined sign": answer("", parts=("= 4", *PARTS[1:])),
    "a full stop at the closing tag": answer(" ", "", parts=("a.", *PARTS[1:])),
    "reasoning last": answer(order=(0, 1, 3, 2)),
    "an empty section": answer(parts=("", *PARTS[1:])),
    "no caption": answer(order=(0, 2, 3)),
    "a text that occurs twice": answer(parts=("red car 图像 4", *PARTS[1:])),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_is_kept_word_for_word(name):
    text = KEPT[name]
    outcome, _ = officially(text)
    assert outcome.sections is not None, outcome.fault
    turn = Turn("r", "a.png", "", **outcome.sections, image_first=True, answer=text)
    assert turn.written("text-cot") == text
    for count, phase in enumerate(official.PHASES, 1):
        expected = text
        for place, section in enumerate(COMPRESSIBLE[:count]):
            assert outcome.sections[section] in PARTS[place]
            expected = expected.replace(outcome.sections[section], thinking_token(section))
        assert turn.written(phase) == expected
    assert (
        turn.written("answer-only")
        == f"<CONCLUSION> {outcome.sections['conclusion']} </CONCLUSION>"
    )


@pytest.mark.parametrize("name", DROPPED)
def test_what_is_dropped(name):
    outcome, _ = officially(DROPPED[name])
    assert outcome.sections is None and outcome.fault


def test_merges_are_asked_of_a_tokenizer(tmp_path):
    """A vocabulary that joins `>` with `T` and a full stop with `</`, and nothing else there."""
    alphabet = sorted(ByteLevel.alphabet())
    pairs = [("<", "/"), ("Ċ", "Ċ"), (">", "ĊĊ"), ("M", "M"), ("A", "R"), ("S", "U"), ("SU", "MM"),
             ("AR", "Y"), (">", "T"), (".", "</"), ("A", "S"), ("AS", "O"), ("I", "N"), ("IN", "G"),
             ("R", "E")]  # fmt: skip
    words = [*alphabet, *map("".join, pairs)]
    merges = [*pairs]
    tokenizer = Tokenizer(BPE({word: n for n, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken("<|eot_id|>", special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = official.TokenizerMerges.of(tokenizer)
    assert found.opens("add") and not found.opens("Tea") and found.opens("=")
    assert found.closes("!") and not found.closes(".") and found.closes("=")
    with pytest.raises(ValueError, match=r"rewrite.llama_tokenizer = .* is not Llama 3's"):
        TokenizerMerges(tmp_path)
    with pytest.raises(
        ValueError, match=r"rewrite.llama_tokenizer = .*nowhere.* must be Llama 3's"
    ):
        TokenizerMerges(tmp_path / "nowhere")
