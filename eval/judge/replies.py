"""What a judge's reply says, where it says one thing: a letter, a word, a number.

Judges dress what they are asked for (fences, bold, quotes, a label such as "Answer:") and give
reasons. At temperature 0 asking again gives the same, so dress is taken off and reasons are passed
over. Where two things could be meant, nothing is read: a guess would be a score.
"""

from __future__ import annotations

import re
from collections.abc import Container

_FENCED = re.compile(r"```[A-Za-z]*\s*(.*?)\s*```", flags=re.DOTALL)
_FENCE = re.compile(r"```(?:[A-Za-z]+\n)?")
_EDGES = " \t\r\n|_'‘’"
_BOXED = re.compile(r"\$*\\boxed\{(?:\\text\{)?([^{}]*)\}?\}\$*")
_DRESS = str.maketrans(dict.fromkeys('*`"“”„«»'))
_LABEL = re.compile(
    r"(?:(?:the|my|your|final|correct|best|matching)\s+)*"
    r"(?:(?:answer|option|choice|letter|output|reply|score|grade|rating|verdict)\b|it\b(?=\s+(?:is|means)\b))"
    r"\s*(?:(?:is|means|would be)\b)?\s*[:=]?\s*",
    flags=re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not?|nor|neither|never|cannot|except|rather)\b|n['’]t\b", re.IGNORECASE
)
_ENDS = r"(?=\s*$|\s*\n|\s*[.,;:!)\]。，、；：！–—-])"


def unfenced(reply: str) -> str:
    """A reply without blanks and the fences of code around it."""
    text = reply.strip()
    found = _FENCED.fullmatch(text)
    return found[1] if found else text


def undressed(reply: str) -> str:
    """A reply without fences, emphasis, quotes and labels.

    >>> undressed("**Answer:** `B`"), undressed("The final answer is option B.")
    ('B', 'B.')
    """
    text = _BOXED.sub(r"\1", _FENCE.sub("", reply)).translate(_DRESS).strip(_EDGES)
    while (label := _LABEL.match(text)) and label.end():
        text = text[label.end() :].strip(_EDGES)
    return text


def chosen(reply: str, letters: Container[str]) -> str | None:
    """The only one of `letters` that a reply names; None where it names none, or several.

    >>> [chosen(reply, "ABZ") for reply in ("**B**", "Option B", "A or B", "A leaf", "not B")]
    ['B', 'B', None, None, None]
    """
    text = undressed(reply)
    # What follows the letter is then its option's text, whatever letters that holds.
    alone = re.fullmatch(r"\(?([A-Z])(?:\)?[.:,]?|(?:\)|[.:]) (?!or\b|and\b).*)", text)
    if alone:
        return alone[1] if alone[1] in letters else None
    found = [
        (one[1], _is_word(one[1], one[2]))
        for one in re.finditer(r"(?<![\w'’])([A-Z])(?![\w'’])(\s+[a-z]+)?", text)
        if one[1] in letters
    ]
    named = {letter for letter, is_word in found if not is_word}
    if len(named) != 1:
        return None
    (letter,) = named
    leads = re.match(rf"\(?{letter}\)?{_ENDS}", text)
    # Within a sentence "A dog" may be the option A, and "not B" is not B.
    doubtful = ("A", True) in found or _NEGATION.search(text)
    return letter if leads or not doubtful else None


_AFTER_A_LETTER = "is because since as means matches fits or and to nor but".split()


def _is_word(letter: str, following: str | None) -> bool:
    """Whether a letter is the article or the pronoun: "A dog", "I think"."""
    return letter in "AI" and (following or "is").strip() not in _AFTER_A_LETTER


def said(reply: str) -> str | None:
    """`Yes`, `No` or `Unknown` where a reply begins with that word and holds no other of them.

    >>> [said(reply) for reply in ("**yes**", "No, it is shorter", "Yes and no", "No idea")]
    ['Yes', 'No', None, None]
    """
    text = undressed(reply).lower()
    # "No idea" and "no answer" are none, "yes it is" is one.
    head = re.match(rf"(?:(yes|unknown)\b|(no)\b{_ENDS})", text)
    words = set(re.findall(r"\b(?:yes|no|unknown)\b", text))
    return words.pop().capitalize() if head and len(words) == 1 else None


_OF_ONE = re.compile(r"\s*(?:/|out of)\s*1(?:\.0*)?(?![\d.])")
_TWO = re.compile(r"\s*(?:%|/|out of\b|[.,]\d|(?:to|or|and|of)\b|[-–—~]\s*\.?\d)", re.IGNORECASE)


def grade(reply: str) -> str | None:
    """The number from 0 to 1 with which the first line of a reply begins, as written there.

    >>> [grade(reply) for reply in ("0.5\\nbecause", "Score: 1.0.", "0.5/1", "1/10", "0 to 1", "7")]
    ['0.5', '1.0', '0.5', None, None, None]
    """
    line = undressed(reply).partition("\n")[0]
    found = re.match(r"(?:[01](?:\.\d+)?|\.\d+)(?![\w%])", line)
    if not found or float(found[0]) > 1:
        return None
    rest = line[found.end() :]
    return None if _TWO.match(rest) and not _OF_ONE.match(rest) else found[0]
