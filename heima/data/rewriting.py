"""LLaVA-CoT's records -> turns with sections, filtered and split (docs/recipe.md, section 1).

Whatever cannot become a turn is a `Drop` with a reason; nothing disappears uncounted. A turn needs
an id of its own, a usable image and a question; what its answer needs depends on the arrangement
(`heima.data.arrangements`). The turns of one arrangement are written, both are counted.

Records are read in blocks, by several processes, and the text of turns is never held as a whole:
the split needs ids and images only. The files depend neither on the blocks nor on the processes.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from heima.config import ImageDecoding, Rewrite
from heima.cot.sections import SECTIONS
from heima.data.arrangements import ARRANGEMENTS, FILTERS, Fault, arrange, pair
from heima.data.images import ImageFault, ImageZip
from heima.data.official import PHASES, RULE, Merges, TokenizerMerges
from heima.data.records import Drop, parse_records
from heima.data.turns import SCHEMA, TurnFile
from heima.results.bars import tracked
from heima.results.files import write_jsonl

RECORDS = "train.jsonl"
IMAGES = "images.zip"

_BLOCK = 4 * 2**20
_WORKERS = 4
"""More would take memory, and the process that writes the files would not keep up."""


# A block of records, in a process of its own


class _Place(NamedTuple):
    """A piece of the records, and the file for its turns."""

    offset: int
    length: int
    first_line: int
    spool: Path


def _places(path: Path, folder: Path, size: int) -> Iterator[_Place]:
    """Pieces of whole lines, of about `size` bytes."""
    with path.open("rb") as file:
        offset = line = 0
        while block := file.read(size):
            block += file.readline()
            yield _Place(offset, len(block), line, folder / f"{offset}.arrow")
            offset += len(block)
            line += block.count(b"\n")


class Looked(NamedTuple):
    """What was found in images, by name: why some cannot be used, how others are converted."""

    faults: dict[str, Fault]
    conversions: dict[str, tuple[str, ...]]


class _TurnOutcome(NamedTuple):
    """What became of a turn: the fault that drops it, or None where the block's file holds it; and
    the reason why either arrangement drops it."""

    id: str
    image: str
    image_moved: bool
    fault: Fault | None
    corrected: str | None
    official: str | None
    altered: tuple[bool, ...]
    by_rule: bool


class _Block(NamedTuple):
    items: list[_TurnOutcome | Drop]
    images: Looked


class _Reader:
    """Reads a piece of the records, writes its turns, and tells what became of each."""

    def __init__(self, source: Path, params: Rewrite, decoding: ImageDecoding) -> None:
        self._records = source / RECORDS
        self._params = params
        self._merges = merges_of(params)
        # Whether a name exists is asked by the main process, which has read the zip's directory.
        self._images = (
            None if params.verify_images == "exists" else ImageZip(source / IMAGES, decoding)
        )

    def __call__(self, place: _Place) -> _Block:
        with self._records.open("rb") as file:
            file.seek(place.offset)
            lines = io.BytesIO(file.read(place.length))
        rows: list[tuple[Any, ...]] = []
        items: list[_TurnOutcome | Drop] = []
        names: dict[str, None] = {}
        for index, record in parse_records(lines, place.first_line):
            if isinstance(record, Drop):
                items.append(record)
                continue
            image = record["image"]
            pairs, unpaired = pair(record, compat=self._params.compat)
            items += unpaired
            if pairs:
                names[image] = None
            alternate = index % 2 == 0
            image_first = alternate or self._params.image_place == "first"
            word_for_word = self._params.compat == "official"
            for identity, question, answer in pairs:
                question = without_marker(question)
                if not word_for_word:
                    question = question.strip()
                arranged = arrange(
                    question.strip(), answer, spacing=self._params.spacing, merges=self._merges
                )
                sections, fault = getattr(arranged, self._params.compat)
                if sections:
                    texts = [sections[section] for section in SECTIONS]
                    kept = answer if word_for_word else None
                    rows.append((identity, image, question, *texts, image_first, kept))
                corrected, official = (
                    outcome.fault.reason if outcome.fault else None
                    for outcome in (arranged.corrected, arranged.official)
                )
                moved = image_first != alternate
                items.append(
                    _TurnOutcome(
                        *(identity, image, moved, fault, corrected, official),
                        arranged.altered,
                        arranged.by_rule,
                    )
                )
        columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
        with pa.ipc.new_file(place.spool, SCHEMA) as file:
            file.write(pa.record_batch(columns, SCHEMA))
        images = Looked({}, {})
        if self._images:
            images = look(self._images, names, self._params.verify_images)
        return _Block(items, images)


def without_marker(question: str) -> str:
    """A question without LLaVA's marks of the image's place, at either end: `image_first` decides
    it here. Within a question `<image>` is text.

    >>> without_marker("What is it?\\n<image>"), without_marker("What does <image> mean?")
    ('What is it?', 'What does <image> mean?')
    """
    while question.lstrip().startswith("<image>"):
        question = question.lstrip().removeprefix("<image>").lstrip()
    while question.rstrip().endswith("<image>"):
        question = question.rstrip().removesuffix("<image>").rstrip()
    return question


def merges_of(params: Rewrite) -> Merges:
    """What decides in the official filter B. Raises `ValueError` for no tokenizer of Llama 3."""
    if params.llama_tokenizer is None:
        return RULE
    return TokenizerMerges(params.llama_tokenizer)


def look(
    images: ImageZip, names: Iterable[str], by: Literal["decode", "header", "exists"]
) -> Looked:
    """What is wrong with those of the images that cannot be used, and what is done to others."""
    looked = Looked({}, {})
    for name in names:
        try:
            if conversions := images.verify(name, by):
                looked.conversions[name] = conversions
        except ImageFault as fault:
            looked.faults[name] = Fault(fault.reason, str(fault))
    return looked


_reader: _Reader | None = None
"""The reader of a process of the pool."""


def _start(source: Path, params: Rewrite, decoding: ImageDecoding) -> None:
    global _reader
    _reader = _Reader(source, params, decoding)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _read(place: _Place) -> _Block:
    if _reader is None:
        raise RuntimeError("a process of the pool reads only after `_start`")
    return _reader(place)


def _blocks(
    source: Path, places: Sequence[_Place], params: Rewrite, decoding: ImageDecoding, workers: int
) -> Iterator[_Block]:
    """What became of the pieces of the records, in the file's order."""
    workers = min(workers, len(places))
    how = (source, params, decoding)
    if workers > 1:
        with ProcessPoolExecutor(workers, initializer=_start, initargs=how) as pool:
            yield from pool.map(_read, places)
    else:
        yield from map(_Reader(*how), places)


