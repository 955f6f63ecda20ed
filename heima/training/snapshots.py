"""Where a training run stands, on disk: a run that was killed goes on as if it had not been.

What is saved are the weights that train, the optimizer's state and the run's progress, written by
all processes together (torch.distributed.checkpoint), so that a run may go on with another number
of them. A snapshot appears by a rename, when all of it is written.
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
from heima.results.files import sha256
from heima.results.provenance import digest

ROOT = Path(".cache/training")
"""Outside of what DVC deletes before a stage runs."""

_PROGRESS = "progress.json"
_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True, strict=False)


class Resume:
    """The snapshots of one run, in a folder of its own that is gone when the run is done.

    Only the newest is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> Path | None:
        """The newest whole snapshot."""
        return max(self.folder.glob("step-*[0-9]"), default=None)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Put a run's state into `model` and `optimizer`; the progress, or None for a new run."""
        newest = self.newest()
        if newest is None:
            return None
        weights, state = get_state_dict(model, optimizer, options=_TRAINED_ONLY)
        stored: dict[str, Any] = {"model": weights, "optimizer": state}
        dcp.load(stored, checkpoint_id=newest, no_dist=not dist.is_initialized())
        set_state_dict(
            model,
            optimizer,
            model_state_dict=stored["model"],
            optim_state_dict=stored["optimizer"],
            options=_TRAINED_ONLY,
        )
        return json.loads((newest / _PROGRESS).read_text(encoding="utf-8"))

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
    ) -> None:
        """Save the state after `progress["step"]` updates; every process must call it."""
        target = self.folder / f"step-{progress['step']:08d}"
        partial = target.with_suffix(".partial")
        first = not dist.is_initialized() or dist.get_rank() == 0
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        _wait()
        weights, state = get_state_dict(model, optimizer, options=_TRAINED_ONLY)
        dcp.save(
            {"model": weights, "optimizer": state},
            checkpoint_id=partial,
            no_dist=not dist.is_initialized(),
        )
        if first:
            (partial / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            older = list(self.folder.glob("step-*[0-9]"))
            partial.rename(target)
            for folder in older:
                shutil.rmtree(folder)
        _wait()

    def discard(self) -> None:
        """Forget the run: its result is where it belongs."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


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
