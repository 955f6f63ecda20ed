"""The forward pass up to the last hidden states, and how far leaving tiles out moves it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from heima.config import Tiles
from heima.data.encoding import Sample
from heima.data.tokens import IGNORED
from heima.families import registry
from heima.families.family import Body
from heima.families.feeding import Feed
from heima.training.loop import AnswerLoss, Collate


def body(model: nn.Module, *, tiles: Tiles = "padded", feed: Feed | None = None) -> Body:
    """A VLM's last hidden states, (rows, length, hidden_size), after the final norm, as a function
    of a batch of `models.collator`'s, labels apart; with `feed`, of one whose states are fed back.

    Raises `ValueError` for a model of no known family.
    """
    return registry.of(model).body(registry.pretrained(model), tiles, feed)


@torch.no_grad()
def tile_shift(
    model: AnswerLoss, samples: Sequence[Sample], collate: Collate, *, batch_size: int
) -> dict[str, float]:
    """How far `tiles: real` moves a model from what it computes with padded tiles.

    Over the samples' labelled positions: the mean and the largest absolute difference of a logit,
    and both mean losses (nats a token).
    """
    model.eval()
    place = next(model.parameters()).device
    losses: dict[Tiles, list[torch.Tensor]] = {"padded": [], "real": []}
    total, largest, count = 0.0, 0.0, 0
    for start in range(0, len(samples), batch_size):
        batch = {k: v.to(place) for k, v in collate(samples[start : start + batch_size]).items()}
        targets = batch.pop("labels")[:, 1:]
        here = targets != IGNORED
        logits = {}
        for tiles, found in losses.items():
            logits[tiles] = model(**batch, tiles=tiles)[:, :-1][here].float()
            found.append(functional.cross_entropy(logits[tiles], targets[here], reduction="none"))
        moved = (logits["real"] - logits["padded"]).abs()
        total, count = total + moved.sum().item(), count + moved.numel()
        largest = max(largest, moved.max().item())
    return {
        "logits_mean_abs": total / count,
        "logits_max_abs": largest,
        **{f"loss_{tiles}": torch.cat(found).mean().item() for tiles, found in losses.items()},
    }
