"""Interpreters: the state enters at one place only, and scores do not depend on the batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from heima.config import Decoding, Hardware, Schedule, Training
from heima.cot.sections import COMPRESSIBLE, thinking_token
from heima.data.encoding import pad
from heima.families.registry import FAMILIES
from heima.interpreting import interpreter, wordings
from heima.interpreting.states import SectionStates
from heima.training.loop import AnswerLoss, train
from heima.vlm import models
from heima.vlm.processes import batches


@pytest.fixture
def reader(toy_llm, toy_vocabulary):
    return interpreter.StateReader(
        toy_llm, [toy_vocabulary.thinking_ids["<THINKING_OF_REASONING>"]]
    ).eval()


@pytest.fixture
def own_states(toy_turns, toy_llm):
    return random_states([1] * len(toy_turns), toy_llm)


def random_states(counts, toy_llm):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(sum(counts), toy_llm.config.hidden_size, generator=generator)
    return SectionStates(values, torch.tensor(counts))


def flipped(own):
    return SectionStates(own.values.flip(0), own.counts)


def readings(toy_turns, own_states, toy_vocabulary, source="own", wordings="plain", seed=0):
    return interpreter.encode_readings(
        toy_turns, "reasoning", own_states, toy_vocabulary,
        source=source, wordings=wordings, seed=seed,
    )  # fmt: skip


def reconstruct(reader, some, toy_vocabulary, batch_size):
    decoding = Decoding(temperature=0.0, top_k=50, max_new_tokens=6, batch_size=batch_size)
    return [
        one
        for batch in batches(some, batch_size)
        for one in interpreter.reconstruct(reader, batch, toy_vocabulary, decoding=decoding, seed=0)
    ]


def test_only_the_thinking_tokens_embedding_is_replaced(
    reader, toy_turns, own_states, toy_vocabulary
):
    batch = interpreter.ReadingCollator(0)(readings(toy_turns, own_states, toy_vocabulary))
    embedded = reader.embed(batch["input_ids"], batch["states"])
    plain = reader.llm.get_input_embeddings()(batch["input_ids"])
    here = torch.isin(batch["input_ids"], reader.token_ids)
    assert here.sum(dim=1).tolist() == [1] * len(toy_turns)
    assert torch.equal(embedded[here], own_states.values)
    assert torch.equal(embedded[~here], plain[~here])


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_thinking_token_is_its_own_state(reader, toy_turns, toy_llm, toy_vocabulary, side):
    """Samples with one to three of them, against a loop over rows and places."""
    turns = toy_turns[:7]
    own = random_states([1 + i % 3 for i in range(len(turns))], toy_llm)
    some = readings(turns, own, toy_vocabulary)
    batch = interpreter.ReadingCollator(0)(some)
    ids = pad([one.encoded.input_ids for one in some], 0, side)
    expected = toy_llm.get_input_embeddings()(ids).clone()
    states = iter(own.values)
    for row in range(len(turns)):
        for place in range(ids.shape[1]):
            if ids[row, place] in reader.token_ids:
                expected[row, place] = next(states)
    assert next(states, None) is None
    assert torch.equal(reader.embed(ids, batch["states"]), expected)


def test_a_shared_reader_reads_each_section_as_its_own_reader_does(
    toy_llm, toy_turns, own_states, toy_vocabulary
):
    """One interpreter for all sections: the token of any of them is replaced, and nothing else."""
    shared = interpreter.StateReader(toy_llm, list(toy_vocabulary.thinking_ids.values()))
    for section in COMPRESSIBLE:
        token = toy_vocabulary.thinking_ids[thinking_token(section)]
        some = interpreter.encode_readings(
            toy_turns, section, own_states, toy_vocabulary, source="own", wordings="plain", seed=0
        )
        batch = interpreter.ReadingCollator(0)(some)
        single = interpreter.StateReader(toy_llm, [token])
        assert torch.equal(
            shared.embed(batch["input_ids"], batch["states"]),
            single.embed(batch["input_ids"], batch["states"]),
        )


def test_official_references_wrap_a_section_in_a_sentence_and_tags():
    texts = [f"the total of {number} is {{odd}}" for number in range(40)]
    references = wordings.official_references("caption", texts, seed=3)
    assert references == wordings.official_references("caption", texts, seed=3)
    openings = set()
    for text, reference in zip(texts, references, strict=True):
        opening, found, rest = reference.partition(f"<CAPTION> {text} </CAPTION>")
        assert found and opening and not rest
        openings.add(opening)
    assert len(openings) == 10


def test_a_question_only_reader_cannot_see_a_state(reader, toy_turns, own_states, toy_vocabulary):
    one, other = (
        reconstruct(
            reader, readings(toy_turns, state, toy_vocabulary, "question-only"), toy_vocabulary, 8
        )
        for state in (own_states, flipped(own_states))
    )
    assert one == other


def test_the_state_changes_what_the_reader_expects(reader, toy_turns, own_states, toy_vocabulary):
    one, other = (
        reconstruct(reader, readings(toy_turns, state, toy_vocabulary), toy_vocabulary, 8)
        for state in (own_states, flipped(own_states))
    )
    assert [r.nll for r in one] != [r.nll for r in other]


def test_reconstructions_do_not_depend_on_the_batch(reader, toy_turns, own_states, toy_vocabulary):
    some = readings(toy_turns, own_states, toy_vocabulary)
    alone, together = (reconstruct(reader, some, toy_vocabulary, size) for size in (1, len(some)))
    assert [r.text for r in alone] == [r.text for r in together]
    assert [r.n_tokens for r in alone] == [r.n_tokens for r in together]
    for a, b in zip(alone, together, strict=True):
        assert a.nll == pytest.approx(b.nll, rel=1e-4)


def test_nll_counts_the_text_and_its_end_but_no_header(
    reader, toy_turns, own_states, toy_vocabulary
):
    tokenizer = toy_vocabulary.tokenizer
    [one, *_] = reconstruct(
        reader, readings(toy_turns, own_states, toy_vocabulary)[:1], toy_vocabulary, 1
    )
    text = tokenizer(toy_turns[0].reasoning, add_special_tokens=False)["input_ids"]
    assert one.n_tokens == len(text) + 1


@pytest.mark.parametrize("wordings", ["plain", "varied"])
@pytest.mark.parametrize("source", ["own", "question-only"])
def test_every_prompt_holds_its_question_and_says_whether_there_is_a_state(
    toy_turns, own_states, toy_vocabulary, wordings, source
):
    tokenizer = toy_vocabulary.tokenizer
    some = readings(toy_turns, own_states, toy_vocabulary, source, wordings)
    for turn, reading in zip(toy_turns, some, strict=True):
        question = tokenizer(turn.question, add_special_tokens=False)["input_ids"]
        ids = reading.encoded.input_ids
        assert any(ids[i : i + len(question)] == question for i in range(len(ids)))
        assert ids.count(toy_vocabulary.thinking_ids["<THINKING_OF_REASONING>"]) == (
            source == "own"
        )
    if wordings == "varied":
        other = readings(toy_turns, own_states, toy_vocabulary, source, wordings, seed=1)
        assert [r.encoded for r in some] != [r.encoded for r in other]


def test_an_interpreter_learns_to_use_its_state(params, toy_llm, toy_turns, toy_vocabulary):
    """Where each state stands for one text, training lowers own NLL below that of other states."""
    schedule = Schedule(
        steps=150, batch_size=16, learning_rate=1e-2, warmup_steps=5,
        weight_decay=0.0, max_grad_norm=1.0,
    )  # fmt: skip
    own = random_states([1] * len(toy_turns), toy_llm)
    adapted = models.add_lora(
        copy.deepcopy(toy_llm), FAMILIES[params.family].llm_lora, params.interpret.lora, 0
    )
    reader = interpreter.StateReader(
        adapted, [toy_vocabulary.thinking_ids["<THINKING_OF_REASONING>"]]
    )
    # The same question everywhere, so that only the state can tell the texts apart.
    turns = [replace(turn, question="What is at a1?") for turn in toy_turns]
    some = readings(turns, own, toy_vocabulary)
    collate = interpreter.ReadingCollator(toy_vocabulary.tokenizer.pad_token_id)
    loss = AnswerLoss(reader, Hardware(), body=reader.forward)
    train(
        loss,
        some,
        collate,
        schedule,
        seed=0,
        precision="fp32",
        training=Training(),
        hardware=Hardware(),
    )
    mine, others = (
        sum(r.nll for r in reconstruct(reader, readings(turns, state, toy_vocabulary),
                                       toy_vocabulary, 48))
        for state in (own, SectionStates(own.values.roll(1, 0), own.counts))
    )  # fmt: skip
    assert mine < 0.8 * others
