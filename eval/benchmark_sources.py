"""Provide the benchmarks' data that params name: a folder, a .tsv file or a data set of the hub.

A folder is read where it lies. VLMEvalKit's MMBench file becomes a data set folder with the columns
that lmms-eval's task reads. The hub's data sets go into the hub's cache, which an interrupted
download resumes file by file. Nothing here needs a model or lmms-eval.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.benchmark_check import MISSING_IMAGE, Fault, check_folder
from eval.benchmark_data import (
    AGAIN,
    PATTERNS,
    SOURCE,
    BenchmarkDataError,
    Files,
    cached_snapshot,
    inspect,
    is_tsv,
)
from heima.config import DatasetSource, GivenSource, Params, expected, given
from heima.config.benchmarks import BENCHMARKS
from heima.data.hub import Repository
from heima.results.files import sha256, write_json

_REFERENCE = 64
"""A text no longer than this, in place of an image, is the index of the row whose image it is."""
_LONGEST_FIELD = 1 << 27
_ROW_GROUP = 64
_MMBENCH_NEEDS = ("index", "question", "answer", "A", "B", "image", "category")
_MMBENCH_MAY_LACK = {"hint": "nan", "C": "nan", "D": "nan", "E": "nan", "source": "nan"}


def provide(params: Params, target: Path) -> None:
    """Fetch, convert and check the data of every name in `source.benchmarks`.

    Writes conversions to `target/<name>/` and what was found to `target/source.json` (see
    `eval.benchmark_data.SOURCE`).

    Raises:
        HubError: if data of the hub cannot be had (the message says what to do).
        BenchmarkDataError: if other data cannot be had, or has rows that cannot be scored; it lists
            all of them, of all data sets.
    """
    found, complaints = {}, []
    for name, source in expected(GivenSource, params.source, "source").benchmarks.items():
        benchmarks = params.readers(name)
        if not benchmarks:
            raise BenchmarkDataError(
                f"source.benchmarks.{name} is read by no protocol: name it in "
                "protocols.<protocol>.data, or remove it"
            )
        entry = source.model_dump(exclude_none=True)
        faults: list[Fault] = []
        if is_tsv(source):
            folder = target / name
            entry["tsv"], faults = _convert(
                name, benchmarks, Path(given(source.path, "path")), folder
            )
        elif source.path is not None:
            folder = _given(name, Path(source.path))
        else:
            folder, entry["revision"] = download(name, source)
        try:
            entry["edition"], entry["files"] = inspect(folder)
        except FileNotFoundError as error:
            raise BenchmarkDataError(f"source.benchmarks.{name}: {error}") from error
        if source.id is not None:
            _undamaged(name, folder, entry["files"])
        unread = {place for place, _ in faults}
        for benchmark in benchmarks:
            faults += [
                (place, reason)
                for place, reason in check_folder(benchmark, folder)
                if not (place in unread and reason == MISSING_IMAGE)
            ]
        if faults:
            complaints.append(report(f"{name} ({source.path or source.id})", faults))
        found[name] = entry
    if complaints:
        raise BenchmarkDataError(
            "\n".join(complaints)
            + "\nNone of them can be scored and none is dropped: correct the rows in a copy, and "
            "give it as source.benchmarks.<name>.path"
        )
    write_json(target / SOURCE, found)


def report(title: str, faults: list[Fault]) -> str:
    """All faults of a data set: counted by kind, then row by row."""
    kinds = Counter(reason.partition(":")[0] for _, reason in faults)
    rows = len({place for place, _ in faults})
    return "\n".join(
        [
            f"{title} has {rows} bad row{'s' if rows > 1 else ''}:",
            *(f"  {count} x {kind}" for kind, count in kinds.most_common()),
            *(f"  row {place}: {reason}" for place, reason in sorted(faults)),
        ]
    )


def _given(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise BenchmarkDataError(
            f"source.benchmarks.{name}.path = {folder} is not a folder with parquet files, and not "
            "a .tsv file of VLMEvalKit"
        )
    return folder


def download(name: str, source: DatasetSource) -> tuple[Path, str]:
    """The folder of a hub data set in the hub's cache, and its commit.

    A pinned commit that the cache holds needs no network. Before anything is downloaded, the disk
    must have room for all of it.

    Raises `HubError` for a commit that the hub does not have (any more), a data set that is not
    there or not open to this user, no connection, too little disk.
    """
    identity = given(source.id, "id")
    if source.revision and (folder := cached_snapshot(identity, source.revision)):
        return folder, source.revision
    repository = Repository(
        "dataset",
        identity,
        source.revision,
        key=f"source.benchmarks.{name}",
        again=AGAIN,
        instead=f"or download it elsewhere and give its folder as source.benchmarks.{name}.path",
    )
    info = repository.info()
    repository.check_room_in_cache(info, PATTERNS)
    return repository.snapshot(info, PATTERNS), repository.commit(info)


def _undamaged(name: str, folder: Path, files: Files) -> None:
    """The hub's cache names large files by their SHA-256: a damaged one does not have its name."""
    for file, facts in files.items():
        blob = (folder / file).resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != facts["sha256"]:
            raise BenchmarkDataError(
                f"{file} of the data set {name} is damaged in the hub's cache: its SHA-256 is "
                f"{facts['sha256']}, not {blob.name}; delete {blob} and {AGAIN}"
            )


