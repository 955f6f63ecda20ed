"""Turns of the toy world about scenes that no record of its source has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from heima.config import ToySource
from heima.data.turns import Turn
from heima.toy.english import in_english
from heima.toy.source import source_scenes
from heima.toy.world import KINDS, Question, Scene, ask, draw_distinct_scene, render

_STREAM = 1
"""Sets the draw apart from that of the source, which has the same seed."""


class Unseen:
    """`count` turns, in the source's mix of kinds and as many about a scene, and their images.

    Equal arguments draw the same. No scene is among those of the source, nor twice.
    """

    def __init__(self, source: ToySource, *, count: int, seed: int) -> None:
        drawn = source_scenes(records=source.records, turns=source.turns, mix=source.mix, seed=seed)
        seen = {scene.key for scene in drawn}
        rng = np.random.default_rng((seed, _STREAM))
        mix: Mapping[Any, float] = source.mix
        weights = np.array([mix.get(kind, 0.0) for kind in KINDS])
        self.turns: list[Turn] = []
        self._scenes: dict[str, Scene] = {}
        while len(self.turns) < count:
            scene = draw_distinct_scene(rng, seen)
            kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
            name = f"{kind}/unseen-{len(self._scenes):06d}.png"
            self._scenes[name] = scene
            for _ in range(min(source.turns, count - len(self.turns))):
                asked = ask(scene, kind, rng)
                said = in_english(asked, scene) if source.english else asked
                self.turns.append(_turn(len(self.turns), name, said))

    def read(self, name: str) -> Image.Image:
        """The image of that name."""
        return render(self._scenes[name])


def _turn(number: int, image: str, asked: Question) -> Turn:
    parts = ("summary", "caption", "reasoning", "conclusion")
    return Turn(
        id=f"unseen-{number:06d}",
        image=image,
        question=asked.prompt,
        image_first=True,
        **{name: getattr(asked, name) for name in parts},
    )
