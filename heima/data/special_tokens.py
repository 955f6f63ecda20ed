"""Texts that name a tokenizer's special tokens without meaning them.

A tokenizer takes every `<|eot_id|>` for the end of a turn, whoever wrote it. Here a text comes in
parts: in those at odd places special tokens are meant, in those at even places they are text, and
are tokenised like any other. Tokenising part by part would not do: what stands before a word
decides its tokens.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

Parts = tuple[str, ...]
"""All of a text in order; special tokens are meant in the parts at odd places alone."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Around the number of a special token, in its other name: Unicode gives these to no character."""


class SpecialTokens:
    """The special tokens of a tokenizer: found in texts, and kept out of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        contents = {one.content for one in added if one.special} | set(tokenizer.all_special_tokens)
        # An alternative is taken before those behind it.
        self._numbers = {
            content: number
            for number, content in enumerate(sorted(contents, key=lambda one: (-len(one), one)))
        }
        self._any = re.compile("|".join(map(re.escape, self._numbers)) or "(?!)")
        # To look for a few beginnings is several times faster, and few texts have one.
        self._beginnings = sorted({content[:3] for content in contents})
        self._blind: dict[int, tuple[Tokenizer, dict[int, int]]] = {}

    def named_in(self, text: str) -> bool:
        """Whether a text has the words of a special token."""
        for beginning in self._beginnings:
            if beginning in text:
                return self._any.search(text) is not None
        return False

    def ids(self, parts: Parts) -> list[int]:
        """The token ids of a text in parts.

        Where no text names a special token they are those that the tokenizer makes of the whole.
        Raises `ValueError` for a tokenizer that is none of the library `tokenizers`.
        """
        encoded, real = self._encoded(parts)
        return [real.get(one, one) for one in encoded.ids]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text begins and ends in it: a text that means no special token.

        Raises `ValueError` as `ids` does.
        """
        return self._encoded((text,))[0].offsets

    def _encoded(self, parts: Parts) -> tuple[Encoding, dict[int, int]]:
        runs = re.findall(f"{_OPEN}+", "".join(parts[::2]))
        # One more than any text has in a row: so no text reads like another name.
        length = 1 + max(map(len, runs), default=0)
        if length not in self._blind:
            self._blind[length] = self._renamed(length)
        tokenizer, real = self._blind[length]
        text = "".join(
            self._any.sub(lambda found: self._name(found.group(), length), part)
            if place % 2
            else part
            for place, part in enumerate(parts)
        )
        return tokenizer.encode(text, add_special_tokens=False), real

    def _name(self, content: str, length: int) -> str:
        return f"{_OPEN * length}{self._numbers[content]}{_CLOSE}"

    def _renamed(self, length: int) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with other names for its special tokens; its added tokens' ids -> those
        that they have in truth."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"a text names a special token of the tokenizer, a {type(self._tokenizer).__name__}"
                ", which only a tokenizer of the library `tokenizers` can take as text"
            )
        names = {content: self._name(content, length) for content in self._numbers}
        made: dict[str, Any] = json.loads(backend.to_str())
        model = made["model"]
        # Special tokens can be words of the model, too: a word-level one would find them there.
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(word, word): id_ for word, id_ in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
        if (unknown := model.get("unk_token")) is not None:
            model["unk_token"] = names.get(unknown, unknown)
        tokenizer = Tokenizer.from_str(
            json.dumps({**made, "added_tokens": [], "post_processor": None})
        )
        real: dict[int, int] = {}
        for id_, one in sorted(self._tokenizer.added_tokens_decoder.items()):
            content = names.get(one.content, one.content)
            tokenizer.add_tokens(
                [
                    AddedToken(
                        content,
                        single_word=one.single_word,
                        lstrip=one.lstrip,
                        rstrip=one.rstrip,
                        normalized=one.normalized,
                    )
                ]
            )
            known = tokenizer.token_to_id(content)
            if known is not None:
                real[known] = id_
        return tokenizer, real
