"""Renderings as data: every known form and layout is told by a naive reference, and parsed."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from heima.cot import parsing
from heima.cot.rendering import (
    RENDERINGS,
    Form,
    Layout,
    Rendering,
    constant_prefix,
    render,
    replaced,
    text_spans,
)
from heima.cot.sections import (
    COMPRESSIBLE,
    CONTROL_TOKENS,
    FILLER,
    LENDERS,
    MAX_NUMBERED,
    MOST_BESIDE_CONTROL,
    SECTIONS,
    TAG_TOKENS,
    TAGS,
    THINKING_TOKENS,
    meant,
    numbered,
    with_controls,
)

FORMS, LAYOUTS = get_args(Form), get_args(Layout)
WORDS = {"text", "short"}


def every() -> list[Rendering]:
    """All renderings that there can be."""
    return [
        Rendering(summary=a, caption=b, reasoning=c, tags=tags)
        for a, b, c in itertools.product(FORMS, repeat=3)
        for tags in LAYOUTS
        if tags != "none" or not WORDS & {a, b, c}
    ]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1).map(
    str.strip
)
sections = st.fixed_dictionaries({section: texts.filter(bool) for section in SECTIONS})
renderings = st.sampled_from(every())


def naive(parts, rendering, count, short):
    """The text, put together from its blocks."""
    blocks = []
    for section in SECTIONS:
        form = getattr(rendering, section, "text")
        if form == "omit":
            continue
        inner = {
            "text": parts[section],
            "short": short.get(section, ""),
            "token": "".join(numbered(count)[section]) if section in COMPRESSIBLE else "",
            "filler": FILLER * count,
        }[form]
        opening, closing = TAGS[section] if rendering.tags == "text" else TAG_TOKENS[section]
        blocks.append(
            {
                "text": f"{opening} {inner} {closing}",
                "token": f"{opening}{inner}{closing}",
                "none": inner,
            }[rendering.tags]
        )
    return ("\n\n" if rendering.tags == "text" else "").join(blocks)


@given(sections, renderings, st.integers(1, 5))
def test_every_rendering_is_what_its_forms_and_layout_say(parts, rendering, count):
    short = {section: f"{parts[section]}!" for section in COMPRESSIBLE}
    answer = render(parts, rendering, numbered(count), short=short)
    assert answer == naive(parts, rendering, count, short)
    # Only what is meant is marked: `meant` of the tokens alone gives the same marks.
    marked = answer.parts[1::2]
    assert set(marked) <= {*THINKING_TOKENS, *CONTROL_TOKENS}
    assert len(marked) == sum(
        count * (form in ("token", "filler")) + 2 * (rendering.tags == "token" and form != "omit")
        for form in rendering.forms.values()
    ) + 2 * (rendering.tags == "token")


@given(sections, renderings)
def test_the_conclusion_of_every_rendering_is_found(parts, rendering):
    answer = str(render(parts, rendering, short=dict.fromkeys(SECTIONS, "x")))
    assert parsing.conclusion(answer, rendering.tags) == parts["conclusion"]
    assert parsing.scored(answer).strip() == parts["conclusion"]
    start, end = parsing.conclusion_span(answer, rendering.tags)
    assert answer[start:end].strip() == parts["conclusion"]
    if rendering.tags == "none":
        # Nothing but its end closes it.
        assert parsing.conclusion(answer, "none", ended=False) is None
    else:
        assert parsing.conclusion(answer + " <CONCL", rendering.tags) == parts["conclusion"]
        assert parsing.conclusion(answer[: end - 1], rendering.tags) is None


@given(sections, renderings, st.integers(1, 4))
def test_a_constant_rendering_begins_every_answer_alike(parts, rendering, count):
    thinking = numbered(count)
    answer = render(parts, rendering, thinking, short=dict.fromkeys(SECTIONS, "x"))
    forms = set(rendering.forms.values())
    assert rendering.constant == (not forms & WORDS and bool(forms & {"token", "filler"}))
    if not rendering.constant:
        with pytest.raises(ValueError, match="do not all begin alike"):
            constant_prefix(rendering, thinking)
        return
    prefix = constant_prefix(rendering, thinking)
    assert answer.startswith(prefix)
    assert meant(prefix).parts[1::2] == answer.parts[1::2][: len(meant(prefix).parts) // 2]
    rest = answer.removeprefix(prefix)
    assert not any(token in rest for token in (*THINKING_TOKENS, FILLER))


@given(sections, renderings)
def test_replacing_makes_what_it_says_it_can(parts, rendering):
    """Where texts occur once it equals rendering; what it cannot make it refuses."""
    parts = {section: f"{section[0]}{number}" for number, section in enumerate(parts)}
    answer = render(parts, "text-cot")
    if not rendering.replaces:
        with pytest.raises(ValueError, match="which replacing does not"):
            replaced(answer, parts, rendering)
    else:
        expected = render(parts, rendering, numbered(2))
        found = replaced(answer, parts, rendering, numbered(2))
        assert found == expected and found.parts == expected.parts


@given(sections)
def test_texts_stand_where_they_are_said_to(parts):
    answer = render(parts, "text-cot")
    assert {s: answer[a:b] for s, (a, b) in text_spans(parts).items()} == parts


@pytest.mark.parametrize("form", sorted(WORDS))
@pytest.mark.parametrize("section", COMPRESSIBLE)
def test_words_without_tags_are_refused(section, form):
    """Nothing would tell them from the conclusion."""
    forms = {**dict.fromkeys(COMPRESSIBLE, "token"), section: form}
    with pytest.raises(ValidationError, match=rf"tags = 'none' with {section} = '{form}': nothing"):
        Rendering(**forms, tags="none")


def test_control_tokens_stand_in_the_place_of_the_last_numbered_ones():
    assert MOST_BESIDE_CONTROL == 29 and len(LENDERS) == len(CONTROL_TOKENS) == 9
    reserved = dict(zip(THINKING_TOKENS, range(len(THINKING_TOKENS)), strict=True))
    found = with_controls(reserved)
    assert list(found.values()) == list(reserved.values())
    for count in (1, 2, MOST_BESIDE_CONTROL):
        used = {token for tokens in numbered(count).values() for token in tokens}
        assert used <= found.keys()
    lacking = {token for tokens in numbered(MAX_NUMBERED).values() for token in tokens} - set(found)
    assert lacking == set(LENDERS.values())


def test_the_papers_renderings_are_as_they_were():
    """Their tags are text, and no token is a control token."""
    parts = {"summary": "s", "caption": "c", "reasoning": "r", "conclusion": "B"}
    for rendering in RENDERINGS.values():
        assert rendering.tags == "text" and not rendering.controls
    assert render(parts, "p3").parts[1::2] == tuple(
        f"<THINKING_OF_{s.upper()}>" for s in COMPRESSIBLE
    )
