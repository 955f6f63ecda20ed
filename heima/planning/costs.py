"""What a family's module says of the costs of an image, by the VLM's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from heima.planning.flop_counts import Flops


@dataclass(frozen=True)
class Picture:
    """An image as a VLM sees it: crops that its tower encodes, tokens that the text attends to."""

    tiles: int
    tokens: int


@dataclass(frozen=True)
class Encoded:
    """An image inside the vision tower: its `tokens`, the `width` of what leaves the tower for the
    projector, and the numbers of an attention `mask`."""

    tokens: int
    width: int
    mask: int


class Costs(Protocol):
    """The modules of `architectures.COSTS`; `config` is that of the family's VLM."""

    def picture(self, config: Any, height: int, width: int, *, padded: bool = True) -> Picture:
        """The tiles and tokens of an image of that many pixels."""

    def vision(self, config: Any, tiles: float, *, rank: int = 0) -> Flops:
        """The vision tower and the projector on one image of `tiles` tiles, with adapters."""

    def encoded(self, config: Any, image: Picture) -> Encoded:
        """What the tower holds of an image."""

    def trained_layers(self, config: Any) -> int:
        """The tower's last layers that have adapters, and so keep what they compute."""
