"""What mirroring needs: of runs as MLflow has them, of git, and of names."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.tracking.entries import DataSet

if TYPE_CHECKING:
    from mlflow.entities import Run

_NAME = 100
"""How long the name of a reproduction may be."""
_CODE = ("heima", "eval", "reports/*.py", "reports/*/*.py", "stages", "params.yaml", "dvc.yaml")


def dataset(data: DataSet) -> Any:
    from mlflow.entities import Dataset

    return Dataset(
        name=data.name,
        digest=data.digest,
        source_type="local",
        source=json.dumps({"uri": data.path}),
        profile=None if data.rows is None else json.dumps({"num_rows": data.rows}),
    )


def children_of(found: Sequence[Run]) -> dict[str, dict[str, Run]]:
    """Reproduction -> the runs of its entries, by name."""
    children: dict[str, dict[str, Run]] = {}
    for run in found:
        if "digest" in run.data.tags:
            children.setdefault(run.data.tags["reproduction"], {})[run.info.run_name] = run
    return children


def digests(children: Mapping[str, Run]) -> dict[str, str]:
    return {name: run.data.tags["digest"] for name, run in children.items()}


def short(differing: Sequence[str]) -> str:
    """As many as a name has room for.

    >>> short(["a 1 → 2", "b = 3"]), short(["x" * 90, "y" * 90])[-8:]
    ('a 1 → 2, b = 3', ', 1 more')
    """
    shown = list(differing)
    while len(text := ", ".join(shown)) > _NAME and len(shown) > 1:
        shown.pop()
    left = len(differing) - len(shown)
    return (text[:_NAME] if len(text) > _NAME else text) + (f", {left} more" if left else "")


def ms(seconds: float) -> int:
    return round(seconds * 1000)


def file_md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def git_tags(root: Path) -> dict[str, str]:
    """The commit, and whether code or parameters differ from it; nothing outside a repository."""

    if shutil.which("git") is None:
        return {}

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )

    commit = git("rev-parse", "HEAD")
    if commit.returncode:
        return {}
    # Result files in git change with every run; they do not make the code another.
    changed = git("status", "--porcelain", "--", *_CODE).stdout.strip()
    return {
        "mlflow.source.git.commit": commit.stdout.strip(),
        "git_dirty": str(bool(changed)).lower(),
    }
