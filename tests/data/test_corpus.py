"""Turns and images in their files: what comes out is what went in, faults have reasons."""

from __future__ import annotations

import io
import pickle
import zipfile

import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from heima.data import turns
from heima.data.images import ImageFault, ImageZip
from heima.data.turns import TurnFile, first_turn, load_turns
from tests.fabricated import write_turns


def test_a_source_without_zip_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images\.zip"):
        ImageZip(tmp_path / "images.zip")
    (tmp_path / "images.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a zip file"):
        ImageZip(tmp_path / "images.zip")


def test_turns_survive_the_parquet_file(tmp_path, toy_turns):
    write_turns(tmp_path / "turns.parquet", toy_turns)
    assert load_turns(tmp_path / "turns.parquet") == toy_turns
    assert first_turn(tmp_path / "turns.parquet") == toy_turns[0]


def test_a_file_of_turns_does_not_depend_on_how_they_came(tmp_path, toy_turns, monkeypatch):
    monkeypatch.setattr(turns, "_ROWS", 10)
    write_turns(tmp_path / "at-once.parquet", toy_turns)
    table = pq.read_table(tmp_path / "at-once.parquet")
    with TurnFile(tmp_path / "in-pieces.parquet") as file:
        for start in range(0, len(table), 7):
            file.write(table.slice(start, 7))
    pieces = (tmp_path / "in-pieces.parquet").read_bytes()
    assert pieces == (tmp_path / "at-once.parquet").read_bytes()


def faults(archive: ImageZip, by: str) -> dict[str, str]:
    found = {}
    for name in ("whole.png", "whole.jpg", "half.png", "half.jpg", "text.png", "none.png"):
        try:
            archive.verify(name, by)
        except ImageFault as fault:
            found[name] = fault.reason
    return found


def test_verifying_finds_what_it_says(tmp_path):
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for kind in ("png", "jpg"):
            file = io.BytesIO()
            picture.save(file, "PNG" if kind == "png" else "JPEG")
            archive.writestr(f"whole.{kind}", file.getvalue())
            archive.writestr(f"half.{kind}", file.getvalue()[: len(file.getvalue()) // 2])
        archive.writestr("text.png", b"not an image")
    images = ImageZip(tmp_path / "images.zip")
    assert faults(images, "exists") == {"none.png": "missing_image"}
    assert faults(images, "header") == {"none.png": "missing_image", "text.png": "broken_image"}
    assert faults(images, "decode") == {
        **{name: "broken_image" for name in ("half.png", "half.jpg", "text.png")},
        "none.png": "missing_image",
    }


def test_an_image_zip_can_be_sent_to_a_worker(toy_source, toy_turns):
    images = pickle.loads(pickle.dumps(ImageZip(toy_source / "images.zip")))
    assert images.read(toy_turns[0].image).size == (32, 32)


def test_forked_processes_read_side_by_side(toy_source):
    """Each has its own place in the file: what one reads does not move another."""
    images = ImageZip(toy_source / "images.zip")
    names = sorted(images.names()) * 20
    expected = {name: images.read_file(name) for name in images.names()}
    loader = DataLoader(
        names,
        batch_size=None,
        collate_fn=images.read_file,
        num_workers=3,
        multiprocessing_context="fork",
    )
    assert list(loader) == [expected[name] for name in names]
