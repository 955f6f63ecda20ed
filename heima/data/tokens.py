"""Thinking tokens on reserved ids, chat text, and labels.

The tokenizer's own chat template writes the text around a turn. A thinking token is written
`<THINKING_OF_SUMMARY>`, or `<THINKING_OF_SUMMARY_1>`, in rendered text, as in the paper, and stands
on a reserved id of the vocabulary (docs/recipe.md, section 2), so that neither the vocabulary nor
the embeddings change.

A text is text: what reads like a special token, in a question or in an answer, never becomes one.
Only those are real that the template writes, and the thinking tokens of a `Marked` text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from heima.cot.sections import TAG_TOKENS, meant, parts_of
from heima.data.special_tokens import Parts, SpecialTokens

IGNORED = -100
"""The label of a position that the loss leaves out."""

ImagePlace = Literal["first", "last", "none"]

DATE = "26 Jul 2024"
"""What a chat template that prints today's date is told: Llama 3's own where it knows no clock."""

_PROBE = 'It\'s "a\nb" \\ c'
"""A question that Python prints otherwise: by it a template shows that it takes a list of parts for
a string."""

_TAGS = frozenset(tag for tags in TAG_TOKENS.values() for tag in tags)

_AT_ONCE = 4096
"""Turns that are encoded together: what a tokenizer returns is many times the size of the ids."""


@dataclass(frozen=True)
class Encoded:
    """A prompt with its answer: `labels` are `input_ids` where the loss counts, else `IGNORED`.

    `body` is the index of the answer's first token, after the assistant's header.
    """

    input_ids: list[int]
    labels: list[int]
    body: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def labelled(self) -> int:
        """Tokens that are predicted and have a label."""
        return sum(label != IGNORED for label in self.labels[1:])


class Vocabulary:
    """A tokenizer and the ids of its thinking tokens, and of control tokens.

    `reserved` maps them, as `cot` writes them, to tokens of the tokenizer. `tag_ids` maps tags that
    are tokens to their ids, `thinking_ids` all others: those that stand for a section.
    Raises `ValueError` where a reserved token is not one token of the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reserved: Mapping[str, str]) -> None:
        self.tokenizer = tokenizer
        self.reserved = dict(reserved)
        self.thinking_ids: dict[str, int] = {}
        self.tag_ids: dict[str, int] = {}
        known = tokenizer.get_vocab()
        for name, token in self.reserved.items():
            if token not in known:
                raise ValueError(
                    f"the tokenizer has no token {token!r} for {name}; a family's thinking "
                    "tokens must be reserved tokens of its vocabulary"
                )
            (self.tag_ids if name in _TAGS else self.thinking_ids)[name] = known[token]
        self._names = {token: name for name, token in self.reserved.items()}
        ids = {**self.thinking_ids, **self.tag_ids}
        self._thinking = {id_: name for name, id_ in ids.items()}
        self._any_name = _any_of(self.reserved)
        self._any_reserved = _any_of(self._names)
        self._special = SpecialTokens(tokenizer)
        # Before and behind the user's text, in what the template writes.
        self._frames: dict[ImagePlace, tuple[str, str]] = {}

    def prompt(self, question: str, image: ImagePlace) -> str:
        """The chat text up to where the assistant's answer begins."""
        user, header = self._chats([question], [image])[0]
        return "".join(user) + header

    def prompt_ids(self, question: str, image: ImagePlace, prefix: str = "") -> list[int]:
        """Token ids of the chat text, and of a beginning of the answer that is not decoded.

        The `prefix` is the method's own text: every thinking token that it names is one.
        The tokens are those that `encode` trains on: no token reaches over the edge between them.
        """
        return self.prompts_ids([question], image, prefix)[0]

    def prompts_ids(
        self, questions: Sequence[str], image: ImagePlace, prefix: str = ""
    ) -> list[list[int]]:
        """`prompt_ids` of each question, several times faster than one by one."""
        chats = self._chats(questions, [image] * len(questions))
        beginning = self._ids([self._text(meant(prefix))])[0]
        return [
            user + header + beginning
            for user, header in zip(
                self._ids([user for user, _ in chats]),
                self._ids([header for _, header in chats]),
                strict=True,
            )
        ]

    def encode(self, question: str, image: ImagePlace, answer: str) -> Encoded:
        """Token ids and labels of one turn.

        The loss covers the whole assistant turn (header, tags, thinking tokens, conclusion, end of
        turn) and leaves out the user's. (The official interpreter training covers that too.)
        """
        return self.encode_all([(question, image, answer)])[0]

    def encode_all(self, turns: Sequence[tuple[str, ImagePlace, str]]) -> list[Encoded]:
        """`encode` of each (question, image, answer), several times faster than one by one."""
        return [
            one
            for first in range(0, len(turns), _AT_ONCE)
            for one in self._encode(turns[first : first + _AT_ONCE])
        ]

    def _encode(self, turns: Sequence[tuple[str, ImagePlace, str]]) -> Iterator[Encoded]:
        chats = self._chats(
            [question for question, _, _ in turns], [place for _, place, _ in turns]
        )
        for user, header, body in zip(
            self._ids([user for user, _ in chats]),
            self._ids([header for _, header in chats]),
            self._ids([self._text(answer) for _, _, answer in turns]),
            strict=True,
        ):
            answer = [*header, *body, self.tokenizer.eos_token_id]
            yield Encoded(
                input_ids=user + answer,
                labels=[IGNORED] * len(user) + answer,
                body=len(user) + len(header),
            )

    def _chats(
        self, questions: Sequence[str], images: Sequence[ImagePlace]
    ) -> list[tuple[str | Parts, str]]:
        """For each question the user's turn, and the header that opens the assistant's.

        Raises `ValueError` where the template loses or alters a question.
        """
        if not questions:
            return []
        for place in sorted(set(images) - self._frames.keys()):
            # First, for the probe asks for it.
            self._frames[place] = ("", "")
            user, _ = self._chats([_PROBE], [place])[0]
            before, _, behind = "".join(user).partition(_PROBE)
            self._frames[place] = (before, behind)
        asked = [self._text(question) for question in questions]
        texts = ["".join(one) for one in asked]
        conversations = [
            [{"role": "user", "content": _content(text, image)}]
            for text, image in zip(texts, images, strict=True)
        ]
        users, wholes = (
            self.tokenizer.apply_chat_template(
                conversations,
                tokenize=False,
                add_generation_prompt=generation,
                date_string=DATE,
            )
            for generation in (False, True)
        )
        chats: list[tuple[str | Parts, str]] = []
        for one, text, place, user, whole in zip(asked, texts, images, users, wholes, strict=True):
            # A template may trim a text.
            framed = user if isinstance(one, str) else _framed(one, user, *self._frames[place])
            if text.strip() not in user or not whole.startswith(user) or framed is None:
                raise ValueError(
                    f"the chat template does not write the user's text as it is: {text!r} became "
                    f"{whole!r}"
                )
            chats.append((framed, whole.removeprefix(user)))
        return chats

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text: thinking tokens by the paper's name, no padding, no end of turn.

        Everything from the first end of turn on is left out.
        """
        ids = list(ids)
        if self.tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_token_id)]
        ids = [token for token in ids if token != self.tokenizer.pad_token_id]
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        shown = [token for token in ids if token in self._thinking]
        if len(self._any_reserved.findall(text)) > len(shown):
            # Some of them are text: what lies between thinking tokens is decoded alone.
            return self._decode_apart(ids).strip()
        return self._any_reserved.sub(lambda found: self._names[found.group()], text).strip()

    def _decode_apart(self, ids: Sequence[int]) -> str:
        pieces, start = [], 0
        for end, token in enumerate([*ids, None]):
            if token is None or token in self._thinking:
                pieces.append(self.tokenizer.decode(ids[start:end], skip_special_tokens=False))
                pieces.append("" if token is None else self._thinking[token])
                start = end + 1
        return "".join(pieces)

    def length(self, text: str) -> int:
        """The tokens of a text, without any that a chat puts around it."""
        return len(self._ids([self._text(text)])[0])

    def text_ids(self, text: str) -> list[int]:
        """The token ids of a text, without any that a chat puts around it."""
        return self._ids([self._text(text)])[0]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text that means no special token begins and ends in it."""
        if self._special.named_in(text):
            return self._special.offsets(text)
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return found["offset_mapping"]

    def _text(self, text: str) -> str | Parts:
        """A text with its thinking tokens as those that they stand on; its parts, where special
        tokens in some of them are meant and in others are not."""
        parts = parts_of(text)
        if len(parts) > 1:
            parts = tuple(
                self._to_reserved(part) if place % 2 else part for place, part in enumerate(parts)
            )
        return parts if any(map(self._special.named_in, parts[::2])) else "".join(parts)

    def _to_reserved(self, text: str) -> str:
        return self._any_name.sub(lambda found: self.reserved[found.group()], text)

    def _ids(self, texts: Sequence[str | Parts]) -> list[list[int]]:
        """Token ids of each text; equal texts, such as a chat's headers, are tokenised once."""
        distinct = dict.fromkeys(texts)
        plain = [text for text in distinct if isinstance(text, str)]
        ids: dict[str | Parts, list[int]] = {
            text: self._special.ids(text) for text in distinct if not isinstance(text, str)
        }
        if plain:
            found = self.tokenizer(plain, add_special_tokens=False)["input_ids"]
            ids.update(zip(plain, found, strict=True))
        return [ids[text] for text in texts]


def _framed(text: Parts, user: str, before: str, behind: str) -> Parts | None:
    """The parts of a user's turn, the template's around the text's; None where they are not there.

    The template may have trimmed the text.
    """
    inner = user.removeprefix(before).removesuffix(behind)
    whole = "".join(text)
    if before + inner + behind != user or inner.strip() != whole.strip():
        return None
    parts = list(text)
    # White space is in no token, so that what is trimmed is of the first and of the last part.
    if not inner[:1].isspace():
        parts[0] = parts[0].lstrip()
    if not inner[-1:].isspace():
        parts[-1] = parts[-1].rstrip()
    return "", before, *parts, behind, ""


def _content(text: str, image: ImagePlace) -> str | list[dict[str, str]]:
    """A turn for a chat template. A text alone is a string: Llama 3.1's takes nothing else."""
    if image == "none":
        return text
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    return parts if image == "first" else parts[::-1]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches each of the texts, and nothing where there are none."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")
