"""Where a training run stands, on disk: a run that was killed goes on as if it had not been.

What is saved are the weights that train, the optimizer's state and the run's progress, written by
all processes together (torch.distributed.checkpoint), so that a run may go on with another number
of them. A snapshot appears by a rename, when all of it is on the disk, with the hash of each of its
files. One that does not fit its hashes is told of and left alone: the run goes on from the one
before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from heima.config import Params
from heima.results.files import flush, flush_tree, read_json, sha256, write_json
from heima.results.provenance import digest

ROOT = Path(".cache/training")
"""Outside of what DVC deletes before a stage runs."""

_KEPT = 2
"""The newest snapshots: the one before the last stands in for it where that is damaged."""
_PROGRESS = "progress.json"
_HASHES = "hashes.json"
_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)


class Resume:
    """The snapshots of one run, in a folder of its own that is gone when the run is done.

    The newest two are kept. `others` is a folder with the snapshots of the same stage under other
    parameters, code or data, which are forgotten with the run's own.
    """

    def __init__(self, folder: Path, *, others: Path | None = None) -> None:
        self.folder = folder
        self._others = others

    def snapshots(self) -> list[Path]:
        """All whole snapshots, the newest first."""
        return sorted(self.folder.glob("step-*[0-9]"), reverse=True)

    def newest(self) -> Path | None:
        """The newest snapshot that is as it was written; those that are not are named."""
        for snapshot in self.snapshots():
            if not (faults := damage(snapshot)):
                return snapshot
            print(
                f"the snapshot {snapshot} is damaged ({'; '.join(faults)}): the run goes on from "
                "the one before, or from its beginning",
                flush=True,
            )
        return None

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Put a run's state into `model` and `optimizer`; the progress, or None for a new run."""
        found: list[str | None] = [None]
        if _first():
            newest = self.newest()
            found = [newest.name if newest else None]
        if dist.is_initialized():
            dist.broadcast_object_list(found)
        if found[0] is None:
            return None
        snapshot = self.folder / found[0]
        weights, state = get_state_dict(model, optimizer, options=_TRAINED_ONLY)
        stored: dict[str, Any] = {"model": weights, "optimizer": state}
        dcp.load(stored, checkpoint_id=snapshot, no_dist=not dist.is_initialized())
        set_state_dict(
            model,
            optimizer,
            model_state_dict=stored["model"],
            optim_state_dict=stored["optimizer"],
            options=_TRAINED_ONLY,
        )
        return read_json(snapshot / _PROGRESS)

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
    ) -> None:
        """Save the state after `progress["step"]` updates; every process must call it."""
        target = self.folder / f"step-{progress['step']:08d}"
        partial = target.with_suffix(".partial")
        if _first():
            for left in (target, *self.folder.glob("*.partial")):
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)
        _wait()
        weights, state = get_state_dict(model, optimizer, options=_TRAINED_ONLY)
        dcp.save(
            {"model": weights, "optimizer": state},
            checkpoint_id=partial,
            no_dist=not dist.is_initialized(),
        )
        if _first():
            (partial / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            write_json(partial / _HASHES, _hashes(partial))
            flush_tree(partial)
            partial.rename(target)
            flush(self.folder)
            # Later ones are of a run that went on from before them: damaged.
            later = [one for one in self.snapshots() if one.name > target.name]
            for folder in (*later, *self.snapshots()[len(later) + _KEPT :]):
                shutil.rmtree(folder)
        _wait()

    def discard(self) -> None:
        """Forget the run: its result is where it belongs."""
        for folder in (self.folder, *([self._others] if self._others else [])):
            shutil.rmtree(folder, ignore_errors=True)


def damage(snapshot: Path) -> list[str]:
    """What differs from what was written there, a file each; none of a snapshot that is whole."""
    try:
        written = read_json(snapshot / _HASHES)
    except FileNotFoundError:
        return [f"no {_HASHES}"]
    except ValueError:
        return [f"{_HASHES} is no JSON"]
    if not isinstance(written, dict):
        return [f"{_HASHES} is no mapping"]
    found = _hashes(snapshot)
    lost = [f"{name} is missing" for name in sorted(written.keys() - found.keys())]
    return lost + [
        f"{name} is not what was written"
        for name, value in sorted(found.items())
        if written.get(name) != value
    ]


def _hashes(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != _HASHES
    }


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def of(stage: str, params: Params, *used: str, inputs: Iterable[Path]) -> Resume:
    """The snapshots of a stage's run, which are those of no other (`key`)."""
    others = ROOT / stage
    return Resume(others / key(stage, params, *used, inputs=inputs), others=others)


def key(stage: str, params: Params, *used: str, inputs: Iterable[Path]) -> str:
    """A name for what a run is made from: its parameters, its code and the files that it reads.

    Parameters: `used` are the keys of `params` that count, dotted; `inputs` are files or folders.
    """
    plain = params.model_dump(mode="json", by_alias=True)
    chosen = {}
    for name in used:
        value = plain
        for part in name.split("."):
            value = value[part]
        chosen[name] = value
    fingerprint = Path("fingerprints") / f"{stage.partition('@')[0]}.json"
    files = sorted(
        file
        for path in (*inputs, *([fingerprint] if fingerprint.exists() else []))
        for file in (path.rglob("*") if path.is_dir() else [path])
        if file.is_file()
    )
    hashes = {str(file): sha256(file) for file in files}
    return digest({"stage": stage, "params": chosen, "files": hashes})
