"""What an interpreter is asked, and the sentences around a section in the paper's references."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from heima.cot.sections import Marked, joined, meant, tagged, thinking_token

Wordings = Literal["plain", "varied"]

PLAIN_WORDING = "{question}\nwhat is the {section} {source}?"

# Our own wordings; the official code draws one of ten per section and sample, too.
VARIED = (
    "{question}\nWhat is the {section} {source}?",
    "A model was asked: {question}\nExplain its {section} {source}.",
    "Here is a question about an image: {question}\nRestore the {section} {source}.",
    "{question}\nThe answer to this went through a {section}. Write out the {section} {source}.",
    "Question: {question}\nPut into words the {section} {source}.",
    "Reconstruct the {section} {source} for this question: {question}",
    "{question}\nSpell out the {section} {source}, as text.",
    "Read the {section} {source}. It belongs to this question: {question}",
    "Someone answered this: {question}\nTell me the {section} {source}.",
    "{question}\nPlease decode the {section} {source}.",
)


def asking(wording: str, question: str, section: str, states: int) -> Marked:
    """What an interpreter is asked in a wording, with a thinking token for each of so many states.

    Without any the prompt names no source. What the question says of thinking tokens is text.

    >>> asking("{question} A {section} {source}?", "Why <THINKING_OF_CAPTION>?", "caption", 1).parts
    ('Why <THINKING_OF_CAPTION>? A caption of the hidden state ', '<THINKING_OF_CAPTION>', ' ?')
    """
    source = meant(f"of the hidden state {thinking_token(section) * states} " if states else "")
    values = {"question": question, "section": section, "source": source}

    def texts() -> Iterator[str]:
        for text, field, _, _ in string.Formatter().parse(wording):
            yield text
            if field is not None:
                yield values[field]

    return joined(texts())


# The sentence that opens an answer in the paper's data, with its tags; our own wordings again.
_ANSWERS = (
    "The {section} is: {block}",
    "This is the {section}: {block}",
    "The hidden state stands for this {section}: {block}",
    "Here is the {section} in words: {block}",
    "Written out, the {section} reads: {block}",
    "The {section} of the answer was: {block}",
    "It means the following {section}: {block}",
    "The {section} that belongs to the question: {block}",
    "Decoded, the {section} is this: {block}",
    "In text, the {section} is as follows: {block}",
)


def official_references(section: str, texts: Sequence[str], *, seed: int) -> list[str]:
    """References as the official metrics script has them: an answer sentence, and tags.

    One of ten sentences is drawn for each text. Predictions have neither sentence nor tags, so
    that such references lower every metric (docs/recipe.md, section 4).
    """
    drawn = np.random.default_rng(seed).integers(len(_ANSWERS), size=len(texts))
    return [
        _ANSWERS[answer].format(section=section, block=tagged(section, text))
        for answer, text in zip(drawn, texts, strict=True)
    ]
