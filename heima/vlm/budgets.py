"""Chains that are cut: after so many tokens the conclusion is forced, and they have an answer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

from heima.config import Decoding
from heima.cot.rendering import Layout
from heima.cot.sections import COMPRESSIBLE, SEPARATOR, TAG_TOKENS, TAGS, meant
from heima.data.tokens import Vocabulary
from heima.vlm.generation import Engine, Prompt


class Cut:
    """An engine whose answers have `budget` tokens at most before the conclusion begins.

    Where a chain is longer, the section that is open is closed and the conclusion opened; the model
    writes on behind that. What is forced is part of the answer, and counts as decoded. Answers that
    have come to their conclusion, or to their end, by themselves go on as they would.
    """

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, *, budget: int, tags: Layout
    ) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._budget = budget
        self._layout = tags
        self._tags = TAG_TOKENS if tags == "token" else TAGS
        self.ends = engine.ends

    def __call__(
        self,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        *,
        decoding: Decoding,
        seed: int,
    ) -> list[list[int]]:
        chain = decoding.model_copy(update={"max_new_tokens": self._budget})
        begun = self._engine(prompts, ids, decoding=chain, seed=seed)
        open_ = [place for place, row in enumerate(begun) if self.ends.isdisjoint(row)]
        if not open_:
            return begun
        rows = {place: [*begun[place], *self._forced(begun[place])] for place in open_}
        # The limit is of what is decoded: a conclusion has what the chain has left of it, and one
        # token at least.
        left = max(1, decoding.max_new_tokens - max(map(len, rows.values())))
        rest = self._engine(
            [prompts[place] for place in open_],
            [[*ids[place], *rows[place]] for place in open_],
            decoding=decoding.model_copy(update={"max_new_tokens": left}),
            seed=seed + 1,
        )
        more = dict(zip(open_, rest, strict=True))
        return [
            [*rows[place], *more[place]] if place in more else row
            for place, row in enumerate(begun)
        ]

    def ahead(self, batches: Sequence[Sequence[Prompt]]) -> AbstractContextManager[None]:
        """Each batch is asked twice, so that nothing is made ready."""
        return contextlib.nullcontext()

    def _forced(self, chain: Sequence[int]) -> list[int]:
        """What is forced behind a chain: nothing where its conclusion has begun."""
        text = self._vocabulary.decode(chain)
        if self._tags["conclusion"][0] in text:
            return []
        space, between = (" ", SEPARATOR) if self._layout == "text" else ("", "")
        closing = "".join(
            f"{space}{closed}"
            for opened, closed in (self._tags[section] for section in COMPRESSIBLE)
            if text.count(opened) > text.count(closed)
        )
        forced = f"{closing}{between}{self._tags['conclusion'][0]}"
        return self._vocabulary.text_ids(meant(forced))
