"""Near images: what re-encoding and scaling leave alike, and what other pictures do not share."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from heima.data import duplicates
from heima.toy.world import draw_scene, render

LIMITS = {"hamming": 8, "difference": 6.0}


@functools.cache
def photograph(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Smooth shades of colour with a disc, as photographs have and drawings lack."""
    rng = np.random.default_rng(seed)
    shades = rng.normal(size=(size[1], size[0], 3))
    shades = gaussian_filter(shades, (9, 9, 0), mode="wrap")
    image = Image.fromarray(np.uint8(127 + 110 * shades / np.abs(shades).max()))
    x, y = rng.integers(10, 60, 2).tolist()
    ImageDraw.Draw(image).ellipse((x, y, x + 20, y + 14), fill=tuple(rng.integers(256, size=3)))
    return image


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def one_pixel(image: Image.Image) -> Image.Image:
    changed = image.copy()
    changed.putpixel((3, 5), (0, 0, 0))
    return changed


PLANTED = {
    "jpeg": lambda image: saved(image, "JPEG", quality=85),
    "larger": lambda image: saved(image.resize((2 * image.width, 2 * image.height))),
    "larger, as webp": lambda image: saved(image.resize((3 * image.width, 3 * image.height)),
                                           "WEBP", quality=85),
    "one pixel": lambda image: saved(one_pixel(image)),
}  # fmt: skip


def hashes(files: list[bytes]) -> duplicates.Hashes:
    return duplicates.Hashes([duplicates.hashed(one, "faithful") for one in files])


def pairs(these, others, **limits) -> list[tuple[int, int]]:
    return [(i, j) for i, j, _ in duplicates.near(these, others, **{**LIMITS, **limits})]


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_changed_photograph_is_near_its_own_and_no_other(planted):
    images = [photograph(seed) for seed in range(25)]
    assert pairs(hashes([planted(one) for one in images]), hashes([*map(saved, images)])) == [
        (number, number) for number in range(25)
    ]


def test_drawings_of_one_layout_in_other_colours_are_not_near():
    """To the grey hash alone they are: the toy world's scenes are the hardest case."""
    rng = np.random.default_rng(3)
    scenes = [draw_scene(rng) for _ in range(400)]
    files = [saved(render(scene)) for scene in scenes]
    some, others = hashes(files[:200]), hashes(files[200:])
    assert len(pairs(some, others, difference=255)) > 5
    colours = [[thing.partition("-")[0] for thing in scene.objects] for scene in scenes]
    for i, j in pairs(some, others):
        assert colours[i] == colours[200 + j], "only shapes may differ"
    grown = hashes([saved(render(one).resize((96, 96))) for one in scenes[:200]])
    assert {(i, i) for i in range(200)} <= set(pairs(grown, some))


def test_hashes_say_what_is_equal():
    image = photograph(1)
    png, again, other = saved(image), saved(image, compress_level=0), saved(one_pixel(image))
    one, two, three = (duplicates.hashed(file, "faithful") for file in (png, again, other))
    assert one.file != two.file and one.pixels == two.pixels != three.pixels
    assert one.perceptual == two.perceptual and (one.thumbnail == two.thumbnail).all()
    # The same bytes of another width are another image.
    wide, high = Image.new("RGB", (8, 4), "red"), Image.new("RGB", (4, 8), "red")
    assert wide.tobytes() == high.tobytes()
    assert len({duplicates.hashed(saved(one), "faithful").pixels for one in (wide, high)}) == 2


@pytest.mark.parametrize(("hamming", "difference"), [(0, 0.0), (20, 60.0), (30, 255.0), (64, 40.0)])
def test_blocks_find_what_a_loop_finds(monkeypatch, hamming, difference):
    rng = np.random.default_rng(hamming)
    low = rng.integers(2**12, size=90)
    images = [
        duplicates.ImageHash("", "", int(bits) << 26, shades)
        for bits, shades in zip(low, rng.integers(90, size=(90, 192)).astype(np.uint8), strict=True)
    ]
    images[70] = images[3]
    some, others = images[:37], images[37:]
    naive = [
        (i, j, (a.perceptual ^ b.perceptual).bit_count())
        for i, a in enumerate(some)
        for j, b in enumerate(others)
        if (a.perceptual ^ b.perceptual).bit_count() <= hamming
        and np.abs(a.thumbnail.astype(int) - b.thumbnail).mean() <= difference
    ]
    assert (3, 33, 0) in naive
    for block in (duplicates._BLOCK, 200):
        monkeypatch.setattr(duplicates, "_BLOCK", block)
        found = duplicates.near(
            duplicates.Hashes(some), duplicates.Hashes(others),
            hamming=hamming, difference=difference,
        )  # fmt: skip
        assert sorted(found) == naive
    nothing = duplicates.Hashes([])
    for pair in ((nothing, duplicates.Hashes(some)), (duplicates.Hashes(some), nothing)):
        assert not list(duplicates.near(*pair, hamming=64, difference=255))


@pytest.mark.parametrize(
    "other",
    ["What is the colour at A1", " what is   the colour, at a1?!", "WHAT IS THE COLOUR\nAT A1?",
     "What is the colour at \uff211?"],
)  # fmt: skip
def test_texts_are_compared_by_their_words(other):
    text = "What is the colour at a1?"
    assert duplicates.normalised(other) == duplicates.normalised(text)
    assert duplicates.normalised(f"{other} red") != duplicates.normalised(text)
