"""Sections of an answer. LLaVA-CoT's are four tagged ones in a fixed order:

>>> answer = ("<SUMMARY> s </SUMMARY>\\n\\n<CAPTION> c </CAPTION>\\n\\n"
...           "<REASONING> r </REASONING>\\n\\n<CONCLUSION> B </CONCLUSION>")
>>> parse(answer)
{'summary': 's', 'caption': 'c', 'reasoning': 'r', 'conclusion': 'B'}
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from heima.cot.rendering import Layout, render
from heima.cot.sections import FILLER, SECTIONS, TAG_TOKENS, TAGS, THINKING_TOKENS


class ParseError(ValueError):
    """An answer without exactly one of each section; `reason` is a short, countable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


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
    official replacement by string (docs/recipe.md, section 1).
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


_CANONICAL_GAPS = render(dict.fromkeys(SECTIONS, "\0"), "text-cot").split("\0")


def conclusion_span(text: str, tags: Layout = "text") -> Span | None:
    """Where the text of a generated answer's conclusion stands, white space included.

    With tags it is between the first closed pair, None where no pair is closed: an answer may run
    on after its conclusion until the limit ends it, and what follows the first pair is no other
    answer. One that the limit cut within its conclusion has none. Without tags it is all that
    follows the thinking tokens and fillers that the answer begins with.
    """
    if tags == "none":
        return (_leading(text), len(text))
    opening, closing = (TAG_TOKENS if tags == "token" else TAGS)["conclusion"]
    before, tag, rest = text.partition(opening)
    length = rest.find(closing)
    start = len(before) + len(tag)
    return (start, start + length) if tag and length >= 0 else None


def conclusion(text: str, tags: Layout = "text", *, ended: bool = True) -> str | None:
    """The conclusion of a generated answer (`conclusion_span`), or None where there is none.

    Without tags, nothing but its end closes an answer: one that has not `ended` has no conclusion.

    >>> conclusion("<CONCLUSION> B </CONCLUSION>\\n\\n<CONCLUSION> C"), conclusion("<CONCLUSION> B")
    ('B', None)
    """
    span = conclusion_span(text, tags)
    if span is None or (tags == "none" and not ended):
        return None
    return text[slice(*span)].strip()


def scored(text: str) -> str:
    """What a rule of scoring gets to see of an answer, whatever its layout: the conclusion where
    tags of either layout close one, else all but the thinking tokens that it begins with.

    >>> scored("<THINKING_OF_SUMMARY><THINKING_OF_CAPTION>B"), scored("B it is"), scored("")
    ('B', 'B it is', '')
    """
    for tags in _TAGGED:
        if (found := conclusion(text, tags)) is not None:
            return found
    start = _leading(text)
    return text[start:].strip() if start else text


_TAGGED: tuple[Layout, ...] = ("text", "token")

# A word-level tokenizer writes blanks between all of its tokens.
_TOKENS = re.compile(rf"\s*(?:{'|'.join((*THINKING_TOKENS, FILLER))})")


def _leading(text: str) -> int:
    """Where the thinking tokens and fillers that a text begins with end."""
    end = 0
    while found := _TOKENS.match(text, end):
        end = found.end()
    return end