def _convert(
    name: str, benchmarks: list[str], tsv: Path, folder: Path
) -> tuple[dict[str, Any], list[Fault]]:
    """Convert a file of VLMEvalKit; returns its size and checksums, and rows without an image."""
    if benchmarks != ["mmbench"]:
        raise BenchmarkDataError(
            f"source.benchmarks.{name}.path = {tsv}: only MMBench is converted from a .tsv file; "
            f"give {', '.join(benchmarks)} as a folder or an id"
        )
    if not tsv.is_file():
        raise BenchmarkDataError(
            f"source.benchmarks.{name}.path = {tsv} is missing: download VLMEvalKit's file of "
            "that name, or give a folder or an id"
        )
    with tsv.open("rb") as file:
        # VLMEvalKit publishes the MD5 of its files.
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    faults = convert_mmbench(tsv, folder)
    return {"bytes": tsv.stat().st_size, "sha256": sha256(tsv), "md5": md5}, faults


def convert_mmbench(tsv: Path, folder: Path) -> list[Fault]:
    """Write VLMEvalKit's MMBench file as a data set folder like the hub's.

    Reads the file twice and holds one row group; images that rows share are read again where they
    are referred to. Returns the rows whose image could not be read; they are written without one.

    Raises `BenchmarkDataError` for a file that is not such a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, Value

    dataset = BENCHMARKS["mmbench"].dataset
    text = (*("question", "hint", "answer", "A", "B", "C", "D", "E", "category"), "L2-category")
    schema = Features(
        {
            "index": Value("int64"),
            **dict.fromkeys((*text, "source", "split"), Value("string")),
            "image": Image(),
        }
    ).arrow_schema
    images = {row["index"]: at for at, row in _table(tsv) if len(row["image"]) > _REFERENCE}
    folder.mkdir(parents=True)
    unnamed = folder / f"{dataset.split}.parquet"
    faults: list[Fault] = []
    with pq.ParquetWriter(unnamed, schema) as writer:
        group: list[dict[str, Any]] = []
        for place, (_, row) in enumerate(_table(tsv)):
            image, fault = _image(tsv, row["image"], images)
            if fault:
                faults.append((place, fault))
            group.append(_mmbench_row(tsv, row) | {"image": image})
            if len(group) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    # `datasets` caches by file name, not by content: an equal name would return old rows.
    file = unnamed.rename(folder / f"{dataset.split}-{sha256(unnamed)[:12]}.parquet")
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {dataset.configuration}\n  data_files:\n"
        f"  - split: {dataset.split}\n    path: {file.name}\n---\n"
        f"{tsv.name} of VLMEvalKit, converted by eval.benchmark_sources.\n",
        encoding="utf-8",
    )
    return faults


def _mmbench_row(tsv: Path, row: dict[str, str]) -> dict[str, Any]:
    """A row in lmms-eval's columns, where "nan" stands for nothing."""
    try:
        index = int(row["index"])
    except ValueError as error:
        raise BenchmarkDataError(f"{tsv}: index {row['index']!r} is not a whole number") from error
    broad = row.get("L2-category", row.get("l2-category"))
    optional = {column: row.get(column) or nothing for column, nothing in _MMBENCH_MAY_LACK.items()}
    return {
        "index": index,
        **{column: row[column] or "nan" for column in ("A", "B")},
        **{column: row[column] for column in ("question", "answer", "category")},
        **optional,
        "L2-category": broad or "nan",
        "split": row.get("split") or BENCHMARKS["mmbench"].dataset.split,
    }


def _image(
    tsv: Path, field: str, images: dict[str, int]
) -> tuple[dict[str, Any] | None, str | None]:
    """The image of a row, or why there is none."""
    if not field:
        return None, MISSING_IMAGE
    if len(field) <= _REFERENCE:
        if field not in images:
            return None, f"{MISSING_IMAGE}: it repeats that of index {field}, which has none"
        _, row = next(_table(tsv, images[field]))
        field = row["image"]
    try:
        content = base64.b64decode("".join(field.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return None, f"broken image: {error}"
    return {"bytes": content, "path": None}, None


def _table(tsv: Path, at: int | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a .tsv file, each with its offset; from the row at the offset `at`.

    Raises `BenchmarkDataError` where the file is not a table of UTF-8 text with MMBench's columns.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    with tsv.open("rb") as file:
        position = start = 0

        def lines() -> Iterator[str]:
            nonlocal position
            for line in file:
                position += len(line)
                yield line.decode("utf-8")

        reader = csv.reader(lines(), delimiter="\t")
        try:
            header = next(reader, [])
            lacking = [column for column in _MMBENCH_NEEDS if column not in header]
            if lacking:
                raise BenchmarkDataError(
                    f"{tsv} lacks the columns {', '.join(lacking)}: its first line has "
                    f"{', '.join(header)[:200]!r}"
                )
            if at is not None:
                file.seek(at)
                position = at
            while True:
                start = position
                fields = next(reader, None)
                if fields is None:
                    return
                if len(fields) != len(header):
                    raise BenchmarkDataError(
                        f"{tsv}: the row at byte {start} has {len(fields)} fields, the first line "
                        f"{len(header)}: the file is cut or damaged, download it again"
                    )
                yield start, dict(zip(header, fields, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BenchmarkDataError(
                f"{tsv}: the row at byte {start} is damaged ({error}): download the file again"
            ) from error
