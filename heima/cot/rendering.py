"""An answer as a phase trains on it: the form of each section, and the layout of the tags.

>>> sections = {"summary": "s", "caption": "c", "reasoning": "r", "conclusion": "B"}
>>> print(render(sections, "p2").replace("\\n\\n", " "))
<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY> <CAPTION> <THINKING_OF_CAPTION> </CAPTION> \
<REASONING> r </REASONING> <CONCLUSION> B </CONCLUSION>
>>> bare = Rendering(summary="token", caption="filler", reasoning="omit", tags="none")
>>> print(render(sections, bare))
<THINKING_OF_SUMMARY><FILLER_OF_THINKING>B
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from heima.cot.sections import (
    COMPRESSIBLE,
    FILLER,
    SECTIONS,
    SEPARATOR,
    TAG_TOKENS,
    TAGS,
    Marked,
    ThinkingTokens,
    joined,
    meant,
    numbered,
)

Form = Literal["text", "token", "omit", "filler", "short"]
"""What stands for a section: its text; its thinking tokens; nothing, its tags neither; as many
`sections.FILLER`; its text without the words that say least (`heima.data.shortening`)."""

Layout = Literal["text", "token", "none"]
"""How sections are told apart: by tags as the paper writes them; by tags that are one token each,
with nothing between them; not at all."""

_WORDS: tuple[Form, ...] = ("text", "short")
_TOKENS: tuple[Form, ...] = ("token", "filler")


class Rendering(BaseModel):
    """The form of each section, and the layout of tags; the conclusion is always text.

    Raises `ValueError` for one whose answers nothing could parse: words without tags around them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: Form
    caption: Form
    reasoning: Form
    tags: Layout = "text"

    @model_validator(mode="after")
    def _parses(self) -> Rendering:
        words = [section for section, form in self.forms.items() if form in _WORDS]
        if self.tags == "none" and words:
            raise ValueError(
                f"tags = 'none' with {words[0]} = {self.forms[words[0]]!r}: nothing would tell "
                f"the {words[0]} from the conclusion; tags must be 'text' or 'token', or the "
                "section 'token', 'filler' or 'omit'"
            )
        return self

    @property
    def forms(self) -> dict[str, Form]:
        """The form of each of `COMPRESSIBLE`, in the order of the answer."""
        return {section: getattr(self, section) for section in COMPRESSIBLE}

    @property
    def counted(self) -> bool:
        """Whether `thinking` says how many tokens a section of it has."""
        return not {"token", "filler", "short"}.isdisjoint(self.forms.values())

    @property
    def thinks(self) -> bool:
        """Whether its answers have thinking tokens or fillers."""
        return not set(_TOKENS).isdisjoint(self.forms.values())

    @property
    def constant(self) -> bool:
        """Whether its answers all begin alike, with tokens and no words, where all have the same
        number of them.

        >>> [RENDERINGS[name].constant for name in ("p3", "p2", "answer-only")]
        [True, False, False]
        """
        forms = set(self.forms.values())
        return self.thinks and forms.isdisjoint(_WORDS)

    @property
    def controls(self) -> bool:
        """Whether its answers have control tokens (`sections.CONTROL_TOKENS`)."""
        return self.tags == "token" or "filler" in self.forms.values()

    @property
    def replaces(self) -> bool:
        """Whether `replaced` can make it."""
        return self.tags == "text" and {"omit", "short"}.isdisjoint(self.forms.values())


def _of(summary: Form, caption: Form, reasoning: Form) -> Rendering:
    return Rendering(summary=summary, caption=caption, reasoning=reasoning)


RENDERINGS: dict[str, Rendering] = {
    "text-cot": _of("text", "text", "text"),
    "p1": _of("token", "text", "text"),
    "p2": _of("token", "token", "text"),
    "p3": _of("token", "token", "token"),
    "answer-only": _of("omit", "omit", "omit"),
}
"""The renderings of the paper's method and ablations (section 3.2: phase s compresses 1..s); the
parameters may name more."""


