"""How tokens are drawn, for every model that generates."""

from __future__ import annotations

from typing import Any

from heima.config import Decoding


def sampling(decoding: Decoding) -> dict[str, Any]:
    """How `generate` of transformers draws tokens, greedily at temperature 0.

    Every option is named: what a checkpoint's generation_config holds must not leak in.
    """
    if decoding.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {
        "do_sample": True,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": 1.0,
    }
