"""An answer as a phase trains on it: each section as text, as thinking tokens or not at all.

>>> sections = {"summary": "s", "caption": "c", "reasoning": "r", "conclusion": "B"}
>>> print(render(sections, "p2").replace("\\n\\n", " "))
<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY> <CAPTION> <THINKING_OF_CAPTION> </CAPTION> \
<REASONING> r </REASONING> <CONCLUSION> B </CONCLUSION>
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from heima.cot.sections import (
    COMPRESSIBLE,
    SECTIONS,
    SEPARATOR,
    TAGS,
    Marked,
    ThinkingTokens,
    joined,
    meant,
    numbered,
)

Form = Literal["text", "token", "omit"]

RENDERINGS: dict[str, dict[str, Form]] = {
    "text-cot": {"summary": "text", "caption": "text", "reasoning": "text"},
    "p1": {"summary": "token", "caption": "text", "reasoning": "text"},
    "p2": {"summary": "token", "caption": "token", "reasoning": "text"},
    "p3": {"summary": "token", "caption": "token", "reasoning": "token"},
    "answer-only": {"summary": "omit", "caption": "omit", "reasoning": "omit"},
}
"""The form of each section in each rendering (paper, section 3.2: phase s compresses 1..s)."""


_ONE_TOKEN = numbered(1)


def render(
    sections: Mapping[str, str], rendering: str, thinking: ThinkingTokens = _ONE_TOKEN
) -> Marked:
    """The assistant's text in one rendering: the only place where a phase's format is decided.

    Parameters: `sections` maps all of `SECTIONS` to text; `rendering` is a key of `RENDERINGS`;
    `thinking` tokens of a section stand side by side, without a blank that would be a token more.
    Only these are marked: a name of one in a section's text is text.
    Raises `KeyError` for an unknown rendering or an absent section.
    """
    forms = RENDERINGS[rendering]
    parts = [""]
    for section in SECTIONS:
        form = forms.get(section, "text")
        if form == "omit":
            continue
        opening, closing = TAGS[section]
        parts[-1] += f"{SEPARATOR if parts[0] else ''}{opening} "
        if form == "text":
            parts[-1] += sections[section]
        else:
            for token in thinking[section]:
                parts += [token, ""]
        parts[-1] += f" {closing}"
    return Marked(parts)


def replaced(
    answer: str,
    sections: Mapping[str, str],
    rendering: str,
    thinking: ThinkingTokens = _ONE_TOKEN,
) -> Marked:
    """An answer as it stands, with the texts of sections replaced wherever they occur.

    So the official arrangement makes its phases (docs/recipe.md, section 1), one section after the
    other; what it keeps has each of them once. Raises `KeyError` as `render` does, and `ValueError`
    for a rendering that leaves sections out.
    """
    forms = RENDERINGS[rendering]
    if "omit" in forms.values():
        raise ValueError(f"{rendering} leaves sections out, which replacing does not")
    text = Marked([answer])
    for section in COMPRESSIBLE:
        if forms[section] == "token":
            token = meant("".join(thinking[section]))
            text = joined(
                joined(part.split(sections[section]), token) if place % 2 == 0 else meant(part)
                for place, part in enumerate(text.parts)
            )
    return text


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
