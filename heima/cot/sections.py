"""The sections of an answer, their tags and the thinking tokens that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def tagged(section: str, body: str) -> str:
    """A section as it stands in an answer.

    >>> tagged("caption", "a red square")
    '<CAPTION> a red square </CAPTION>'
    """
    tag = section.upper()
    return f"<{tag}> {body} </{tag}>"
