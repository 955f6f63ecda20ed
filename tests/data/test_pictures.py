"""What images are decoded to, and that no file, however odd, ends anything."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from heima.data import images as images_module
from heima.data.images import ImageFault, ImageZip
from heima.data.pictures import PIL_FAULTS, decode, size, worded

RAMP = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
SHADES = np.rint(RAMP / 257).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GREYS = {
    "16 bits": saved(Image.fromarray(np.rint(RAMP).astype(np.uint16)), "PNG"),
    "16 bits, TIFF": saved(Image.fromarray(np.rint(RAMP).astype(np.uint16)), "TIFF"),
    "32 bits": saved(Image.fromarray(np.rint(RAMP).astype(np.int32)), "TIFF"),
    "floats to 1": saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "floats to 255": saved(Image.fromarray((RAMP / 257).astype(np.float32)), "TIFF"),
    "floats to 65535": saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "other floats": saved(Image.fromarray((RAMP * 3 - 9e4).astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", GREYS)
def test_greyscale_is_scaled(name):
    found = decode(GREYS[name], "faithful")
    pixels = np.asarray(found.image)
    assert pixels.shape == (32, 32, 3) and (pixels == pixels[..., :1]).all()
    assert abs(pixels[..., 0].astype(int) - SHADES).max() <= 1
    (conversion,) = found.conversions
    assert conversion == ("grey_of_floats" if "floats" in name else "grey_of_16_bits")
    plain = np.asarray(decode(GREYS[name], "convert-rgb").image)
    assert decode(GREYS[name], "convert-rgb").conversions == ()
    if name not in ("floats to 255",):
        assert abs(plain[..., 0].astype(int) - SHADES).max() > 100


def drawing(mode: str) -> bytes:
    """A black square on a transparent ground, in the middle half covered."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[4:12, 4:8], alpha[4:12, 8:12] = 255, 128
    image = Image.new("RGBA", (16, 16))
    image.putalpha(Image.fromarray(alpha))
    if mode in ("P", "RGB", "L"):
        image = Image.fromarray(np.where(alpha > 0, 255, 7).astype(np.uint8)).convert(mode)
        return saved(image, "PNG", transparency={"RGB": (7, 7, 7)}.get(mode, 7))
    return saved(image.convert(mode), "PNG")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_is_white(mode):
    found = decode(drawing(mode), "faithful")
    pixels = np.asarray(found.image)[..., 0]
    assert found.image.mode == "RGB" and found.conversions == ("transparent",)
    assert (pixels[:4] == 255).all() and (pixels[12:] == 255).all()
    if mode in ("RGBA", "LA"):
        assert (pixels[4:12, 4:8] == 0).all() and abs(
            pixels[4:12, 8:12].astype(int) - 127
        ).max() <= 1
        assert np.asarray(decode(drawing(mode), "convert-rgb").image).max() == 0


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])  # Pillow turns a TIFF by itself.
def test_photographs_are_turned(orientation, kind):
    image = Image.effect_noise((24, 12), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, kind, exif=exif)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    found = decode(data, "faithful")
    turned = 2 <= orientation <= 8
    assert found.conversions == (("turned_by_exif",) if turned else ())
    assert found.image.size == ((12, 24) if orientation in (5, 6, 7, 8) else (24, 12))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    again = found.image.transpose(Image.Transpose(back[orientation])) if turned else found.image
    assert again.tobytes() == stored.tobytes()
    assert decode(data, "convert-rgb").image.tobytes() == stored.tobytes()
    assert size(io.BytesIO(data), "faithful") == found.image.size
    assert size(io.BytesIO(data), "convert-rgb") == stored.size


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
def test_ordinary_images_are_what_pillow_makes_of_them(mode):
    image = Image.effect_noise((20, 10), 80).convert("RGB").convert(mode)
    data = saved(image, "JPEG" if mode == "CMYK" else "PNG")
    found = decode(data, "faithful")
    assert found.image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert found.conversions == ()


