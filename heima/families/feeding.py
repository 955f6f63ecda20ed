"""States in the place of thinking tokens' embeddings, in training and in decoding.

The state that predicted a thinking token (the last hidden state before it, after the final norm) is
what the model reads at the token's place, as in Coconut (Hao et al., 2024, arXiv:2412.06769); the
token itself is written and counted as ever.

Training computes a batch in segments over one cache of keys and values, each up to the next
thinking token: what K+1 whole passes would give, for the FLOPs of one. For that the k-th thinking
token must be in one column of all rows (`encoding.pad_aligned`), and the cache must hold its
gradients: gradient checkpointing, where transformers drops the cache, is refused (`heima.config`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from heima.config import FeedScale


@dataclass(frozen=True)
class Feed:
    """Which tokens a state is fed in place of, and whether it is scaled.

    `match` gives it the mean norm of the embeddings: a state after the final norm is many times as
    large. (That of the token it replaces would do for trained tokens only: reserved ones are
    hardly larger than zero in some models.)
    """

    ids: Collection[int]
    scale: FeedScale = "none"

    def instead(self, table: nn.Embedding) -> Callable[[torch.Tensor], torch.Tensor]:
        """A state, (rows, hidden_size), as it is fed to a model with these embeddings."""
        if self.scale == "none":
            return lambda state: state
        with torch.no_grad():
            norm = table.weight.float().norm(dim=-1).mean().item()
        return lambda state: norm * nn.functional.normalize(state, dim=-1)


def by_segments(
    core: Callable[..., Any],
    table: nn.Embedding,
    feed: Feed,
    *,
    text: Mapping[str, torch.Tensor],
    image: Mapping[str, torch.Tensor],
    columns: Mapping[str, torch.Tensor],
    cache: DynamicCache,
) -> torch.Tensor:
    """Last hidden states, (rows, length, hidden_size), with states fed back.

    Before each thinking token stands the state that predicts it, also where that column is padding.

    Args:
        core: a VLM without its lm_head; `table` are its embeddings.
        text: `input_ids`, `attention_mask` and `position_ids`, each (rows, length).
        image: what `core` takes with the first segment, in which the image stands, and only there.
        columns: what else it takes for each column of the text, (rows, length, …).
        cache: an empty one.

    Raises:
        ValueError: where the k-th thinking token is not in one column of all rows.
    """
    ids = text["input_ids"]
    here = torch.isin(ids, torch.tensor(sorted(feed.ids), device=ids.device))
    if not torch.equal(here.any(dim=0), here.all(dim=0)):
        raise ValueError(
            "feed = 'state' needs as many thinking tokens in all rows, the k-th in one column"
        )
    rows = torch.arange(len(ids), device=ids.device)
    edges = [*here[0].nonzero()[:, 0].tolist(), ids.shape[1]]
    scaled = feed.instead(table)
    found: list[torch.Tensor] = []
    start = 0
    for end in edges:
        part = slice(start, end)
        inputs: dict[str, Any] = {"input_ids": ids[:, part], **image}
        if found:
            state = scaled(found[-1][:, -1])
            rest = table(ids[:, start + 1 : end])
            inputs = {"inputs_embeds": torch.cat([state[:, None].to(rest.dtype), rest], dim=1)}
        hidden = core(
            **inputs,
            **{name: value[:, part] for name, value in columns.items()},
            attention_mask=text["attention_mask"][:, :end],
            position_ids=text["position_ids"][:, part],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        # A row's last token may have padding behind it.
        last = hidden[rows, text["attention_mask"][:, part].sum(dim=1) - 1]
        found.append(torch.cat([hidden[:, :-1], last[:, None]], dim=1))
        start = end
    return torch.cat(found, dim=1)


@contextlib.contextmanager
def fed_back(language: PreTrainedModel, feed: Feed | None) -> Iterator[None]:
    """While it is open, `generate` feeds states back; with None it does what it does.

    `language` are the text layers with their embeddings and final norm. A step of one column reads
    the last state of its row where its token is a thinking token. The prompt must hold none.
    """
    if feed is None:
        yield
        return
    table = language.get_input_embeddings()
    scaled = feed.instead(table)
    tokens = torch.tensor(sorted(feed.ids), device=table.weight.device)
    last: list[torch.Tensor] = []

    def keep(module: nn.Module, args: object, output: torch.Tensor) -> None:
        last[:] = [output[:, -1]]

    def put(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        here = torch.isin(args[0], tokens)
        if args[0].shape[1] > 1 or not last:
            if here.any():
                raise ValueError("feed = 'state' decodes its thinking tokens: a prompt has none")
            return output
        return torch.where(here[..., None], scaled(last[0])[:, None].to(output.dtype), output)

    hooks = (
        language.norm.register_forward_hook(keep),
        table.register_forward_hook(put),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def unforced(
    ids: Sequence[Sequence[int]], feed: Feed | None
) -> tuple[list[Sequence[int]], list[int]]:
    """Prompts without what they have from their first thinking token on, and that: the forced
    beginning of every answer, which must be written token by token where states are fed back.

    Raises `ValueError` where it is not the same in all of them.
    """
    if feed is None:
        return list(ids), []
    starts = [
        next((place for place, token in enumerate(row) if token in feed.ids), len(row))
        for row in ids
    ]
    tails = {tuple(row[start:]) for row, start in zip(ids, starts, strict=True)}
    if len(tails) > 1:
        raise ValueError("feed = 'state' needs one forced beginning for all answers of a batch")
    return [row[:start] for row, start in zip(ids, starts, strict=True)], list(tails.pop())


class Forced(LogitsProcessor):
    """Lets the first tokens of every answer be these, behind prompts of `length` tokens."""

    def __init__(self, tokens: Sequence[int], length: int) -> None:
        self._tokens = tokens
        self._length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._length
        if step >= len(self._tokens):
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[:, self._tokens[step]] = 0
        return only
