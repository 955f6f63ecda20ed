"""What an answer says, by rule alone; None leaves it to the judge.

These are VLMEvalKit's rules of autumn 2024 with their misfires ("A dog sleeps" is option A), for
they made the published numbers. Later versions of VLMEvalKit changed some of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NONE = "Z"
"""The letter for "none of the options"; never right."""

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_YES_NO_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def option(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names, by its letter or else by its text; `NONE` for a refusal.

    >>> options = {"A": "stem", "B": "leaf"}
    >>> option("The answer is B", options), option("the leaf", options), option("A or B", options)
    ('B', 'B', None)
    """
    return option_letter(answer, options) or option_text(answer, options)


def option_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The only option letter that stands in an answer as a word of its own.

    Marks around it do not count; a lower-case letter is no option. `NONE` where the answer holds a
    refusal's wording, or the word Z and no option letter.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return NONE
    words = set(answer.translate(_MARKS).split())
    named = [letter for letter in options if letter in words]
    if len(named) == 1:
        return named[0]
    return NONE if not named and NONE in words else None


def option_text(answer: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text is part of an answer, whatever the case; words are not looked at.

    >>> option_text("a steamboat", {"A": "boat", "B": "car"})
    'A'
    """
    lower = answer.lower()
    held = [letter for letter, text in options.items() if text.lower() in lower]
    return held[0] if len(held) == 1 else None


def yes_no(answer: str) -> str | None:
    """`Yes` or `No` where exactly one of the two words stands in an answer.

    Marks become blanks, or vanish where one of their kind has a blank beside it ("no-one" holds
    no, "- no-one" does not). Marks vanish also where a number has a comma, as does a full stop
    before anything but a digit (the first 32 of these). Quotes, colons and asterisks stay:
    "**Yes**" is no yes.
    """
    lower = answer.lower()
    number = re.search(r"\d,\d", lower)
    marks: dict[str, str | int | None] = {
        mark: "" if number or f"{mark} " in lower or f" {mark}" in lower else " "
        for mark in _YES_NO_MARKS
    }
    # VQA's code, which VLMEvalKit has, gives the flag re.UNICODE, 32, in the place of a count.
    stops = re.sub(r"\.(?!\d)", "", lower.translate(str.maketrans(marks)), count=32)
    words = set(stops.split())
    said = words & {"yes", "no"}
    return said.pop().capitalize() if len(said) == 1 else None


def number(answer: str, answer_type: str) -> int | float | None:
    """The number that an answer consists of: an `integer` without point, or a `float`."""
    try:
        return int(answer) if answer_type == "integer" else float(answer)
    except ValueError:
        return None
