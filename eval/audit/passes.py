"""Whole passes over forced answers: what an answer costs, and whether greedy decoding gives it.

An answer is a constant prefix, which holds the thinking tokens, and a continuation, which holds the
conclusion. Of a continuation one pass tells both its negative log-likelihood and whether each of
its tokens is the likeliest after those before it: if all are, it is what greedy decoding writes. So
one pass answers "is the conclusion still this one?", and nothing need be decoded again.

What an audit changes lies in the answer. A question is therefore read once with its image, and all
passes over its answers go on from the keys and values of that.

Where states are fed back, an answer is read in segments, as in training, each up to the next
thinking token that is fed the state before it. One whose states are replaced is not: what it reads
is replaced, too.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin

from heima.config import Decoding
from heima.cot import mixtures
from heima.cot.rendering import Layout
from heima.cot.sections import joined, meant, parts_of
from heima.data.encoding import Sample, pad
from heima.data.tokens import IGNORED, Encoded, Vocabulary
from heima.data.turns import Turn
from heima.families import registry
from heima.families.batches import Collator
from heima.families.feeding import Feed
from heima.vlm import patching

_READ = 2
"""Batches of questions whose keys and values are kept: about their own images, and about others."""

_COLUMNS = ("cross_attention_mask",)
"""What a model takes for each column of the text beside what the text is."""


@dataclass(frozen=True)
class Places:
    """Where things stand in a batch of forced answers, as the model sees them.

    `thinking` (rows, k) are the columns of the thinking tokens; the masks are (rows, length):
    `image` of the image's tokens, `continuation` of what is scored, `conclusion` of that, of words
    before it that are none of the prefix, and of what opens it. Without tags the last thinking
    token does: its state predicts the conclusion's first token, as that of an opening tag does
    elsewhere, and it is none of `thinking`. What stands before the column `start` was read before;
    a pass has the columns from there on. `rows` says which of the turns that were given a row is
    about.
    """

    thinking: torch.Tensor
    image: torch.Tensor
    continuation: torch.Tensor
    conclusion: torch.Tensor
    start: int
    rows: torch.Tensor

    def within(self, start: int, end: int) -> Places:
        """As a pass has them that reads the columns from `start` on and ends before `end`."""
        return Places(
            thinking=self.thinking[:, (self.thinking < end).all(dim=0)],
            image=self.image[:, :end],
            continuation=self.continuation[:, :end],
            conclusion=self.conclusion[:, :end],
            start=start,
            rows=self.rows,
        )

    @property
    def thinking_mask(self) -> torch.Tensor:
        return torch.zeros_like(self.image).scatter(1, self.thinking, True)


States = Sequence[torch.Tensor]
"""The residual stream at the thinking columns: the embedding and each layer, (rows, k, hidden)."""


@dataclass(frozen=True)
class Scores:
    """Of each row: the continuation's negative log-likelihood (nats), whether it is greedy's; of
    the rows that were scored, the `States` of the pass, where they were asked for."""

    nll: np.ndarray
    greedy: np.ndarray
    states: States = ()


Within = Callable[[Places], AbstractContextManager[Any]]
"""Opens what a pass happens within, told where things stand."""


def unchanged(places: Places) -> AbstractContextManager[None]:
    """A pass in which nothing is changed."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class _Questions:
    """Questions that the model has read, each with its image.

    `ids` and `mask` are (rows, length); `columns` has for each of `_COLUMNS` what holds behind the
    image, (rows, 1, …); `last` (rows, hidden) are the final states of the last tokens.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    columns: dict[str, torch.Tensor]
    cache: DynamicCache
    last: torch.Tensor

    def of(self, rows: torch.Tensor) -> _Questions:
        """Some of them, with a cache of their own that passes may extend."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        if len(rows) == len(self.ids):
            return _Questions(self.ids, self.mask, self.columns, cache, self.last)
        cache.reorder_cache(rows)
        there = rows.to(self.last.device)
        return _Questions(
            self.ids[rows],
            self.mask[rows],
            {name: value[there] for name, value in self.columns.items()},
            cache,
            self.last[there],
        )


