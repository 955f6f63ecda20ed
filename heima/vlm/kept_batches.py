"""Finished batches of a stage, on disk until its result is written: a killed run goes on from them.

Each batch is a file of its own that appears by a rename and bears its content's hash in its name.
So any number of processes may write at once, a run may go on with another number of them, and what
was damaged in between is computed again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from heima.results.bars import tracked
from heima.vlm.processes import Processes

ROOT = Path(".cache/batches")
"""Outside of what DVC deletes before a stage runs."""

T = TypeVar("T")


class KeptBatches:
    """The finished batches, numbered from 0, of the run that `folder` is named after.

    The folder's name must follow from all that a batch's content depends on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self) -> set[int]:
        """The numbers of the batches that are here and whole; what is damaged is told."""
        found = set()
        for file in sorted(self.folder.glob("*.batch")):
            if _sha256(file.read_bytes()) == file.name.split(".")[1]:
                found.add(int(file.name.split(".")[0]))
            else:
                print(f"{file} is damaged: its batch is computed again", flush=True)
        return found

    def put(self, batch: int, content: bytes) -> None:
        """Keep a finished batch; once this returns, it survives the process and the machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{batch:08d}.{_sha256(content)}.batch"
        partial = target.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)

    def get(self, batch: int) -> bytes:
        """The content of a finished batch.

        Raises `RuntimeError` where it is not here whole.
        """
        for file in self.folder.glob(f"{batch:08d}.*.batch"):
            content = file.read_bytes()
            if _sha256(content) == file.name.split(".")[1]:
                return content
        raise RuntimeError(
            f"{self.folder} lacks the batch {batch}; do all processes share this folder?"
        )

    def discard(self) -> None:
        """Forget the run: its result is where it belongs."""
        shutil.rmtree(self.folder, ignore_errors=True)


def compute(
    count: int,
    kept: KeptBatches,
    shared: Processes,
    work: Callable[[Sequence[int]], Iterator[bytes]],
    *,
    title: str,
) -> bool:
    """Have `kept` hold the batches 0 to `count` - 1: each process computes a share of the missing.

    `work` gives the contents of the batches that it is asked for, in their order; it is not called
    where this process has none to compute. Every process must call this. Returns whether this is
    the process that goes on with the results, which are then complete.

    Raises `RuntimeError` where another process has died.
    """
    finished = kept.finished()
    shared.meet()  # Or one would read what another has just added, and share out other batches.
    missing = [batch for batch in range(count) if batch not in finished]
    if shared.first:
        print(f"{title}: {count - len(missing)} of {count} batches known", flush=True)
    if own := shared.share(missing):
        contents = zip(own, work(own), strict=True)
        for batch, content in tracked(contents, title, len(own), "batch", show=shared.first):
            kept.put(batch, content)
    shared.meet()
    return shared.first


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
