"""Whole passes over forced answers: what an answer costs, and whether greedy decoding gives it.

An answer is a constant prefix, which holds the thinking tokens, and a continuation, which holds the
conclusion. Of a continuation one pass tells both its negative log-likelihood and whether each of
its tokens is the likeliest after those before it: if all are, it is what greedy decoding writes. So
one pass answers "is the conclusion still this one?", and nothing need be decoded again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel, ProcessorMixin

from heima.config import Decoding
from heima.cot.sections import TAGS, joined, meant
from heima.data.encoding import Sample
from heima.data.tokens import Vocabulary
from heima.data.turns import Turn
from heima.families.batches import Collator, Images
from heima.training.backbone import body
from heima.vlm import generation


@dataclass(frozen=True)
class Places:
    """Where things stand in a batch of forced answers, as the model sees them.

    `thinking` (rows, k) are the columns of the thinking tokens; the masks are (rows, length):
    `image` of the image's tokens, `conclusion` of the continuation.
    """

    thinking: torch.Tensor
    image: torch.Tensor
    conclusion: torch.Tensor

    @property
    def thinking_mask(self) -> torch.Tensor:
        return torch.zeros_like(self.image).scatter(1, self.thinking, True)


@dataclass(frozen=True)
class Scores:
    """Of each row: the continuation's negative log-likelihood (nats), whether it is greedy's."""

    nll: np.ndarray
    greedy: np.ndarray


Within = Callable[[Places], AbstractContextManager[Any]]
"""Opens what a pass happens within, told where things stand."""


def _plain(places: Places) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


class Passes:
    """Passes of one model over turns whose image stands first, as in benchmarks.

    `prefix` is the constant beginning of every answer (`rendering.constant_prefix`). Every `score`
    happens within `world`: there a planted control closes ways of attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        vocabulary: Vocabulary,
        collate: Collator,
        images: Images,
        prefix: str,
        *,
        world: Within = _plain,
    ) -> None:
        self.model = model
        self.prefix = prefix
        self._world = world
        self._processor = processor
        self._vocabulary = vocabulary
        self._collate = collate
        self._images = images
        self._thinking = torch.tensor(sorted(vocabulary.thinking_ids.values()))

    def continuations(self, turns: Sequence[Turn], *, decoding: Decoding) -> list[str | None]:
        """What decoding writes after the prefix, its thinking tokens marked; None where it does not
        end in time."""
        answers = generation.generate(
            self.model,
            self._processor,
            self._vocabulary,
            [
                generation.Prompt(
                    turn.question, turn.image, functools.partial(self._images.read, turn.image)
                )
                for turn in turns
            ],
            decoding=decoding,
            seed=0,
            prefix=self.prefix,
        )
        return [meant(one.text) if one.finish == "stop" else None for one in answers]

    @torch.inference_mode()
    def score(
        self,
        turns: Sequence[Turn],
        continuations: Sequence[str],
        *,
        prefix: str | None = None,
        images: Sequence[str] | None = None,
        within: Within = _plain,
    ) -> Scores:
        """The continuations of the turns' answers, after `prefix` (None: the constant one).

        `images` are shown instead of the turns' own, by name.
        """
        beginning = meant(self.prefix if prefix is None else prefix)
        asked = [turn.question for turn in turns]
        encoded = self._vocabulary.encode_all(
            [
                (question, "first", joined([beginning, text]))
                for question, text in zip(asked, continuations, strict=True)
            ]
        )
        before = [len(ids) for ids in self._vocabulary.prompts_ids(asked, "first", beginning)]
        shown = images or [turn.image for turn in turns]
        inputs = self._collate(
            [Sample(one, image) for one, image in zip(encoded, shown, strict=True)]
        )
        del inputs["labels"]
        lengths = [len(one) - first for one, first in zip(encoded, before, strict=True)]
        places = self._places(inputs, torch.tensor(lengths))
        with self._world(places), within(places):
            hidden = body(self.model)(
                **{key: value.to(self.model.device) for key, value in inputs.items()}
            )
        rows, columns = places.conclusion.nonzero(as_tuple=True)
        logits = self.model.lm_head(hidden[rows, columns - 1]).float().cpu()
        tokens = inputs["input_ids"][rows, columns]
        nll = torch.zeros(len(turns), dtype=torch.float64)
        nll.index_add_(0, rows, functional.cross_entropy(logits, tokens, reduction="none").double())
        missed = torch.zeros(len(turns), dtype=torch.int64)
        missed.index_add_(0, rows, (logits.argmax(dim=-1) != tokens).long())
        return Scores(nll.numpy(), (missed == 0).numpy())

    def _places(self, inputs: dict[str, torch.Tensor], lengths: torch.Tensor) -> Places:
        ids, real = inputs["input_ids"], inputs["attention_mask"]
        ends = real.sum(dim=1)[:, None]
        columns = torch.arange(ids.shape[1])
        here = torch.isin(ids, self._thinking) & (columns < ends - lengths[:, None])
        return Places(
            thinking=here.nonzero()[:, 1].reshape(len(ids), int(here.sum()) // len(ids)),
            image=ids == self._processor.image_token_id,
            conclusion=(columns >= ends - lengths[:, None]) & (columns < ends),
        )


def continuation(conclusion: str) -> str:
    """What follows the prefix where a conclusion is given in its tags.

    >>> continuation("B")
    '<CONCLUSION> B </CONCLUSION>'
    """
    opening, closing = TAGS["conclusion"]
    return f"{opening} {conclusion} {closing}"
