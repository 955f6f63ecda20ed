"""LLaVA-CoT records -> turns with parsed sections, split into train and held-out.

A record is `{"id", "image", "conversations": [{"from": "human"|"gpt", "value"}, …]}`; every
(human, gpt) pair becomes one turn without history (recipe, section 1). Whatever cannot become a
turn is a `Drop` with a reason; nothing disappears uncounted.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageFile

from heima import cot

COLUMNS = ["id", "image", "question", *cot.SECTIONS, "image_first"]


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


@dataclass(frozen=True)
class Drop:
    """A line, record or turn that was left out: where it stood, why, and what was wrong."""

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
        data = self.read_file(name)
        # lmms-eval switches on, for the whole process, that what is cut off is filled with grey.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            with Image.open(io.BytesIO(data)) as image:
                return image.convert("RGB")
        except _IMAGE_FAULTS as error:
            raise ImageFault("broken_image", f"{name!r} cannot be decoded: {error}") from error

    def read_file(self, name: str) -> bytes:
        """The image's file as it ships. Raises `ImageFault` with a countable reason."""
        if posixpath.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise ImageFault("unsafe_image_path", f"{name!r} leaves the zip")
        if name not in self._names:
            raise ImageFault("missing_image", f"{name!r} is not in {self.path.name}")
        try:
            return self._zip.read(name)
        except _IMAGE_FAULTS as error:
            raise ImageFault("broken_image", f"{name!r} cannot be read: {error}") from error


class ImageFault(ValueError):
    """An image that cannot be used; `reason` is a short, countable name."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_records(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | Drop]]:
    """Yield (index, record) for each line of a `train.jsonl`, or (index, Drop) for a bad line."""
    with Path(path).open("rb") as file:
        for index, line in enumerate(file):
            where = f"line {index + 1}"
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield index, Drop(where, "not_utf8", str(error))
            except json.JSONDecodeError as error:
                yield index, Drop(where, "not_json", str(error))
            else:
                fault = _record_fault(record)
                yield index, (Drop(where, "bad_record", fault) if fault else record)


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


def read_turns(
    path: str | Path,
    images: ImageZip,
    *,
    spacing: Literal["canonical", "any"],
    image_place: Literal["alternate", "first"],
) -> Iterator[Turn | Drop]:
    """Flatten, check and parse every record of a `train.jsonl`, in the file's order.

    With `spacing="canonical"` an answer must be spaced exactly as `cot.render` writes it
    (the recipe's filter B). The image stands before every question, or, with
    `image_place="alternate"`, after those of records with an odd index (recipe, section 1).
    A record whose image is unusable drops all its turns, one `Drop` each; of turns with the same
    id the first is kept.
    """
    seen: set[str] = set()
    for index, record in read_records(path):
        if isinstance(record, Drop):
            yield record
            continue
        paired, unpaired = _pair(record)
        yield from unpaired
        pairs = []
        for pair in paired:
            if pair[0] in seen:
                yield Drop(pair[0], "repeated_id", "an earlier record has the same id")
            else:
                seen.add(pair[0])
                pairs.append(pair)
        try:
            images.read(record["image"])
        except ImageFault as fault:
            for identity, _, _ in pairs:
                yield Drop(identity, fault.reason, str(fault))
            continue
        for identity, question, answer in pairs:
            image_first = image_place == "first" or index % 2 == 0
            yield _turn(identity, record["image"], question, answer, image_first, spacing)


def _pair(record: dict[str, Any]) -> tuple[list[tuple[str, str, str]], list[Drop]]:
    """(turn id, question, answer) of each human message that a gpt message follows."""
    pairs, unpaired = [], []
    messages = record["conversations"]
    position = 0
    while position < len(messages):
        following = messages[position + 1]["from"] if position + 1 < len(messages) else "nothing"
        if messages[position]["from"] == "human" and following == "gpt":
            identity = f"{record['id']}-{len(pairs) + 1}"
            pairs.append((identity, messages[position]["value"], messages[position + 1]["value"]))
            position += 2
        else:
            unpaired.append(
                Drop(
                    f"{record['id']} message {position + 1}",
                    "unpaired_message",
                    f"{messages[position]['from']} is followed by {following}",
                )
            )
            position += 1
    return pairs, unpaired


def _turn(
    identity: str, image: str, question: str, answer: str, image_first: bool, spacing: str
) -> Turn | Drop:
    # LLaVA marks the image's place in the question; here `image_first` decides it.
    question = question.replace("<image>", "").strip()
    if not question:
        return Drop(identity, "empty_question", "the human message is empty")
    try:
        sections = cot.parse(answer)
    except cot.ParseError as error:
        return Drop(identity, error.reason, str(error))
    for section in cot.COMPRESSIBLE:
        token = cot.thinking_token(section)
        if token in question or token in answer:
            return Drop(identity, "thinking_token_in_text", f"{token} occurs in the text")
    if spacing == "canonical" and not cot.is_canonical(answer):
        return Drop(identity, "odd_spacing", "not spaced as `<TAG> text </TAG>` and an empty line")
    return Turn(identity, image, question, **sections, image_first=image_first)


def split(
    turns: Sequence[Turn], *, heldout: float, by: Literal["image", "turn"], seed: int
) -> tuple[list[Turn], list[Turn]]:
    """Split into (train, held-out), each in the given order; `heldout` is the share of turns.

    By `image`, whole images go to one side, so that no held-out image was trained on; by `turn`
    is the official split, where an image can be in both halves.
    Raises `ValueError` where either side would be empty.
    """
    group = [turn.image if by == "image" else turn.id for turn in turns]
    names = sorted(set(group))
    sizes = Counter(group)
    chosen: set[str] = set()
    count = 0
    for position in np.random.default_rng(seed).permutation(len(names)):
        if count >= heldout * len(turns):
            break
        chosen.add(names[position])
        count += sizes[names[position]]
    train = [turn for turn, name in zip(turns, group, strict=True) if name not in chosen]
    held = [turn for turn, name in zip(turns, group, strict=True) if name in chosen]
    if not train or not held:
        raise ValueError(
            f"rewrite.heldout = {heldout} of {len(turns)} turns on {len(names)} {by}s leaves "
            f"{len(train)} to train and {len(held)} held out; both need at least one"
        )
    return train, held


def write_turns(path: str | Path, turns: Sequence[Turn]) -> None:
    pd.DataFrame([asdict(turn) for turn in turns], columns=COLUMNS).to_parquet(path, index=False)


def load_turns(path: str | Path) -> list[Turn]:
    """The turns of a parquet file that `write_turns` wrote."""
    return [Turn(**row) for row in pd.read_parquet(path).to_dict("records")]


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
