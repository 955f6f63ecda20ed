"""Answers in several renderings from one model: a control word in the question says which.

>>> asked("What is there?", "thinking")
'What is there?\\nthinking'
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def asked(question: str, word: str | None) -> str:
    """A question with the control word behind it; none: the question as it is."""
    return question if word is None else f"{question}\n{word}"


def assigned(shares: Mapping[str, float], count: int, *, seed: int) -> list[str]:
    """The name that each of `count` turns gets: as many of each as `shares` say, to one turn.

    What rounding leaves over goes to the largest remainders; which turn gets which follows from
    `seed`, and not from the order of the `shares`, which sum to 1.
    """
    exact = {name: shares[name] * count for name in sorted(shares)}
    counts = {name: int(value) for name, value in exact.items()}
    # A remainder that is rounding alone is none.
    by_remainder = sorted(exact, key=lambda name: -round(exact[name] - counts[name], 9))
    for name in by_remainder[: count - sum(counts.values())]:
        counts[name] += 1
    names = [name for name in exact for _ in range(counts[name])]
    return [names[place] for place in np.random.default_rng(seed).permutation(count)]