class Passes:
    """Passes of one model over turns whose image stands first, as in benchmarks.

    `prefix` is the constant beginning of every answer (`rendering.constant_prefix`), `tags` the
    layout of answers, `feed` says of which tokens states are fed back. Answers are scored and
    decoded within `world`: there a planted control closes ways of attention of their columns.
    `word` is the control word behind each question, of a model that needs one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        vocabulary: Vocabulary,
        collate: Collator,
        prefix: str,
        *,
        tags: Layout = "text",
        feed: Feed | None = None,
        world: Within = unchanged,
        word: str | None = None,
    ) -> None:
        self.model = model
        self.prefix = prefix
        self.tags = tags
        self.feed = feed
        self._world = world
        self._word = word
        self._processor = processor
        self._vocabulary = vocabulary
        self._collate = collate
        self._core = registry.pretrained(model)
        self._family = registry.of(model)
        self._thinking = torch.tensor(sorted(vocabulary.thinking_ids.values()))
        self._table = self._family.language_model(model).get_input_embeddings()
        self._instead = (feed or Feed(())).instead(self._table)
        ends = model.generation_config.eos_token_id
        self._ends = torch.tensor(ends if isinstance(ends, list) else [ends])
        self._prompts: dict[str, list[int]] = {}
        self._answers: dict[tuple[str, ...], list[int]] = {}
        self._known: LRUCache[object, _Questions] = LRUCache(_READ)

    @torch.inference_mode()
    def continuations(
        self,
        turns: Sequence[Turn],
        *,
        decoding: Decoding,
        images: Sequence[str] | None = None,
        of: np.ndarray | None = None,
        states: States | None = None,
    ) -> list[str | None]:
        """What greedy decoding writes after the prefix, its thinking tokens marked; None where it
        does not end in `decoding.max_new_tokens`, and of turns that `of` leaves out.

        `images` and `states` as in `score`.
        """
        rows = torch.arange(len(turns)) if of is None else torch.from_numpy(of.nonzero()[0])
        found: list[str | None] = [None] * len(turns)
        if not len(rows):
            return found
        given = None if states is None else [part[rows] for part in states]
        asked = self._asked(turns, images or [turn.image for turn in turns]).of(rows)
        ids = torch.tensor([self._ids(meant(self.prefix))]).long().expand(len(rows), -1)
        begun, read, last = ids.shape[1], 0, asked.last
        while ids.shape[1] < begun + decoding.max_new_tokens:
            if read < ids.shape[1]:
                real, lengths = torch.ones_like(ids), torch.full(rows.shape, ids.shape[1] - begun)
                places = self._places(asked, ids, real, lengths, rows, read)
                hidden, _ = self._passed(asked, ids, real, places, last, states=given)
                last = hidden[:, -1]
                read = ids.shape[1]
            token = self.model.lm_head(last).float().argmax(dim=-1).cpu()
            ids = torch.cat([ids, token[:, None]], dim=1)
            ended = torch.isin(ids[:, begun:], self._ends).any(dim=1)
            if 2 * ended.sum() >= len(ended):
                # What has ended is left behind, most at once: each time keys are copied.
                self._said(found, rows[ended], ids[ended, begun:])
                rest = (~ended).nonzero()[:, 0]
                if not len(rest):
                    break
                rows, ids, asked, last = rows[rest], ids[rest], asked.of(rest), last[rest]
                given = None
        else:
            self._said(found, rows, ids[:, begun:])
        return found

    def _said(self, found: list[str | None], rows: torch.Tensor, written: torch.Tensor) -> None:
        """Note for these rows what is `written` up to the end, where it has one."""
        ended = torch.isin(written, self._ends)
        ends = ended.int().argmax(dim=1)
        for place, row in enumerate(rows.tolist()):
            if ended[place].any():
                found[row] = meant(self._vocabulary.decode(written[place, : ends[place]].tolist()))

    @torch.inference_mode()
    def score(
        self,
        turns: Sequence[Turn],
        continuations: Sequence[str],
        *,
        prefix: str | Sequence[str] | None = None,
        images: Sequence[str] | None = None,
        within: Within = unchanged,
        of: np.ndarray | None = None,
        states: States | None = None,
        recorded: bool = False,
        words: Sequence[str] | None = None,
    ) -> Scores:
        """The continuations of the turns' answers, after `prefix`: one for all, or each its own
        (None: the constant one), and each after its own `words` behind that, which are read as a
        continuation is, and not scored.

        `images` are shown instead of the turns' own, by name. With `of`, a mask of the turns, no
        other is scored: theirs are NaN and False. `states` of all turns are put in the place of the
        thinking tokens' own; `recorded` has those of the pass noted.
        """
        nll, greedy = np.full(len(turns), np.nan), np.zeros(len(turns), dtype=bool)
        rows = torch.arange(len(turns)) if of is None else torch.from_numpy(of.nonzero()[0])
        if not len(rows):
            return Scores(nll, greedy)
        given = self.prefix if prefix is None else prefix
        each = [given] * len(turns) if isinstance(given, str) else given
        begun = [meant(each[row]) for row in rows.tolist()]
        asked = self._asked(turns, images or [turn.image for turn in turns]).of(rows)
        tokenizer = self._vocabulary.tokenizer
        led = [
            joined([beginning, words[row]]) if words else beginning
            for beginning, row in zip(begun, rows.tolist(), strict=True)
        ]
        unscored = [len(self._ids(one)) for one in led]
        answers = [
            [*self._ids(joined([one, continuations[row]])), tokenizer.eos_token_id]
            for one, row in zip(led, rows.tolist(), strict=True)
        ]
        ids = pad(answers, tokenizer.pad_token_id)
        real = pad([[1] * len(one) for one in answers], 0)
        before = torch.tensor([len(self._ids(beginning)) for beginning in begun])
        lengths = real.sum(dim=1)
        places = self._places(
            asked, ids, real, lengths - before, rows, scored=lengths - torch.tensor(unscored)
        )
        hidden, taken = self._passed(
            asked,
            ids,
            real,
            places,
            asked.last,
            within=within,
            states=None if states is None else [part[rows] for part in states],
            recorded=recorded,
        )
        # The first token is predicted where the question ends.
        hidden = torch.cat([asked.last[:, None], hidden], dim=1)
        there, columns = places.continuation[:, places.start :].nonzero(as_tuple=True)
        logits = self.model.lm_head(hidden[there, columns]).float().cpu()
        tokens = ids[there, columns]
        costs = functional.cross_entropy(logits, tokens, reduction="none").double()
        total = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, there, costs)
        missed = torch.zeros(len(rows), dtype=torch.int64)
        missed.index_add_(0, there, (logits.argmax(dim=-1) != tokens).long())
        # A tensor of one index would be taken for that index itself.
        scored = rows.numpy()
        nll[scored], greedy[scored] = total.numpy(), (missed == 0).numpy()
        return Scores(nll, greedy, taken)

    @torch.inference_mode()
    def prompt_states(self, turns: Sequence[Turn], images: Sequence[str]) -> torch.Tensor:
        """The final states of the prompts' last tokens, about these images, (turns, hidden)."""
        return self._asked(turns, images).last

    def _ids(self, text: str) -> list[int]:
        """The tokens of a text, which many answers share."""
        key = parts_of(text)
        if key not in self._answers:
            self._answers[key] = self._vocabulary.text_ids(text)
        return self._answers[key]

    def _asked(self, turns: Sequence[Turn], images: Sequence[str]) -> _Questions:
        """The turns' questions about these images, as the model has read them."""
        questions = [mixtures.asked(turn.question, self._word) for turn in turns]
        key = (tuple(questions), tuple(images))
        if (known := self._known.get(key)) is None:
            new = sorted(set(questions) - self._prompts.keys())
            ids = self._vocabulary.prompts_ids(new, "first")
            self._prompts.update(zip(new, ids, strict=True))
            known = self._known[key] = self._question([self._prompts[q] for q in questions], images)
        return known

    def _question(self, prompts: Sequence[list[int]], images: Sequence[str]) -> _Questions:
        inputs = self._collate(
            [
                Sample(Encoded(ids, [IGNORED] * len(ids), len(ids)), image)
                for ids, image in zip(prompts, images, strict=True)
            ]
        )
        del inputs["labels"]
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        shown = inputs.pop("image_rows").tolist()
        cache = DynamicCache(config=self._core.config.get_text_config())
        device = self.model.device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        with self._family.spread(self._core, shown):
            hidden = self._core.model(
                **inputs,
                position_ids=_positions(mask).to(device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        return _Questions(
            ids,
            mask,
            {name: inputs[name][:, -1:] for name in _COLUMNS if name in inputs},
            cache,
            hidden[torch.arange(len(ids)), mask.sum(dim=1) - 1],
        )

    def _passed(
        self,
        asked: _Questions,
        ids: torch.Tensor,
        real: torch.Tensor,
        places: Places,
        last: torch.Tensor,
        *,
        within: Within = unchanged,
        states: States | None = None,
        recorded: bool = False,
    ) -> tuple[torch.Tensor, States]:
        """Final states of the columns of answers `ids` that were not read before, and what is
        `recorded` at the thinking columns; `last` (rows, hidden) are the states before them."""
        if states is not None and states[0].shape[1] != places.thinking.shape[1]:
            raise ValueError(
                f"answers have {places.thinking.shape[1]} thinking tokens whose states can be "
                f"replaced, not {states[0].shape[1]}"
            )
        question, end = asked.ids.shape[1], ids.shape[1]
        read = places.start - question
        fed: list[int] = []
        if self.feed is not None:
            columns = torch.isin(ids, self._thinking).any(dim=0).nonzero()[:, 0]
            replaced = places.thinking - question if states is not None else columns[:0]
            fed = columns[(columns >= read) & ~torch.isin(columns, replaced)].tolist()
        edges = [*sorted({read, *fed}), end]
        found: list[torch.Tensor] = []
        taken: list[States] = []
        for first, stop in itertools.pairwise(edges):
            part = places.within(question + first, question + stop) if fed else places
            # Those of the part's thinking columns that it reads itself.
            new = (part.thinking >= part.start).all(dim=0)
            columns = part.thinking[:, new] - part.start
            with contextlib.ExitStack() as stack:
                if first in fed:
                    # Before all that replaces or notes what is fed.
                    stack.enter_context(self._feeding(ids[:, first], last))
                stack.enter_context(self._world(part))
                stack.enter_context(within(part))
                if states is not None and columns.numel():
                    device = self.model.device
                    given = [one[:, : len(new)][:, new].to(device) for one in states]
                    stack.enter_context(patching.patched(self.model, columns.to(device), given))
                if recorded:
                    taken.append(stack.enter_context(patching.recorded(self.model, columns)))
                hidden = self._hidden(asked, ids[:, first:stop], real[:, :stop])
            last = hidden[:, -1]
            found.append(hidden)
        stream = [torch.cat(parts, dim=1).cpu() for parts in zip(*taken, strict=True)]
        return torch.cat(found, dim=1), stream

    @contextlib.contextmanager
    def _feeding(self, tokens: torch.Tensor, last: torch.Tensor) -> Iterator[None]:
        """A pass whose first column is the state `last` in the rows whose token there is a thinking
        token."""
        state, here = self._instead(last), torch.isin(tokens, self._thinking).to(last.device)

        def put(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            first = torch.where(here[:, None], state.to(output.dtype), output[:, 0])
            return torch.cat([first[:, None], output[:, 1:]], dim=1)

        hook = self._table.register_forward_hook(put)
        try:
            yield
        finally:
            hook.remove()

    def _hidden(self, asked: _Questions, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Final states of `ids`, the last columns of answers of which `real` are tokens."""
        count, device = ids.shape[1], self.model.device
        mask = torch.cat([asked.mask, real], dim=1)
        hidden: torch.Tensor = self._core.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=_positions(mask)[:, -count:].to(device),
            past_key_values=asked.cache,
            use_cache=True,
            **{
                name: value.expand(-1, count, *value.shape[2:])
                for name, value in asked.columns.items()
            },
        ).last_hidden_state
        return hidden

    def _places(
        self,
        asked: _Questions,
        ids: torch.Tensor,
        real: torch.Tensor,
        lengths: torch.Tensor,
        rows: torch.Tensor,
        read: int = 0,
        *,
        scored: torch.Tensor | None = None,
    ) -> Places:
        """Of answers `ids`, whose first `read` columns were read before and whose continuations
        have these lengths; of these the last ones are `scored` (None: all)."""
        columns, ends = torch.arange(ids.shape[1]), real.sum(dim=1)[:, None]
        before = columns < ends - lengths[:, None]
        thinking = (torch.isin(ids, self._thinking) & before).nonzero()[:, 1].reshape(len(ids), -1)
        question = asked.ids.shape[1]
        image = asked.ids == self._processor.image_token_id
        first = ends - (lengths if scored is None else scored)[:, None]
        answered, counted = (
            torch.cat([torch.zeros_like(image), (columns >= start) & (columns < ends)], dim=1)
            for start in (ends - lengths[:, None], first)
        )
        thinking, conclusion = thinking + question, answered
        if self.tags == "none":
            conclusion = answered.scatter(1, thinking[:, -1:], True)
            thinking = thinking[:, :-1]
        return Places(
            thinking=thinking,
            image=torch.cat([image, torch.zeros_like(before)], dim=1),
            continuation=counted,
            conclusion=conclusion,
            start=question + read,
            rows=rows,
        )


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions that count tokens alone."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
