"""Leaks: images and questions that training turns, held-out turns and benchmarks have in common.

Sets are compared two by two, each with those before it. Of the later set's questions is counted
whose image is in the earlier one, as the same file, the same pixels or near (`data.duplicates`),
whose words are, and which have both. A set compares distinct images, a question its own words and
those without the options; a question alone is no leak, since some are asked of every image.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from eval.benchmark_check import rows_of
from eval.benchmark_data import folder_of
from eval.breakdown import RULES
from eval.vlmevalkit.cases import RowError, split_options
from heima.config import ImageDecoding, Params
from heima.config.benchmarks import BENCHMARKS
from heima.data import places
from heima.data.duplicates import Hashes, ImageHash, hashed, near, normalised
from heima.data.images import ImageFault, ImageZip
from heima.data.pictures import PIL_FAULTS, worded
from heima.data.turns import load_turns
from heima.results.bars import tracked
from heima.results.cells import Cell

TRAIN, HELDOUT = "train", "heldout"
COUNTS = ("file", "pixels", "near", "question", "both")
"""Of a question, each by itself: its image is the same file, of the same pixels though another
file, near though of other pixels; its words are the same; image and words of one are."""
_SHOWN = 3
"""Questions with the same words about another image that are written down of two sets."""


@dataclass(frozen=True)
class Item:
    """A question: `image` is its place among the set's images, None where that cannot be read."""

    name: str
    image: int | None
    question: str
    strata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def forms(self) -> frozenset[str]:
        return forms(self.question)


@dataclass(frozen=True)
class Set:
    """Questions and their distinct images; `unreadable` has the reason of each image that is not
    among them, by the name of the question that asks about it first."""

    name: str
    items: Sequence[Item]
    hashes: Hashes
    unreadable: Mapping[str, str]


@dataclass(frozen=True)
class Match:
    """A question of a set that an earlier set has, or whose image it has.

    `image` is one of `COUNTS` or None, `bits` how many of the perceptual hash differ.
    """

    item: Item
    image: str | None
    bits: int | None
    other: Item
    question: bool
    both: bool


def forms(question: str) -> frozenset[str]:
    """The words of a question, as a whole and without its options.

    >>> sorted(forms("Question: Which is it?\\nOptions: A: red, B: blue"))
    ['question which is it options a red b blue', 'which is it']
    """
    bare = question
    with contextlib.suppress(RowError):  # It has none.
        bare, _ = split_options(question)
    words = normalised(bare).removeprefix("question ")
    return frozenset({normalised(question), words} - {""})


def of_turns(name: str, path: Path, images: ImageZip, decoding: ImageDecoding) -> Set:
    """The turns of a parquet file; the zip is read by up to four threads."""
    turns = load_turns(path)
    first = {turn.image: turn.id for turn in reversed(turns)}
    # In the order of the turns.
    names = list(dict.fromkeys(turn.image for turn in turns))

    def one(image: str) -> ImageHash | str:
        try:
            return hashed(images.read_file(image), decoding)
        except ImageFault as error:
            return f"{error.reason}: {error}"
        except PIL_FAULTS as error:
            return f"broken_image: {worded(error)}"

    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:
        outcomes = list(tracked(pool.map(one, names), f"images of {name}", len(names), "image"))
    kept = [(n, o) for n, o in zip(names, outcomes, strict=True) if isinstance(o, ImageHash)]
    place = {image: number for number, (image, _) in enumerate(kept)}
    return Set(
        name,
        [Item(turn.id, place.get(turn.image), turn.question) for turn in turns],
        Hashes([one for _, one in kept]),
        {
            first[image]: outcome
            for image, outcome in zip(names, outcomes, strict=True)
            if isinstance(outcome, str)
        },
    )


def of_benchmark(
    name: str, benchmark: str, rows: Iterable[Mapping[str, Any]], decoding: ImageDecoding
) -> Set:
    """The rows of a benchmark's data, named by their place, each distinct image file once."""
    column = BENCHMARKS[benchmark].dataset.image
    strata = {
        protocol: rules[benchmark].stratum
        for protocol, rules in RULES.items()
        if rules[benchmark].stratum is not None
    }
    known: dict[bytes, int | None] = {}  # By the file's digest: all files are too many to hold.
    kept: list[ImageHash] = []
    items, unreadable = [], {}
    for number, row in enumerate(rows):
        value = row[column]
        content = (value.get("bytes") if isinstance(value, Mapping) else value) or b""
        digest = hashlib.sha256(content).digest()
        if digest not in known:
            known[digest] = None
            try:
                kept.append(hashed(content, decoding))
                known[digest] = len(kept) - 1
            except PIL_FAULTS as error:
                unreadable[str(number)] = (
                    f"broken_image: {worded(error)}" if content else "missing_image: none is there"
                )
        groups = {protocol: str(of(row)) for protocol, of in strata.items() if of is not None}
        items.append(Item(str(number), known[digest], str(row["question"]), groups))
    return Set(name, items, Hashes(kept), unreadable)


