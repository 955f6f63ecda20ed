"""The questions of an audit, and which of them lend their states to which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from heima.data.turns import Turn

NOBODY = -1
"""The donor of a turn that has none."""


def partners(turns: Sequence[Turn], *, same_gold: bool, seed: int) -> np.ndarray:
    """For each turn another one of its kind of question, about another image, whose conclusion is
    the same (or, without `same_gold`, another): (turns,) indices, `NOBODY` where there is none.

    Drawn with `seed`; one turn may be the donor of several.
    """
    rng = np.random.default_rng((seed, int(same_gold)))
    of_kind: dict[str, list[int]] = defaultdict(list)
    for place, turn in enumerate(turns):
        of_kind[turn.kind].append(place)
    found = np.full(len(turns), NOBODY)
    for members in of_kind.values():
        golds = np.array([turns[place].conclusion for place in members], dtype=object)
        images = np.array([turns[place].image for place in members], dtype=object)
        those = np.array(members)
        for gold, image, place in zip(golds, images, members, strict=True):
            fitting = those[((golds == gold) == same_gold) & (images != image)]
            if len(fitting):
                found[place] = rng.choice(fitting)
    return found
