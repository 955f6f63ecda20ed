"""The sections of an answer, their tags and the thinking tokens that stand for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

SECTIONS = ("summary", "caption", "reasoning", "conclusion")
COMPRESSIBLE = SECTIONS[:3]
"""The sections that thinking tokens can stand for; the conclusion is always text."""

MAX_NUMBERED = 32
"""The most numbered thinking tokens of a section: the paper's largest number of them."""

SEPARATOR = "\n\n"
"""What stands between two sections."""

TAGS = {section: (f"<{section.upper()}>", f"</{section.upper()}>") for section in SECTIONS}
"""Section -> its opening and its closing tag."""


def thinking_token(section: str, number: int | None = None) -> str:
    """The text of a section's thinking token, as the paper writes it.

    >>> thinking_token("caption"), thinking_token("caption", 2)
    ('<THINKING_OF_CAPTION>', '<THINKING_OF_CAPTION_2>')
    """
    suffix = "" if number is None else f"_{number}"
    return f"<THINKING_OF_{section.upper()}{suffix}>"


THINKING_TOKENS = (
    *(thinking_token(section) for section in COMPRESSIBLE),
    *(
        thinking_token(section, number)
        for section in COMPRESSIBLE
        for number in range(1, MAX_NUMBERED + 1)
    ),
)
"""Every thinking token there is: each section's own, then the numbered ones of each section."""

TAG_TOKENS = {
    section: (f"<OPENING_OF_{section.upper()}>", f"<CLOSING_OF_{section.upper()}>")
    for section in SECTIONS
}
"""Section -> its tags where each is a single token."""

FILLER = "<FILLER_OF_THINKING>"
"""The token that stands for a section and says nothing of which: the same in all of them."""

CONTROL_TOKENS = (*(tag for tags in TAG_TOKENS.values() for tag in tags), FILLER)

MOST_BESIDE_CONTROL = MAX_NUMBERED - len(CONTROL_TOKENS) // len(COMPRESSIBLE)
"""The most numbered thinking tokens of a section where there are control tokens, too."""

LENDERS = dict(
    zip(
        CONTROL_TOKENS,
        (
            thinking_token(section, number)
            for section in COMPRESSIBLE
            for number in range(MOST_BESIDE_CONTROL + 1, MAX_NUMBERED + 1)
        ),
        strict=True,
    )
)
"""Each control token -> the numbered thinking token that gives it its place in a vocabulary, so
that no vocabulary grows: not every one has more reserved ids than the thinking tokens take."""


def with_controls(reserved: Mapping[str, str]) -> dict[str, str]:
    """Thinking tokens, each with what it stands on, with control tokens in their `LENDERS`' place.

    >>> with_controls({"<THINKING_OF_SUMMARY_29>": "a", "<THINKING_OF_SUMMARY_30>": "b"})
    {'<THINKING_OF_SUMMARY_29>': 'a', '<OPENING_OF_SUMMARY>': 'b'}
    """
    borrowed = {lender: control for control, lender in LENDERS.items()}
    return {borrowed.get(name, name): token for name, token in reserved.items()}


ThinkingTokens = Mapping[str, Sequence[str]]
"""Section -> the thinking tokens that stand for it, in order."""


def numbered(count: int) -> ThinkingTokens:
    """`count` different thinking tokens for each section; the only one has no number.

    >>> numbered(2)["caption"]
    ('<THINKING_OF_CAPTION_1>', '<THINKING_OF_CAPTION_2>')
    >>> numbered(1)["caption"]
    ('<THINKING_OF_CAPTION>',)
    """
    if not 1 <= count <= MAX_NUMBERED:
        raise ValueError(f"a section has 1 to {MAX_NUMBERED} numbered thinking tokens, not {count}")
    numbers = [None] if count == 1 else range(1, count + 1)
    return {
        section: tuple(thinking_token(section, number) for number in numbers)
        for section in COMPRESSIBLE
    }


def repeated(counts: Mapping[str, int]) -> ThinkingTokens:
    """A section's own thinking token as often as `counts` says: there is no limit to it.

    >>> repeated({"summary": 2})
    {'summary': ('<THINKING_OF_SUMMARY>', '<THINKING_OF_SUMMARY>')}
    """
    return {section: (thinking_token(section),) * count for section, count in counts.items()}


class Marked(str):
    """A text that knows which of its parts are thinking tokens, or control tokens.

    `parts` are all of it in order: at even places text, at odd ones such tokens. What merely
    reads like one is text. Whatever a method of `str` makes of it is text alone.
    """

    parts: tuple[str, ...]

    def __new__(cls, parts: Sequence[str]) -> Marked:
        made = super().__new__(cls, "".join(parts))
        made.parts = tuple(parts)
        return made

    def __getnewargs__(self) -> tuple[tuple[str, ...]]:  # type: ignore[override]
        return (self.parts,)


def parts_of(text: str) -> tuple[str, ...]:
    """The parts of a text as in `Marked`: any other text has no thinking token.

    >>> parts_of("see <THINKING_OF_CAPTION>"), parts_of(meant("see <THINKING_OF_CAPTION>"))
    (('see <THINKING_OF_CAPTION>',), ('see ', '<THINKING_OF_CAPTION>', ''))
    """
    return text.parts if isinstance(text, Marked) else (text,)


def meant(text: str) -> Marked:
    """A text of our own, in which every name of a thinking or control token is one."""
    return Marked(_TOKEN.split(text))


def joined(texts: Iterable[str], separator: str = "") -> Marked:
    """The texts one after the other, and the separator between them, all with their marks."""
    parts = [""]
    for place, text in enumerate(texts):
        for one in (separator, text) if place else (text,):
            first, *others = parts_of(one)
            parts[-1] += first
            parts += others
    return Marked(parts)


_TOKEN = re.compile(f"({'|'.join((*THINKING_TOKENS, *CONTROL_TOKENS))})")


def tagged(section: str, body: str) -> str:
    """A section as it stands in an answer.

    >>> tagged("caption", "a red square")
    '<CAPTION> a red square </CAPTION>'
    """
    opening, closing = TAGS[section]
    return f"{opening} {body} {closing}"
