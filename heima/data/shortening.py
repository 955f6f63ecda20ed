"""Sections without the words that say least: short texts, the honest rival of as many tokens.

What a word says is its surprisal: how unlikely the model that writes the whole text finds it, in
nats (`heima.training.surprisal`). The idea is that of Selective Context (Li et al., 2023,
arXiv:2310.06201) and LLMLingua (Jiang et al., 2023, arXiv:2310.05736), with whole words kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from heima.cot.rendering import render, text_spans
from heima.cot.sections import COMPRESSIBLE
from heima.cot.thinking import Thinking
from heima.data.encoding import thinking_count
from heima.data.tokens import Vocabulary


class Word(NamedTuple):
    """A word of a text: its characters [start, end), its tokens, and their surprisal in nats."""

    start: int
    end: int
    tokens: int
    nats: float


def words(
    text: str, offsets: Sequence[tuple[int, int]], nats: Sequence[float], *, within: tuple[int, int]
) -> list[Word]:
    """The words of `text[slice(*within)]`, whose tokens have these offsets in it and surprisals.

    A token that does not follow white space, and does not begin with any, belongs to the word
    before it; one that holds several words is one.
    """
    found: list[Word] = []
    for (start, end), surprise in zip(offsets, nats, strict=True):
        start, end = max(start, within[0]), min(end, within[1])
        shown = text[start:end]
        if not shown.strip():
            continue
        first = start + len(shown) - len(shown.lstrip())
        last = end - len(shown) + len(shown.rstrip())
        if found and not text[found[-1].end : first]:
            before = found.pop()
            found.append(Word(before.start, last, before.tokens + 1, before.nats + surprise))
        else:
            found.append(Word(first, last, 1, surprise))
    return found


def kept(candidates: Sequence[Word], budget: int) -> list[Word]:
    """The words that say most a token, in the order of the text, of no more tokens than `budget`.

    The one that says most is kept in any case: a section is never empty.
    """
    ranked = sorted(range(len(candidates)), key=lambda i: (-_density(candidates[i]), i))
    chosen, left = set(ranked[:1]), budget - sum(candidates[i].tokens for i in ranked[:1])
    for place in ranked[1:]:
        if candidates[place].tokens <= left:
            chosen.add(place)
            left -= candidates[place].tokens
    return [candidates[i] for i in sorted(chosen)]


def _density(word: Word) -> float:
    return word.nats / word.tokens


def shorten(
    sections: Mapping[str, str], nats: Sequence[float], vocabulary: Vocabulary, thinking: Thinking
) -> dict[str, str]:
    """Each section's short text: as many tokens at most as `thinking` gives it.

    `nats` are the surprisals of the tokens of the sections' rendering as text-cot, its end apart.
    Raises `ValueError` where they are not as many.
    """
    answer = render(sections, "text-cot")
    offsets = vocabulary.offsets(answer)
    if len(offsets) != len(nats):
        raise ValueError(f"there are {len(nats)} surprisals of {len(offsets)} tokens")
    found = {}
    spans = text_spans(sections)
    for section in COMPRESSIBLE:
        budget = thinking_count(thinking, vocabulary.length(sections[section]))
        parts = kept(words(answer, offsets, nats, within=spans[section]), budget)
        found[section] = " ".join(answer[one.start : one.end] for one in parts)
    return found
