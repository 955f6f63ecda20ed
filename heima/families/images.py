"""Images processed and encoded once: a batch whose rows share images has distinct ones.

What a processor made of images is kept as far as memory allows. Models want an image a row: what
the vision tower and the projector make of the distinct images is repeated behind the projector, so
that logits are those of repeated images, and the gradients of an image's rows add up on their way
back into it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from cachetools import LRUCache
from torch import nn
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.mllama.modeling_mllama import MllamaModel

IMAGE_CACHE_BYTES = 2**29


class ImageCache:
    """What a processor made of the images used last: a mapping with `pixel_values` for each."""

    def __init__(self) -> None:
        self._kept: LRUCache[str, Mapping[str, Any]] = LRUCache(
            IMAGE_CACHE_BYTES, getsizeof=lambda one: one["pixel_values"].nbytes
        )

    def get(self, key: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """What was kept under `key`, else what `make` returns. Equal keys mean equal images."""
        if (one := self._kept.get(key)) is None:
            one = make()
            if one["pixel_values"].nbytes <= IMAGE_CACHE_BYTES:
                self._kept[key] = one
        return one


def distinct(names: Sequence[str], *, once: bool) -> tuple[list[str], list[int]]:
    """The distinct names and each one's place among them; without `once`, all names in order."""
    if not once:
        return list(names), list(range(len(names)))
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return list(places), [places[name] for name in names]


def spread(model: nn.Module, rows: Sequence[int]) -> contextlib.AbstractContextManager[None]:
    """While it is open, row i of the text looks at the image `rows[i]` of those given.

    `model` may be wrapped, for an adapter or for several processes. Raises `ValueError` where it
    holds no VLM of a known architecture.
    """
    for module in model.modules():
        for architecture, how in _ARCHITECTURES.items():
            if isinstance(module, architecture):
                return how(module, rows)
    known = ", ".join(architecture.__name__ for architecture in _ARCHITECTURES)
    raise ValueError(f"{type(model).__name__} holds none of {known}")


@contextlib.contextmanager
def _spread_mllama(model: MllamaModel, rows: Sequence[int]) -> Iterator[None]:
    """The cross attention sees the projector's output, (images, 1, tiles, patches, hidden)."""

    def repeat(module: nn.Module, args: tuple, encoded: torch.Tensor) -> torch.Tensor:
        return encoded[torch.tensor(rows, device=encoded.device)]

    hook = model.multi_modal_projector.register_forward_hook(repeat)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _spread_llava_next(model: LlavaNextModel, rows: Sequence[int]) -> Iterator[None]:
    """Image tokens are filled with a list of features, (tokens of the image, hidden) each.

    Their number differs between images, and `generate` asks for them ahead of the first forward
    pass: so it is the method that both use which answers with repeated ones.
    """
    encode = model.get_image_features

    # `generate` reads from the signature what to pass.
    @functools.wraps(encode)
    def repeated(*args, **kwargs):
        encoded = encode(*args, **kwargs)
        encoded.pooler_output = [encoded.pooler_output[row] for row in rows]
        return encoded

    model.get_image_features = repeated
    try:
        yield
    finally:
        del model.get_image_features


_ARCHITECTURES = {MllamaModel: _spread_mllama, LlavaNextModel: _spread_llava_next}
