"""The source's files: repeatable bytes, LLaVA-CoT's record format, one scene a record."""

import hashlib
import io
import json
import zipfile

import pytest
from PIL import Image

from heima.toy.source import source_scenes, write_source
from heima.toy.world import KINDS, render

MIX = {"look-option": 2, "sum-option": 2, "look-free": 1, "sum-number": 1, "sum-yes-no": 1}


def digest(folder):
    return [
        hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in ("train.jsonl", "images.zip")
    ]


def test_bytes_follow_from_the_seed(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_source(tmp_path / name, records=20, turns=2, mix=MIX, seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert not set(digest(tmp_path / "a")) & set(digest(tmp_path / "c"))


def test_records_look_like_llava_cot(tmp_path):
    write_source(tmp_path, records=60, turns=3, mix=MIX, seed=0)
    records = [
        json.loads(line)
        for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len({record["id"] for record in records}) == 60
    kinds = set()
    with zipfile.ZipFile(tmp_path / "images.zip") as images:
        assert sorted(images.namelist()) == sorted(record["image"] for record in records)
        for record in records:
            kind = record["image"].split("/")[0]
            kinds.add(kind)
            turns = record["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * 3
            for question, answer in zip(turns[::2], turns[1::2], strict=True):
                assert ("total" in question["value"]) == kind.startswith("sum")
                parts = answer["value"].split("\n\n")
                tags = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
                for part, tag in zip(parts, tags, strict=True):
                    assert part.startswith(f"<{tag}> ") and part.endswith(f" </{tag}>")
        pictures = {images.read(name) for name in images.namelist()}
        assert len(pictures) == 60
        first = Image.open(io.BytesIO(images.read(records[0]["image"])))
    scene = source_scenes(records=60, turns=3, mix=MIX, seed=0)[0]
    assert first.tobytes() == render(scene).tobytes()
    assert kinds == set(MIX)


def test_scenes_are_those_that_were_written():
    scenes = source_scenes(records=200, turns=1, mix=dict.fromkeys(KINDS, 1.0), seed=1)
    assert len({scene.key for scene in scenes}) == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": 0}, "records=0 must be at least 1"),
        ({"turns": 0}, "turns=0 must be at least 1"),
        ({"mix": {"count": 1.0}}, "unknown kind 'count'; allowed: look-option"),
        ({"mix": {"look-free": -1.0}}, "must not be negative"),
        ({"mix": {"look-free": 0.0}}, "no kind a positive weight"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    arguments = {"records": 2, "turns": 1, "mix": MIX, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        write_source(tmp_path, **arguments)
