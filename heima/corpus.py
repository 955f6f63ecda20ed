"""LLaVA-CoT's records, the turns that `heima.rewriting` makes of them, and their images, in files.

A record is `{"id", "image", "conversations": [{"from": "human"|"gpt", "value"}, …]}`. A line that
holds none is a `Drop` with a reason; nothing disappears uncounted.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFile

from heima import cot

COLUMNS = ["id", "image", "question", *cot.SECTIONS, "image_first"]
SCHEMA = pa.schema(
    [(name, pa.bool_() if name == "image_first" else pa.string()) for name in COLUMNS]
)

_ROWS = 8192
"""Turns of a row group: some 20 MB of text."""


@dataclass(frozen=True)
class Turn:
    """One question about one image with its staged answer.

    `image` is the path inside the source's zip; `image_first` says on which side of the question
    the image stands.
    """

    id: str
    image: str
    question: str
    summary: str
    caption: str
    reasoning: str
    conclusion: str
    image_first: bool

    @property
    def kind(self) -> str:
        """The kind of question: the image's folder, in LLaVA-CoT the data set it came from."""
        return posixpath.dirname(self.image)

    @property
    def sections(self) -> dict[str, str]:
        return {section: getattr(self, section) for section in cot.SECTIONS}


class Drop(NamedTuple):
    """A line, message or turn that was left out: where it stood, why, and what was wrong.

    `reason` is a short, countable name.
    """

    where: str
    reason: str
    detail: str


# PIL raises SyntaxError for a broken PNG chunk, OSError for a truncated or unknown file.
_IMAGE_FAULTS = (
    OSError,
    SyntaxError,
    EOFError,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
)


class ImageZip:
    """Images read straight from the zip they ship in.

    Raises `FileNotFoundError` naming the zip when it is absent, `ValueError` when it is no zip.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path} is missing: the source needs train.jsonl and images.zip in one folder"
            ) from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.path} is not a zip file: {error}") from error
        self._names = set(self._zip.namelist())

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])

    def read(self, name: str) -> Image.Image:
        """The decoded RGB image. Raises `ImageFault` with a countable reason."""
        return self._decode(name, reduced=False)

    def read_file(self, name: str) -> bytes:
        """The image's file as it ships. Raises `ImageFault` with a countable reason."""
        self._find(name)
        try:
            return self._zip.read(name)
        except _IMAGE_FAULTS as error:
            raise ImageFault("broken_image", f"{name!r} cannot be read: {error}") from error

    def verify(self, name: str, by: Literal["decode", "header", "exists"]) -> None:
        """Raise `ImageFault` with a countable reason where an image cannot be used.

        `exists` asks whether the zip has the name, `header` whether Pillow knows what the file
        begins with; `decode` reads all of it: whatever passes, `read` can read.
        """
        if by == "decode":
            self._decode(name, reduced=True)
            return
        self._find(name)
        if by == "header":
            try:
                with self._zip.open(name) as file, Image.open(file):
                    pass
            except _IMAGE_FAULTS as error:
                raise ImageFault("broken_image", f"{name!r} has no header: {error}") from error

    def _find(self, name: str) -> None:
        if posixpath.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise ImageFault("unsafe_image_path", f"{name!r} leaves the zip")
        if name not in self._names:
            raise ImageFault("missing_image", f"{name!r} is not in {self.path.name}")

    def _decode(self, name: str, *, reduced: bool) -> Image.Image:
        data = self.read_file(name)
        # lmms-eval switches on, for the whole process, that what is cut off is filled with grey.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            with Image.open(io.BytesIO(data)) as image:
                if reduced:
                    # A JPEG's bits are all read, but its pixels computed at an eighth of the size.
                    image.draft("RGB", (1, 1))
                return image.convert("RGB")
        except _IMAGE_FAULTS as error:
            raise ImageFault("broken_image", f"{name!r} cannot be decoded: {error}") from error


class ImageFault(ValueError):
    """An image that cannot be used; `reason` is a short, countable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_records(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | Drop]]:
    """The records of a `train.jsonl`, as `parse_records` yields them."""
    with Path(path).open("rb") as lines:
        yield from parse_records(lines)


def parse_records(
    lines: Iterable[bytes], first: int = 0
) -> Iterator[tuple[int, dict[str, Any] | Drop]]:
    """Yield (index, record) for each line, counted from `first`, or (index, Drop) for a bad one."""
    for index, line in enumerate(lines, first):
        where = f"line {index + 1}"
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield index, Drop(where, *_json_fault(line, error))
        else:
            fault = _record_fault(record)
            yield index, (Drop(where, "bad_record", fault) if fault else record)


def _json_fault(line: bytes, error: orjson.JSONDecodeError) -> tuple[str, str]:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as undecodable:
        return "not_utf8", str(undecodable)
    return "not_json", str(error)


def _record_fault(record: Any) -> str | None:
    if not isinstance(record, dict):
        return f"a record must be an object, got {type(record).__name__}"
    for key, kind in (("id", (str, int)), ("image", str), ("conversations", list)):
        if not isinstance(record.get(key), kind):
            return f"{key} = {record.get(key)!r}"
    for message in record["conversations"]:
        if (
            not isinstance(message, dict)
            or message.get("from") not in ("human", "gpt")
            or not isinstance(message.get("value"), str)
        ):
            return f"message {message!r} needs from = human or gpt, and a text value"
    return None


class TurnFile:
    """A parquet file of turns, written table by table in row groups of one size.

    The file depends on the rows alone, not on the tables that they come in.
    """

    def __init__(self, path: str | Path) -> None:
        # Few texts occur twice, so that a dictionary of them is not worth its time.
        self._writer = pq.ParquetWriter(path, SCHEMA, use_dictionary=["image", "image_first"])
        self._rest = SCHEMA.empty_table()

    def __enter__(self) -> TurnFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and len(self._rest):
            self._writer.write_table(self._rest.combine_chunks())
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        self._rest = pa.concat_tables([self._rest, table])
        while len(self._rest) >= _ROWS:
            self._writer.write_table(self._rest.slice(0, _ROWS).combine_chunks())
            self._rest = self._rest.slice(_ROWS)


def write_turns(path: str | Path, turns: Sequence[Turn]) -> None:
    with TurnFile(path) as file:
        file.write(pa.Table.from_pylist([asdict(turn) for turn in turns], SCHEMA))


def load_turns(path: str | Path) -> list[Turn]:
    """The turns of a parquet file that a `TurnFile` wrote."""
    columns = (column.to_pylist() for column in pq.read_table(path, columns=COLUMNS).columns)
    return [Turn(*row) for row in zip(*columns, strict=True)]


def first_turn(path: str | Path) -> Turn:
    """The first of the turns that `load_turns` returns, without reading the others."""
    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(batch_size=1, columns=COLUMNS))
    return Turn(**batch.to_pylist()[0])


def locate(folder: str | Path) -> Path:
    """The folder with `train.jsonl` and `images.zip`: `folder` itself, or what it points to."""
    pointer = Path(folder) / "source.json"
    if pointer.exists():
        return Path(json.loads(pointer.read_text(encoding="utf-8"))["folder"])
    return Path(folder)


def revision(folder: str | Path) -> str:
    """What identifies the source data: the SHA-256 of its `train.jsonl`."""
    with (Path(folder) / "train.jsonl").open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
