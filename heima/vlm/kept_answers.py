"""Finished batches of a run, kept until they are needed again.

A run is one `generation.Plan` under one model. Its journal is a folder of JSON lines, one file for
each process that decodes, one line for each finished batch. The folder is named by a hash of all
that the answers depend on (`key`), so that what it holds is never anybody else's. Each line has the
hash of its content and of that name: a line that was changed, or moved, is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from heima.config import FeedScale, Params
from heima.results.files import sha256, write_json
from heima.results.provenance import digest, provenance
from heima.vlm.generation import Counts, Generation, Plan

ROOT = Path(".cache/predictions")
"""Outside of what DVC deletes before a stage runs."""

_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "pillow")


def weights_digest(models: Path, name: str) -> str:
    """A SHA-256 over the files of a model, and of `text-cot`: its processor serves every model.

    A model on the hub is known by its commit; of one in a given folder, the files count.
    Raises `FileNotFoundError` for a model that is not there.
    """
    total = hashlib.sha256()
    for folder in dict.fromkeys((models / name, models / "text-cot")):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} holds no model; `dvc repro predict` makes it")
        files = _files(folder)
        pointer = folder / "pretrained.json"
        if pointer.exists():
            given = json.loads(pointer.read_text(encoding="utf-8")).get("path")
            files |= _files(Path(given)) if given else {}
        for relative, file in sorted(files.items()):
            total.update(f"{relative}\0{sha256(file)}\n".encode())
    return total.hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    return {
        file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()
    }


def key(
    planned: Plan,
    params: Params,
    *,
    weights: str,
    prefix: str,
    feed: FeedScale | None = None,
    budget: int | None = None,
) -> dict[str, Any]:
    """All that the answers of a plan depend on.

    The code counts by the stage's fingerprint, where one was taken.
    """
    libraries = (*_LIBRARIES, "vllm") if params.predict.engine == "vllm" else _LIBRARIES
    cuda = torch.cuda.is_available()
    prompts = hashlib.sha256()
    for prompt, ids in zip(planned.prompts, planned.ids, strict=True):
        prompts.update(f"{json.dumps(prompt.question)} {prompt.image_key} {ids}\n".encode())
    return {
        "weights": weights,
        "family": params.family,
        "precision": params.precision,
        "engine": params.predict.engine,
        "decoding": planned.decoding.model_dump(mode="json"),
        "seed": planned.seed,
        "prefix": prefix,
        **({"feed": feed} if feed else {}),
        **({"budget": budget} if budget else {}),
        "prompts": prompts.hexdigest(),
        "code": provenance("predict", params)["code"],
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
    }


class Journal:
    """The finished batches of the run with that `key`, and where `rank` of `world` adds to them.

    Use it as a context: while one process has it open for writing, another of the same rank is
    refused (`BlockingIOError`). A line that a killed process left unfinished is dropped.

    Raises `ValueError` naming file and line where something else was written there.
    """

    def __init__(
        self, root: Path, key: Mapping[str, Any], *, rank: int = 0, world: int = 1
    ) -> None:
        self.folder = root / digest(key)
        self._key = key
        self._file = self.folder / f"{rank}-of-{world}.jsonl"

    def read(self) -> dict[int, list[Generation]]:
        """The answers of every finished batch, whichever process decoded it."""
        found: dict[int, list[Generation]] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for number, line in enumerate(_lines(file), start=1):
                try:
                    row = checked(line, self.folder.name)
                    batch, answers = row["batch"], [_generation(one) for one in row["answers"]]
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(
                        f"{file}, line {number}, is no finished batch ({error}); delete the file, "
                        "or predict with --fresh"
                    ) from error
                found[batch] = answers
        return found

    def clear(self) -> None:
        """Forget every finished batch, of all processes."""
        for file in self.folder.glob("*.jsonl"):
            file.unlink()

    def __enter__(self) -> Journal:
        write_json(self.folder / "key.json", dict(self._key))
        self._open = self._file.open("ab")
        try:
            fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._open.close()
            raise BlockingIOError(f"another process is writing {self._file}") from error
        self._open.truncate(sum(map(len, _lines(self._file))))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def append(self, batch: int, answers: Sequence[Generation]) -> None:
        """Add a finished batch; once this returns, it survives the process and the machine."""
        row: dict[str, Any] = {"batch": batch, "answers": [asdict(one) for one in answers]}
        row["sha256"] = _row_hash(row, self.folder.name)
        self._open.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._open.flush()
        os.fsync(self._open.fileno())


def checked(line: bytes, folder: str) -> dict[str, Any]:
    """The content of a line in the journal `folder` (its name), if it is what was written.

    Raises `ValueError`, saying why, where it is not.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    written = row.pop("sha256", None)
    if written is None:
        raise ValueError("it has no hash")
    if written != _row_hash(row, folder):
        raise ValueError("its content does not have its hash")
    return row


def _row_hash(row: Mapping[str, Any], folder: str) -> str:
    text = json.dumps([folder, row], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def faults(root: Path) -> Iterator[tuple[Path, str]]:
    """What in the journals below `root` is not what was written: each file, and why.

    A last line that a killed process left unfinished is none.
    """
    for folder in sorted(one for one in root.glob("*") if one.is_dir()):
        key_file = folder / "key.json"
        try:
            named = digest(json.loads(key_file.read_text(encoding="utf-8"))) == folder.name
        except (OSError, ValueError):
            named = False
        if not named:
            yield key_file, "is not the key that the folder is named by"
        for file in sorted(folder.glob("*.jsonl")):
            for number, line in enumerate(_lines(file), start=1):
                try:
                    checked(line, folder.name)
                except ValueError as error:
                    yield file, f"line {number} is no finished batch ({error})"


def _lines(file: Path) -> list[bytes]:
    """The finished lines of a file, each with its end."""
    return [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _generation(row: Mapping[str, Any]) -> Generation:
    return Generation(**{**row, "counts": Counts(**row["counts"])})
