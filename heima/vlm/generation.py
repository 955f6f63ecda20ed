"""Batched decoding of a VLM, with every token accounted for.

Left padding, longest prompt first. Prompts that share an image stand together, so that the image
is processed once, and encoded once in a batch. Greedy decoding gives the same text for any batch
size (tested).

The batches of a `Plan` are fixed before the first is decoded, and each has its own random numbers.
So a batch has one outcome, whichever process decodes it and whatever it decoded before: runs can be
shared out and resumed.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin

from heima.config import Decoding
from heima.cot import parsing
from heima.cot.rendering import Layout
from heima.cot.sections import TAG_TOKENS, TAGS
from heima.data.tokens import Vocabulary
from heima.families import batches, registry
from heima.families.feeding import Feed, Forced, fed_back, unforced
from heima.families.images import ImageCache, distinct
from heima.vlm.processes import batch_seed
from heima.vlm.sampling import sampling

_TAG = re.compile(
    "|".join(tag for tags in (TAGS, TAG_TOKENS) for two in tags.values() for tag in two)
)


@dataclass(frozen=True)
class Prompt:
    """A question about one image, which stands before it.

    The image is loaded when its batch is decoded; equal `image_key`s mean equal images.
    """

    question: str
    image_key: str
    load_image: Callable[[], Image.Image]


@dataclass(frozen=True)
class Counts:
    """Tokens of one generation.

    `prompt` counts an image as the one token that stands for it. `decoded` counts everything
    generated, the end of turn included; `thinking` (fillers among them), `tag` (of the sections'
    tags) and `conclusion` (between its tags, or behind all thinking) are disjoint parts of it.
    """

    prompt: int
    decoded: int
    thinking: int
    tag: int
    conclusion: int


@dataclass(frozen=True)
class Generation:
    """One answer: `text` shows thinking tokens by name, `seconds` is its share of the batch."""

    text: str
    counts: Counts
    finish: Literal["stop", "length"]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Prompts, as token ids and in batches, and how they are to be decoded.

    `ids[i]` belongs to `prompts[i]`; `batches` are indices of prompts, each in exactly one batch.
    """

    prompts: Sequence[Prompt]
    ids: Sequence[Sequence[int]]
    batches: Sequence[Sequence[int]]
    decoding: Decoding
    seed: int

    def seed_of(self, batch: int) -> int:
        """The seed of a batch."""
        return batch_seed(self.seed, batch)

    def in_order(self, batches: Iterable[Sequence[Generation]]) -> list[Generation]:
        """The generations of all batches, given in the order of the batches, by prompt."""
        generations: dict[int, Generation] = {}
        for batch, answers in zip(self.batches, batches, strict=True):
            generations.update(zip(batch, answers, strict=True))
        return [generations[i] for i in range(len(self.prompts))]


def plan(
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding,
    seed: int,
    prefix: str = "",
) -> Plan:
    """Put prompts into batches of `decoding.batch_size`, longest first.

    `prefix` begins every answer (`rendering.constant_prefix`): it is read, not decoded.
    """
    ids = vocabulary.prompts_ids([prompt.question for prompt in prompts], "first", prefix)
    order = _order(prompts, ids)
    size = decoding.batch_size
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    return Plan(prompts, ids, batches, decoding, seed)


class Engine(Protocol):
    """What decodes a batch.

    Given prompts and their token ids, it returns the ids of each answer: up to the first of
    `ends` and including it, or as many as `decoding.max_new_tokens`. Padding may follow an end.
    """

    ends: frozenset[int]

    def __call__(
        self,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        seed: int,
    ) -> list[list[int]]: ...

    def ahead(self, batches: Sequence[Sequence[Prompt]]) -> AbstractContextManager[None]:
        """While it is open, exactly these batches are asked, in order: some may be made ready."""
        ...


