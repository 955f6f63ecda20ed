"""Sections: parsing and rendering are inverse, faults have countable reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heima.cot import parsing
from heima.cot.rendering import RENDERINGS, render
from heima.cot.sections import (
    COMPRESSIBLE,
    MAX_NUMBERED,
    SECTIONS,
    numbered,
    repeated,
    tagged,
    thinking_token,
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1).map(
    str.strip
)
sections = st.fixed_dictionaries({section: texts.filter(bool) for section in SECTIONS})


def answer(**changed: str) -> str:
    parts = {"summary": "s", "caption": "c", "reasoning": "r", "conclusion": "B", **changed}
    return render(parts, "text-cot")


@given(sections)
def test_parse_inverts_render(parts):
    text = render(parts, "text-cot")
    assert parsing.parse(text) == parts
    assert parsing.is_canonical(text, parsing.spans(text))


@given(sections, st.sampled_from(sorted(RENDERINGS)))
def test_each_rendering_shows_what_it_says(parts, rendering):
    text = render(parts, rendering)
    for section, form in RENDERINGS[rendering].forms.items():
        tag, token = f"<{section.upper()}>", thinking_token(section)
        assert text.count(token) == (form == "token")
        assert text.count(tag) == (form != "omit")
    assert parsing.conclusion(text) == parts["conclusion"]


@given(sections, st.integers(1, MAX_NUMBERED), st.integers(1, 300))
def test_thinking_tokens_stand_side_by_side_in_their_section(parts, count, times):
    """Numbered ones each once, in order; a repeated one as often as it is asked for."""
    one = render(parts, "p2")
    for thinking in (numbered(count), repeated({"summary": times, "caption": count})):
        text = render(parts, "p2", thinking)
        for section in ("summary", "caption"):
            shown = "".join(thinking[section])
            assert tagged(section, shown) in text
            one_less = tagged(section, thinking_token(section))
            text = text.replace(tagged(section, shown), one_less)
        assert text == one
    assert numbered(1) == repeated(dict.fromkeys(COMPRESSIBLE, 1))


@pytest.mark.parametrize("count", [0, MAX_NUMBERED + 1])
def test_only_so_many_tokens_are_numbered(count):
    with pytest.raises(ValueError, match=f"1 to 32 numbered thinking tokens, not {count}"):
        numbered(count)


def test_a_section_text_that_occurs_elsewhere_is_replaced_once():
    # str.replace over the answer, as in the official code, would replace it three times.
    parts = parsing.parse(answer(summary="B", reasoning="B so B"))
    assert render(parts, "p1") == answer(summary="<THINKING_OF_SUMMARY>", reasoning="B so B")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (answer().replace("CAPTION", "PICTURE"), "missing_caption"),
        (answer() + "\n\n<SUMMARY> again </SUMMARY>", "repeated_summary"),
        (answer(reasoning="x </REASONING> y"), "repeated_reasoning"),
        (answer(caption=" "), "empty_caption"),
        ("Well: " + answer(), "text_outside_sections"),
        ("<CAPTION> c </CAPTION><SUMMARY> s </SUMMARY><REASONING> r </REASONING>"
         "<CONCLUSION> B </CONCLUSION>", "disordered_sections"),
        ("<SUMMARY> s <CAPTION> c </CAPTION></SUMMARY><REASONING> r </REASONING>"
         "<CONCLUSION> B </CONCLUSION>", "disordered_sections"),
        ("B", "missing_summary"),
    ],
)  # fmt: skip
def test_faults_have_reasons(text, reason):
    with pytest.raises(parsing.ParseError) as caught:
        parsing.parse(text)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<CONCLUSION> 7 </CONCLUSION>", "7"),
        ("<CONCLUSION> 7", None),
        ("</CONCLUSION> <CONCLUSION> 7", None),
        ("</CONCLUSION> <CONCLUSION> 7 </CONCLUSION>", "7"),
        ("7", None),
        ("", None),
        ("<CONCLUSION> </CONCLUSION>", ""),
    ],
)
def test_conclusion(text, expected):
    assert parsing.conclusion(text) == expected


@pytest.mark.parametrize(
    "more",
    [
        "<CONCLUSION>",
        "<CONCLUSION> ",
        "<CONCLUSION> </CONCLUSION>",
        "<CONCLUSION> C",
        "<CONCLUSION> C </CONCLUSION>",
        "</CONCLUSION>",
        "<SUMMARY> s </SUMMARY>\n\n<CONCL",
        "<SUMMARY> s </SUMMARY>\n\n<CONCLUSION> C </CONCLUSION>\n\n<CONCLUSION>",
    ],
)
def test_what_follows_a_conclusion_is_no_other_one(more):
    """An answer that ends by the limit may run on, however often."""
    text = answer()
    for times in range(3):
        assert parsing.conclusion(text + f"\n\n{more}" * times) == "B"
