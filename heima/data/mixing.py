"""Turns of a checkpoint that is trained on a mixture of renderings, each with its control word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from heima.config import Params
from heima.config.mixtures import mixture, word
from heima.cot.mixtures import asked, assigned
from heima.cot.rendering import Rendering
from heima.data.tokens import Vocabulary
from heima.data.turns import Turn


def as_trained(
    turns: Sequence[Turn], params: Params, model: str, vocabulary: Vocabulary, *, seed: int
) -> tuple[Sequence[Turn], list[Rendering]]:
    """Turns as a checkpoint is asked them, in their order, and the rendering of each answer.

    Which turn is rendered how follows from `seed` and is the same in every epoch. Where the data is
    no mixture, the turns are as they were.
    Raises `ValueError` for control words that are the same tokens to the tokenizer.
    """
    mixed = mixture(params, model)
    if mixed is None:
        return turns, [params.rendering(model)] * len(turns)
    words = {name: word(params, model, name) or "" for name in mixed}
    tokens: dict[tuple[int, ...], str] = {}
    for name, text in words.items():
        ids = tuple(vocabulary.text_ids(asked("", text)))
        if (other := tokens.setdefault(ids, name)) != name:
            raise ValueError(
                f"control_words.{name} = {text!r} and control_words.{other} = {words[other]!r} are "
                "the same tokens to this tokenizer: they must be words that it knows"
            )
    names = assigned(mixed, len(turns), seed=seed)
    return (
        [
            replace(turn, question=asked(turn.question, words[name]))
            for turn, name in zip(turns, names, strict=True)
        ],
        [params.rendering(model, name) for name in names],
    )