class Decoder:
    """Decodes the batches of plans with an engine, and accounts for every token.

    `tags` is the layout of the model's answers.
    """

    def __init__(self, engine: Engine, vocabulary: Vocabulary, tags: Layout = "text") -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._count = _Tally(vocabulary, tags)

    def __call__(self, planned: Plan, batch: int) -> list[Generation]:
        """Answer the prompts of one batch, in its order."""
        members = planned.batches[batch]
        ids = [planned.ids[i] for i in members]
        start = time.perf_counter()
        rows = self._engine(
            [planned.prompts[i] for i in members],
            ids,
            decoding=planned.decoding,
            seed=planned.seed_of(batch),
        )
        seconds = (time.perf_counter() - start) / len(members)
        return [
            self._generation(len(prompt), row, seconds)
            for prompt, row in zip(ids, rows, strict=True)
        ]

    def each(self, planned: Plan, batches: Sequence[int]) -> Iterator[list[Generation]]:
        """Answer the prompts of these batches, one after the other."""
        asked = [[planned.prompts[i] for i in planned.batches[batch]] for batch in batches]
        with self._engine.ahead(asked):
            for batch in batches:
                yield self(planned, batch)

    def _generation(self, prompt: int, row: Sequence[int], seconds: float) -> Generation:
        end = next((at for at, token in enumerate(row) if token in self._engine.ends), None)
        answer = row[:end]
        return Generation(
            text=self._vocabulary.decode(answer),
            counts=Counts(
                prompt=prompt,
                decoded=len(answer) + (end is not None),
                **self._count(answer, ended=end is not None),
            ),
            finish="length" if end is None else "stop",
            seconds=seconds,
        )


def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding,
    seed: int,
    prefix: str = "",
    tags: Layout = "text",
    feed: Feed | None = None,
) -> list[Generation]:
    """Answer every prompt; the generations stand in the order of the prompts.

    `decoding.temperature` 0 is greedy; otherwise tokens are drawn from the `top_k` likeliest, and
    the draws depend on `seed` and `batch_size`. `prefix` is forced upon every answer: it counts to
    the prompt, and the generations are what follows it. `tags` is the layout of answers,
    `feed` says of which tokens the states are fed back.
    """
    planned = plan(vocabulary, prompts, decoding=decoding, seed=seed, prefix=prefix)
    decode = Decoder(Transformers(model, processor, feed=feed), vocabulary, tags)
    return planned.in_order(decode(planned, batch) for batch in range(len(planned.batches)))


