"""Records to turns: nothing disappears uncounted, no image stands on both sides of the split."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import pytest
from PIL import Image

from heima import corpus, cot

ANSWER = cot.render(
    {"summary": "s", "caption": "c", "reasoning": "r", "conclusion": "B"}, "text-cot"
)


def record(identity="r", image="set/a.png", *values: str) -> dict:
    messages = values or ("What is it?", ANSWER)
    return {
        "id": identity,
        "image": image,
        "conversations": [
            {"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(messages)
        ],
    }


def read(folder, *lines: dict | bytes, spacing="canonical", image_place="alternate"):
    """The turns and drops of a source made of these records (or raw lines)."""
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        png = io.BytesIO()
        Image.effect_noise((32, 32), 50).convert("RGB").save(png, "PNG")
        archive.writestr("set/a.png", png.getvalue())
        archive.writestr("set/broken.png", png.getvalue()[: len(png.getvalue()) // 2])
        archive.writestr("set/text.png", b"not an image")
        archive.writestr("set/damaged.png", bytes(2000), zipfile.ZIP_DEFLATED)
    # A member whose compressed bytes no longer inflate.
    raw = bytearray((folder / "images.zip").read_bytes())
    start = raw.index(b"set/damaged.png") + len(b"set/damaged.png")
    raw[start : start + 4] = b"\xff\xff\xff\xff"
    (folder / "images.zip").write_bytes(raw)
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "train.jsonl").write_bytes(b"\n".join(raw))
    items = list(
        corpus.read_turns(
            folder / "train.jsonl",
            corpus.ImageZip(folder / "images.zip"),
            spacing=spacing,
            image_place=image_place,
        )
    )
    turns = [item for item in items if isinstance(item, corpus.Turn)]
    drops = [(item.where, item.reason) for item in items if isinstance(item, corpus.Drop)]
    return turns, drops


def test_every_pair_becomes_a_turn_without_history(tmp_path):
    turns, drops = read(tmp_path, record("r", "set/a.png", "Q1", ANSWER, "Q2", ANSWER))
    assert [(turn.id, turn.question) for turn in turns] == [("r-1", "Q1"), ("r-2", "Q2")]
    assert turns[0].sections == cot.parse(ANSWER) and turns[0].kind == "set" and not drops


@pytest.mark.parametrize(("place", "expected"), [("alternate", [1, 0, 1]), ("first", [1, 1, 1])])
def test_the_image_stands_first_in_even_records_or_in_all(tmp_path, place, expected):
    turns, _ = read(tmp_path, record("a"), record("b"), record("c"), image_place=place)
    assert [turn.image_first for turn in turns] == expected


@pytest.mark.parametrize(
    ("line", "drops"),
    [
        (record("r", "set/none.png"), [("r-1", "missing_image")]),
        (record("r", "set/broken.png"), [("r-1", "broken_image")]),
        (record("r", "set/text.png"), [("r-1", "broken_image")]),
        (record("r", "set/damaged.png"), [("r-1", "broken_image")]),
        (record("r", "../secret.png"), [("r-1", "unsafe_image_path")]),
        (record("r", "set/../../a.png"), [("r-1", "unsafe_image_path")]),
        (record("r", "set\\..\\a.png"), [("r-1", "unsafe_image_path")]),
        (record("r", "/etc/a.png"), [("r-1", "unsafe_image_path")]),
        (record("r", "set/none.png", "Q", ANSWER, "Q", ANSWER),
         [("r-1", "missing_image"), ("r-2", "missing_image")]),
        (record("r", "set/a.png", "Q", ANSWER, "Q2"), [("r message 3", "unpaired_message")]),
        (record("r", "set/a.png", "  <image>\n", ANSWER), [("r-1", "empty_question")]),
        (record("r", "set/a.png", "Q", "just B"), [("r-1", "missing_summary")]),
        (record("r", "set/a.png", "Q", ANSWER + ANSWER), [("r-1", "repeated_summary")]),
        (record("r", "set/a.png", "Q", ANSWER.replace("\n\n", "\n")), [("r-1", "odd_spacing")]),
        (record("r", "set/a.png", "<THINKING_OF_CAPTION>?", ANSWER),
         [("r-1", "thinking_token_in_text")]),
        (b'{"id": "r", "image": "\xff"}', [("line 1", "not_utf8")]),
        (b'{"id": "r"', [("line 1", "not_json")]),
        (b'["r"]', [("line 1", "bad_record")]),
        ({"id": "r", "image": "set/a.png"}, [("line 1", "bad_record")]),
        ({"id": "r", "image": "set/a.png", "conversations": [{"from": "dog", "value": "x"}]},
         [("line 1", "bad_record")]),
    ],
)  # fmt: skip
def test_bad_input_is_dropped_with_its_reason_and_loses_nothing_else(tmp_path, line, drops):
    turns, found = read(tmp_path, line, record("good"))
    assert found == drops
    assert "good-1" in [turn.id for turn in turns]


def test_a_repeated_id_keeps_the_first_turn_only(tmp_path):
    turns, drops = read(tmp_path, record("r", "set/a.png", "Q1", ANSWER),
                        record("r", "set/a.png", "Q2", ANSWER))  # fmt: skip
    assert [turn.question for turn in turns] == ["Q1"] and drops == [("r-1", "repeated_id")]


def test_odd_spacing_is_kept_when_allowed(tmp_path):
    odd = ANSWER.replace("\n\n", "\n").replace("<CAPTION> c", "<CAPTION>c")
    turns, drops = read(tmp_path, record("r", "set/a.png", "Q", odd), spacing="any")
    assert turns[0].caption == "c" and not drops


def test_a_source_without_zip_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images\.zip"):
        corpus.ImageZip(tmp_path / "images.zip")
    (tmp_path / "images.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="not a zip file"):
        corpus.ImageZip(tmp_path / "images.zip")


def turns_on(images: list[str]) -> list[corpus.Turn]:
    return [
        corpus.Turn(f"t{i}", image, "q", "s", "c", "r", "b", True) for i, image in enumerate(images)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_split_by_image_is_a_disjoint_partition(seed):
    turns = turns_on([f"set/{i // 3}.png" for i in range(300)])
    train, heldout = corpus.split(turns, heldout=0.1, by="image", seed=seed)
    assert sorted(train + heldout, key=turns.index) == turns
    assert not {turn.image for turn in train} & {turn.image for turn in heldout}
    assert 30 <= len(heldout) <= 32
    assert (train, heldout) == corpus.split(turns, heldout=0.1, by="image", seed=seed)


def test_split_by_turn_puts_images_on_both_sides():
    train, heldout = corpus.split(
        turns_on([f"set/{i // 3}.png" for i in range(300)]), heldout=0.1, by="turn", seed=0
    )
    assert len(heldout) == 30
    assert {turn.image for turn in train} & {turn.image for turn in heldout}


def test_split_that_leaves_a_side_empty_is_an_error():
    with pytest.raises(ValueError, match=r"rewrite\.heldout"):
        corpus.split(turns_on(["set/a.png"] * 4), heldout=0.5, by="image", seed=0)


def test_turns_survive_the_parquet_file(tmp_path, toy_turns):
    corpus.write_turns(tmp_path / "turns.parquet", toy_turns)
    assert corpus.load_turns(tmp_path / "turns.parquet") == toy_turns


def test_an_image_zip_can_be_sent_to_a_worker(toy_source, toy_turns):
    images = pickle.loads(pickle.dumps(corpus.ImageZip(toy_source / "images.zip")))
    assert images.read(toy_turns[0].image).size == (48, 48)
