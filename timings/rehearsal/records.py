"""Records in LLaVA-CoT's layout: `train.jsonl`, and a zip of images of every mode and odd sizes."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from timings.rehearsal.words import answer, sentence

IMAGES = (
    # Mode, width and height, format.
    ("RGB", (640, 480), "JPEG"),
    ("RGBA", (300, 900), "PNG"),
    ("L", (1, 200), "PNG"),
    ("P", (2000, 30), "PNG"),
    ("CMYK", (560, 560), "JPEG"),
    ("1", (30, 30), "PNG"),
    ("LA", (3000, 2000), "PNG"),
    ("I;16", (1200, 1600), "PNG"),
    ("RGB", (336, 1008), "PNG"),
    ("L", (1120, 1120), "JPEG"),
)
"""Photographs, diagrams with transparency, scans of 16 bits, a line of one pixel's width."""
_FOLDERS = ("sqa/train", "chartqa/train/png", "coco/train2017")


def picture(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """Patches of colours in a mode."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = patches.resize(size, Image.Resampling.NEAREST)
    if mode == "I;16":
        grey = np.asarray(image.convert("L"), dtype=np.uint16)
        return Image.fromarray(grey * 257)
    if mode in ("RGBA", "LA"):
        image.putalpha(patches.convert("L").resize(size))
    return image.convert(mode)


def file_of(mode: str, size: tuple[int, int], kind: str, seed: int) -> bytes:
    content = io.BytesIO()
    picture(mode, size, seed).save(content, kind)
    return content.getvalue()


def write_source(folder: Path, *, records: int, seed: int = 1) -> None:
    """`records` records with one to three turns each; the last but one repeats an id."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    with (
        zipfile.ZipFile(folder / "images.zip", "w") as archive,
        (folder / "train.jsonl").open("w", encoding="utf-8") as lines,
    ):
        for number in range(records):
            mode, size, kind = IMAGES[number % len(IMAGES)]
            ending = "jpg" if kind == "JPEG" else "png"
            name = f"{_FOLDERS[number % len(_FOLDERS)]}/{number}.{ending}"
            archive.writestr(name, file_of(mode, size, kind, seed=number))
            conversation = []
            for turn in range(1 + number % 3):
                question = f"{sentence(rng, 12)}\nA. one\nB. two"
                begun = "<image>\n" if turn == 0 else ""
                conversation += [
                    {"from": "human", "value": begun + question},
                    {"from": "gpt", "value": answer(rng, rng.choice("AB"))},
                ]
            identity = number - 1 if number == records - 2 else number
            record = {"id": f"r{identity}", "image": name, "conversations": conversation}
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
