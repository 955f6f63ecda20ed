"""The released format under the real Llama 3 tokenizer, which Meta's package `llama-models` ships.

The package is no requirement: it brings a top-level module named `models`, and the tokenizer has
Meta's licence. Without it these tests are skipped; the reason says how to install it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from heima.cot.rendering import constant_prefix, render
from heima.cot.sections import SECTIONS, numbered
from heima.toy.mllama import CHAT_TEMPLATE
from heima.vlm.models import vocabulary as family_vocabulary

INSTALL = "pip install --no-deps llama-models==0.3.0 tiktoken==0.14.0"

# The hub's names of the ids from 128000 on: unnamed ones are reserved and numbered through.
NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


@pytest.fixture(scope="module")
def vocabulary(params):
    if find_spec("llama_models") is None or find_spec("tiktoken") is None:
        pytest.skip(f"the Llama 3 tokenizer is not installed; to run this: {INSTALL}")
    package = Path(find_spec("llama_models").submodule_search_locations[0])
    numbers = iter(range(256))
    special = [NAMED.get(i) or f"<|reserved_special_token_{next(numbers)}|>" for i in range(256)]
    converter = TikTokenConverter(
        str(package / "llama3" / "tokenizer.model"), extra_special_tokens=special
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        bos_token=NAMED[0],
        eos_token=NAMED[9],
        pad_token=NAMED[4],
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
