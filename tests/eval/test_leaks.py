"""Leaks that are planted are found and counted as a double loop does; scores without them."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from eval import leaks
from eval.benchmark_check import rows_of
from heima import config
from heima.data.duplicates import hashed, normalised
from heima.data.images import ImageZip
from heima.data.turns import Turn
from heima.results.cells import read_metrics
from heima.results.files import read_jsonl
from reports import tables
from reports.tables.leaks import accuracy
from tests import fabricated
from tests.data.test_duplicates import LIMITS, one_pixel, photograph, saved

TURNS = 12
QUESTIONS = [f"What is it?\nA. boat {n}\nB. car" if n % 3 else "What is it?" for n in range(TURNS)]


def turn(number: int, image: str) -> Turn:
    return Turn(f"turn-{number}", image, QUESTIONS[number], "s", "c", "r", "A", True)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Two turns an image; of the last the image is no image."""
    folder = tmp_path_factory.mktemp("train")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(TURNS // 2):
            content = saved(photograph(number)) if number < 5 else b"no image"
            archive.writestr(f"a/{number}.png", content)
    turns = [turn(number, f"a/{number // 2}.png") for number in range(TURNS)]
    fabricated.write_turns(folder / "train.parquet", turns)
    images = ImageZip(folder / "images.zip")
    return leaks.of_turns("train", folder / "train.parquet", images, "faithful")


def benchmark(*rows: tuple[str, bytes | None]) -> leaks.Set:
    docs = [
        {"question": question, "image": {"bytes": content}, "l2_category": str(number % 2)}
        for number, (question, content) in enumerate(rows)
    ]
    return leaks.of_benchmark("mmstar", "mmstar", docs, "faithful")


PLANTED = {
    "the file": (("WHAT is it", saved(photograph(0))), ("file", True, True)),
    "its pixels": (("Which?", saved(photograph(1), compress_level=0)), ("pixels", False, False)),
    "as jpeg": (("What is it? A: boat 5, B: car", saved(photograph(2), "JPEG", quality=80)),
                ("near", True, True)),
    "scaled": (("What is  it !", saved(photograph(3).resize((192, 144)))), ("near", True, True)),
    "a pixel": (("boat", saved(one_pixel(photograph(4)))), ("near", False, False)),
    "the words": (("what is it", saved(photograph(77))), (None, True, False)),
    "nothing": (("Where is it?", saved(photograph(78))), None),
    "no image": (("Question: What is it?", None), (None, True, False)),
}  # fmt: skip


def test_planted_leaks_are_found_and_others_are_not(train):
    later = benchmark(*(row for row, _ in PLANTED.values()))
    found = {match.item.name: match for match in leaks.matches(train, later, **LIMITS)}
    for number, (name, (_, expected)) in enumerate(PLANTED.items()):
        match = found.get(str(number))
        assert (match and (match.image, match.question, match.both)) == expected, name
        if match and match.image:
            assert match.other.image == number, name
    assert dict(train.unreadable).keys() == {"turn-10"} and len(train.hashes) == 5
    assert train.unreadable["turn-10"].startswith("broken_image: ")
    assert dict(later.unreadable) == {"7": "missing_image: none is there"}
    whole = leaks.compare([train, later], **LIMITS)
    cells = whole.cells["mmstar in train"]
    assert {name: (cell.value, cell.n) for name, cell in cells.items()} == {
        "file": (1, 8), "pixels": (1, 8), "near": (3, 8), "question": (5, 8), "both": (3, 8)
    }  # fmt: skip
    assert [one["set"] for one in whole.unreadable] == ["train", "mmstar"]
    assert [row["image"] for row in whole.items] == [
        expected and expected[0] for _, expected in PLANTED.values()
    ]
    assert [row["strata"] for row in whole.items] == [{"lmms": str(n % 2)} for n in range(8)]
    assert {row["item"] for row in whole.rows if row["image"]} == set("01234")


def test_counts_are_those_of_a_double_loop():
    """Three random sets that share images and questions, in any number."""
    rng = np.random.default_rng(5)
    files = [saved(photograph(number, (48, 36))) for number in range(12)]
    files += [saved(photograph(number, (48, 36)), compress_level=0) for number in range(6)]
    files += [saved(photograph(number, (48, 36)).resize((96, 72))) for number in range(6)]
    words = [f"is it {number}?" for number in range(9)]

    def some(name: str) -> tuple[leaks.Set, list[tuple[str, bytes]]]:
        rows = [(words[rng.integers(9)], files[rng.integers(len(files))]) for _ in range(30)]
        return leaks.Set(name, *(getattr(benchmark(*rows), key) for key in
                                 ("items", "hashes", "unreadable"))), rows  # fmt: skip

    drawn = [some(name) for name in ("train", "first", "second")]
    found = leaks.compare([one for one, _ in drawn], **LIMITS)
    hashes = {file: hashed(file, "faithful") for file in files}

    def level(a: bytes, b: bytes) -> str | None:
        one, two = hashes[a], hashes[b]
        if one.pixels == two.pixels:
            return "file" if a == b else "pixels"
        bits = (one.perceptual ^ two.perceptual).bit_count()
        apart = np.abs(one.thumbnail.astype(int) - two.thumbnail).mean()
        return "near" if bits <= LIMITS["hamming"] and apart <= LIMITS["difference"] else None

    for (earlier, theirs), (later, own) in combinations(drawn, 2):
        counts: Counter[str] = Counter(dict.fromkeys(leaks.COUNTS, 0))
        for question, file in own:
            levels = [(level(file, f), normalised(q) == normalised(question)) for q, f in theirs]
            best = min((leaks.COUNTS.index(one) for one, _ in levels if one), default=None)
            if best is not None:
                counts[leaks.COUNTS[best]] += 1
            counts["question"] += any(same for _, same in levels)
            counts["both"] += any(one is not None and same for one, same in levels)
        cells = found.cells[leaks.pair(earlier.name, later.name)]
        assert {name: cell.value for name, cell in cells.items()} == counts
        assert all(counts.values())


def test_the_data_of_every_benchmark_can_be_compared(edition):
    """Each row of the toy's editions; MMBench's rotations share an image."""
    params = config.load(edition / "params.yaml")
    for name, one in leaks.data_of(params).items():
        rows = list(rows_of(one, edition / "data" / "benchmarks" / name))
        found = leaks.of_benchmark(name, one, rows, "faithful")
        assert len(found.items) == len(rows) and not found.unreadable
        assert all(item.forms and item.image is not None for item in found.items)
        assert len(found.hashes) == len({item.image for item in found.items}) <= len(rows)
        assert len(found.hashes) < len(rows) or name not in ("mmbench", "hallusionbench")


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory):
    root = tmp_path_factory.mktemp("leaks")
    return root, fabricated.write(root, questions=12)


