"""What a LLaVA-NeXT and its interpreter hold and do, by their configurations.

The full-size configurations are facts of the published models, written down here so that nothing
has to be downloaded to plan a run.
"""

from __future__ import annotations

from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from heima.planning.costs import Encoded, Picture
from heima.planning.flop_counts import Flops, linear, patching, tower_layer

_LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def picture(config: LlavaNextConfig, height: int, width: int, *, padded: bool = True) -> Picture:
    """The whole image and each tile of its canvas; none is padded.

    What the canvas adds to the image's shape is cut off again, and each row of patches ends with a
    token of its own.
    """
    vision = config.vision_config
    side = vision.image_size
    size, pinpoints = [height, width], config.image_grid_pinpoints
    rows, columns = get_anyres_image_grid_shape(size, pinpoints, side)
    grid = side // vision.patch_size
    high, wide = rows * grid, columns * grid
    if width / height > wide / high:
        high -= (high - int(round(height * (wide / width), 7))) // 2 * 2
    else:
        wide -= (wide - int(round(width * (high / height), 7))) // 2 * 2
    crops = image_size_to_num_patches(size, pinpoints, side)
    return Picture(crops, grid**2 + high * (wide + 1))


def vision(config: LlavaNextConfig, tiles: float, *, rank: int = 0) -> Flops:
    """Tiles do not attend to each other; only the projector has an adapter."""
    tower, width = config.vision_config, config.text_config.hidden_size
    patches = (tower.image_size // tower.patch_size) ** 2
    hidden, inner = tower.hidden_size, tower.intermediate_size
    layer = tower_layer(tiles * (patches + 1), tiles * (patches + 1) ** 2, hidden, inner)
    return (
        patching(tower, tiles)
        + layer * tower.num_hidden_layers
        + linear(tiles * patches, hidden, width, rank=rank)
        + linear(tiles * patches, width, width, rank=rank, reached=rank > 0)
    )


def encoded(config: LlavaNextConfig, image: Picture) -> Encoded:
    """The class token of each tile is encoded, too."""
    tower = config.vision_config
    tokens = image.tiles * ((tower.image_size // tower.patch_size) ** 2 + 1)
    return Encoded(tokens, width=tower.hidden_size, mask=0)


def trained_layers(config: LlavaNextConfig) -> int:
    return 0


def llava_next_vicuna_7b() -> LlavaNextConfig:
    """LLaVA-v1.6-Vicuna-7B: CLIP-L/14 at 336 px, read before its last layer, and Llama 2 7B.

    The language model has 64 rows more than Vicuna's tokenizer has tokens, for the image and the
    padding token among others.
    """
    return LlavaNextConfig(
        text_config=LlamaConfig(**_LLAMA_2_7B, vocab_size=32064),
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        image_token_index=32000,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def vicuna_7b() -> LlamaConfig:
    """Vicuna-7B v1.5, the interpreter of the second family."""
    return LlamaConfig(**_LLAMA_2_7B, vocab_size=32000)
