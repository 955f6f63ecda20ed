"""Thinking states: equal to those of generation, tied to their turns; and their controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heima import controls, cot, states
from heima.batching import MllamaCollator, encode_turns
from heima.corpus import ImageZip


@pytest.fixture(scope="module")
def collate(toy_processor, toy_source):
    return MllamaCollator(toy_processor, ImageZip(toy_source / "images.zip"))


@pytest.fixture(scope="module")
def samples(toy_turns, toy_vocabulary):
    return encode_turns(toy_turns, "p3", toy_vocabulary, max_length=512)


def extract(toy_vlm, samples, collate, toy_vocabulary, position, batch_size=5):
    return states.extract(
        toy_vlm,
        samples,
        collate,
        {
            section: toy_vocabulary.thinking_ids[cot.thinking_token(section)]
            for section in cot.COMPRESSIBLE
        },
        position=position,
        batch_size=batch_size,
    )


@pytest.mark.parametrize(("position", "offset"), [("at", 0), ("predicting", 1)])
def test_states_are_those_of_step_by_step_decoding(
    toy_vlm, samples, collate, toy_vocabulary, position, offset
):
    """One forward of the text up to the token alone gives the state: nothing after it leaks in."""
    found = extract(toy_vlm, samples, collate, toy_vocabulary, position)
    for row in (0, 3):
        batch = collate([samples[row]])
        for section in cot.COMPRESSIBLE:
            token = toy_vocabulary.thinking_ids[cot.thinking_token(section)]
            end = samples[row].encoded.input_ids.index(token) - offset + 1
            with torch.inference_mode():
                hidden = toy_vlm.model(
                    input_ids=batch["input_ids"][:, :end],
                    attention_mask=batch["attention_mask"][:, :end],
                    cross_attention_mask=batch["cross_attention_mask"][:, :end],
                    **{k: batch[k] for k in
                       ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")},
                ).last_hidden_state  # fmt: skip
            torch.testing.assert_close(found[section][row], hidden[0, -1], rtol=1e-4, atol=1e-5)


def test_states_do_not_depend_on_the_batch(toy_vlm, samples, collate, toy_vocabulary):
    one, many = (
        extract(toy_vlm, samples, collate, toy_vocabulary, "at", batch_size=size)
        for size in (1, len(samples))
    )
    for section, state in one.items():
        torch.testing.assert_close(state, many[section], rtol=1e-4, atol=1e-5)


def test_a_sample_without_its_token_is_named(toy_vlm, toy_turns, collate, toy_vocabulary):
    text = encode_turns(toy_turns, "p2", toy_vocabulary, max_length=512)
    with pytest.raises(
        ValueError, match="sample 0 has not exactly one thinking token of reasoning"
    ):
        extract(toy_vlm, text, collate, toy_vocabulary, "at")


def test_stored_states_belong_to_their_turns(tmp_path, toy_turns):
    stored = {"summary": torch.randn(len(toy_turns), 4)}
    states.save(tmp_path / "s.safetensors", stored, toy_turns)
    assert torch.equal(states.load(tmp_path / "s.safetensors", "summary", toy_turns),
                       stored["summary"])  # fmt: skip
    with pytest.raises(ValueError, match="other turns"):
        states.load(tmp_path / "s.safetensors", "summary", toy_turns[::-1])


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=40), st.integers(0, 99))
def test_shuffling_moves_every_sample_within_its_kind(kinds, seed):
    source = controls.shuffle_within(kinds, seed=seed)
    assert sorted(source) == list(range(len(kinds)))
    assert not np.any(source == np.arange(len(kinds)))
    lonely = {kind for kind in kinds if kinds.count(kind) == 1}
    for position, origin in enumerate(source):
        if kinds[position] not in lonely and kinds[origin] not in lonely:
            assert kinds[position] == kinds[origin]
    if not lonely:
        assert all(kinds[p] == kinds[o] for p, o in enumerate(source))


def test_a_single_sample_cannot_be_shuffled():
    with pytest.raises(ValueError, match="at least two"):
        controls.shuffle_within(["a"], seed=0)


def test_controls():
    own = torch.arange(8.0).reshape(4, 2)
    mean = torch.tensor([5.0, 6.0])
    given = {"kinds": ["a", "b", "a", "b"], "train_mean": mean, "seed": 0}
    assert torch.equal(controls.control_states("own", own, **given), own)
    assert torch.equal(controls.control_states("shuffled", own, **given), own[[2, 3, 0, 1]])
    assert torch.equal(controls.control_states("mean", own, **given), mean.repeat(4, 1))
    assert not controls.control_states("zero", own, **given).any()
