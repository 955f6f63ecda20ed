"""Images of samples, small enough to stand in the page."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field

from PIL import Image

from heima.data import pictures

SIDE = 256
"""Pixels of the longer side, at most."""
_BYTES = 6_000
"""A file of at most so many bytes stands there as it is, if it is no larger than `SIDE`."""
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg"}


@dataclass
class Images:
    """Each image once, as a `data:` address; samples name it by its place."""

    addresses: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def place(self, content: bytes, name: str) -> int | None:
        """Where an image file's picture stands; None for a file that cannot be read, listed as
        `name`."""
        key = hashlib.sha256(content).hexdigest()
        if key not in self._places:
            try:
                address = _address(content)
            except pictures.PIL_FAULTS as error:
                self.unreadable.append(f"{name}: {error}")
                return None
            self._places[key] = len(self.addresses)
            self.addresses.append(address)
        return self._places[key]


def _address(content: bytes) -> str:
    small = pictures.decode(content, "faithful").image
    with Image.open(io.BytesIO(content)) as image:
        kind = image.format or ""
    if kind in _TYPES and len(content) <= _BYTES and max(small.size) <= SIDE:
        return _encoded(content, _TYPES[kind])
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=70)
    return _encoded(file.getvalue(), "image/jpeg")


def _encoded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
