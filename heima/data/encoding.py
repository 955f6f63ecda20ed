"""Turns -> padded tensors for Mllama.

Image tensors are made by the model's own image processor, once per image as far as memory
allows; the attention of text to its image follows transformers' own functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from heima.config import given
from heima.cot.sections import COMPRESSIBLE, ThinkingTokens, numbered, repeated
from heima.cot.thinking import ONE_TOKEN, Thinking
from heima.data.tokens import IGNORED, Encoded, Vocabulary
from heima.data.turns import Turn


@dataclass(frozen=True)
class Sample:
    """An encoded turn and the path of its image."""

    encoded: Encoded
    image: str

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def labelled(self) -> int:
        return self.encoded.labelled


def encode_turns(
    turns: Sequence[Turn],
    rendering: str,
    vocabulary: Vocabulary,
    *,
    max_length: int,
    thinking: Thinking = ONE_TOKEN,
) -> list[Sample]:
    """Render and encode turns in one rendering of `rendering.RENDERINGS`.

    With a `thinking.ratio` a section's tokens are counted in its text alone, without its tags.
    Raises `ValueError` naming the turn where one is longer than `max_length` tokens: cutting it
    would train on an answer without its conclusion.
    """
    same = None if thinking.tokens is None else numbered(thinking.tokens)
    encoded = vocabulary.encode_all(
        [
            (
                turn.question,
                "first" if turn.image_first else "last",
                turn.written(rendering, same or _adaptive(turn, thinking, vocabulary)),
            )
            for turn in turns
        ]
    )
    for turn, one in zip(turns, encoded, strict=True):
        if len(one) > max_length:
            raise ValueError(
                f"turn {turn.id} has {len(one)} tokens as {rendering}, more than "
                f"distill.max_length = {max_length}"
            )
    return [Sample(one, turn.image) for turn, one in zip(turns, encoded, strict=True)]


def thinking_count(thinking: Thinking, length: int) -> int:
    """How many thinking tokens stand for a section of `length` tokens (docs/recipe.md, section 1).

    >>> half, four = Thinking(ratio=0.5), Thinking(tokens=4)
    >>> thinking_count(half, 9), thinking_count(half, 1), thinking_count(four, 9)
    (4, 1, 4)
    """
    if thinking.ratio is None:
        return given(thinking.tokens, "thinking.tokens")
    return max(1, int(thinking.ratio * length))


def _adaptive(turn: Turn, thinking: Thinking, vocabulary: Vocabulary) -> ThinkingTokens:
    return repeated(
        {
            section: thinking_count(thinking, vocabulary.length(turn.sections[section]))
            for section in COMPRESSIBLE
        }
    )


def pad(
    rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right"
) -> torch.Tensor:
    """Rows of different length as one (rows, longest) int64 tensor, padded on one side."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows],
        batch_first=True,
        padding_value=value,
        padding_side=side,
    )


def pad_text(encoded: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each (batch, longest)."""
    return {
        "input_ids": pad([one.input_ids for one in encoded], pad_id),
        "attention_mask": pad([[1] * len(one.input_ids) for one in encoded], 0),
        "labels": pad([one.labels for one in encoded], IGNORED),
    }
