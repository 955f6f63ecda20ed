"""Records to turns: nothing disappears uncounted, no image stands on both sides of the split, and
both arrangements do what they say, whatever the text."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from heima import config
from heima.cot import parsing
from heima.cot.rendering import render
from heima.cot.sections import COMPRESSIBLE, SECTIONS, TAGS, thinking_token
from heima.data import arrangements, official, rewriting
from heima.data.turns import Turn, load_turns
from tests.conftest import ROOT
from timings import rewrite as baseline

ANSWER = render(
    {"summary": "s 1", "caption": "c 2", "reasoning": "r 3", "conclusion": "B"}, "text-cot"
)
CORRECTED = {
    "compat": "corrected",
    "heldout": 0.5,
    "split": "image",
    "image_place": "alternate",
    "spacing": "canonical",
    "verify_images": "decode",
}
OFFICIAL = {**CORRECTED, "compat": "official", "split": "turn"}


def record(identity="r", image="set/a.png", *values: str) -> dict:
    messages = values or ("What is it?", ANSWER)
    return {
        "id": identity,
        "image": image,
        "conversations": [
            {"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(messages)
        ],
    }


SPARE = [record(f"spare{number}", f"spare/{number}.png") for number in range(2)]
"""Last in every source: each side of the split needs a turn."""


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A zip with whole and with broken images."""
    path = tmp_path_factory.mktemp("images") / "images.zip"
    png = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(png, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("set/a.png", "set/b.png", "spare/0.png", "spare/1.png"):
            archive.writestr(name, png.getvalue())
        archive.writestr("set/broken.png", png.getvalue()[: len(png.getvalue()) // 2])
        archive.writestr("set/text.png", b"not an image")
        archive.writestr("set/damaged.png", bytes(2000), zipfile.ZIP_DEFLATED)
    # A member whose compressed bytes no longer inflate.
    raw = bytearray(path.read_bytes())
    start = raw.index(b"set/damaged.png") + len(b"set/damaged.png")
    raw[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    return path


def rewritten(folder: Path, images: Path, *lines: dict | bytes, **changed):
    """The turns without the spare ones, the drops, and the counts of these records or raw lines.

    `workers` and `block` go to `rewrite`, the rest changes the parameters.
    """
    how = {key: changed.pop(key) for key in ("workers", "block") if key in changed}
    params = config.Rewrite(**{**CORRECTED, **changed})
    source, target = folder / "source", folder / "target"
    source.mkdir()
    target.mkdir()
    (source / "images.zip").symlink_to(images)
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    raw += [json.dumps(line).encode() for line in SPARE]
    (source / "train.jsonl").write_bytes(b"\n".join(raw))
    counts = rewriting.rewrite(source, target, params, seed=0, **{"workers": 1, **how})
    turns = {
        turn.id: turn
        for side in ("train", "heldout")
        for turn in load_turns(target / f"{side}.parquet")
        if turn.kind != "spare"
    }
    drops = [json.loads(line) for line in (target / "dropped.jsonl").read_bytes().splitlines()]
    assert sorted(path.name for path in target.iterdir()) == [
        *("dropped.jsonl", "heldout.parquet", "train.parquet")
    ]
    assert counts["turns"]["dropped"] == len(drops) == sum(counts["dropped"].values())
    assert counts["turns"]["train"] + counts["turns"]["heldout"] == len(turns) + 2
    return turns, [(drop["where"], drop["reason"]) for drop in drops], counts


def test_every_pair_becomes_a_turn_without_history(tmp_path, images):
    lines = record("r", "set/a.png", "Q1", ANSWER, "Q2", ANSWER)
    turns, drops, _ = rewritten(tmp_path, images, lines)
    assert {turn.id: turn.question for turn in turns.values()} == {"r-1": "Q1", "r-2": "Q2"}
    assert (
        turns["r-1"].sections == parsing.parse(ANSWER) and turns["r-1"].kind == "set" and not drops
    )


@pytest.mark.parametrize(("place", "expected"), [("alternate", [1, 0, 1]), ("first", [1, 1, 1])])
def test_the_image_stands_first_in_even_records_or_in_all(tmp_path, images, place, expected):
    lines = (record("a"), record("b"), record("c"))
    turns, _, counts = rewritten(tmp_path, images, *lines, image_place=place)
    assert [turns[f"{name}-1"].image_first for name in "abc"] == expected
    # The spare records are the fourth and the fifth.
    moved = {"alternate": 0, "first": 2}[place]
    assert counts["differences"]["image_on_the_other_side"] == moved


@pytest.mark.parametrize("settings", [CORRECTED, OFFICIAL], ids=["corrected", "official"])
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
        (record("r", "set/a.png", "Q", ANSWER.replace("\n\n", "\n")), [("r-1", "odd_spacing")]),
        (b'{"id": "r", "image": "\xff"}', [("line 1", "not_utf8")]),
        (b'{"id": "r"', [("line 1", "not_json")]),
        (b'{"id": "\\ud800"}', [("line 1", "not_json")]),
        (b"[" * 100_000, [("line 1", "not_json")]),
        (b'["r"]', [("line 1", "bad_record")]),
        ({"id": "r", "image": "set/a.png"}, [("line 1", "bad_record")]),
        ({"id": "r", "image": "set/a.png", "conversations": [{"from": "dog", "value": "x"}]},
         [("line 1", "bad_record")]),
    ],
)  # fmt: skip
def test_bad_input_is_dropped_with_its_reason_and_loses_nothing_else(
    tmp_path, images, line, drops, settings
):
    turns, found, _ = rewritten(tmp_path, images, line, record("good"), **settings)
    if settings is OFFICIAL:
        # It numbers turns by the human message, and asks nothing of a question.
        drops = [(where.replace("r-2", "r-3"), reason) for where, reason in drops]
        if drops == [("r-1", "empty_question")]:
            drops = []
    assert found == drops
    assert "good-1" in turns


@pytest.mark.parametrize(
    ("question", "answer", "corrected", "official"),
    [
        ("Q", ANSWER + ANSWER, "repeated_summary", "thinking_token_count"),
        ("Q", ANSWER.replace("r 3", "s 1 so 3"), None, "thinking_token_count"),
        ("Q", ANSWER.replace("<CONCLUSION> B", "<CONCLUSION> see </CAPTION>"),
         "repeated_caption", None),
        ("<THINKING_OF_CAPTION>?", ANSWER, "thinking_token_in_text", None),
        ("Q", ANSWER.replace("B", "<THINKING_OF_CAPTION>"), "thinking_token_in_text",
         "thinking_token_count"),
        ("Q", ANSWER.replace("<CONCLUSION> B </CONCLUSION>", ""), "missing_conclusion", None),
        ("Q", ANSWER.replace("s 1", "of <CONCLUSION> 1"), "repeated_conclusion", None),
        ("Q", ANSWER.replace("c 2", "of <CONCLUSION> 1"), "repeated_conclusion", None),
        # A blank before a tag is one token with its `<`, a letter is not.
        ("Q", "Well: " + ANSWER, "text_outside_sections", "odd_spacing"),
        ("Q", "Well" + ANSWER, "text_outside_sections", None),
        ("Which of <SUMMARY> s 1 </SUMMARY>?", ANSWER, None, None),
        ("", ANSWER, "empty_question", None),
        # Of two summaries the last is replaced, the first stays.
        ("Q", "<SUMMARY> s 0 </SUMMARY>\n\n" + ANSWER, "repeated_summary", None),
        ("Q", ANSWER.replace("s 1", ""), "empty_summary", "thinking_token_count"),
        ("Q", ANSWER.replace(" s 1 ", "\ts 1\n"), "odd_spacing", None),
        ("Q", ANSWER.replace(" s 1", "\ns 1"), "odd_spacing", "odd_spacing"),
        ("Q", ANSWER.replace("</CAPTION>\n\n", "</CAPTION>\n\n\n"), "odd_spacing", "odd_spacing"),
        ("Q", ANSWER.replace("</CAPTION>\n\n", "</CAPTION> "), "odd_spacing", "odd_spacing"),
    ],
)  # fmt: skip
def test_both_arrangements_are_counted_whichever_is_written(
    tmp_path, images, question, answer, corrected, official
):
    for name, params in (("corrected", CORRECTED), ("official", OFFICIAL)):
        (tmp_path / name).mkdir()
        lines = record("r", "set/a.png", question, answer)
        turns, drops, counts = rewritten(tmp_path / name, images, lines, **params)
        reason = {"corrected": corrected, "official": official}[name]
        assert drops == ([("r-1", reason)] if reason else [])
        assert list(turns) == ([] if reason else ["r-1"])
        found = counts["arrangements"]
        assert found["corrected"]["dropped"] == ({corrected: 1} if corrected else {})
        assert found["official"]["dropped"] == ({official: 1} if official else {})
        assert found["official"]["filter_a"] == (official == "thinking_token_count")
        assert found["official"]["filter_b"] == (official == "odd_spacing")
        differences = counts["differences"]
        only = {official: 1} if official and not corrected else {}
        assert differences["kept_by_corrected_only"] == only
        only = {corrected: 1} if corrected and not official else {}
        assert differences["kept_by_official_only"] == only


def test_a_repeated_id_keeps_the_first_turn_only(tmp_path, images):
    turns, drops, _ = rewritten(
        tmp_path, images,
        record("r", "set/a.png", "Q1", ANSWER), record("r", "set/a.png", "Q2", ANSWER),
    )  # fmt: skip
    assert [turn.question for turn in turns.values()] == ["Q1"] and drops == [
        ("r-1", "repeated_id")
    ]


def test_the_official_arrangement_keeps_turns_of_one_id_apart(tmp_path, images):
    lines = [record("r", "set/a.png", f"Q{n}", ANSWER) for n in range(3)]
    lines.insert(1, record("r-1#2", "set/a.png", "Q", ANSWER, "Q", ANSWER))
    turns, drops, counts = rewritten(tmp_path, images, *lines, **OFFICIAL)
    assert {name: turn.question for name, turn in turns.items()} == {
        **{"r-1": "Q0", "r-1#2": "Q1", "r-1#3": "Q2"},
        **{"r-1#2-1": "Q", "r-1#2-3": "Q"},
    }
    assert not drops and counts["differences"]["kept_by_official_only"] == {"repeated_id": 2}


def test_odd_spacing_is_kept_when_allowed(tmp_path, images):
    odd = ANSWER.replace("\n\n", "\n").replace("<CAPTION> c 2", "<CAPTION>c 2")
    lines = record("r", "set/a.png", "Q", odd)
    turns, drops, _ = rewritten(tmp_path, images, lines, spacing="any")
    assert turns["r-1"].caption == "c 2" and not drops


@pytest.mark.parametrize("verify", ["header", "exists"])
def test_images_are_verified_as_far_as_is_asked(tmp_path, images, verify):
    lines = [record(name, f"set/{name}.png") for name in ("a", "broken", "text", "none")]
    _, drops, _ = rewritten(tmp_path, images, *lines, verify_images=verify)
    not_known = [("text-1", "broken_image")] if verify == "header" else []
    assert drops == [*not_known, ("none-1", "missing_image")]


@pytest.mark.parametrize("verify", ["decode", "header", "exists"])
def test_conversions_of_the_kept_images_are_counted(tmp_path, images, verify):
    folder = tmp_path / "own"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.arange(0, 64000, 1000, np.uint16).reshape(8, 8))
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, picture, options in (
            ("set/grey.png", grey, {}),
            ("set/clear.png", Image.new("LA", (8, 8)), {}),
            ("set/turned.png", Image.new("RGB", (8, 4)), {"exif": exif}),
            ("set/dropped.png", grey, {}),
            ("spare/0.png", Image.new("RGB", (8, 8)), {}),
            ("spare/1.png", Image.new("RGBA", (8, 8), "red"), {}),
        ):
            file = io.BytesIO()
            picture.save(file, "PNG", **options)
            archive.writestr(name, file.getvalue())
    lines = [record(name, f"set/{name}.png") for name in ("grey", "clear", "turned", "turned-2")]
    lines[-1]["image"] = "set/turned.png"
    lines.append(record("dropped", "set/dropped.png", "Q", "B"))
    _, _, counts = rewritten(tmp_path, folder / "images.zip", *lines, verify_images=verify)
    expected = {"grey_of_16_bits": 1, "transparent": 1, "turned_by_exif": 1}
    assert counts["images"]["converted"] == (expected if verify == "decode" else None)


def test_a_byte_order_mark_loses_no_record(tmp_path, images):
    line = b"\xef\xbb\xbf" + json.dumps(record("r")).encode()
    turns, drops, _ = rewritten(tmp_path, images, line, record("s"))
    assert sorted(turns) == ["r-1", "s-1"] and not drops


def test_nothing_depends_on_the_process(tmp_path, images):
    """All bytes are the same with other hashes, other addresses and in another folder."""
    lines = [record(f"r{n}", f"set/{name}.png") for n, name in enumerate(
        ("a", "b", "text", "broken", "damaged", "none", "a"))]  # fmt: skip
    lines += [record("r0"), record("x", "set/a.png", "Q", "B"), *SPARE]
    outputs = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        source = folder / "data" / "source"
        source.mkdir(parents=True)
        (source / "images.zip").symlink_to(images)
        (source / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        raw["rewrite"]["heldout"] = 0.5
        resolved = config.resolved(config.parse(yaml.safe_dump(raw)))
        (folder / config.RESOLVED).write_text(yaml.safe_dump(resolved), encoding="utf-8")
        (folder / "fingerprints").mkdir()
        (folder / "fingerprints" / "rewrite.json").write_text("{}", encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "stages.rewrite"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(
            {
                path.relative_to(folder): path.read_bytes()
                for part in ("data/rewritten", "metrics")
                for path in sorted((folder / part).rglob("*"))
                if path.is_file()
            }
        )
    assert outputs[0] == outputs[1] and len(outputs[0]) == 4
    assert b"0x" not in outputs[0][Path("data/rewritten/dropped.jsonl")]


def test_a_side_without_turns_is_an_error_and_the_drops_are_told(tmp_path, images):
    (tmp_path / "images.zip").symlink_to(images)
    lines = [json.dumps(record(name)) for name in ("a", "b")] + ["no json"]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "target").mkdir()
    with pytest.raises(
        ValueError, match=r"rewrite\.heldout = 0\.5 of 2 turns on 1 images leaves 0"
    ):
        rewriting.rewrite(tmp_path, tmp_path / "target", config.Rewrite(**CORRECTED), seed=0)
    assert "not_json" in (tmp_path / "target" / "dropped.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("seed", range(5))
def test_images_are_held_out_as_a_whole(seed):
    groups = [f"set/{i // 3}.png" for i in range(300)]
    held = rewriting.draw_heldout(groups, heldout=0.1, seed=seed)
    on = {group for group, out in zip(groups, held, strict=True) if out}
    off = {group for group, out in zip(groups, held, strict=True) if not out}
    assert not on & off and 30 <= held.sum() <= 32
    assert np.array_equal(held, rewriting.draw_heldout(groups, heldout=0.1, seed=seed))


def test_a_split_by_turn_trains_on_held_out_images(tmp_path, images):
    lines = [record(str(n), f"set/{'ab'[n % 2]}.png") for n in range(30)]
    _, _, counts = rewritten(tmp_path, images, *lines, heldout=0.1, split="turn")
    assert counts["turns"]["heldout"] == 4
    assert counts["arrangements"]["official"]["heldout_on_trained_images"] >= 2


# Any text

WORDS = [
    *("a", "b", "a b", "B", "SUMMARY", "\n", "\n\n", " ", "\u2028", "\u00a0", "👩‍🔬", "e\u0301"),
    # Alike in more than the beginning that is looked for first.
    *("The image shows a red square.", "The image shows a red circle.", "<", ">"),
    *(tag for section in SECTIONS for tag in TAGS[section]),
    *("<THINKING_OF_SUMMARY>", "<THINKING_OF_CAPTION_2>", "<image>"),
]  # fmt: skip
plain = st.lists(st.sampled_from(WORDS[:14]), min_size=1, max_size=4).map("".join)
wild = st.lists(st.sampled_from(WORDS), max_size=4).map("".join)


@st.composite
def answers(draw) -> str:
    """Answers in every state: canonical, oddly spaced, with tags and tokens in their texts."""
    body = plain if draw(st.booleans()) else wild
    texts = {section: draw(body) for section in SECTIONS}
    if draw(st.booleans()):
        # Mostly none of these occurs in another.
        texts = {section: f"{text} is the {section}." for section, text in texts.items()}
    if draw(st.booleans()):
        texts[draw(st.sampled_from(SECTIONS))] = texts["summary"]
    if draw(st.booleans()):
        texts = {section: text.strip() or "x" for section, text in texts.items()}
    answer = render(texts, "text-cot")
    spoiled = draw(st.integers(0, 5))
    if spoiled == 0:
        answer = draw(wild) + answer + draw(wild)
    elif spoiled == 1:
        answer = answer.replace(draw(st.sampled_from(WORDS)), draw(st.sampled_from(WORDS)), 1)
    return answer


def naive_parse(answer: str) -> dict[str, str] | str:
    """Sections by a regular expression over the whole answer, or the reason why not."""
    spans, sections = [], {}
    for section in SECTIONS:
        tag = section.upper()
        found = list(re.finditer(rf"<{tag}>(.*?)</{tag}>", answer, flags=re.DOTALL))
        if not found:
            return f"missing_{section}"
        if answer.count(f"<{tag}>") > 1 or answer.count(f"</{tag}>") > 1:
            return f"repeated_{section}"
        if not found[0].group(1).strip():
            return f"empty_{section}"
        spans.append(found[0].span())
        sections[section] = found[0].group(1).strip()
    if spans != sorted(spans) or any(a[1] > b[0] for a, b in itertools.pairwise(spans)):
        return "disordered_sections"
    for start, end in reversed(spans):
        answer = answer[:start] + answer[end:]
    return "text_outside_sections" if answer.strip() else sections


@settings(max_examples=300, deadline=None)
@given(answers())
def test_parsing_agrees_with_a_regular_expression(answer):
    expected = naive_parse(answer)
    try:
        found = parsing.parse(answer)
    except parsing.ParseError as error:
        found = error.reason
    assert found == expected
    if isinstance(found, dict):
        canonical = answer.strip() == render(found, "text-cot")
        assert parsing.is_canonical(answer, parsing.spans(answer)) == canonical


@settings(max_examples=300, deadline=None)
@given(answers())
def test_replacing_by_position_alters_nothing_outside_of_a_section(answer):
    try:
        spans = parsing.spans(answer)
    except parsing.ParseError:
        return
    kept = render(parsing.parse(answer), "text-cot") == answer.strip()
    for count, (phase, text) in enumerate(
        zip(arrangements.PHASES, arrangements.by_position(answer, spans), strict=True), 1
    ):
        expected, end = "", 0
        for section in COMPRESSIBLE[:count]:
            start, after = spans[section]
            expected += answer[end:start] + thinking_token(section)
            end = after
        assert text == expected + answer[end:]
        if kept:
            assert text.strip() == render(parsing.parse(answer), phase)


@settings(max_examples=300, deadline=None)
@given(plain, answers())
def test_the_shortcut_arranges_as_the_official_arrangement_in_full(question, answer):
    arranged = arrangements.arrange(question.strip(), answer, spacing="canonical")
    full, _ = arrangements.officially(answer)
    assert arranged.official.sections == full.sections
    assert (arranged.official.fault and arranged.official.fault.reason) == (
        full.fault and full.fault.reason
    )
    if arranged.corrected.sections and arranged.official.sections:
        assert arranged.corrected.sections == arranged.official.sections and not any(
            arranged.altered
        )


@settings(max_examples=300, deadline=None)
@given(answers())
def test_phases_of_what_is_kept_word_for_word(answer):
    """Replacing with the marks of thinking tokens is `str.replace`, and has one of each."""
    kept, _ = arrangements.officially(answer)
    if kept.sections is None:
        return
    turn = Turn("r-1", "a.png", "Q", **kept.sections, image_first=True, answer=answer)
    assert turn.written("text-cot") == answer
    for count, (phase, text) in enumerate(
        zip(arrangements.PHASES, official.by_string(answer, kept.sections), strict=True), 1
    ):
        written = turn.written(phase)
        assert written == text
        tokens = [thinking_token(section) for section in COMPRESSIBLE[:count]]
        assert sorted(written.parts[1::2]) == sorted(tokens)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(plain, answers()), max_size=3), max_size=4))
