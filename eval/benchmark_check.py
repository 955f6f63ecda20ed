"""Rows of a benchmark that no model could answer and no rule could score.

`check` looks at rows, `check_folder` at the split of a data set folder that the benchmark's tasks
read; it holds a few rows and a page of the parquet file at once. Both protocols read the same
columns.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.benchmark_data import BenchmarkDataError
from eval.vlmevalkit.cases import RowError, split_options
from heima.config.benchmarks import BENCHMARKS, Dataset
from heima.data.pictures import PIL_FAULTS, decode, worded

Row = Mapping[str, Any]
Fault = tuple[int, str]
"""A row's place in its split (lmms-eval's doc_id), and what is wrong with it: "kind: detail"."""

MISSING_IMAGE = "missing image"


def check(benchmark: str, rows: Iterable[Row]) -> list[Fault]:
    """The faults of a benchmark's rows, in their order; a row may have several.

    Looked for: a missing or broken image, an empty question, an empty option, fewer than two
    options, an answer outside the options, no answer, an identity that an earlier row has (MMBench
    numbers a question's rotations apart, so they do not count).

    Args:
        benchmark: a name of `Params.benchmarks`.
        rows: documents with the columns of its `Dataset`; images as `datasets` stores
            them, {"bytes": …, "path": …} or the bytes alone.
    """
    dataset, answer_faults = BENCHMARKS[benchmark].dataset, _FAULTS[benchmark]
    faults: list[Fault] = []
    seen: dict[tuple[Any, ...], int] = {}
    for place, row in enumerate(rows):
        faults += [(place, reason) for reason in _image_faults(row[dataset.image])]
        if _empty(row["question"]):
            faults.append((place, "empty question"))
        faults += [(place, reason) for reason in answer_faults(row)]
        if dataset.identity:
            identity = tuple(row[column] for column in dataset.identity)
            first = seen.setdefault(identity, place)
            if first != place:
                shown = ", ".join(
                    f"{column} {value}"
                    for column, value in zip(dataset.identity, identity, strict=True)
                )
                faults.append((place, f"duplicate index: {shown} is row {first} too"))
    return faults


def check_folder(benchmark: str, folder: Path) -> list[Fault]:
    """The faults of the split that a benchmark's tasks read.

    Raises `BenchmarkDataError` if the folder has no such configuration, split or column, or a file
    that is not parquet.
    """
    return check(benchmark, rows_of(benchmark, folder))


def rows_of(benchmark: str, folder: Path) -> Iterator[Row]:
    """The rows of the split that a benchmark's tasks read, with the columns that they read.

    Raises `BenchmarkDataError` as `check_folder` does.
    """
    dataset = BENCHMARKS[benchmark].dataset
    return _rows(dataset, _split_files(benchmark, dataset, folder))


def _split_files(benchmark: str, dataset: Dataset, folder: Path) -> list[Path]:
    """The files of the split, in their order, as `datasets` resolves them from the README."""
    from datasets import Features, load_dataset_builder
    from datasets import Image as ImageFeature

    split = dataset.split
    place = f"{folder}, as the data of {benchmark},"
    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = load_dataset_builder(
                str(folder.resolve()), name=dataset.configuration, cache_dir=cache
            )
    except (ValueError, FileNotFoundError) as error:
        raise BenchmarkDataError(f"{place} cannot be read: {error}") from error
    splits = builder.config.data_files or {}
    if split not in splits:
        raise BenchmarkDataError(
            f"{place} has no split {split!r}; it has {sorted(map(str, splits))}"
        )
    files = [Path(file) for file in splits[split]]
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise BenchmarkDataError(f"{file} is not a readable parquet file: {error}") from error
        needed = set(dataset.columns) - set(dataset.optional)
        lacking = [column for column in dataset.columns if column in needed - set(schema.names)]
        if lacking:
            raise BenchmarkDataError(
                f"{place} lacks the columns {', '.join(lacking)}: {file.name} has "
                f"{', '.join(schema.names)}"
            )
        features = builder.info.features or Features.from_arrow_schema(schema)
        if not isinstance(features.get(dataset.image), ImageFeature):
            raise BenchmarkDataError(
                f"{place} does not type its column {dataset.image} as an image, neither in the "
                f"README nor in {file.name}: `datasets` would not decode it"
            )
    return files


def _rows(dataset: Dataset, files: Iterable[Path]) -> Iterator[Row]:
    for file in files:
        # With a buffer and without pre-buffering, pages are read as they are needed.
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet:
            there = [name for name in dataset.columns if name in parquet.schema_arrow.names]
            try:
                for batch in parquet.iter_batches(batch_size=16, columns=there):
                    yield from batch.to_pylist()
            except (pa.ArrowInvalid, OSError) as error:
                raise BenchmarkDataError(f"{file} cannot be read: {error}") from error


def _empty(value: Any) -> bool:
    """Nothing there: None, not-a-number, blanks, or the text that pandas makes of nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().lower() in ("", "nan")


def _image_faults(value: Any) -> list[str]:
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not content:
        return [MISSING_IMAGE]
    try:
        decode(content, "faithful")
    except PIL_FAULTS as error:
        return [f"broken image: {worded(error)[:120]}"]
    return []


def _choice_faults(options: Mapping[str, Any], answer: Any) -> list[str]:
    """Faults of a question with options by letter; empty ones at the end are none."""
    filled = [letter for letter, option in options.items() if not _empty(option)]
    last = max(filled, default="")
    faults = [
        f"empty option: {letter}" for letter in options if letter < last and letter not in filled
    ]
    if len(filled) < 2:
        faults.append(f"too few options: {len(filled)}")
    if answer not in filled:
        allowed = ", ".join(filled) or "none"
        faults.append(f"answer outside the options: {answer!r}, the options are {allowed}")
    return faults


def _mmstar_faults(row: Row) -> list[str]:
    try:
        _, options = split_options(row["question"] or "")
    except RowError as error:
        return [f"unreadable options: {error}"]
    answer = row["answer"]
    if not isinstance(answer, str) or answer.strip().upper() not in options:
        return [f"answer outside the options: {answer!r}, the options are {', '.join(options)}"]
    return []


def _mmbench_faults(row: Row) -> list[str]:
    return _choice_faults({letter: row.get(letter) for letter in "ABCDE"}, row["answer"])


def _ai2d_faults(row: Row) -> list[str]:
    options = row["options"] or []
    faults = [f"empty option: {at}" for at, option in enumerate(options) if _empty(option)]
    if len(options) < 2:
        faults.append(f"too few options: {len(options)}")
    answer = str(row["answer"]).strip()
    if answer not in map(str, range(len(options))):
        faults.append(
            f"answer outside the options: {row['answer']!r}, the options are 0 to "
            f"{len(options) - 1}"
        )
    return faults


def _answer_faults(row: Row) -> list[str]:
    return ["no answer"] if _empty(row["answer"]) else []


def _mathvista_faults(row: Row) -> list[str]:
    choices = row["choices"] or []
    if row["question_type"] != "multi_choice":
        return _answer_faults(row)
    faults = [f"empty option: {at}" for at, choice in enumerate(choices) if _empty(choice)]
    if len(choices) < 2:
        faults.append(f"too few options: {len(choices)}")
    if row["answer"] not in choices:
        faults.append(f"answer outside the options: {row['answer']!r} is not one of {choices}")
    return faults


def _hallusionbench_faults(row: Row) -> list[str]:
    answer = str(row["gt_answer"])
    return [] if answer in ("0", "1") else [f"answer is neither 0 nor 1: {row['gt_answer']!r}"]


_FAULTS: dict[str, Callable[[Row], list[str]]] = {
    "mmstar": _mmstar_faults,
    "mmbench": _mmbench_faults,
    "mmvet": _answer_faults,
    "mathvista": _mathvista_faults,
    "ai2d": _ai2d_faults,
    "hallusionbench": _hallusionbench_faults,
}
"""Benchmark -> what is wrong with the options and the answer of a row."""
