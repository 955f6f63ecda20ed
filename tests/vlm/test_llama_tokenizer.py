"""The released format under the real Llama 3 tokenizer, which Meta's package `llama-models` ships.

The package is no requirement: it brings a top-level module named `models`, and the tokenizer has
Meta's licence. Without it these tests are skipped; the reason says how to install it.
"""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from heima.cot import parsing
from heima.cot.rendering import Rendering, constant_prefix, render
from heima.cot.sections import SECTIONS, TAGS, numbered, with_controls
from heima.data import official
from heima.data.official import TokenizerMerges
from heima.data.tokens import Vocabulary
from heima.toy.mllama import CHAT_TEMPLATE
from heima.vlm.generation import _Tally
from heima.vlm.models import vocabulary as family_vocabulary
from timings.rehearsal.tokenizers import INSTALL, LLAMA_NAMED


@pytest.fixture(scope="module")
def vocabulary(params):
    if find_spec("llama_models") is None or find_spec("tiktoken") is None:
        pytest.skip(f"the Llama 3 tokenizer is not installed; to run this: {INSTALL}")
    package = Path(find_spec("llama_models").submodule_search_locations[0])
    numbers = iter(range(256))
    special = [
        LLAMA_NAMED.get(i) or f"<|reserved_special_token_{next(numbers)}|>" for i in range(256)
    ]
    converter = TikTokenConverter(
        str(package / "llama3" / "tokenizer.model"), extra_special_tokens=special
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        bos_token=LLAMA_NAMED[0],
        eos_token=LLAMA_NAMED[9],
        pad_token=LLAMA_NAMED[4],
        clean_up_tokenization_spaces=False,
    )
    assert len(tokenizer) == 128256
    tokenizer.chat_template = CHAT_TEMPLATE
    return family_vocabulary(tokenizer, params.model_copy(update={"family": "llava-cot-11b"}))


def test_thinking_tokens_stand_on_the_papers_ids(vocabulary):
    ids = vocabulary.prompt_ids("q", "first", constant_prefix("p3"))
    assert [i for i in ids if i > 128009] == [128013, 128014, 128015]


def test_the_constant_prefix_has_32_tokens(vocabulary):
    """10 + 10 + 12: the word REASONING is three tokens, and takes that many twice."""
    prefix = constant_prefix("p3")
    assert prefix.startswith("<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY>\n\n<CAPTION> ")
    blocks = [block + "\n\n" for block in prefix.removesuffix("\n\n").split("\n\n")]
    sizes = [
        len(vocabulary.prompt_ids("q", "first", block)) - len(vocabulary.prompt_ids("q", "first"))
        for block in blocks
    ]
    assert sizes == [10, 10, 12]
    whole = vocabulary.prompt_ids("q", "first", prefix)
    assert len(whole) - len(vocabulary.prompt_ids("q", "first")) == 32


@pytest.mark.parametrize("count", [2, 8, 32])
def test_a_numbered_thinking_token_costs_one_token(vocabulary, count):
    """They follow each other without anything between, each on its own reserved id."""
    prefix = constant_prefix("p3", numbered(count))
    bare = vocabulary.prompt_ids("q", "first")
    ids = vocabulary.prompt_ids("q", "first", prefix)[len(bare) :]
    assert len(ids) == 32 + 3 * (count - 1)
    first = [128016 + 32 * place for place in range(3)]
    assert [i for i in ids if i > 128009] == [i + k for i in first for k in range(count)]
    assert vocabulary.decode(ids) == prefix.strip()


def test_the_answer_b_costs_42_decoded_tokens(vocabulary):
    answer = render({**dict.fromkeys(SECTIONS, "left out"), "conclusion": "B"}, "p3")
    encoded = vocabulary.encode("q", "first", answer)
    decoded = encoded.input_ids[encoded.body :]
    assert len(decoded) == 42
    assert vocabulary.decode(decoded) == answer
    # What a model is forced to begin with is how it was trained to begin.
    forced = vocabulary.prompt_ids("q", "first", constant_prefix("p3"))
    assert encoded.input_ids[: len(forced)] == forced


