"""The judge `embedded-rules`: grades without a language model, for the toy world.

It compares words. That suffices where answers are a colour, a number or yes/no; on real
benchmarks it would misjudge every paraphrase, so its name stands in every result it made.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping

from eval.prompts import Question
from heima.results.measures import EMBEDDED_RULES

NAME = EMBEDDED_RULES


class Ungradable(ValueError):
    """A question that these rules cannot answer; the message says why."""


def answer(asked: Question) -> str:
    """The reply to a judge's question, in the form that its task reads.

    >>> answer(Question("mmvet", "What is the colour at a1?", "red", "it is red"))
    '1.0'
    >>> answer(Question("similarity", "What is at a1?", "a1 red-square", "a1 red-circle"))
    '{"grade": 2}'
    >>> answer(Question("mathvista", "What is the total of a1 and b2?", "", "8 is the total"))
    '8'

    Raises `Ungradable` for a HallusionBench reference without yes or no.
    """
    return _RULES[asked.kind](asked)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:[.'-][a-z0-9]+)*", text.lower())


def _contains(text: str, part: str) -> bool:
    """Whether the words of `part` stand in `text` one after another."""
    return bool(_words(part)) and f" {' '.join(_words(part))} " in f" {' '.join(_words(text))} "


def _grade(asked: Question) -> str:
    """MM-Vet's rule: the share of the <AND> elements, the best of the <OR> alternatives."""
    shares = []
    for alternative in asked.reference.split("<OR>"):
        elements = alternative.split("<AND>")
        hits = sum(_contains(asked.answer, element) for element in elements)
        shares.append(hits / len(elements))
    return f"{max(shares):.1f}"


def _extract(asked: Question) -> str:
    """The last number of a response; without one, the last option letter; else the response."""
    numbers = re.findall(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w-])", asked.answer)
    letters = re.findall(r"\b[A-H]\b", asked.answer)
    wants_letter = "option letter" in asked.question or "option's letter" in asked.question
    found = letters if wants_letter else numbers or letters
    return found[-1] if found else asked.answer.strip() or "none"


def _agree(asked: Question) -> str:
    said, right = _yes_no(asked.answer), _yes_no(asked.reference)
    if right is None:
        raise Ungradable(
            f"the reference answer {asked.reference!r} says neither yes nor no; "
            f"{NAME} cannot grade it, set params judge to a language model"
        )
    if said is None:
        return "unclear"
    return "correct" if said == right else "incorrect"


def _yes_no(text: str) -> str | None:
    """yes or no where exactly one of them occurs."""
    found = {"yes", "no"} & set(_words(text))
    return found.pop() if len(found) == 1 else None


def _match(asked: Question) -> str:
    """The option that the answer equals, else the only one that it contains, else E."""
    options = dict(re.findall(r"^([A-D])\. (.*)$", asked.reference, flags=re.MULTILINE))
    return _meant(options, asked.answer) or "E"


def _meant(options: Mapping[str, str], answer: str) -> str | None:
    equal = [k for k, option in options.items() if _words(option) == _words(answer)]
    held = [k for k, option in options.items() if _contains(answer, option)]
    for found in (equal, held):
        if len(found) == 1:
            return found[0]
    return None


def _choose(asked: Question) -> str:
    """As `_match` for any letters, with Z for none."""
    options = dict(re.findall(r"^([A-Z])\. (.*)$", asked.reference, flags=re.MULTILINE))
    return _meant(options, asked.answer) or "Z"


_SIMILAR = (0.9, 0.7, 0.4)
"""The share of common words (F1) from which on a text gets the grades 4, 3 and 2; below: 1."""


def _compare(asked: Question) -> str:
    """5 for the same words in the same order, else by the F1 of the words that both texts have."""
    left, right = _words(asked.reference), _words(asked.answer)
    common = (Counter(left) & Counter(right)).total()
    share = 2 * common / max(1, len(left) + len(right))
    grade = 5 if left == right else 1 + sum(share >= bound for bound in _SIMILAR)
    return json.dumps({"grade": grade})


_RULES = {
    "mmvet": _grade,
    "mathvista": _extract,
    "hallusionbench": _agree,
    "mmbench": _match,
    "choice": _choose,
    "yes_no": lambda asked: (_yes_no(asked.answer) or "unknown").capitalize(),
    "similarity": _compare,
}