# The whole


def draw_heldout(groups: Sequence[str], *, heldout: float, seed: int) -> np.ndarray:
    """Which turns are held out: whole groups of turns, until they are a share `heldout` of all.

    `groups` names each turn's group: its image, so that no held-out image was trained on, or its
    id, as in the official split, where an image can be in both halves. Returns a bool for each.
    """
    names = sorted(set(groups))
    sizes = Counter(groups)
    chosen: set[str] = set()
    count = 0
    for position in np.random.default_rng(seed).permutation(len(names)):
        if count >= heldout * len(groups):
            break
        chosen.add(names[position])
        count += sizes[names[position]]
    return np.fromiter((group in chosen for group in groups), bool, len(groups))


@dataclass
class _Tally:
    """The turns that an arrangement keeps, and why it drops others."""

    filters: Mapping[str, str]
    ids: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def heldout(self, split: str, heldout: float, seed: int) -> np.ndarray:
        groups = self.images if split == "image" else self.ids
        return draw_heldout(groups, heldout=heldout, seed=seed)

    def report(self, split: str, heldout: float, seed: int) -> dict[str, Any]:
        held = self.heldout(split, heldout, seed)
        trained = {image for image, out in zip(self.images, held, strict=True) if not out}
        shared = sum(image in trained for image, out in zip(self.images, held, strict=True) if out)
        return {
            "kept": len(self.ids),
            "dropped": dict(sorted(self.dropped.items())),
            **{f"filter_{name}": self.dropped[reason] for name, reason in self.filters.items()},
            "split": split,
            "heldout": int(held.sum()),
            "heldout_on_trained_images": shared,
        }


