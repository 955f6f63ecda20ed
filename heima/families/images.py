"""Images processed once: what a processor made of them is kept as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachetools import LRUCache

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
