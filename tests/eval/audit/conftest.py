"""What the tests of audits ask."""

from __future__ import annotations

import collections
import dataclasses

import pytest


@pytest.fixture(scope="module")
def turns(toy_turns):
    """Ten of one kind, about five images, with one of two conclusions."""
    kinds = collections.Counter(turn.kind for turn in toy_turns)
    some = [turn for turn in toy_turns if turn.kind == kinds.most_common(1)[0][0]][:10]
    images = sorted({turn.image for turn in some})
    return [
        dataclasses.replace(
            turn, image_first=True, conclusion=("red", "two")[images.index(turn.image) % 2]
        )
        for turn in some
    ]
