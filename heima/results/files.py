"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block may create a file or a folder there. What an exception leaves is removed, and
    `path` is then as it was before. All content is on the disk before the rename is, so that a
    machine that loses power keeps the old or the new. What a killed process leaves is named
    `.NAME.PID.tmp`: DVC ignores it, and the next run removes it (stages/leftovers.py).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        flush_tree(temporary)
        if temporary.is_dir() or target.is_dir():
            # A file is replaced at once; a folder would have to be empty.
            remove(target)
        os.replace(temporary, target)
        flush(target.parent)
    finally:
        remove(temporary)


def flush_tree(path: Path) -> None:
    """Have the system write a file, or a folder with all that lies in it, to the disk (fsync)."""
    if path.is_symlink():
        return
    if path.is_dir():
        for inner in path.iterdir():
            flush_tree(inner)
    flush(path)


def flush(path: Path) -> None:
    """The same of a file, or of the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that lies in it; what is not there stays so."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON that a diff can read; not-a-number is an error, never a value."""
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
