"""Thinking states: equal to those of generation, tied to their turns; and their controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heima.cot.sections import COMPRESSIBLE, THINKING_TOKENS, thinking_token
from heima.cot.thinking import ONE_TOKEN, Thinking
from heima.data.encoding import encode_turns
from heima.data.images import ImageZip
from heima.data.turns import Turn
from heima.families.batches import Collator
from heima.families.registry import FAMILIES
from heima.interpreting import controls, states
from heima.vlm.processes import batches


@pytest.fixture(scope="module")
def collate(toy_processor, toy_source):
    return Collator(FAMILIES["toy-mllama"], toy_processor, ImageZip(toy_source / "images.zip"))


@pytest.fixture(scope="module")
def samples(toy_turns, toy_vocabulary):
    return encode_turns(toy_turns, "p3", toy_vocabulary, max_length=512)


def extract(toy_vlm, samples, collate, toy_vocabulary, position, batch_size=5, thinking=ONE_TOKEN):
    return states.join(
        [
            states.extract(toy_vlm, collate(batch), toy_vocabulary, thinking, position=position)
            for batch in batches(samples, batch_size)
        ]
    )


@pytest.mark.parametrize(("position", "offset"), [("at", 0), ("predicting", 1)])
def test_states_are_those_of_step_by_step_decoding(
    toy_vlm, samples, collate, toy_vocabulary, position, offset
):
    """One forward of the text up to the token alone gives the state: nothing after it leaks in."""
    found = extract(toy_vlm, samples, collate, toy_vocabulary, position)
    for row in (0, 3):
        batch = collate([samples[row]])
        for section in COMPRESSIBLE:
            token = toy_vocabulary.thinking_ids[thinking_token(section)]
            end = samples[row].encoded.input_ids.index(token) - offset + 1
            with torch.inference_mode():
                hidden = toy_vlm.model(
                    input_ids=batch["input_ids"][:, :end],
                    attention_mask=batch["attention_mask"][:, :end],
                    cross_attention_mask=batch["cross_attention_mask"][:, :end],
                    **{k: batch[k] for k in
                       ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")},
                ).last_hidden_state  # fmt: skip
            assert found[section].counts.tolist() == [1] * len(samples)
            state = found[section].values[row]
            torch.testing.assert_close(state, hidden[0, -1], rtol=1e-4, atol=1e-5)


def test_states_do_not_depend_on_the_batch(toy_vlm, samples, collate, toy_vocabulary):
    one, many = (
        extract(toy_vlm, samples, collate, toy_vocabulary, "at", batch_size=size)
        for size in (1, len(samples))
    )
    for section, state in one.items():
        torch.testing.assert_close(state.values, many[section].values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["at", "predicting"])
@pytest.mark.parametrize("thinking", [Thinking(tokens=2), Thinking(ratio=0.4)])
def test_every_thinking_token_has_its_state(
    toy_vlm, toy_turns, collate, toy_vocabulary, thinking, position
):
    """As a loop over each sample alone finds them, token by token; samples differ in number."""
    some = encode_turns(toy_turns[:6], "p3", toy_vocabulary, max_length=512, thinking=thinking)
    found = extract(toy_vlm, some, collate, toy_vocabulary, position, 4, thinking)
    for section in COMPRESSIBLE:
        ids = {
            toy_vocabulary.thinking_ids[name] for name in THINKING_TOKENS if section.upper() in name
        }
        each = found[section].by_turn()
        if thinking.ratio:
            lengths = [toy_vocabulary.length(turn.sections[section]) for turn in toy_turns[:6]]
            counts = [max(1, int(0.4 * length)) for length in lengths]
            assert len(found[section]) == 6 and max(counts) > 1
        else:
            counts = [2] * 6
        assert found[section].counts.tolist() == counts == [len(one) for one in each]
        for sample, one in zip(some, each, strict=True):
            batch = collate([sample])
            del batch["labels"]
            with torch.inference_mode():
                hidden = toy_vlm.model(**batch).last_hidden_state[0]
            naive = [
                hidden[place - (position == "predicting")]
                for place, token in enumerate(sample.encoded.input_ids)
                if token in ids
            ]
            torch.testing.assert_close(one, torch.stack(naive), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rendering", "rendered", "asked", "message"),
    [
        ("p2", ONE_TOKEN, ONE_TOKEN, "row 0 has 0 thinking tokens of the reasoning, not its 1"),
        ("p2", ONE_TOKEN, Thinking(ratio=0.5), "has 0 thinking tokens .* not at least one"),
        ("p3", Thinking(tokens=2), Thinking(tokens=3), "has 2 thinking tokens .* not its 3, each"),
        ("p3", Thinking(ratio=0.5), ONE_TOKEN, "row 0 has [2-9] thinking tokens .* not its 1"),
    ],
)
def test_a_sample_without_its_tokens_is_named(
    toy_vlm, toy_turns, collate, toy_vocabulary, rendering, rendered, asked, message
):
    some = encode_turns(toy_turns, rendering, toy_vocabulary, max_length=512, thinking=rendered)
    with pytest.raises(ValueError, match=message):
        extract(toy_vlm, some, collate, toy_vocabulary, "at", thinking=asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_states_belong_to_their_turns(tmp_path, toy_turns, dtype):
    counts = torch.arange(len(toy_turns)) % 3 + 1
    own = states.SectionStates(torch.randn(int(counts.sum()), 4, dtype=dtype), counts)
    states.save(tmp_path / "s.safetensors", {"summary": own}, toy_turns)
    found = states.load(tmp_path / "s.safetensors", "summary", toy_turns)
    assert found.values.dtype == dtype
    assert torch.equal(found.values, own.values) and found.counts.tolist() == counts.tolist()
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


def section_states(*turns: list[float]) -> states.SectionStates:
    """States of width 1, turn by turn."""
    values = torch.tensor([value for turn in turns for value in turn]).unsqueeze(1)
    return states.SectionStates(values, torch.tensor([len(turn) for turn in turns]))


def asked(*turns: tuple[str, str, str]) -> list[Turn]:
    """Turns of a kind, about an image, with a conclusion."""
    return [
        Turn(f"t{number}", f"{kind}/{image}.png", "q", "s", "c", "r", gold, True)
        for number, (kind, image, gold) in enumerate(turns)
    ]


@pytest.mark.parametrize(
    ("turns", "shuffled", "alike", "train", "mean"),
    [
        # One state a turn, as in the paper.
        (([0.0], [1.0], [2.0], [3.0]), [2, 3, 0, 1], [2, 3, 0, 1], ([5.0], [7.0]), [6, 6, 6, 6]),
        # Two: each place keeps to its own.
        (([0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]), [4, 5, 6, 7, 0, 1, 2, 3],
         [4, 5, 6, 7, 0, 1, 2, 3], ([5.0, 1.0], [7.0, 3.0]), [6, 2] * 4),
        # As many as the section is long: another's are repeated, or left out, along the way.
        (([0.0, 1.0, 2.0, 3.0], [4.0], [5.0, 6.0], [7.0, 8.0, 9.0]),
         [5, 5, 6, 6, 7, 0, 2, 4, 4, 4], [5, 5, 6, 6, 7, 0, 2, 4, 4, 4],
         ([1.0], [2.0, 6.0]), [3] * 10),
    ],
)  # fmt: skip
def test_controls(turns, shuffled, alike, train, mean):
    own = section_states(*turns)
    given = {
        "turns": asked(("a", "1", "x"), ("b", "2", "x"), ("a", "3", "x "), ("b", "4", "X")),
        "train": controls.Moments.of(section_states(*train)),
        "seed": 0,
    }
    expected = {
        "own": own.values[:, 0].tolist(),
        "shuffled": shuffled,
        "shuffled-same-gold": alike,
        "mean": mean,
        "zero": [0] * len(own.values),
    }
    for control, values in expected.items():
        found = controls.control_states(control, own, **given)
        assert found.values[:, 0].tolist() == values, control
        assert torch.equal(found.counts, own.counts)


@given(
    st.lists(
        st.tuples(*(st.sampled_from(letters) for letters in ("ab", "1234", "xyz"))),
        min_size=2,
        max_size=30,
    ),
    st.integers(0, 99),
)
def test_the_same_gold_comes_from_another_image_of_the_kind(rows, seed):
    """Where any has it; else from the kind; else from anywhere. It is never the turn itself."""
    source, found = controls.same_gold(asked(*rows), seed=seed)
    for place, (other, there) in enumerate(zip(source, found, strict=True)):
        kind, image, gold = rows[place]
        of_kind = [n for n, row in enumerate(rows) if row[0] == kind and n != place]
        elsewhere = [n for n in of_kind if rows[n][1] != image]
        alike = [n for n in elsewhere if rows[n][2] == gold]
        assert there == bool(alike) and other != place
        assert other in (alike or elsewhere or of_kind or range(len(rows)))
    again, _ = controls.same_gold(asked(*rows), seed=seed)
    assert source.tolist() == again.tolist()
    with pytest.raises(ValueError, match="at least two"):
        controls.same_gold(asked(rows[0]), seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[2] * 2000, [1, 3] * 1000])
def test_noise_is_drawn_like_training_states_and_as_long_as_the_own(counts, dtype):
    """Of places where all turns have as many; it knows nothing of a state but its length."""
    random = torch.Generator().manual_seed(1)
    shape = torch.randn(2, 1, 32, generator=random)
    train = shape[0] * torch.randn(600, 2, 32, generator=random) + 2 * shape[1]
    train[:, 1] += 3
    moments = controls.Moments.of(states.SectionStates(train.flatten(0, 1), torch.full((600,), 2)))
    values = (5 * torch.randn(4000, 32, generator=random)).to(dtype)
    own = states.SectionStates(values, torch.tensor(counts))
    turns = asked(*[("a", "1", "x")] * 2000)

    def noise(values, seed=5):
        one = states.SectionStates(values, own.counts)
        return controls.control_states("noise", one, turns=turns, train=moments, seed=seed).values

    drawn = noise(values)
    assert drawn.dtype == dtype and torch.equal(drawn, noise(values))
    lengths = [one.float().norm(dim=1) for one in (drawn, values)]
    assert torch.allclose(*lengths, rtol=1e-5 if dtype == torch.float32 else 1e-2)
    assert not torch.allclose(drawn, noise(values, seed=6))
    direction, other = (
        torch.nn.functional.normalize(noise(one).float(), dim=1) for one in (values, values.flip(0))
    )
    assert torch.allclose(direction, other, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
    # As directions of training states are, dimension by dimension, in each place.
    if counts[0] == 2:
        for place in range(2):
            theirs = torch.nn.functional.normalize(
                moments.mean[place]
                + moments.variance[place].sqrt() * torch.randn(2000, 32, generator=random), dim=1
            )  # fmt: skip
            mine = direction[place::2]
            assert (mine.mean(0) - theirs.mean(0)).abs().max() < 0.03
            assert (mine.std(0) - theirs.std(0)).abs().max() < 0.03
