"""Answers that an audit forces and scores: a constant prefix, and a conclusion behind it.

How a conclusion is opened and closed follows from the layout of tags, as in training and parsing:
with `none`, nothing opens it and only the end of the turn closes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from heima.cot.rendering import Layout, Rendering, render
from heima.cot.sections import (
    COMPRESSIBLE,
    SEPARATOR,
    TAG_TOKENS,
    TAGS,
    Marked,
    meant,
    parts_of,
)

_TAGS = frozenset(tag for tags in TAG_TOKENS.values() for tag in tags)


def continuation(conclusion: str, tags: Layout = "text") -> Marked:
    """What follows the prefix where a conclusion is given.

    >>> [str(continuation("B", tags)) for tags in ("text", "token", "none")]
    ['<CONCLUSION> B </CONCLUSION>', '<OPENING_OF_CONCLUSION>B<CLOSING_OF_CONCLUSION>', 'B']
    """
    alone = Rendering(summary="omit", caption="omit", reasoning="omit", tags=tags)
    return render({"conclusion": conclusion}, alone)


def opening(tags: Layout) -> str:
    """What opens a conclusion. Where a beginning lacks parts it is forced, too: a model that would
    write the next section there could not be asked for its conclusion.

    >>> [opening(tags) for tags in ("text", "token", "none")]
    ['<CONCLUSION>', '<OPENING_OF_CONCLUSION>', '']
    """
    if tags == "none":
        return ""
    return (TAG_TOKENS if tags == "token" else TAGS)["conclusion"][0]


def behind_opening(continuations: Sequence[str], tags: Layout = "text") -> list[Marked]:
    """What stands behind what opens a conclusion, to be scored after a beginning with it.

    >>> for tags in ("text", "token", "none"):
    ...     print(*behind_opening([continuation("B", tags)], tags))
     B </CONCLUSION>
    B<CLOSING_OF_CONCLUSION>
    B
    """
    opened = opening(tags)
    found = []
    for text in continuations:
        first, *others = parts_of(text)
        if tags == "token":
            begins = not first.strip() and others[:1] == [opened]
            found.append(Marked(others[1:] if begins else (first, *others)))
        else:
            found.append(Marked((first.removeprefix(opened), *others)))
    return found


def thinking_tokens(prefix: str) -> tuple[str, ...]:
    """The thinking tokens, or fillers, of a prefix, in order."""
    return tuple(one for one in parts_of(meant(prefix))[1::2] if one not in _TAGS)


def tokens_of_a_section(prefix: str, tags: Layout = "text") -> int:
    """How many thinking tokens, or fillers, stand for each section of a prefix that has some.

    >>> tokens_of_a_section("<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY>")
    1
    >>> tokens_of_a_section("<THINKING_OF_SUMMARY>" * 2 + "<THINKING_OF_CAPTION>" * 4, "none")
    2
    """
    named = TAG_TOKENS if tags == "token" else TAGS
    there = [one for one in COMPRESSIBLE if tags == "none" or named[one][0] in prefix]
    return len(thinking_tokens(prefix)) // len(there)


def split(text: str, tags: Layout = "text") -> tuple[Marked, Marked] | None:
    """What stands before the conclusion in an answer, and the conclusion with its tags; None where
    nothing opens one.

    >>> split("<REASONING> 2 </REASONING> <CONCLUSION> B </CONCLUSION>")
    ('<REASONING> 2 </REASONING> ', '<CONCLUSION> B </CONCLUSION>')
    """
    opened, parts = opening(tags), parts_of(text)
    for place, part in enumerate(parts):
        if tags == "token" and place % 2 and part == opened:
            return Marked(parts[:place]), Marked(("", *parts[place:]))
        if tags == "text" and place % 2 == 0 and opened in part:
            before, _, behind = part.partition(opened)
            return Marked((*parts[:place], before)), Marked((opened + behind, *parts[place + 1 :]))
    return None


def without_slots(prefix: str) -> str:
    """A prefix with its tags and without its thinking tokens.

    >>> without_slots("<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY>")
    '<SUMMARY>  </SUMMARY>'
    >>> without_slots("<OPENING_OF_SUMMARY><FILLER_OF_THINKING><CLOSING_OF_SUMMARY>")
    '<OPENING_OF_SUMMARY><CLOSING_OF_SUMMARY>'
    """
    parts = parts_of(meant(prefix))
    slots = set(_slots(parts))
    return "".join(part for place, part in enumerate(parts) if place not in slots)


def first_slots(prefix: str, count: int, tags: Layout = "text") -> str:
    """A prefix that ends with its first `count` thinking tokens and the tag that closes them.

    >>> first_slots("<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY> <CAPTION> …", 1)
    '<SUMMARY> <THINKING_OF_SUMMARY> </SUMMARY>\\n\\n'
    >>> first_slots("<THINKING_OF_SUMMARY><THINKING_OF_CAPTION>", 1, "none")
    '<THINKING_OF_SUMMARY>'
    """
    parts = parts_of(meant(prefix))
    begun = "".join(parts[: _slots(parts)[count - 1] + 1])
    if tags == "none":
        return begun
    named = TAG_TOKENS if tags == "token" else TAGS
    # Fillers do not say of which section they are.
    section = max(COMPRESSIBLE, key=lambda name: begun.rfind(named[name][0]))
    closing = named[section][1]
    return f"{begun}{closing}" if tags == "token" else f"{begun} {closing}{SEPARATOR}"


def _slots(parts: Sequence[str]) -> list[int]:
    """Where the thinking tokens stand among the parts of a text."""
    return [place for place in range(1, len(parts), 2) if parts[place] not in _TAGS]
