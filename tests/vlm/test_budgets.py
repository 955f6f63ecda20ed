"""A cut chain has a conclusion: forced where its budget ends, and written behind what stands."""

from __future__ import annotations

import pytest

from heima.config import Decoding
from heima.cot import parsing
from heima.cot.rendering import Rendering, render
from heima.cot.sections import with_controls
from heima.data.tokens import Vocabulary
from heima.vlm.budgets import Cut
from heima.vlm.generation import Decoder, Prompt, plan

PARTS = {
    "summary": "the total of a1",
    "caption": "a1 red-circle b1 green-square",
    "reasoning": "a1 four total four",
    "conclusion": "8",
}
LIMIT = 60


class Scripted:
    """An engine whose answer to any prompt goes on with one text, and then with "yes no" and an
    end where a conclusion was opened for it."""

    def __init__(self, vocabulary, answer):
        self._words = vocabulary
        self.ids = vocabulary.encode("what", "first", answer)
        self.answer = self.ids.input_ids[self.ids.body :]
        self.ends = frozenset([vocabulary.tokenizer.eos_token_id])
        self.asked = []

    def __call__(self, prompts, ids, *, decoding, seed):
        self.asked.append((len(prompts), decoding.max_new_tokens, seed))
        rows = []
        for row in ids:
            written = list(row[len(self._words.prompt_ids("what", "first")) :])
            if written == self.answer[: len(written)]:
                rest = self.answer[len(written) :]
            else:
                closing = [self.answer[-2]]  # the conclusion's closing tag
                rest = [*self._words.text_ids("yes no"), *closing, *self.ends]
            rows.append(rest[: decoding.max_new_tokens])
        return rows


@pytest.mark.parametrize("tags", ["text", "token"])
@pytest.mark.parametrize("budget", [1, 2, 4, 9, 14, 18, 19, 20, 23, 40])
def test_every_chain_has_an_answer(toy_processor, toy_vocabulary, tags, budget):
    words = Vocabulary(toy_processor.tokenizer, with_controls(toy_vocabulary.reserved))
    rendering = Rendering(summary="text", caption="text", reasoning="text", tags=tags)
    whole = str(render(PARTS, rendering))
    engine = Scripted(words, render(PARTS, rendering))
    cut = Cut(engine, words, budget=budget, tags=tags)
    prompts = [Prompt("what", f"{i}", lambda: None) for i in range(2)]
    decoding = Decoding(temperature=0, top_k=1, max_new_tokens=LIMIT, batch_size=2)
    planned = plan(words, prompts, decoding=decoding, seed=3)
    for one in Decoder(cut, words, tags)(planned, 0):
        length = len(engine.answer)
        # Or the next token begins it, which is then what is forced.
        begun = "CONCLUSION" in words.decode(engine.answer[: budget + 1])
        assert parsing.conclusion(one.text, tags) == ("8" if begun else "yes no")
        if begun:
            assert "".join(one.text.split()) == "".join(whole.split())
            assert one.counts.decoded == length
            continue
        # What stands before the forced part is the chain's own, and each section is closed.
        chain = words.decode(engine.answer[:budget])
        assert one.text.startswith(chain)
        parsed = one.text.replace("OPENING_OF_", "").replace("CLOSING_OF_", "/")
        for section in ("SUMMARY", "CAPTION", "REASONING"):
            assert parsed.count(f"<{section}>") == parsed.count(f"</{section}>")
        assert budget < one.counts.decoded <= budget + 6
        assert one.counts.conclusion == 2 and one.finish == "stop"
    assert engine.asked[0] == (2, budget, planned.seed_of(0))


def test_answers_that_end_within_the_budget_are_asked_once(toy_vocabulary):
    rendering = Rendering(summary="omit", caption="omit", reasoning="text")
    engine = Scripted(toy_vocabulary, render(PARTS, rendering))
    cut = Cut(engine, toy_vocabulary, budget=50, tags="text")
    ids = toy_vocabulary.prompt_ids("what", "first")
    decoding = Decoding(temperature=0, top_k=1, max_new_tokens=LIMIT, batch_size=1)
    [row] = cut([None], [ids], decoding=decoding, seed=1)
    assert row == engine.answer and len(engine.asked) == 1
