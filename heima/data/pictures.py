"""From an image's file to the RGB pixels that a model sees, in training and on benchmarks alike.

`faithful` shows what a viewer shows: greyscale of 16 bits or of floats is scaled to 8 bits, what is
transparent stands on white, and a photograph is turned as its EXIF data says. `convert-rgb` is
Pillow's `convert("RGB")` alone, as in LLaVA-CoT's and the paper's code: it cuts greyscale off at
255, shows what lies behind transparent pixels, mostly black, and turns nothing.
"""

from __future__ import annotations

import io
import lzma
import re
import struct
import warnings
import zipfile
import zlib
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from heima.config import ImageDecoding

PIL_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged files."""

ZIP_FAULTS = (
    OSError,
    EOFError,
    # Encrypted, and a compression that this Python does not know.
    RuntimeError,
    NotImplementedError,
    ValueError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
"""What `zipfile` raises on entries that it cannot read."""

GREY_16, GREY_FLOAT = "grey_of_16_bits", "grey_of_floats"
TRANSPARENT, TURNED, UNREADABLE = "transparent", "turned_by_exif", "unreadable_exif"

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]


class Picture(NamedTuple):
    """RGB pixels, and by what conversions `faithful` differs from `convert("RGB")` there."""

    image: Image.Image
    conversions: tuple[str, ...] = ()


def decode(data: bytes, how: ImageDecoding, *, reduced: bool = False) -> Picture:
    """The picture in a file's bytes.

    With `reduced` a JPEG's bits are all read, but its pixels computed at an eighth of the size.
    Raises one of `PIL_FAULTS` for a file that is none, or not whole.
    """
    # lmms-eval switches on, for the whole process, that what is cut off is filled with grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # What Pillow reads with a warning, it reads.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        if reduced:
            image.draft("RGB", (1, 1))
        if how == "convert-rgb":
            return Picture(image.convert("RGB"))
        image.load()
        return _faithful(image)


def size(file: IO[bytes], how: ImageDecoding) -> tuple[int, int]:
    """Width and height of what `decode` makes of a file, by its header alone."""
    with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
        turned = image.format == "TIFF" or how == "faithful"  # Pillow itself turns a TIFF.
        lies = turned and _turn(image)[0] in _LYING
        return (image.height, image.width) if lies else image.size


def _turn(image: Image.Image) -> tuple[Image.Transpose | None, bool]:
    """How EXIF data says that an image is to be turned, and whether it can be read."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1)), True
    except PIL_FAULTS:
        return None, False


def _faithful(image: Image.Image) -> Picture:
    conversions = []
    turn, readable = _turn(image)
    if not readable:
        conversions.append(UNREADABLE)
    if image.mode == "F" or image.mode.startswith("I"):
        conversions.append(GREY_FLOAT if image.mode == "F" else GREY_16)
        image = Image.fromarray(_scaled(np.asarray(image)))
    if image.has_transparency_data:
        alpha = image.convert("RGBA")
        if np.asarray(alpha)[..., 3].min() < 255:
            conversions.append(TRANSPARENT)
            ground = Image.new("RGBA", alpha.size, "white")
            image = Image.alpha_composite(ground, alpha)
    image = image.convert("RGB")
    if turn is not None:
        conversions.append(TURNED)
        image = image.transpose(turn)
    return Picture(image, tuple(conversions))


def _scaled(grey: np.ndarray) -> np.ndarray:
    """Greyscale of any numbers as uint8: of 0 to 1 where floats are no more, of 0 to 255 or to
    65,535 where those hold all; any other from its smallest to its largest.

    Raises `ValueError` where a number is not finite.
    """
    values = grey.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a pixel is not a finite number")
    low, high = float(values.min()), float(values.max())
    if low == high and not 0 <= low <= 65535:
        raise ValueError(f"every pixel is {low}, which is no shade of grey")
    if grey.dtype.kind == "u" and grey.dtype.itemsize == 2:
        ends = (0.0, 65535.0)
    else:
        tops = (1.0, 255.0, 65535.0) if grey.dtype.kind == "f" else (255.0, 65535.0)
        ends = next(((0.0, top) for top in tops if low >= 0 and high <= top), (low, high))
    return np.rint((values - ends[0]) * (255 / (ends[1] - ends[0]))).astype(np.uint8)


def worded(error: Exception) -> str:
    """What an error says, without the addresses of objects, which another run has elsewhere."""
    text = re.sub(r"<?\S* object at 0x[0-9a-fA-F]+>?", "its bytes", str(error))
    return text or type(error).__name__
