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
import re
from collections.abc import Mapping
from typing import Literal

SECTIONS = ("summary", "caption", "reasoning", "conclusion")
COMPRESSIBLE = SECTIONS[:3]
"""The sections that a thinking token can stand for; the conclusion is always text."""

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


class ParseError(ValueError):
    """An answer without exactly one of each section; `reason` is a short, countable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def thinking_token(section: str) -> str:
    """The text of a section's thinking token, as the paper writes it.

    >>> thinking_token("caption")
    '<THINKING_OF_CAPTION>'
    """
    return f"<THINKING_OF_{section.upper()}>"


def tagged(section: str, body: str) -> str:
    """A section as it stands in an answer.

    >>> tagged("caption", "a red square")
    '<CAPTION> a red square </CAPTION>'
    """
    tag = section.upper()
    return f"<{tag}> {body} </{tag}>"


def parse(answer: str) -> dict[str, str]:
    """Split an answer into its sections by the position of their tags.

    Returns section -> text without surrounding white space. Raises `ParseError` with reason
    `missing_<section>`, `repeated_<section>`, `empty_<section>`, `disordered_sections` or
    `text_outside_sections`.

    A section's text that occurs elsewhere in the answer is harmless here, unlike with the
    official replacement by string (recipe, section 1).
    """
    spans = []
    sections = {}
    for section in SECTIONS:
        tag = section.upper()
        found = list(re.finditer(rf"<{tag}>(.*?)</{tag}>", answer, flags=re.DOTALL))
        if not found:
            raise ParseError(f"missing_{section}", f"no <{tag}> … </{tag}> in the answer")
        if len(found) > 1 or answer.count(f"<{tag}>") > 1 or answer.count(f"</{tag}>") > 1:
            raise ParseError(f"repeated_{section}", f"more than one <{tag}> in the answer")
        text = found[0].group(1).strip()
        if not text:
            raise ParseError(f"empty_{section}", f"nothing between <{tag}> and </{tag}>")
        spans.append(found[0].span())
        sections[section] = text
    if any(left[1] > right[0] for left, right in itertools.pairwise(spans)):
        raise ParseError("disordered_sections", f"sections must stand in the order {SECTIONS}")
    edges = [0, *(edge for span in spans for edge in span), len(answer)]
    outside = "".join(answer[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
    if outside.strip():
        raise ParseError("text_outside_sections", f"text outside the sections: {outside.strip()!r}")
    return sections


def is_canonical(answer: str) -> bool:
    """Whether the spacing is exactly `<TAG> text </TAG>` joined by an empty line (filter B)."""
    return answer.strip() == render(parse(answer), "text-cot")


def render(sections: Mapping[str, str], rendering: str) -> str:
    """The assistant's text in one rendering: the only place where a phase's format is decided.

    Parameters: `sections` maps all of `SECTIONS` to text; `rendering` is a key of `RENDERINGS`.
    Raises `KeyError` for an unknown rendering or an absent section.
    """
    forms = RENDERINGS[rendering]
    blocks = []
    for section in COMPRESSIBLE:
        if forms[section] == "text":
            blocks.append(tagged(section, sections[section]))
        elif forms[section] == "token":
            blocks.append(tagged(section, thinking_token(section)))
    blocks.append(tagged("conclusion", sections["conclusion"]))
    return _SEPARATOR.join(blocks)


def is_constant(rendering: str) -> bool:
    """Whether answers of a rendering all begin alike: with thinking tokens and no text.

    >>> is_constant("p3"), is_constant("p2"), is_constant("answer-only")
    (True, False, False)
    """
    forms = set(RENDERINGS[rendering].values())
    return "token" in forms and "text" not in forms


def constant_prefix(rendering: str) -> str:
    """What stands before the conclusion in every answer of a constant rendering.

    Raises `ValueError` for a rendering that `is_constant` denies.
    """
    if not is_constant(rendering):
        raise ValueError(f"answers rendered as {rendering!r} do not all begin alike")
    answer = render(dict.fromkeys(SECTIONS, ""), rendering)
    return answer[: answer.index("<CONCLUSION>")]


def conclusion(text: str) -> str | None:
    """The text of the last `<CONCLUSION>` of a generated answer, or None where there is none.

    An unclosed conclusion counts up to the end: generation may stop at its limit there.
    """
    _, tag, rest = text.rpartition("<CONCLUSION>")
    return rest.partition("</CONCLUSION>")[0].strip() if tag else None