_ONE_TOKEN = numbered(1)


def rendering_of(rendering: str | Rendering) -> Rendering:
    """One of `RENDERINGS` by its name, or what is one. Raises `KeyError` for an unknown name."""
    return rendering if isinstance(rendering, Rendering) else RENDERINGS[rendering]


def render(
    sections: Mapping[str, str],
    rendering: str | Rendering,
    thinking: ThinkingTokens = _ONE_TOKEN,
    *,
    short: Mapping[str, str] | None = None,
) -> Marked:
    """The assistant's text in one rendering: the only place where a phase's format is decided.

    Parameters: `sections` maps all of `SECTIONS` to text, `short` those that are `short` to theirs;
    `thinking` tokens of a section stand side by side, without a blank that would be a token more,
    and fillers are as many as those would be.
    Only such tokens are marked: a name of one in a section's text is text.
    Raises `KeyError` for an unknown rendering, an absent section or short text.
    """
    rendering = rendering_of(rendering)
    parts = [""]
    for section in SECTIONS:
        form = rendering.forms.get(section, "text")
        if form == "omit":
            continue
        opening, closing = (TAG_TOKENS if rendering.tags == "token" else TAGS)[section]
        if rendering.tags == "text":
            parts[-1] += f"{SEPARATOR if parts[0] else ''}{opening} "
        elif rendering.tags == "token":
            parts += [opening, ""]
        if form == "text":
            parts[-1] += sections[section]
        elif form == "short":
            parts[-1] += (short or {})[section]
        else:
            for token in thinking[section]:
                parts += [FILLER if form == "filler" else token, ""]
        if rendering.tags == "text":
            parts[-1] += f" {closing}"
        elif rendering.tags == "token":
            parts += [closing, ""]
    return Marked(parts)


def text_spans(sections: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Where the text of each section begins and ends in its rendering as `text-cot`."""
    spans: dict[str, tuple[int, int]] = {}
    end = 0
    for section in SECTIONS:
        opening, closing = TAGS[section]
        start = end + len(f"{SEPARATOR if spans else ''}{opening} ")
        spans[section] = (start, start + len(sections[section]))
        end = spans[section][1] + len(f" {closing}")
    return spans


def replaced(
    answer: str,
    sections: Mapping[str, str],
    rendering: str | Rendering,
    thinking: ThinkingTokens = _ONE_TOKEN,
) -> Marked:
    """An answer as it stands, with the texts of sections replaced wherever they occur.

    So the official arrangement makes its phases (docs/recipe.md, section 1), one section after the
    other; what it keeps has each of them once. Raises `KeyError` as `render` does, and `ValueError`
    for a rendering that it cannot make (`Rendering.replaces`).
    """
    wanted = rendering_of(rendering)
    if not wanted.replaces:
        raise ValueError(f"{rendering} leaves out words or tags, which replacing does not")
    text = Marked([answer])
    for section in COMPRESSIBLE:
        form = wanted.forms[section]
        if form in _TOKENS:
            tokens = thinking[section]
            token = meant("".join([FILLER] * len(tokens) if form == "filler" else tokens))
            text = joined(
                joined(part.split(sections[section]), token) if place % 2 == 0 else meant(part)
                for place, part in enumerate(text.parts)
            )
    return text


def constant_prefix(rendering: str | Rendering, thinking: ThinkingTokens = _ONE_TOKEN) -> str:
    """What stands before the conclusion in every answer of a constant rendering.

    Raises `ValueError` for one that is not `Rendering.constant`.
    """
    wanted = rendering_of(rendering)
    if not wanted.constant:
        raise ValueError(f"answers rendered as {rendering!r} do not all begin alike")
    answer = render(dict.fromkeys(SECTIONS, ""), wanted, thinking)
    if wanted.tags == "none":
        return str(answer)
    opening = (TAG_TOKENS if wanted.tags == "token" else TAGS)["conclusion"][0]
    return answer[: answer.index(opening)]
