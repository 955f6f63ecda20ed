"""Staged answers: parse the tagged sections, render the text that a phase trains on.

An answer of LLaVA-CoT is four tagged sections in a fixed order:

>>> answer = ("<SUMMARY> s </SUMMARY>\\n\\n<CAPTION> c </CAPTION>\\n\\n"
...           "<REASONING> r </REASONING>\\n\\n<CONCLUSION> B </CONCLUSION>")
>>> parse(answer)
{'summary': 's', 'caption': 'c', 'reasoning': 'r', 'conclusion': 'B'}
>>> print(render(parse(answer), "p2").replace("\\n\\n", " "))
<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY> <CAPTION> <THINKING_OF_CAPTION> </CAPTION> \
<REASONING> r </REASONING> <CONCLUSION> B </CONCLUSION>
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

SECTIONS = ("summary", "caption", "reasoning", "conclusion")
COMPRESSIBLE = SECTIONS[:3]
"""The sections that thinking tokens can stand for; the conclusion is always text."""

MAX_NUMBERED = 32
"""The most numbered thinking tokens of a section: the paper's largest number of them."""

Form = Literal["text", "token", "omit"]

RENDERINGS: dict[str, dict[str, Form]] = {
    "text-cot": {"summary": "text", "caption": "text", "reasoning": "text"},
    "p1": {"summary": "token", "caption": "text", "reasoning": "text"},
    "p2": {"summary": "token", "caption": "token", "reasoning": "text"},
    "p3": {"summary": "token", "caption": "token", "reasoning": "token"},
    "answer-only": {"summary": "omit", "caption": "omit", "reasoning": "omit"},
}
"""The form of each section in each rendering (paper, section 3.2: phase s compresses 1..s)."""

_SEPARATOR = "\n\n"
TAGS = {section: (f"<{section.upper()}>", f"</{section.upper()}>") for section in SECTIONS}
"""Section -> its opening and its closing tag."""


class ParseError(ValueError):
    """An answer without exactly one of each section; `reason` is a short, countable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


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


_ONE_TOKEN = numbered(1)


def tagged(section: str, body: str) -> str:
    """A section as it stands in an answer.

    >>> tagged("caption", "a red square")
    '<CAPTION> a red square </CAPTION>'
    """
    tag = section.upper()
    return f"<{tag}> {body} </{tag}>"


Span = tuple[int, int]
"""Where a text starts in an answer, and where it ends."""


def spans(answer: str) -> dict[str, Span]:
    """Where the text of each section stands, without the white space around it.

    Raises `ParseError` with reason `missing_<section>`, `repeated_<section>`, `empty_<section>`,
    `disordered_sections` or `text_outside_sections`.
    """
    found = _plain_spans(answer)
    return _any_spans(answer) if found is None else found


def _plain_spans(answer: str) -> dict[str, Span] | None:
    """The spans of an answer where only the eight tags have a `<`, or None for any other.

    Most answers are so, and looking for single characters is several times faster.
    """
    found = {}
    end = 0
    for section, (opening, closing) in TAGS.items():
        tag = answer.find("<", end)
        if tag < 0 or not answer.startswith(opening, tag) or answer[end:tag].strip():
            return None
        start = tag + len(opening)
        tag = answer.find("<", start)
        body = answer[start:tag]
        text = body.lstrip()
        if tag < 0 or not answer.startswith(closing, tag) or not text:
            return None
        start += len(body) - len(text)
        found[section] = (start, start + len(text.rstrip()))
        end = tag + len(closing)
    return None if "<" in answer[end:] or answer[end:].strip() else found


def _any_spans(answer: str) -> dict[str, Span]:
    found = {}
    edges = [0]
    for section, (opening, closing) in TAGS.items():
        start = answer.find(opening)
        end = answer.find(closing, start)
        if start < 0 or end < 0:
            raise ParseError(f"missing_{section}", f"no {opening} … {closing} in the answer")
        if answer.count(opening) > 1 or answer.count(closing) > 1:
            raise ParseError(f"repeated_{section}", f"more than one {opening} in the answer")
        edges += [start, end + len(closing)]
        text = answer[start + len(opening) : end].strip()
        if not text:
            raise ParseError(f"empty_{section}", f"nothing between {opening} and {closing}")
        start = answer.index(text, start + len(opening))
        found[section] = (start, start + len(text))
    if edges != sorted(edges):
        raise ParseError("disordered_sections", f"sections must stand in the order {SECTIONS}")
    edges.append(len(answer))
    outside = "".join(answer[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)).strip()
    if outside:
        raise ParseError("text_outside_sections", f"text outside the sections: {outside!r}")
    return found


def parse(answer: str) -> dict[str, str]:
    """Split an answer into its sections by the position of their tags.

    Returns section -> text without surrounding white space. Raises `ParseError` as `spans` does.

    A section's text that occurs elsewhere in the answer is harmless here, unlike with the
    official replacement by string (recipe, section 1).
    """
    return {section: answer[start:end] for section, (start, end) in spans(answer).items()}


def is_canonical(answer: str, found: Mapping[str, Span]) -> bool:
    """Whether the spacing around these spans is as `render` writes it (the recipe's filter B).

    What stands around the answer as a whole does not count.
    """
    edges = [0, *itertools.chain.from_iterable(found.values()), len(answer)]
    gaps = [answer[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    gaps[0], gaps[-1] = gaps[0].lstrip(), gaps[-1].rstrip()
    return gaps == _CANONICAL_GAPS


def render(
    sections: Mapping[str, str], rendering: str, thinking: ThinkingTokens = _ONE_TOKEN
) -> str:
    """The assistant's text in one rendering: the only place where a phase's format is decided.

    Parameters: `sections` maps all of `SECTIONS` to text; `rendering` is a key of `RENDERINGS`;
    `thinking` tokens of a section stand side by side, without a blank that would be a token more.
    Raises `KeyError` for an unknown rendering or an absent section.
    """
    forms = RENDERINGS[rendering]
    blocks = []
    for section in COMPRESSIBLE:
        if forms[section] == "text":
            blocks.append(tagged(section, sections[section]))
        elif forms[section] == "token":
            blocks.append(tagged(section, "".join(thinking[section])))
    blocks.append(tagged("conclusion", sections["conclusion"]))
    return _SEPARATOR.join(blocks)


_CANONICAL_GAPS = render(dict.fromkeys(SECTIONS, "\0"), "text-cot").split("\0")


def is_constant(rendering: str) -> bool:
    """Whether answers of a rendering all begin alike: with thinking tokens and no text.

    They do where all have the same number of thinking tokens.

    >>> is_constant("p3"), is_constant("p2"), is_constant("answer-only")
    (True, False, False)
    """
    forms = set(RENDERINGS[rendering].values())
    return "token" in forms and "text" not in forms


def constant_prefix(rendering: str, thinking: ThinkingTokens = _ONE_TOKEN) -> str:
    """What stands before the conclusion in every answer of a constant rendering.

    Raises `ValueError` for a rendering that `is_constant` denies.
    """
    if not is_constant(rendering):
        raise ValueError(f"answers rendered as {rendering!r} do not all begin alike")
    answer = render(dict.fromkeys(SECTIONS, ""), rendering, thinking)
    return answer[: answer.index("<CONCLUSION>")]


def conclusion(text: str) -> str | None:
    """The text of the last `<CONCLUSION>` of a generated answer, or None where there is none.

    An unclosed conclusion counts up to the end: generation may stop at its limit there.
    """
    _, tag, rest = text.rpartition("<CONCLUSION>")
    return rest.partition("</CONCLUSION>")[0].strip() if tag else None