# Odd files


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def oddities() -> dict[str, bytes]:
    picture = Image.effect_noise((24, 24), 50).convert("RGB")
    png, dds = saved(picture, "PNG"), saved(picture, "DDS")
    start = png.index(b"IDAT") - 4
    inflated = chunk(
        b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * PngImagePlugin.MAX_TEXT_CHUNK))
    )
    nan = np.full((8, 8), np.nan, np.float32)
    found = {
        "inflated-text.png": png[:start] + inflated + png[start:],
        "short-header.png": png[:8] + chunk(b"IHDR", png[16:20]) + png[33:],
        "no-numbers.tif": saved(Image.fromarray(nan), "TIFF"),
        "nothing.png": b"",
        "text.jpg": b"not an image",
    }
    for length in (4, 20, 60, 100, 127, len(dds) // 2):
        found[f"cut-{length}.dds"] = dds[:length]
    draw = random.Random(3)
    for kind in (
        "PNG",
        "JPEG",
        "TIFF",
        "GIF",
        "BMP",
        "WEBP",
        "DDS",
        "PPM",
        "ICO",
        "TGA",
        "PCX",
        "SGI",
    ):
        whole = saved(picture, kind)
        for number in range(12):
            broken = bytearray(whole)
            for _ in range(draw.randint(1, 6)):
                broken[draw.randrange(min(len(broken), 160))] = draw.randrange(256)
            found[f"{kind}-{number}"] = bytes(broken[: draw.randint(8, len(broken))])
    return found


@pytest.fixture(scope="module")
def odd_zip(tmp_path_factory):
    """Files that are no images, and entries that cannot be read."""
    path = tmp_path_factory.mktemp("odd") / "images.zip"
    picture = saved(Image.effect_noise((24, 24), 50).convert("RGB"), "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in oddities().items():
            archive.writestr(name, data)
        for name in ("encrypted.png", "unknown.png", "whole.png"):
            archive.writestr(name, picture)
        archive.writestr("huge.png", bytes(300), zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    for name, offset, value in (("encrypted.png", 8, 1), ("unknown.png", 10, 77)):
        place = raw.rindex(b"PK\1\2", 0, raw.rindex(name.encode()))
        raw[place + offset : place + offset + 2] = struct.pack("<H", value)
        place = raw.index(name.encode()) - 30
        raw[place + offset - 2 : place + offset] = struct.pack("<H", value)
    place = raw.rindex(b"PK\1\2", 0, raw.rindex(b"huge.png"))
    raw[place + 24 : place + 28] = struct.pack("<I", 1_500_000_000)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("decoding", ["faithful", "convert-rgb"])
def test_an_odd_file_is_a_fault_and_no_more(odd_zip, decoding):
    archive = ImageZip(odd_zip, decoding)
    reasons = {}
    for name in archive.names():
        for by in ("exists", "header", "decode"):
            try:
                archive.verify(name, by)
            except ImageFault as fault:
                assert " object at 0x" not in str(fault)
                reasons[name, by] = fault.reason
        try:
            image = archive.read(name)
        except ImageFault as fault:
            # Whatever passes `decode` can be read.
            assert reasons[name, "decode"] == fault.reason
        else:
            assert image.mode == "RGB"
    for name in (
        "encrypted.png",
        "unknown.png",
        "short-header.png",
        "inflated-text.png",
        "nothing.png",
    ):
        assert reasons[name, "decode"] == "broken_image", name
    assert reasons["huge.png", "header"] == reasons["huge.png", "exists"] == "huge_image"
    assert ("whole.png", "decode") not in reasons


def test_errors_are_worded_without_addresses():
    for data in (b"", b"not an image"):
        with pytest.raises(PIL_FAULTS) as caught:
            Image.open(io.BytesIO(data))
        assert worded(caught.value) == "cannot identify image file its bytes"
    assert worded(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["a/1.png", "b/1.png"], [""]),
        (["x/a/1.png", "x/b/1.png"], ["", "x/"]),
        (["x/y/a/1.png", "x/y/1.png", "__MACOSX/x"], ["", "x/", "x/y/"]),
        (["./a/1.png", "./b/1.png"], ["", "./"]),
        (["1.png", "x/1.png"], [""]),
        (["xa/1.png", "xb/1.png"], [""]),
        ([], [""]),
    ],
)
def test_leading_folders(names, folders):
    assert images_module._leading_folders(names) == folders
