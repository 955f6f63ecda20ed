"""What a Mllama and its interpreter hold and do, by their configurations.

The full-size configurations are facts of the published models, written down here so that nothing
has to be downloaded to plan a run.
"""

from __future__ import annotations

from transformers import LlamaConfig, MllamaConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

from heima.planning.costs import Encoded, Picture
from heima.planning.flop_counts import Flops, linear, patching, tower_layer

_LLAMA_3 = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def picture(config: MllamaConfig, height: int, width: int, *, padded: bool = True) -> Picture:
    """A canvas of one to four tiles, each image filled up to four (`padded`)."""
    vision = config.vision_config
    side = vision.image_size
    canvas = get_optimal_tiled_canvas(height, width, vision.max_num_tiles, side)
    tiles = vision.max_num_tiles if padded else int(canvas[0] * canvas[1]) // side**2
    return Picture(tiles, tiles * _tile(vision))


def _tile(vision: MllamaVisionConfig) -> int:
    """Tokens of a tile: its patches and a class token."""
    return (vision.image_size // vision.patch_size) ** 2 + 1


def vision(config: MllamaConfig, tiles: float, *, rank: int = 0) -> Flops:
    """Tiles attend to each other; the global layers and the projector have adapters."""
    tower, width = config.vision_config, config.text_config.hidden_size
    hidden, inner = tower.hidden_size, tower.intermediate_size
    # Each tile is filled up to a multiple of eight tokens.
    tokens = tiles * -(-_tile(tower) // 8) * 8
    local = tower_layer(tokens, tokens**2, hidden, inner) * tower.num_hidden_layers
    overall = Flops()
    for index in range(tower.num_global_layers):
        overall += tower_layer(
            tokens, tokens**2, hidden, inner, rank=rank, reached=rank > 0 and index > 0
        )
    projected = tiles * _tile(tower)
    projector = linear(projected, tower.vision_output_dim, width, rank=rank, reached=rank > 0)
    return patching(tower, tiles) + local + overall.checkpointed + projector


def encoded(config: MllamaConfig, image: Picture) -> Encoded:
    """The mask of padding tiles has a number for each pair of tokens."""
    tower = config.vision_config
    return Encoded(image.tokens, width=tower.vision_output_dim, mask=image.tokens**2)


def trained_layers(config: MllamaConfig) -> int:
    return config.vision_config.num_global_layers


def llama_3_2_11b_vision() -> MllamaConfig:
    """Llama-3.2-11B-Vision, which Llama-3.2V-11B-cot is a fine-tuning of.

    Eight of the 40 text layers attend to the image. The vision tower has 32 local layers and 8
    global ones; five local layers' outputs are stacked on the last one's: 6 x 1280 = 7680.
    """
    return MllamaConfig(
        text_config=MllamaTextConfig(
            **_LLAMA_3,
            num_hidden_layers=40,
            cross_attention_layers=[3, 8, 13, 18, 23, 28, 33, 38],
            pad_token_id=128004,
        ),
        vision_config=MllamaVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_global_layers=8,
            attention_heads=16,
            image_size=560,
            patch_size=14,
            max_num_tiles=4,
            vision_output_dim=7680,
            intermediate_layers_indices=[3, 7, 15, 23, 30],
            supported_aspect_ratios=[
                *([1, 1], [1, 2], [1, 3], [1, 4]),
                *([2, 1], [2, 2], [3, 1], [4, 1]),
            ],
        ),
        image_token_index=128256,
    )


def llama_3_1_8b() -> LlamaConfig:
    """Llama-3.1-8B, the interpreter of the first family."""
    return LlamaConfig(**_LLAMA_3, num_hidden_layers=32, pad_token_id=128004)