class Transformers:
    """Decodes batches through `generate` of transformers.

    `cache` keeps processed images for other models with the same processor. `workers` processes
    read and process the images of batches that are announced (`ahead`); 0: this process does, as
    each is asked. The answers are the same. With `feed`, states are fed back; thinking tokens that
    a prompt forces are then written one after the other, and are no part of the answer.

    Raises `ValueError` for a model of no known family.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        cache: ImageCache | None = None,
        *,
        workers: int = 0,
        feed: Feed | None = None,
    ) -> None:
        self._model = model
        self._feed = feed
        self._processor = processor
        self._family = registry.of(model)
        self._cache = cache or ImageCache()
        self._workers = workers
        self._read: Iterator[dict[str, Mapping[str, Any]]] | None = None
        ends = model.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        seed: int,
    ) -> list[list[int]]:
        names, rows = distinct([prompt.image_key for prompt in prompts], once=True)
        found = self._images(prompts) if self._read is None else _as_arrays(next(self._read))
        images = [found[name] for name in names]
        prompted, forced = unforced(ids, self._feed)
        inputs = batches.model_inputs(self._family, prompted, images, self._processor, rows)
        length = inputs["input_ids"].shape[1]
        torch.manual_seed(seed)
        with (
            self._family.spread(self._model, rows),
            fed_back(self._family.language_model(self._model), self._feed),
        ):
            output = self._model.generate(
                **{key: value.to(self._model.device) for key, value in inputs.items()},
                max_new_tokens=len(forced) + decoding.max_new_tokens,
                eos_token_id=sorted(self.ends),
                pad_token_id=self._processor.tokenizer.pad_token_id,
                **sampling(decoding),
                **({"logits_processor": [Forced(forced, length)]} if forced else {}),
            )
        return output[:, length + len(forced) :].tolist()

    @contextlib.contextmanager
    def ahead(self, batches: Sequence[Sequence[Prompt]]) -> Iterator[None]:
        if not self._workers:
            yield
            return
        # Tensors go through shared memory, arrays would be copied through a pipe.
        loader: DataLoader[Any] = DataLoader(
            batches,  # type: ignore[arg-type]  # a sequence is a map-style data set
            batch_size=None,
            collate_fn=lambda prompts: _as_tensors(self._images(prompts)),
            num_workers=self._workers,
            multiprocessing_context="fork",
        )
        self._read = iter(loader)
        try:
            yield
        finally:
            self._read = None

    def _images(self, prompts: Sequence[Prompt]) -> dict[str, Mapping[str, Any]]:
        """The distinct images of prompts by their keys, processed."""
        return {
            prompt.image_key: self._cache.get(
                prompt.image_key,
                lambda prompt=prompt: self._family.process(  # type: ignore[misc]
                    prompt.load_image(), self._processor
                ),
            )
            for prompt in prompts
        }


def _as_tensors(images: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in one.items()
        }
        for name, one in images.items()
    }


def _as_arrays(images: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            key: value.numpy() if isinstance(value, torch.Tensor) else value
            for key, value in one.items()
        }
        for name, one in images.items()
    }


def _order(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> list[int]:
    """Longest first, prompts of one image together at the place of their longest."""
    longest: dict[str, int] = {}
    for prompt, row in zip(prompts, ids, strict=True):
        longest[prompt.image_key] = max(longest.get(prompt.image_key, 0), len(row))
    return sorted(
        range(len(prompts)),
        key=lambda i: (-longest[prompts[i].image_key], prompts[i].image_key, -len(ids[i]), i),
    )


class _Tally:
    """Counts thinking, tag and conclusion tokens of an answer.

    A tag can be one token or several, and a token can reach beyond a tag's edge. So tags are found
    in the text that the tokens' own pieces make, and a token that overlaps a tag belongs to it.
    """

    def __init__(self, vocabulary: Vocabulary, tags: Layout = "text") -> None:
        self._tokenizer = vocabulary.tokenizer
        self._tags = tags
        self._thinking = set(vocabulary.thinking_ids.values())
        # A thinking token is no text: without a piece it is neither tag nor conclusion.
        self._pieces: dict[int, str] = dict.fromkeys(self._thinking, "")
        self._pieces |= {number: name for name, number in vocabulary.tag_ids.items()}

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._tokenizer.decode(
                [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return self._pieces[token]

    def __call__(self, ids: Sequence[int], *, ended: bool = True) -> dict[str, int]:
        pieces = [self._piece(token) for token in ids]
        starts = [0, *itertools.accumulate(map(len, pieces))]
        text = "".join(pieces)
        tags = list(_TAG.finditer(text))
        tag_tokens = {i for tag in tags for i in _overlapping(starts, *tag.span())}
        conclusion: set[int] = set()
        span = parsing.conclusion_span(text, self._tags)
        # Without tags only an end closes a conclusion.
        if span is not None and (ended or self._tags != "none"):
            conclusion = set(_overlapping(starts, *span))
        return {
            "thinking": sum(token in self._thinking for token in ids),
            "tag": len(tag_tokens),
            "conclusion": len(conclusion - tag_tokens),
        }


def _overlapping(starts: Sequence[int], begin: int, end: int) -> Iterator[int]:
    """Tokens with a character in [begin, end); token i has those from starts[i] on."""
    for i in range(bisect.bisect_right(starts, begin) - 1, len(starts) - 1):
        if starts[i] >= end:
            return
        if starts[i + 1] > max(begin, starts[i]):
            yield i
