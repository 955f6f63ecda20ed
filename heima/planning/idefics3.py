"""What an Idefics3 holds and does, by its configuration."""

from __future__ import annotations

import math

from transformers import Idefics3Config

from heima.planning.costs import Encoded, Picture
from heima.planning.flop_counts import Flops, linear, patching, tower_layer


def picture(config: Idefics3Config, height: int, width: int, *, padded: bool = True) -> Picture:
    """A grid of tiles, and the whole image once more; one tile alone is the whole.

    The processor resizes an image to the longest edge that the vision tower's configuration names.
    Two tokens stand before each tile, one behind each row of tiles and behind the whole.
    """
    vision = config.vision_config
    side = vision.image_size
    scale = vision.size["longest_edge"] / max(height, width)
    rows, columns = (math.ceil(round(length * scale) / side) for length in (height, width))
    each = (side // vision.patch_size // config.scale_factor) ** 2
    if rows == columns == 1:
        return Picture(1, each + 3)
    tiles = rows * columns + 1
    return Picture(tiles, tiles * (each + 2) + rows + 1)


def vision(config: Idefics3Config, tiles: float, *, rank: int = 0) -> Flops:
    """Tiles do not attend to each other; only the projector has an adapter."""
    tower, width = config.vision_config, config.text_config.hidden_size
    patches = (tower.image_size // tower.patch_size) ** 2
    hidden, inner, together = tower.hidden_size, tower.intermediate_size, config.scale_factor**2
    layer = tower_layer(tiles * patches, tiles * patches**2, hidden, inner)
    return (
        patching(tower, tiles)
        + layer * tower.num_hidden_layers
        + linear(tiles * patches / together, hidden * together, width, rank=rank)
    )


def encoded(config: Idefics3Config, image: Picture) -> Encoded:
    tower = config.vision_config
    tokens = image.tiles * (tower.image_size // tower.patch_size) ** 2
    return Encoded(tokens, width=tower.hidden_size, mask=0)


def trained_layers(config: Idefics3Config) -> int:
    return 0
