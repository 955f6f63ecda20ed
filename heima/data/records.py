"""Records of LLaVA-CoT: a line of JSON about one image, with a conversation of several turns."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Drop(NamedTuple):
    """A line, message or turn that was left out: where it stood, why, and what was wrong.

    `reason` is a short, countable name.
    """

    where: str
    reason: str
    detail: str


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
        if not index:
            line = line.removeprefix(codecs.BOM_UTF8)
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
