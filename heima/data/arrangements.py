"""What each arrangement makes of a record: turns with parsed sections, or why there are none.

A record is `{"id", "image", "conversations": [{"from": "human"|"gpt", "value"}, …]}`; every
(human, gpt) pair becomes one turn without history. What a turn's answer needs depends on the
arrangement:

- `corrected` finds the sections by the position of their tags. It drops an answer that has not
  exactly one of each, in order and with nothing else around them; one that holds a thinking token
  already; and, with `spacing: canonical`, one that is spaced otherwise than `rendering.render`
  does.
- `official` takes the text between the first pair of each tag and replaces it by `str.replace` in
  the whole answer, one section after the other. It drops an answer without a summary, caption or
  reasoning; by filter A, one where a thinking token does not occur exactly once in the text of each
  phase (with N tokens a section: N times, which drops the same answers); by filter B, one whose
  texts are not in canonical spacing. There is one set of turns for all phases: those that pass the
  filters in each.

An answer that both keep they render alike: where replacing by string alters something else, filter
A or B drops the turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from heima.cot import parsing
from heima.cot.rendering import render
from heima.cot.sections import COMPRESSIBLE, SECTIONS, THINKING_TOKENS, thinking_token
from heima.data.records import Drop

ARRANGEMENTS = ("corrected", "official")
FILTERS = {
    "corrected": {"a": "thinking_token_in_text", "b": "odd_spacing"},
    "official": {"a": "thinking_token_count", "b": "odd_spacing"},
}
"""The reasons by which an arrangement drops what the recipe calls filters A and B."""

PHASES = ("p1", "p2", "p3")

_BEGINNING = 16
"""Characters of a text that are looked for elsewhere before the whole of it is."""

_TOKENS = {section: thinking_token(section) for section in COMPRESSIBLE}
_THINKING = thinking_token("").removesuffix(">")
"""What every thinking token begins with."""


class Fault(NamedTuple):
    """Why something was left out: a short, countable name, and what was wrong."""

    reason: str
    detail: str


# From a record to pairs of messages


def pair(record: Mapping[str, Any]) -> tuple[list[tuple[str, str, str]], list[Drop]]:
    """(turn id, question, answer) of each human message that a gpt message follows."""
    pairs: list[tuple[str, str, str]] = []
    unpaired: list[Drop] = []
    messages = record["conversations"]
    position = 0
    while position < len(messages):
        following = messages[position + 1]["from"] if position + 1 < len(messages) else "nothing"
        if messages[position]["from"] == "human" and following == "gpt":
            identity = f"{record['id']}-{len(pairs) + 1}"
            pairs.append((identity, messages[position]["value"], messages[position + 1]["value"]))
            position += 2
        else:
            unpaired.append(
                Drop(
                    f"{record['id']} message {position + 1}",
                    "unpaired_message",
                    f"{messages[position]['from']} is followed by {following}",
                )
            )
            position += 1
    return pairs, unpaired


# What each arrangement makes of an answer


class Outcome(NamedTuple):
    """What an arrangement makes of a turn: its sections, or the fault that drops it."""

    sections: Mapping[str, str] | None
    fault: Fault | None


class Arranged(NamedTuple):
    """The outcome of a turn under each arrangement.

    `altered` says for each of `PHASES` whether `str.replace` changes more of the answer than the
    sections that it is for; it is False where an answer's sections cannot be told by position.
    """

    corrected: Outcome
    official: Outcome
    altered: tuple[bool, ...] = (False,) * len(PHASES)


_ODD_SPACING = Outcome(
    None, Fault("odd_spacing", "not spaced as `<TAG> text </TAG>` and an empty line")
)


def arrange(question: str, answer: str, *, spacing: str) -> Arranged:
    """What each arrangement makes of a turn; `spacing` is what `corrected` asks for."""
    if not question:
        empty = Outcome(None, Fault("empty_question", "the human message is empty"))
        return Arranged(empty, empty)
    try:
        spans = parsing.spans(answer)
    except parsing.ParseError as error:
        return Arranged(Outcome(None, Fault(error.reason, str(error))), official(answer))
    sections = {section: answer[start:end] for section, (start, end) in spans.items()}
    corrected = canonical = Outcome(sections, None)
    if not parsing.is_canonical(answer, spans):
        canonical = _ODD_SPACING
        corrected = corrected if spacing == "any" else canonical
    token = _thinking_token_in(question) or _thinking_token_in(answer)
    if token:
        corrected = Outcome(None, Fault("thinking_token_in_text", f"{token} occurs in the text"))
    if _occurs_elsewhere(answer, spans):
        texts = zip(by_string(answer, sections), by_position(answer, spans), strict=True)
        return Arranged(corrected, official(answer), tuple(one != other for one, other in texts))
    if _THINKING in answer:
        return Arranged(corrected, official(answer))
    # Both replace alike, so that filter A has nothing to drop, and spacing is all that counts.
    return Arranged(corrected, canonical)


def _thinking_token_in(text: str) -> str | None:
    if _THINKING not in text:
        return None
    return next((token for token in THINKING_TOKENS if token in text), None)


def _occurs_elsewhere(answer: str, spans: Mapping[str, parsing.Span]) -> bool:
    """Whether `str.replace`, section after section, finds a text elsewhere than in its place."""
    grown = 0
    for section, token in _TOKENS.items():
        start, end = spans[section][0] + grown, spans[section][1] + grown
        # Where its beginning does not occur, the whole does not; a short one is found faster.
        beginning = answer[start : min(start + _BEGINNING, end)]
        if (
            answer.find(beginning, 0, start + len(beginning) - 1) >= 0
            or answer.find(beginning, end) >= 0
        ):
            text = answer[start:end]
            if answer.find(text) != start or answer.find(text, end) >= 0:
                return True
        answer = answer[:start] + token + answer[end:]
        grown += len(token) - (end - start)
    return False


def official(answer: str) -> Outcome:
    """What the official arrangement makes of an answer."""
    sections = _first_of_each(answer)
    for section in COMPRESSIBLE:
        if section not in sections:
            return Outcome(None, Fault(f"missing_{section}", f"no {section} in the answer"))
    texts = dict(zip(PHASES, by_string(answer, sections), strict=True))
    for count, (phase, text) in enumerate(texts.items(), 1):
        for section in COMPRESSIBLE[:count]:
            found = text.count(_TOKENS[section])
            if found != 1:
                detail = f"{_TOKENS[section]} occurs {found} times in {phase}"
                return Outcome(None, Fault("thinking_token_count", detail))
    for phase, text in texts.items():
        # Tags in a text that is replaced are gone, so that each phase is looked at anew.
        shown = _first_of_each(text)
        if len(shown) < len(SECTIONS) or text.strip() != render(shown, "text-cot"):
            return Outcome(None, Fault("odd_spacing", f"{phase} is not in canonical spacing"))
    return Outcome({**sections, "conclusion": shown["conclusion"]}, None)


def _first_of_each(answer: str) -> dict[str, str]:
    """The text between the first pair of each section's tags, where there is a pair."""
    sections = {}
    for section in SECTIONS:
        _, opening, rest = answer.partition(f"<{section.upper()}>")
        text, closing, _ = rest.partition(f"</{section.upper()}>")
        if opening and closing:
            sections[section] = text.strip()
    return sections


def by_string(answer: str, sections: Mapping[str, str]) -> list[str]:
    """The answer in each of `PHASES`: a section's text replaced wherever it occurs."""
    texts = []
    for section, token in _TOKENS.items():
        answer = answer.replace(sections[section], token)
        texts.append(answer)
    return texts


def by_position(answer: str, spans: Mapping[str, parsing.Span]) -> list[str]:
    """The answer in each of `PHASES`: a section's text replaced where it stands."""
    texts = []
    grown = 0
    for section, token in _TOKENS.items():
        start, end = spans[section]
        answer = answer[: start + grown] + token + answer[end + grown :]
        grown += len(token) - (end - start)
        texts.append(answer)
    return texts
