"""What each arrangement makes of a record: turns with parsed sections, or why there are none.

A record is `{"id", "image", "conversations": [{"from": "human"|"gpt", "value"}, …]}`; every
(human, gpt) pair becomes one turn without history. What a turn's answer needs depends on the
arrangement:

- `corrected` finds the sections by the position of their tags. It drops an answer that has not
  exactly one of each, in order and with nothing else around them; one that holds a thinking token
  already; and, with `spacing: canonical`, one that is spaced otherwise than `rendering.render`
  does.
- `official` keeps what the official script keeps, and keeps its text: `heima.data.official` has its
  sections, its filters A and B, and its phases. There is one set of turns for all phases: those
  that pass filter A in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from heima.cot import parsing
from heima.cot.sections import COMPRESSIBLE, CONTROL_TOKENS, THINKING_TOKENS, thinking_token
from heima.data import official
from heima.data.official import PHASES, RULE, TOKENS, Merges, by_string
from heima.data.records import Drop

ARRANGEMENTS = ("corrected", "official")
FILTERS = {
    "corrected": {"a": "thinking_token_in_text", "b": "odd_spacing"},
    "official": {"a": "thinking_token_count", "b": "odd_spacing"},
}
"""The reasons by which an arrangement drops what the recipe calls filters A and B."""

OFFICIAL_TURNS = 215_095
"""Turns of LLaVA-CoT-100k that the official script keeps, as it says itself."""

_BEGINNING = 16
"""Characters of a text that are looked for elsewhere before the whole of it is."""

_THINKING = thinking_token("").removesuffix(">")
"""What every thinking token begins with."""

_TOKENS = (*THINKING_TOKENS, *CONTROL_TOKENS)
_NAMED = "_OF_"
"""What each of `_TOKENS` has in it."""


class Fault(NamedTuple):
    """Why something was left out: a short, countable name, and what was wrong."""

    reason: str
    detail: str


# From a record to pairs of messages


def pair(
    record: Mapping[str, Any], *, compat: str = "corrected"
) -> tuple[list[tuple[str, str, str]], list[Drop]]:
    """(turn id, question, answer) of each human message that a gpt message follows.

    A record's turns are numbered through; with `compat: official` by the place of the human
    message, so that the second is 3.
    """
    pairs: list[tuple[str, str, str]] = []
    unpaired: list[Drop] = []
    messages = record["conversations"]
    position = 0
    while position < len(messages):
        following = messages[position + 1]["from"] if position + 1 < len(messages) else "nothing"
        if messages[position]["from"] == "human" and following == "gpt":
            number = position if compat == "official" else len(pairs)
            identity = f"{record['id']}-{number + 1}"
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
    `by_rule`: without Llama 3's tokenizer, whether a rule stood in for its merges in filter B.
    """

    corrected: Outcome
    official: Outcome
    altered: tuple[bool, ...] = (False,) * len(PHASES)
    by_rule: bool = False


_ODD_SPACING = Outcome(
    None, Fault("odd_spacing", "not spaced as `<TAG> text </TAG>` and an empty line")
)


def arrange(question: str, answer: str, *, spacing: str, merges: Merges = RULE) -> Arranged:
    """What each arrangement makes of a turn.

    `spacing` is what `corrected` asks for, `merges` decide in filter B of `official`.
    """
    spans: Mapping[str, parsing.Span] | None = None
    try:
        found = parsing.spans(answer)
    except parsing.ParseError as error:
        corrected = Outcome(None, Fault(error.reason, str(error)))
        canonical, sections = False, {}
    else:
        spans = found
        sections = {section: answer[start:end] for section, (start, end) in found.items()}
        canonical = parsing.is_canonical(answer, found)
        corrected = Outcome(sections, None) if canonical or spacing == "any" else _ODD_SPACING
        token = _thinking_token_in(question) or _thinking_token_in(answer)
        if token:
            fault = Fault("thinking_token_in_text", f"{token} occurs in the text")
            corrected = Outcome(None, fault)
    if not question:
        corrected = Outcome(None, Fault("empty_question", "the human message is empty"))
    twice = spans is not None and _occurs_elsewhere(answer, spans)
    if canonical and answer.startswith("<") and not twice and _THINKING not in answer:
        # Both replace alike, and the tags stand as filter B wants them.
        return Arranged(corrected, Outcome(sections, None))
    altered = Arranged._field_defaults["altered"]
    if twice and spans is not None:
        texts = zip(by_string(answer, sections), by_position(answer, spans), strict=True)
        altered = tuple(one != other for one, other in texts)
    kept, merged = officially(answer, merges)
    return Arranged(corrected, kept, altered, merged and merges is RULE)


def _thinking_token_in(text: str) -> str | None:
    """A thinking token or a control token that a text names."""
    if _NAMED not in text:
        return None
    return next((token for token in _TOKENS if token in text), None)


def _occurs_elsewhere(answer: str, spans: Mapping[str, parsing.Span]) -> bool:
    """Whether `str.replace`, section after section, finds a text elsewhere than in its place."""
    grown = 0
    for section, token in TOKENS.items():
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


def officially(answer: str, merges: Merges = RULE) -> tuple[Outcome, bool]:
    """What the official arrangement makes of an answer, and whether merges were asked.

    An answer without a conclusion has an empty one.
    """
    sections = official.sections_of(answer)
    for section in COMPRESSIBLE:
        if section not in sections:
            return Outcome(None, Fault(f"missing_{section}", f"no {section} in the answer")), False
        if not sections[section]:
            # It would be found, and replaced, between any two characters.
            detail = f"the {section} is empty, and occurs everywhere"
            return Outcome(None, Fault("thinking_token_count", detail)), False
    texts = dict(zip(PHASES, by_string(answer, sections), strict=True))
    if fault := official.token_fault(texts):
        return Outcome(None, Fault("thinking_token_count", fault)), False
    fault, merged = official.tags(answer, merges)
    if fault:
        return Outcome(None, Fault("odd_spacing", fault)), merged
    return Outcome({"conclusion": "", **sections}, None), merged


def by_position(answer: str, spans: Mapping[str, parsing.Span]) -> list[str]:
    """The answer in each of `PHASES`: a section's text replaced where it stands."""
    texts = []
    grown = 0
    for section, token in TOKENS.items():
        start, end = spans[section]
        answer = answer[: start + grown] + token + answer[end + grown :]
        grown += len(token) - (end - start)
        texts.append(answer)
    return texts
