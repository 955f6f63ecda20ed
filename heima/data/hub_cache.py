"""What the hub's cache holds: nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    snapshot_download,
)
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
)

Kind = Literal["dataset", "model"]


def cached(kind: Kind, repository: str, commit: str, patterns: Sequence[str]) -> Path | None:
    """The folder of a commit in the hub's cache, if all of its matching files are there."""
    try:
        found = snapshot_download(
            repository,
            repo_type=kind,
            revision=commit,
            allow_patterns=list(patterns),
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)
