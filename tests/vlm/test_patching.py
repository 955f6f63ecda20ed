"""Patching: exact on models whose answer is known, without any training.

In `blind` nothing later sees the thinking columns, so that nothing a donor gives can matter; in
`bottleneck` the conclusion sees the thinking columns and itself alone, so that a donor's states
give the donor's answer.
"""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

from heima.data.encoding import encode_turns
from heima.families import registry
from heima.toy.twins import TWINS
from heima.training.backbone import body
from heima.vlm import patching
from tests import planted

NAMES = tuple(TWINS)


@dataclasses.dataclass
class Case:
    """An untrained model in float64 and a batch whose turns all have one conclusion."""

    model: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    columns: torch.Tensor
    """(rows, k): the thinking tokens."""
    image: torch.Tensor
    """(rows, length): the image tokens."""

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def after(self) -> torch.Tensor:
        """(rows, length): what follows the last thinking token, padding included."""
        return torch.arange(self.length) > self.columns[:, -1:]

    @property
    def thinking(self) -> torch.Tensor:
        return torch.zeros(self.image.shape, dtype=torch.bool).scatter(1, self.columns, True)

    def logits(self) -> torch.Tensor:
        """Of what follows the last thinking token, (rows, tokens, vocabulary): rows are as long."""
        with torch.no_grad():
            hidden = self.model.lm_head(body(self.model)(**self.inputs))
        tokens = int((self.inputs["attention_mask"].bool() & self.after).sum(1)[0])
        places = self.columns[:, -1:] + 1 + torch.arange(tokens)
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


@pytest.fixture(scope="module", params=NAMES)
def case(request, toy_turns, toy_source, params):
    model, processor, vocabulary, collate, _ = planted.parts(request.param, params, toy_source)
    turns = [dataclasses.replace(turn, conclusion="B") for turn in toy_turns[:6]]
    inputs = collate(encode_turns(turns, "p3", vocabulary))
    del inputs["labels"]
    inputs["pixel_values"] = inputs["pixel_values"].double()
    here = torch.isin(inputs["input_ids"], torch.tensor(list(vocabulary.thinking_ids.values())))
    return Case(
        model,
        inputs,
        here.nonzero()[:, 1].reshape(len(turns), -1),
        inputs["input_ids"] == processor.image_token_id,
    )


def plain(case):
    return contextlib.nullcontext()


def blind(case):
    later = torch.arange(case.length) > case.columns[:, :1]
    return patching.closing(case.model, [patching.Closed(later, case.thinking)])


@contextlib.contextmanager
def bottleneck(case):
    everything_else = ~case.thinking & ~case.after
    closed = patching.closing(case.model, [patching.Closed(case.after, everything_else)])
    with closed, patching.blindfolded(case.model, case.after, case.image):
        yield


def swapped(case, world):
    """Logits with one's own states, with one's own put back, with the next row's."""
    with world(case):
        with patching.recorded(case.model, case.columns) as states:
            own = case.logits()
        with patching.patched(case.model, case.columns, states):
            back = case.logits()
        donor = [part.roll(-1, dims=0) for part in states]
        with patching.patched(case.model, case.columns, donor):
            given = case.logits()
    return own, back, given


@pytest.mark.parametrize("world", [plain, blind, bottleneck])
def test_ones_own_states_put_back_change_nothing(case, world):
    own, back, _ = swapped(case, world)
    assert torch.equal(own, back)


def test_where_nothing_sees_them_a_donors_states_change_nothing(case):
    own, _, given = swapped(case, blind)
    assert torch.equal(own, given)
    assert (own - own.roll(-1, dims=0)).abs().max() > 0.1


def test_where_nothing_else_is_seen_a_donors_states_give_its_answer(case):
    own, _, given = swapped(case, bottleneck)
    torch.testing.assert_close(given, own.roll(-1, dims=0), rtol=0, atol=1e-5)
    assert (given - own).abs().max() > 0.1


def test_as_they_are_a_donors_states_do_something_and_not_all(case):
    own, _, given = swapped(case, plain)
    assert (given - own).abs().max() > 1e-3
    assert (given - own.roll(-1, dims=0)).abs().max() > 1e-3


def test_a_patch_off_by_one_column_is_found_out(case):
    """The proofs above have teeth."""
    shifted = dataclasses.replace(case, columns=case.columns - 1)
    with bottleneck(case):
        with patching.recorded(case.model, shifted.columns) as states:
            own = case.logits()
        donor = [part.roll(-1, dims=0) for part in states]
        with patching.patched(case.model, shifted.columns, donor):
            given = case.logits()
    assert (given - own.roll(-1, dims=0)).abs().max() > 0.01


def test_blindfolded_the_image_does_not_matter(case):
    """An answer whose every column gets nothing from the image is that of any other image."""
    other = dict(case.inputs, pixel_values=case.inputs["pixel_values"].flip(0) * 0.5)
    # Where features fill the image's columns, they hold what they show; text does not look.
    crossing = registry.of(case.model).cross_attention_layers(case.model.config)
    columns = torch.ones_like(case.image) if crossing else ~case.image
    found = []
    for inputs in (case.inputs, other):
        one = dataclasses.replace(case, inputs=inputs)
        with patching.blindfolded(one.model, columns, one.image):
            found.append(one.logits())
    assert torch.equal(*found)
    assert (case.logits() - dataclasses.replace(case, inputs=other).logits()).abs().max() > 1e-3


def test_ways_are_closed_in_the_named_layers_alone(case):
    count = len(registry.of(case.model).language_model(case.model).layers)
    way = {"of": case.after, "to": case.thinking}
    logits = []
    for layers in (None, range(count), range(count - 1, count), range(0)):
        with patching.closing(case.model, [patching.Closed(**way, layers=layers)]):
            logits.append(case.logits())
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[1], logits[2])
    assert torch.equal(logits[3], case.logits())


def test_too_few_states_are_refused(case):
    with (
        pytest.raises(ValueError, match="parts, not 1"),
        patching.patched(case.model, case.columns, [torch.zeros(1)]),
    ):
        pass