def test_the_official_arrangement_keeps_what_its_naive_reference_keeps(images, records):
    lines = [
        record(f"r{n}", "set/a.png", *(value for q, a in turns for value in (f"Q {q}", a)))
        for n, turns in enumerate(records)
        if turns
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        turns, drops, counts = rewritten(folder, images, *lines, **OFFICIAL)
        with zipfile.ZipFile(images) as archive:
            for name in ("set/a.png", "spare/0.png", "spare/1.png"):
                archive.extract(name, folder / "source" / "images")
        (folder / "plain").mkdir()
        baseline.official_arrangement(folder / "source", folder / "plain")
        assert baseline.texts_of_baseline(folder / "plain") == baseline.texts_of_ours(
            folder / "target"
        )
    # Every turn is kept or dropped, once.
    every = [
        f"{line['id']}-{n + 1}" for line in lines for n in range(0, len(line["conversations"]), 2)
    ]
    assert sorted([*turns, *(where for where, _ in drops)]) == sorted(every)
    for arrangement in counts["arrangements"].values():
        assert arrangement["kept"] + sum(arrangement["dropped"].values()) == len(every) + 2


@pytest.mark.parametrize("settings", [CORRECTED, OFFICIAL], ids=["corrected", "official"])
def test_the_files_depend_neither_on_blocks_nor_on_processes(tmp_path, images, settings):
    lines = []
    for number in range(40):
        answer = (ANSWER, ANSWER.replace("\n\n", "\n"), ANSWER.replace("r 3", "s 1"), "B")[
            number % 4
        ]
        image = ("set/a.png", "set/b.png", "set/none.png", "set/broken.png")[number // 4 % 4]
        lines.append(record(f"r{number % 37}", image, "Q\u2028?", answer, "Q2", ANSWER))
    lines.insert(7, b"no json")
    outputs = []
    for number, (workers, block) in enumerate(((1, 2**20), (1, 1), (2, 3000))):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, _, counts = rewritten(folder, images, *lines, workers=workers, block=block, **settings)
        files = {path.name: path.read_bytes() for path in (folder / "target").iterdir()}
        outputs.append((counts, files))
    assert outputs[0] == outputs[1] == outputs[2]
