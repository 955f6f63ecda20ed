"""Prompt lookup: several tokens a pass, where the text repeats what stands before it.

transformers' own (Saxena, 2023: candidates are what followed the last n-gram before) fails on
Mllama twice. Its candidates can be image tokens, for which the lm_head has no row; and to take back
rejected ones it also cuts the image's keys and values from the cache. Here such a candidate ends
the candidates, and the cross-attention layers of the cache keep what they have. Greedy answers are
those of decoding token by token; a batch has one row.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.generation.candidate_generator import CandidateGenerator

from heima.families import registry


class _Constant(DynamicLayer):
    """Keys and values of an image: no text that is taken back belongs to them."""

    def crop(self, tokens_to_remove: int) -> None:
        return


class _Writable(CandidateGenerator):
    """The candidates of another generator up to the first that the model cannot write."""

    def __init__(self, inner: Any, rows: int, image: int) -> None:
        self._inner, self._rows, self._image = inner, rows, image

    def get_candidates(self, input_ids: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        found, logits = self._inner.get_candidates(input_ids, **kwargs)
        own = found[0, input_ids.shape[1] :]
        odd = ((own >= self._rows) | (own == self._image)).nonzero()
        if len(odd):
            found = found[:, : input_ids.shape[1] + int(odd[0])]
        return found, logits

    def update_candidate_strategy(self, *args: Any, **kwargs: Any) -> None:
        self._inner.update_candidate_strategy(*args, **kwargs)


@contextlib.contextmanager
def looking_up(model: PreTrainedModel, tokens: int | None) -> Iterator[dict[str, Any]]:
    """While it is open, `generate` of `model` with the yielded arguments looks up that many
    `tokens` a pass; None: it decodes token by token."""
    if tokens is None:
        yield {}
        return
    text = model.config.get_text_config()
    cache = DynamicCache(config=text)
    for index in registry.of(model).cross_attention_layers(model.config):
        cache.layers[index] = _Constant()
    make = model._get_candidate_generator
    table = model.get_input_embeddings()
    head = model.get_output_embeddings()

    @functools.wraps(make)
    def writable(*args: Any, **kwargs: Any) -> _Writable:
        inner = make(*args, **kwargs)
        # It looks up what every candidate would score.
        inner.vocab_size = table.num_embeddings
        image = getattr(
            model.config, "image_token_id", getattr(model.config, "image_token_index", -1)
        )
        return _Writable(inner, head.out_features, image)

    model._get_candidate_generator = writable
    try:
        yield {"prompt_lookup_num_tokens": tokens, "past_key_values": cache}
    finally:
        del model._get_candidate_generator