class _Tallies:
    """What is known of all turns at once: their ids and images, and counts."""

    def __init__(self, images: ImageZip, params: Rewrite) -> None:
        self._images = images
        self._params = params
        self._seen: set[str] = set()
        # The number that a turn gets when its id has been there.
        self._again: Counter[str] = Counter()
        self._by_rule = 0
        self._moved = 0
        self._altered = np.zeros(len(PHASES), int)
        self._only: dict[str, Counter[str]] = {name: Counter() for name in ARRANGEMENTS}
        self.of = {name: _Tally(FILTERS[name]) for name in ARRANGEMENTS}
        self.dropped: Counter[str] = Counter()
        self.conversions: dict[str, tuple[str, ...]] = {}
        self.spooled: list[bool] = []
        """For each turn in the blocks' files: whether it is kept."""
        self.renamed: dict[int, str] = {}
        """The place of a turn in the blocks' files -> its id, where an earlier one has its own."""

    def drops(self, blocks: Iterable[_Block]) -> Iterator[Drop]:
        """Count what is in the blocks, and yield what is left out, in the file's order."""
        for block in blocks:
            faults = block.images.faults
            self.conversions.update(block.images.conversions)
            if self._params.verify_images == "exists":
                names = {item.image for item in block.items if isinstance(item, _TurnOutcome)}
                faults = look(self._images, names, "exists").faults
            for item in block.items:
                if isinstance(item, _TurnOutcome):
                    fault = self._count(item, faults.get(item.image))
                    if fault:
                        self.dropped[fault.reason] += 1
                        yield Drop(item.id, *fault)
                else:
                    self.dropped[item.reason] += 1
                    yield item

    def _count(self, turn: _TurnOutcome, image_fault: Fault | None) -> Fault | None:
        """Count a turn under both arrangements; return why it is not written."""
        fault, identity = image_fault, turn.id
        reasons = {name: fault.reason if fault else getattr(turn, name) for name in ARRANGEMENTS}
        if turn.id in self._seen:
            # The official script keeps turns of one id; here each has its own.
            repeated = Fault("repeated_id", "an earlier record has the same id")
            reasons["corrected"] = repeated.reason
            if self._params.compat == "corrected":
                fault = repeated
            while identity in self._seen:
                self._again[turn.id] += 1
                identity = f"{turn.id}#{self._again[turn.id] + 1}"
        self._seen.add(identity)
        # Millions of equal names would be as many strings otherwise.
        image = sys.intern(turn.image)
        for name, reason in reasons.items():
            if reason:
                self.of[name].dropped[reason] += 1
            else:
                self.of[name].ids.append(identity)
                self.of[name].images.append(image)
        corrected, official = reasons["corrected"], reasons["official"]
        if official and not corrected:
            self._only["corrected"][official] += 1
        elif corrected and not official:
            self._only["official"][corrected] += 1
        if not fault:
            self._moved += turn.image_moved
            self._altered += turn.altered
            self._by_rule += turn.by_rule
        if turn.fault is None:
            if identity != turn.id:
                self.renamed[len(self.spooled)] = identity
            self.spooled.append(fault is None)
        return fault or turn.fault

    def report(self, seed: int) -> dict[str, Any]:
        """Both arrangements, and what differs between them."""
        corrected, official = self.of["corrected"], self.of["official"]
        split = "image" if self._params.compat == "official" else self._params.split
        only = {name: dict(sorted(reasons.items())) for name, reasons in self._only.items()}
        return {
            "arrangements": {
                "corrected": corrected.report(split, self._params.heldout, seed),
                "official": {
                    **official.report("turn", self._params.heldout, seed),
                    "filter_b_by_rule": self._by_rule,
                },
            },
            "differences": {
                "kept_by_both": len(corrected.ids) - sum(self._only["corrected"].values()),
                "kept_by_corrected_only": only["corrected"],
                "kept_by_official_only": only["official"],
                "altered_by_str_replace": dict(zip(PHASES, self._altered.tolist(), strict=True)),
                "image_on_the_other_side": self._moved,
            },
        }