@pytest.mark.parametrize(("tags", "tokens"), [("text", 42), ("token", 13), ("none", 5)])
@pytest.mark.parametrize("form", ["token", "filler"])
def test_a_layout_of_tags_has_its_number_of_decoded_tokens(vocabulary, tags, tokens, form):
    """The paper prints 13, which tags of a token each give."""
    rendering = Rendering(summary=form, caption=form, reasoning=form, tags=tags)
    words = Vocabulary(vocabulary.tokenizer, with_controls(vocabulary.reserved))
    answer = render({**dict.fromkeys(SECTIONS, "left out"), "conclusion": "B"}, rendering)
    encoded = words.encode("q", "first", answer)
    decoded = encoded.input_ids[encoded.body :]
    assert len(decoded) == tokens and words.decode(decoded) == answer
    assert parsing.conclusion(words.decode(decoded), tags) == "B"
    forced = words.prompt_ids("q", "first", constant_prefix(rendering))
    assert encoded.input_ids[: len(forced)] == forced
    counts = _Tally(words, tags)(decoded[:-1])
    # The blank of " B </" is a part of the letter's token.
    assert counts["thinking"] == 3 and counts["conclusion"] == 1
    assert (counts["tag"] == 0) == (tags == "none")


def test_text_is_text(vocabulary):
    """Special tokens in texts are text, whose ids decode to it; other ids are what they were."""
    tokenizer = vocabulary.tokenizer
    for text in ("What <|image|> is <|eot_id|>?", "<|reserved_special_token_5|>", "a</s> <|x|>"):
        ids = vocabulary.encode(text, "none", text)
        assert max(ids.input_ids[ids.body : -1]) < 128000
        assert tokenizer.decode(ids.input_ids[ids.body : -1]) == text
        assert sum(token >= 128000 for token in ids.input_ids) == sum(
            token >= 128000 for token in vocabulary.encode("q", "none", "a").input_ids
        )
    for text in ("It's 12.5 % of\n\n 图像 🚗\t x", vocabulary.prompt(" Why?\n", "first")):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert vocabulary._special.ids(("", text, "")) == expected


# Of the official script: an opening tag, and what ends a closing one, in ids of Llama 3.
OPENING = {
    "summary": (19389, 2864, 49970, 29),
    "caption": (20996, 2599, 60459, 29),
    "reasoning": (27, 793, 36404, 1753, 29),
}
CLOSING = {
    "summary": (28477, 49970, 1363),
    "caption": (32500, 60459, 1363),
    "reasoning": (793, 36404, 1753, 1363),
}
BEFORE_IT = (524, 694)  # `</`, and the same with a blank


def has_tags(ids: list[int]) -> bool:
    def found(wanted: tuple[int, ...], start: int) -> int:
        places = (n for n in range(start, len(ids)) if tuple(ids[n : n + len(wanted)]) == wanted)
        return next(places, -1)

    for section, opening in OPENING.items():
        start = found(opening, 0)
        if start < 0:
            return False
        start += len(opening)
        if all(found((one, *CLOSING[section]), start) < 0 for one in BEFORE_IT):
            return False
    return True


def test_filter_b_is_the_official_one(vocabulary, tmp_path):
    """Exactly so with the tokenizer's merges, and without them wherever none are asked for."""
    vocabulary.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    merges = TokenizerMerges(tmp_path)
    draw = random.Random(5)
    words = (
        "the The a red. 4 = “up” <b>x</b> (it's) 图像 🚗 \u00a0 \n \r\n ½ ** </CAPTION> <SUMMARY>"
    )

    def text() -> str:
        return draw.choice((" ", "")).join(draw.choices(words.split(" "), k=draw.randint(0, 4)))

    kept = by_rule = 0
    for _ in range(3000):
        blocks = []
        for opening, closing in TAGS.values():
            left, right = (draw.choice((" ", " ", " ", "", "  ", "\t", "\n")) for _ in range(2))
            end = draw.choice(("\n\n",) * 8 + ("\n", "\n\n\n", " ", "\n\n\r\n"))
            blocks.append(f"{opening}{left}{text()}{right}{closing}{end}")
        answer = draw.choice(("", "", " ", "x", "So: ")) + "".join(blocks)
        expected = has_tags(vocabulary.tokenizer(answer, add_special_tokens=False)["input_ids"])
        exact, rule = official.tags(answer, merges), official.tags(answer)
        assert (exact.fault is None) == expected, answer
        assert rule.merged or (rule.fault is None) == expected, answer
        kept += expected
        by_rule += (rule.fault is None) != expected
    assert kept > 100 and by_rule < 30
