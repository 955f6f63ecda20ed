"""Turns -> padded tensors for Mllama.

Image tensors are made by the model's own image processor, once per image as far as memory
allows; the attention of text to its image follows transformers' own functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from heima.config import TooLong, given
from heima.cot import parsing
from heima.cot.rendering import Layout, Rendering, rendering_of
from heima.cot.sections import COMPRESSIBLE, Marked, ThinkingTokens, numbered, repeated
from heima.cot.thinking import ONE_TOKEN, Thinking
from heima.data.tokens import IGNORED, Encoded, ImagePlace, Vocabulary
from heima.data.turns import Turn

_SHOWN = 5


@dataclass(frozen=True)
class Supervision:
    """What terms of the loss need of a turn beside its tokens (`heima.training.terms`).

    Attributes:
        before: the place of the token before the conclusion's first.
        teacher: the ids of the turn as text-CoT, up to and with that token there.
        sections: for each section that tokens stand for, their places, and the ids of its text with
            an end behind them.
    """

    before: int
    teacher: Sequence[int]
    sections: Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Sample:
    """An encoded turn and the path of its image; `supervision` where the loss has more terms."""

    encoded: Encoded
    image: str
    supervision: Supervision | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def labelled(self) -> int:
        return self.encoded.labelled


@dataclass(frozen=True)
class Fitted:
    """Samples that are short enough, and the ids of the turns that are not."""

    samples: list[Sample]
    dropped: list[str]
    cut: list[str]

    def facts(self) -> dict[str, Any]:
        """How many, and the first of them, for what is said of a training run."""
        return {
            name: {"turns": len(ids), "first": ids[:_SHOWN]}
            for name, ids in (("dropped", self.dropped), ("cut", self.cut))
            if ids
        }


def fit_turns(
    turns: Sequence[Turn],
    rendering: str | Rendering | Sequence[Rendering],
    vocabulary: Vocabulary,
    *,
    max_length: int | None,
    too_long: TooLong,
    thinking: Thinking = ONE_TOKEN,
    image_tokens: Callable[[str], int] = lambda name: 1,
    short: Sequence[Mapping[str, str]] | None = None,
    thought_loss: bool = True,
    supervised: bool = False,
) -> Fitted:
    """Render and encode turns, all in one rendering or each in its own.

    With a `thinking.ratio` a section's tokens are counted in its text alone, without its tags.

    Args:
        max_length: the most tokens of a turn; none: no limit.
        too_long: what becomes of longer ones. One that is cut ends with the end of turn; where the
            answer would have no token, it is dropped.
        image_tokens: how many tokens stand for an image, by its name.
        thought_loss: whether thinking tokens have labels.
        supervised: samples get their `Supervision`; a turn that is cut is then dropped.
        short: each turn's short texts, by section, for a rendering with such (`data.shortening`).

    Raises:
        ValueError: naming the turns that are longer, with `too_long: refuse`.
    """
    same = None if thinking.tokens is None else numbered(thinking.tokens)
    each: Sequence[Rendering]
    if isinstance(rendering, (str, Rendering)):
        each, alike = [rendering_of(rendering)] * len(turns), f" as {rendering}"
    else:
        each, alike = rendering, ""
    encoded = vocabulary.encode_all(
        [
            (
                turn.question,
                "first" if turn.image_first else "last",
                turn.written(own, same or _adaptive(turn, thinking, vocabulary), short=texts),
            )
            for turn, own, texts in zip(
                turns, each, short or itertools.repeat(None, len(turns)), strict=True
            )
        ]
    )
    fitted = Fitted([], [], [])
    longer: list[str] = []
    for turn, own, one in zip(turns, each, encoded, strict=True):
        # Of the tokens that stand for the image one is there already.
        room = len(one) if max_length is None else max_length - image_tokens(turn.image) + 1
        if len(one) > room:
            longer.append(f"turn {turn.id} has {len(one) + (max_length or 0) - room} tokens")
            if too_long == "cut" and room >= one.body + 2 and not supervised:
                one = _cut(one, room)
                fitted.cut.append(turn.id)
            else:
                fitted.dropped.append(turn.id)
                continue
        if not thought_loss:
            one = _unlabelled(one, set(vocabulary.thinking_ids.values()))
        extra = None
        if supervised:
            extra = _supervision(turn, own, same, thinking, vocabulary, one)
        fitted.samples.append(Sample(one, turn.image, extra))
    if longer and too_long == "refuse":
        more = f", and {len(longer) - _SHOWN} others" if len(longer) > _SHOWN else ""
        raise ValueError(
            f"{', '.join(longer[:_SHOWN])}{more}{alike}, more than distill.max_length = "
            f"{max_length}: distill.too_long may drop or cut them"
        )
    return fitted


def _supervision(
    turn: Turn,
    rendering: Rendering,
    same: ThinkingTokens | None,
    thinking: Thinking,
    vocabulary: Vocabulary,
    encoded: Encoded,
) -> Supervision:
    tokens = same or _adaptive(turn, thinking, vocabulary)
    answer = turn.written(rendering, tokens)
    _, teacher = _up_to_conclusion(turn, turn.written("text-cot"), "text", vocabulary)
    before, _ = _up_to_conclusion(turn, answer, rendering.tags, vocabulary)
    thoughts = set(vocabulary.thinking_ids.values())
    places = [
        place
        for place, token in enumerate(encoded.input_ids)
        if token in thoughts and place >= encoded.body
    ]
    sections: list[tuple[list[int], list[int]]] = []
    for section, form in rendering.forms.items():
        if form in ("token", "filler"):
            count = len(tokens[section])
            ids = vocabulary.text_ids(turn.sections[section])
            own, places = places[:count], places[count:]
            sections.append((own, [*ids, encoded.input_ids[-1]]))
    return Supervision(before, teacher, sections)


def _up_to_conclusion(
    turn: Turn, answer: Marked, tags: Layout, vocabulary: Vocabulary
) -> tuple[int, list[int]]:
    """The place of the token before the conclusion's first, and the ids up to it."""
    span = parsing.conclusion_span(answer, tags)
    if span is None:
        raise ValueError(f"turn {turn.id} has no conclusion as {answer!r}")
    image: ImagePlace = "first" if turn.image_first else "last"
    whole = vocabulary.encode(turn.question, image, answer).input_ids
    begun = vocabulary.encode(turn.question, image, _beginning(answer, span[0])).input_ids[:-1]
    # What stands before a text decides its tokens, and hardly what follows; so at the edge, too.
    count = next(
        (place for place, (a, b) in enumerate(zip(whole, begun, strict=False)) if a != b),
        len(begun),
    )
    return count - 1, whole[:count]


