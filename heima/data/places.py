"""Where the source lies: in its own folder, or where `prepare` found it."""

from __future__ import annotations

import json
from pathlib import Path

from heima.results.files import sha256


def locate(folder: str | Path) -> Path:
    """The folder with `train.jsonl` and `images.zip`: `folder` itself, or what it points to."""
    pointer = Path(folder) / "source.json"
    if pointer.exists():
        return Path(json.loads(pointer.read_text(encoding="utf-8"))["folder"])
    return Path(folder)


def revision(folder: str | Path) -> str:
    """What identifies the source data: the SHA-256 of its `train.jsonl`."""
    return f"sha256:{sha256(Path(folder) / 'train.jsonl')}"
