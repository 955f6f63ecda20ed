"""The questions of an audit, and which of them lend their states to which."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from heima.config import Params, ToySource
from heima.data import places
from heima.data.images import ImageZip
from heima.data.turns import Turn, load_turns
from heima.families.batches import Images
from heima.toy.unseen import Unseen

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


def asked(params: Params) -> tuple[list[Turn], Images]:
    """The turns that an audit asks, each with its image first, and what reads their images."""
    wanted = params.audit.items
    if isinstance(params.source, ToySource):
        unseen = Unseen(params.source, count=wanted, seed=params.seed)
        return unseen.turns, unseen
    turns = load_turns("data/rewritten/heldout.parquet")[:wanted]
    images = ImageZip(places.locate("data/source") / "images.zip", params.image_decoding)
    return [dataclasses.replace(turn, image_first=True) for turn in turns], images
