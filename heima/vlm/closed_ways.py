"""The ways of attention that planted controls of an audit close (`Checkpoint.attention`).

Where they are closed, what an audit must find is known: under `blind` nothing of the thinking
tokens' states can matter, under `bottleneck` nothing else can.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers import PreTrainedModel

from heima.config import Attention
from heima.families import registry
from heima.families.family import Body
from heima.vlm import patching


def closed(
    model: PreTrainedModel,
    attention: Attention,
    *,
    thinking: torch.Tensor,
    image: torch.Tensor,
    conclusion: torch.Tensor,
) -> AbstractContextManager[None]:
    """Passes of `model` with the ways of `attention` closed.

    All masks are (rows, length): the columns of thinking tokens, of the image's tokens, and of the
    conclusion. `blind`: no column after the first thinking token sees a thinking token but itself.
    `bottleneck`: no column after the last one (of a row without any: of the conclusion) sees
    anything but thinking tokens and what stands after the last, nor the image by cross-attention.
    """
    if attention == "open":
        return contextlib.nullcontext()
    if attention == "blind":
        later = thinking.cumsum(dim=1) > 0
        return patching.closing(model, [patching.Closed(later, thinking)])
    none_ahead = thinking.flip(1).cumsum(dim=1).flip(1) == 0
    behind = torch.where(thinking.any(dim=1, keepdim=True), none_ahead, conclusion)
    return _bottleneck(model, thinking, image, behind)


@contextlib.contextmanager
def _bottleneck(
    model: PreTrainedModel, thinking: torch.Tensor, image: torch.Tensor, behind: torch.Tensor
) -> Iterator[None]:
    ways = [patching.Closed(behind, ~thinking & ~behind)]
    with patching.closing(model, ways), patching.blindfolded(model, behind, image):
        yield


def body(
    states: Body,
    model: nn.Module,
    attention: Attention,
    *,
    thinking_ids: Collection[int],
    image_id: int,
) -> Body:
    """`states`, a body of `model`, with the ways of `attention` closed in every call.

    Thinking tokens and those of images are told by their ids.
    """
    if attention == "open":
        return states
    base = registry.pretrained(model)
    tokens = torch.tensor(sorted(thinking_ids))

    def within(*, input_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        ids = input_ids.cpu()
        thinking = torch.isin(ids, tokens)
        with closed(
            base,
            attention,
            thinking=thinking,
            image=ids == image_id,
            # Answers of such a checkpoint have thinking tokens, behind which all is closed.
            conclusion=torch.zeros_like(thinking),
        ):
            return states(input_ids=input_ids, **inputs)

    return within
