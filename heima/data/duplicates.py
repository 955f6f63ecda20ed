"""What tells that two images, or two questions, are the same: hashes, and texts made alike.

A file's bytes and its decoded pixels have SHA-256 hashes, which are equal where those are. An image
that was encoded anew, or scaled, is near: its perceptual hash differs in few bits (pHash: the signs
of the 64 lowest frequencies of the grey image around their median; Zauner 2010), and so do the
colours of its thumbnail of 8 x 8 pixels. Each alone is too easily met: pictures of one layout in
other colours have near hashes, blank pages near thumbnails.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heima.config import ImageDecoding
from heima.data.pictures import decode

SIDE = 32
"""Pixels of an image's side before its frequencies are taken."""
BITS = 64
THUMBNAIL = 8 * 8 * 3
_BLOCK = 2**22
"""Pairs of images that are compared at once: some 40 MB."""


@dataclass(frozen=True)
class ImageHash:
    """Of one image: `file` and `pixels` are SHA-256, `perceptual` has `BITS` bits, `thumbnail` is
    (`THUMBNAIL`,) uint8."""

    file: str
    pixels: str
    perceptual: int
    thumbnail: NDArray[np.uint8]


def hashed(content: bytes, decoding: ImageDecoding) -> ImageHash:
    """The hashes of an image's file. Raises one of `pictures.PIL_FAULTS` for one that is none."""
    image = decode(content, decoding).image
    size = f"{image.width}x{image.height}\n".encode()
    thumbnail = image.resize((8, 8), Image.Resampling.BOX)
    return ImageHash(
        hashlib.sha256(content).hexdigest(),
        hashlib.sha256(size + image.tobytes()).hexdigest(),
        perceptual(image),
        np.asarray(thumbnail).ravel(),
    )


def perceptual(image: Image.Image) -> int:
    """The pHash of an image: `BITS` bits."""
    from scipy.fft import dctn

    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(grey, dtype=np.float64), type=2)[:8, :8].ravel()
    # The first is the mean brightness, far from the others.
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes())


class Hashes:
    """Images by their hashes, to be compared with others."""

    def __init__(self, images: Sequence[ImageHash]) -> None:
        self.file = [one.file for one in images]
        self.pixels = [one.pixels for one in images]
        self.perceptual = np.array([one.perceptual for one in images], dtype=np.uint64)
        self.thumbnails = np.array([one.thumbnail for one in images], dtype=np.uint8).reshape(
            len(images), THUMBNAIL
        )

    def __len__(self) -> int:
        return len(self.file)


def near(
    these: Hashes, others: Hashes, *, hamming: int, difference: float
) -> Iterator[tuple[int, int, int]]:
    """Pairs whose perceptual hashes differ in at most `hamming` bits, and whose thumbnails by at
    most `difference` of 255 in the mean: (place in `these`, place in `others`, differing bits).

    Images of equal pixels are near. All pairs of hashes are compared, in blocks: 1e9 take seconds.
    """
    if not len(these) or not len(others):
        return
    rows = max(1, _BLOCK // len(others))
    for start in range(0, len(these), rows):
        part = these.perceptual[start : start + rows]
        bits = np.bitwise_count(part[:, None] ^ others.perceptual[None, :])
        left, right = np.nonzero(bits <= hamming)
        # Of blank images nearly all pairs may be there.
        for first in range(0, len(left), _BLOCK // THUMBNAIL):
            here = slice(first, first + _BLOCK // THUMBNAIL)
            one = these.thumbnails[start + left[here]].astype(np.int16)
            apart = np.abs(one - others.thumbnails[right[here]]).mean(axis=1)
            for place in np.flatnonzero(apart <= difference) + first:
                i, j = left[place], right[place]
                yield int(start + i), int(j), int(bits[i, j])


_NO_WORD = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """A text without case, accents' spelling, punctuation and spacing.

    >>> normalised(" What  is the colour, at A1?\\n") == normalised("what is the Colour at a1")
    True
    """
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
