"""Result files that the parameters name: there, of this profile, and no other.

What is not so is added to a list of problems, a line each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from heima.config import Params
from heima.results.cells import Cell, read_metrics


def is_there(root: Path, source: str, stage: str, problems: list[str]) -> bool:
    """Whether the file `source` is below `root`; if not, that `stage` makes it is a problem."""
    if (root / source).is_file():
        return True
    problems.append(f"{source} is missing: run `dvc repro {stage}`")
    return False


def of_profile(made: Mapping[str, Any], source: str, params: Params, problems: list[str]) -> None:
    """The provenance `made` of the file `source` must be of this profile."""
    if made["profile"] != params.profile:
        problems.append(
            f"{source} is of the profile {made['profile']}, params.yaml is {params.profile}: "
            "run `dvc repro`"
        )


def metrics(
    root: Path, source: str, stage: str, params: Params, problems: list[str]
) -> tuple[dict[str, dict[str, Cell]], dict[str, Any]] | None:
    """The cells and the provenance of a metrics file of this profile; None where it is missing."""
    if not is_there(root, source, stage, problems):
        return None
    cells, made = read_metrics(root / source)
    of_profile(made, source, params, problems)
    return cells, made


def no_other(root: Path, folder: str, named: Collection[str], problems: list[str]) -> None:
    """`folder` must have metrics files of these names alone."""
    for path in sorted((root / folder).glob("*.json")):
        if path.stem not in named:
            problems.append(
                f"{folder}/{path.name} is left over, params.yaml names no {path.stem}: "
                "remove the file"
            )