def rewrite(
    source: Path,
    folder: Path,
    params: Rewrite,
    *,
    seed: int,
    decoding: ImageDecoding = "faithful",
    workers: int | None = None,
    block: int = _BLOCK,
) -> dict[str, Any]:
    """Write `train.parquet`, `heldout.parquet` and `dropped.jsonl` into a folder that is there.

    Args:
        source: holds `train.jsonl` and `images.zip`.
        seed: of the split.
        decoding: of images, whose conversions are counted where they are verified by decoding.
        workers: processes that read; by default one for each processor, up to four.
        block: bytes of records that a process reads at once.

    Returns:
        What `metrics/rewrite.json` says about turns: how many are where, what was dropped for which
        reason, what each arrangement keeps, and what differs between them.

    Raises:
        ValueError: where a side of the split would be empty; `dropped.jsonl` is written even then.
            Or where `rewrite.llama_tokenizer` names none of Llama 3.
        FileNotFoundError: without one of the source's files.
    """
    if workers is None:
        workers = min(_WORKERS, len(os.sched_getaffinity(0)))
    merges_of(params)
    tallies = _Tallies(ImageZip(source / IMAGES), params)
    spool = folder / "spool"
    spool.mkdir()
    places = list(_places(source / RECORDS, spool, block))
    blocks = tracked(
        _blocks(source, places, params, decoding, workers), "records", len(places), "block"
    )
    write_jsonl(folder / "dropped.jsonl", (drop._asdict() for drop in tallies.drops(blocks)))
    kept = tallies.of[params.compat]
    held = kept.heldout(params.split, params.heldout, seed)
    n_held, n_train = int(held.sum()), int((~held).sum())
    if not n_held or not n_train:
        groups = len(set(kept.images)) if params.split == "image" else len(kept.ids)
        raise ValueError(
            f"rewrite.heldout = {params.heldout} of {len(held)} turns on {groups} {params.split}s "
            f"leaves {n_train} to train and {n_held} held out; both need at least one"
        )
    side = np.full(len(tallies.spooled), "dropped")
    side[tallies.spooled] = np.where(held, "heldout", "train")
    _sort(places, side, tallies.renamed, folder)
    spool.rmdir()
    images = {
        name: len({image for image, out in zip(kept.images, held, strict=True) if out == is_out})
        for name, is_out in (("train", False), ("heldout", True))
    }
    dropped = dict(sorted(tallies.dropped.items()))
    converted = Counter(
        conversion for name in set(kept.images) for conversion in tallies.conversions.get(name, ())
    )
    return {
        "turns": {"train": n_train, "heldout": n_held, "dropped": sum(dropped.values())},
        "images": {
            **images,
            "converted": (
                dict(sorted(converted.items())) if params.verify_images == "decode" else None
            ),
        },
        "dropped": dropped,
        **tallies.report(seed),
    }


def _sort(
    places: Iterable[_Place], side: np.ndarray, renamed: Mapping[int, str], folder: Path
) -> None:
    """Put the turns of the blocks' files where they belong; the blocks' files are removed."""
    start = 0
    with (
        TurnFile(folder / "train.parquet") as train,
        TurnFile(folder / "heldout.parquet") as heldout,
    ):
        for piece in places:
            with pa.ipc.open_file(piece.spool) as file:
                table = file.read_all()
            here = side[start : start + len(table)]
            if again := renamed.keys() & range(start, start + len(table)):
                ids = table["id"].to_pylist()
                for place in again:
                    ids[place - start] = renamed[place]
                table = table.set_column(0, SCHEMA.field("id"), pa.array(ids, pa.string()))
            start += len(table)
            for name, target in (("train", train), ("heldout", heldout)):
                target.write(table.filter(pa.array(here == name)))
            piece.spool.unlink()
