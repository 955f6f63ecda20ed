"""A benchmark's images are those that training would see."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from eval.benchmark_rows import Rows
from heima.data.images import ImageZip


def pictures() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.effect_noise((24, 12), 80)
    found = {}
    for name, image, kind, options in (
        (
            "grey.png",
            Image.fromarray(np.arange(0, 64000, 1000, np.uint16).reshape(8, 8)),
            "PNG",
            {},
        ),
        ("clear.png", Image.new("LA", (8, 8)), "PNG", {}),
        ("turned.jpg", noise.convert("RGB"), "JPEG", {"exif": exif}),
        ("plain.png", noise.convert("RGB"), "PNG", {}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("decoding", ["faithful", "convert-rgb"])
def test_an_image_is_the_same_in_a_zip_and_in_a_data_set(tmp_path, decoding):
    found = pictures()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name, data in found.items():
            archive.writestr(name, data)
    (tmp_path / "grey.png").write_bytes(found["grey.png"])
    stored = [{"image": {"bytes": data, "path": None}} for data in found.values()]
    stored += [{"image": {"bytes": None, "path": str(tmp_path / "grey.png")}}, {"image": None}]
    rows = Rows(Dataset.from_list(stored).cast_column("image", ImageFeature()), decoding)
    trained = ImageZip(tmp_path / "images.zip", decoding)
    for place, name in enumerate([*found, "grey.png"]):
        image = rows[place]["image"]
        assert image.mode == "RGB"
        assert image.tobytes() == trained.read(name).tobytes()
        assert image.size == trained.size(name)
    assert rows[len(found) + 1]["image"] is None and len(rows) == len(found) + 2
