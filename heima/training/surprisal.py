"""How unlikely a model finds each token of the answers that it was trained on, in nats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import distributed as dist

from heima.cot.rendering import render
from heima.cot.thinking import Thinking
from heima.data.encoding import Sample
from heima.data.shortening import shorten
from heima.data.tokens import Vocabulary
from heima.data.turns import Turn
from heima.training.loop import AnswerLoss, Collate


@torch.no_grad()
def surprisals(
    model: AnswerLoss, samples: Sequence[Sample], collate: Collate, *, batch_size: int
) -> list[list[float]]:
    """For each sample those of its labelled tokens: the assistant's header, answer and end.

    Processes share the batches, and all get all of them.
    """
    model.eval()
    # As the training that follows starts it.
    state = PartialState(cpu=not torch.cuda.is_available())
    place = next(model.parameters()).device
    starts = list(range(0, len(samples), batch_size))
    found: dict[int, list[list[float]]] = {}
    for start in starts[state.process_index :: state.num_processes]:
        batch = collate(samples[start : start + batch_size])
        rows = model.each_token(**{key: value.to(place) for key, value in batch.items()})
        found[start] = [row.tolist() for row in rows]
    if state.num_processes > 1:
        gathered: list[dict[int, list[list[float]]]] = [{} for _ in range(state.num_processes)]
        dist.all_gather_object(gathered, found)
        found = {start: rows for part in gathered for start, rows in part.items()}
    return [row for start in starts for row in found[start]]


def short_texts(
    model: AnswerLoss,
    turns: Sequence[Turn],
    vocabulary: Vocabulary,
    collate: Collate,
    thinking: Thinking,
    *,
    batch_size: int,
) -> list[dict[str, str]]:
    """The short texts of each turn's sections, by the surprisal that `model`, text-CoT, has."""
    encoded = vocabulary.encode_all(
        [
            (
                turn.question,
                "first" if turn.image_first else "last",
                render(turn.sections, "text-cot"),
            )
            for turn in turns
        ]
    )
    samples = [Sample(one, turn.image) for one, turn in zip(encoded, turns, strict=True)]
    nats = surprisals(model, samples, collate, batch_size=batch_size)
    return [
        # Before the answer stands its header, behind it its end.
        shorten(turn.sections, row[one.body - len(one) : -1], vocabulary, thinking)
        for turn, one, row in zip(turns, encoded, nats, strict=True)
    ]