def _beginning(answer: Marked, end: int) -> Marked:
    """The first characters of an answer, marked as it is."""
    parts = []
    for part in answer.parts:
        parts.append(part[:end])
        end -= len(parts[-1])
    return Marked(parts)


def _unlabelled(encoded: Encoded, thoughts: Collection[int]) -> Encoded:
    labels = [IGNORED if label in thoughts else label for label in encoded.labels]
    return Encoded(encoded.input_ids, labels, encoded.body)


def _cut(encoded: Encoded, length: int) -> Encoded:
    end = encoded.input_ids[-1]
    return Encoded(
        [*encoded.input_ids[: length - 1], end],
        [*encoded.labels[: length - 1], end],
        encoded.body,
    )


def encode_turns(
    turns: Sequence[Turn],
    rendering: str | Rendering,
    vocabulary: Vocabulary,
    *,
    max_length: int | None = None,
    thinking: Thinking = ONE_TOKEN,
) -> list[Sample]:
    """All of the turns, as `fit_turns` encodes them.

    Raises `ValueError` naming the turns that are longer than `max_length` tokens.
    """
    return fit_turns(
        turns, rendering, vocabulary, max_length=max_length, too_long="refuse", thinking=thinking
    ).samples


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
    # Not by `pad_sequence`: in PyTorch 2.11 it stops where FLOPs are counted.
    longest = max(map(len, rows))
    filled = [[value] * (longest - len(row)) for row in rows]
    if side == "left":
        return torch.tensor([[*more, *row] for more, row in zip(filled, rows, strict=True)])
    return torch.tensor([[*row, *more] for more, row in zip(filled, rows, strict=True)])


def pad_aligned(
    encoded: Sequence[Encoded], pad_id: int, thoughts: Collection[int]
) -> dict[str, torch.Tensor]:
    """As `pad_text`, with the k-th of the `thoughts` (token ids) in one column of all rows.

    Padding stands at the end of each part that a thinking token begins, and `position_ids`, (batch,
    longest), count tokens alone. Raises `ValueError` where rows have different numbers of them.
    """
    rows = [
        _parts([place for place, token in enumerate(one.input_ids) if token in thoughts], len(one))
        for one in encoded
    ]
    counts = sorted({len(parts) - 1 for parts in rows})
    if len(counts) > 1:
        raise ValueError(
            f"rows of a batch have {counts[0]} to {counts[-1]} thinking tokens; feed = 'state' "
            "needs as many in all"
        )
    widths = [max(len(row[k]) for row in rows) for k in range(counts[0] + 1)]

    def aligned(values: Callable[[Encoded], Sequence[int]], value: int) -> list[list[int]]:
        return [
            [
                number
                for part, width in zip(parts, widths, strict=True)
                for number in (
                    *(values(one)[place] for place in part),
                    *[value] * (width - len(part)),
                )
            ]
            for one, parts in zip(encoded, rows, strict=True)
        ]

    mask = torch.tensor(aligned(lambda one: [1] * len(one), 0))
    return {
        "input_ids": torch.tensor(aligned(lambda one: one.input_ids, pad_id)),
        "attention_mask": mask,
        "labels": torch.tensor(aligned(lambda one: one.labels, IGNORED)),
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }


def _parts(starts: Sequence[int], length: int) -> list[range]:
    """Places before the first start, and from each start up to the next."""
    edges = [0, *starts, length]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def pad_text(encoded: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each (batch, longest)."""
    return {
        "input_ids": pad([one.input_ids for one in encoded], pad_id),
        "attention_mask": pad([[1] * len(one.input_ids) for one in encoded], 0),
        "labels": pad([one.labels for one in encoded], IGNORED),
    }