def sets(params: Params) -> Iterator[Set]:
    """Training turns, held-out turns, and the data of each benchmark."""
    images = ImageZip(places.locate("data/source") / "images.zip", params.image_decoding)
    for name in (TRAIN, HELDOUT):
        path = Path("data/rewritten") / f"{name}.parquet"
        yield of_turns(name, path, images, params.image_decoding)
    for name, benchmark in data_of(params).items():
        rows = rows_of(benchmark, folder_of(params, name))
        yield of_benchmark(name, benchmark, rows, params.image_decoding)


def data_of(params: Params) -> dict[str, str]:
    """Each name of data that a protocol reads -> its benchmark."""
    return {
        params.data_name(protocol, benchmark): benchmark
        for protocol in params.protocols
        for benchmark in params.benchmarks
    }


def matches(earlier: Set, later: Set, *, hamming: int, difference: float) -> Iterator[Match]:
    """The questions of `later` that `earlier` has, or whose image it has, in their order."""
    images = _images(earlier.hashes, later.hashes, hamming, difference)
    about: dict[int | None, list[int]] = defaultdict(list)
    asked: dict[str, int] = {}
    words = [item.forms for item in earlier.items]
    for place, item in enumerate(earlier.items):
        if item.image is not None:
            about[item.image].append(place)
        for form in words[place]:
            asked.setdefault(form, place)
    for item in later.items:
        own = item.forms
        there = images.get(item.image, ()) if item.image is not None else ()
        alike = [asked[form] for form in sorted(own) if form in asked]
        if not there and not alike:
            continue
        both = [place for *_, image in there for place in about[image] if own & words[place]]
        # What is nearest says how near it is, whichever image is asked the same about.
        level, bits, image = there[0] if there else (None, None, None)
        place = (both or about.get(image, []) or alike)[0]
        yield Match(item, level, bits, earlier.items[place], bool(alike), bool(both))


def _images(
    these: Hashes, others: Hashes, hamming: int, difference: float
) -> dict[int, list[tuple[str, int, int]]]:
    """Place in `others` -> (how it is there, differing bits, place in `these`), the nearest first.

    Images of equal pixels have equal perceptual hashes and thumbnails, so they are among the near.
    """
    found: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for place, other, bits in near(others, these, hamming=hamming, difference=difference):
        if others.file[place] == these.file[other]:
            level = "file"
        else:
            level = "pixels" if others.pixels[place] == these.pixels[other] else "near"
        found[place].append((level, bits, other))
    for one in found.values():
        one.sort(key=lambda match: (COUNTS.index(match[0]), match[1], match[2]))
    return found


@dataclass(frozen=True)
class Found:
    """What sets have in common: a count of each kind for each two, and the questions behind them.

    `rows` has every question with its image in an earlier set, and a few with the words alone;
    `items` each benchmark's question with what training turns have of it.
    """

    cells: Mapping[str, Mapping[str, Cell]]
    rows: Sequence[Mapping[str, Any]]
    items: Sequence[Mapping[str, Any]]
    unreadable: Sequence[Mapping[str, str]]
    images: Mapping[str, int]


def compare(given: Iterable[Set], *, hamming: int, difference: float) -> Found:
    """Compare sets two by two; the first are the training turns."""
    whole = list(given)
    cells: dict[str, dict[str, Cell]] = {}
    rows: list[dict[str, Any]] = []
    trained: dict[tuple[str, str], Match] = {}
    for earlier, later in combinations(whole, 2):
        counts: Counter[str] = Counter()
        for match in matches(earlier, later, hamming=hamming, difference=difference):
            if match.image is not None:
                counts[match.image] += 1
            counts["question"] += match.question
            counts["both"] += match.both
            if earlier.name == TRAIN:
                trained[later.name, match.item.name] = match
            if match.image is not None or counts["question"] <= _SHOWN:
                rows.append(_row(earlier, later, match))
        cells[pair(earlier.name, later.name)] = {
            name: _counted(counts[name], len(later.items)) for name in COUNTS
        }
    return Found(
        cells,
        rows,
        [
            {
                "set": one.name,
                "doc_id": int(item.name),
                "image": match.image if match else None,
                "question": match.question if match else False,
                "both": match.both if match else False,
                "strata": dict(item.strata),
            }
            for one in whole
            if one.name not in (TRAIN, HELDOUT)
            for item in one.items
            for match in (trained.get((one.name, item.name)),)
        ],
        [
            {"set": one.name, "item": item, "reason": reason}
            for one in whole
            for item, reason in one.unreadable.items()
        ],
        {one.name: len(one.hashes) for one in whole},
    )


def pair(earlier: str, later: str) -> str:
    """The group of the cells of two sets.

    >>> pair("train", "ai2d")
    'ai2d in train'
    """
    return f"{later} in {earlier}"


def _counted(count: int, of: int) -> Cell:
    return Cell(float(count), float(count), float(count), n=of)


def _row(earlier: Set, later: Set, match: Match) -> dict[str, Any]:
    return {
        "set": later.name,
        "item": match.item.name,
        "question": match.item.question,
        "in": earlier.name,
        "there": match.other.name,
        "question_there": match.other.question,
        "image": match.image,
        "bits": match.bits,
        "same_question": match.question,
        "both": match.both,
    }