def test_with_nothing_left_out_the_score_is_that_of_its_file(reproduction):
    """Also a mean of groups, and over several training and decoding seeds."""
    root, params = reproduction
    rows = read_jsonl(root / "scores" / "heima.jsonl")
    for protocol in params.protocols:
        for place, name in enumerate(params.benchmarks):
            own = [r for r in rows if (r["protocol"], r["benchmark"]) == (protocol, name)]
            found = accuracy(params, own, place=place, strata={})
            recorded = read_metrics(root / "metrics/score/heima.json")[0][f"{protocol}/{name}"]
            assert found.value == pytest.approx(recorded["accuracy"].value)
            assert found.seeds == pytest.approx(recorded["accuracy"].seeds)
            assert (found.n, found.n_failed) == (
                recorded["accuracy"].n, recorded["accuracy"].n_failed
            )  # fmt: skip


def test_a_score_without_leaks_is_that_of_the_other_questions(reproduction):
    """A unit goes with any of its rows, and groups weigh the same whatever is left of them."""
    _, params = reproduction
    seeds = {"training_seed": 42, "protocol": "lmms", "benchmark": "mmstar", "seed": 42}
    scores = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    rows = [
        {**seeds, "doc_id": n, "unit": n // 2, "image": f"i{n}", "score": scores[n // 2],
         "failed": False}
        for n in range(12)
    ]  # fmt: skip

    def without(*left_out: int, strata=None):
        return accuracy(params, rows, place=0, strata=strata or {}, left_out=frozenset(left_out))

    assert without().value == pytest.approx(100 * 4 / 6) and without().n == 6
    assert without(3).value == pytest.approx(80) and without(3).n == 5
    assert without(2, 3, 9).value == pytest.approx(100)
    groups = {n: "a" if n < 6 else "b" for n in range(12)}
    # The group a has rights 1, 0, 1, b 1, 0, 1; without the unit 0: 1/2 and 2/3.
    assert without(0, strata=groups).value == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert without(*range(12)) is None


def test_the_table_has_counts_examples_and_both_scores(reproduction):
    root, params = reproduction
    table = tables.build(root, params)["leaks"]
    counted, *scored = table.blocks
    counts, examples = counted.panels
    assert counts.entries["ai2d in train", "near"].value == 1
    assert counts.entries["ai2d in train", "questions"].value == 12
    assert examples.rows == ("ai2d 0",) and examples.entries["ai2d 0", "there"].text == (
        "train turn-7"
    )
    assert [block.origin.rpartition(" ")[2] for block in scored] == list(params.protocols)
    for block in scored:
        (panel,) = block.panels
        assert tuple(panel.digits) == ("ai2d", "ai2d, without") and "ai2d 1)" in block.caption
        assert panel.rows == tuple(params.variants)
        for row in panel.rows:
            whole, left = (panel.entries[row, column] for column in panel.digits)
            assert left.n == whole.n * 11 / 12


def test_without_leaks_there_is_nothing_to_leave_out(reproduction, tmp_path):
    root, params = reproduction
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / "leaks" / "items.jsonl"
    path.write_text(path.read_text().replace('"near"', "null"), encoding="utf-8")
    blocks = tables.build(copy, params)["leaks"].blocks
    assert [len(block.panels) for block in blocks] == [2, 0, 0]
    assert all("nothing to leave out" in block.caption for block in blocks[1:])
    path.unlink()
    with pytest.raises(tables.TableError, match=r"leaks/items.jsonl is missing: run `dvc repro le"):
        tables.build(copy, params)
