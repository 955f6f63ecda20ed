"""Result files: cells with n, failures and interval, provenance beside them, written atomically.

Every metrics file of the pipeline has one shape:

    {"cells": {"<group>": {"<metric>": {"value": …, "low": …, "high": …, "n": …, "n_failed": …}}},
     "provenance": {"stage": …, "profile": …, "seed": …, "code": …, "params": …, …,
                    "versions": {"torch": …, …}, "machine": {"cpu": …, …}}}

A cell that depends on training seeds also has `seeds` (each seed's value), and, of several, `sd`
and `t_interval`, which follow from it.

`versions` may decide a number. `machine` and `seconds` decide none and differ from run to run: two
results are compared without them (`stages.check`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

from pydantic import BaseModel

from heima import machine
from heima.config import Params


@dataclass(frozen=True)
class Cell:
    """One number of a table: `low` and `high` bound its 95 % interval.

    `n` counts the samples that the value averages, failures scored as such included;
    `n_failed` counts those that failed (an empty text, an answer without a conclusion). `seeds` has
    the value of each training seed, of which `value` is the mean; it is empty where no training is
    involved.
    """

    value: float
    low: float
    high: float
    n: int
    n_failed: int = 0
    seeds: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"a cell's {name} must be finite, got {getattr(self, name)!r}")
        if not 0 <= self.n_failed <= self.n or self.n < 1:
            raise ValueError(f"a cell needs 0 <= n_failed <= n and n >= 1, got {self}")

    @property
    def sd(self) -> float | None:
        """The standard deviation between training seeds; None for less than two."""
        return stdev(self.seeds.values()) if len(self.seeds) > 1 else None

    @property
    def t_interval(self) -> tuple[float, float] | None:
        """The 95 % t interval of the mean of the training seeds' values; None for less than two."""
        if self.sd is None:
            return None
        from scipy.special import stdtrit

        count = len(self.seeds)
        half = float(stdtrit(count - 1, 0.975)) * self.sd / math.sqrt(count)
        return self.value - half, self.value + half

    @property
    def p(self) -> float | None:
        """The probability of a mean as far from 0 by chance (t test on the training seeds' values).

        None for less than two.
        """
        if self.sd is None:
            return None
        if self.sd == 0:
            return 1.0 if self.value == 0 else 0.0
        from scipy.special import stdtr

        count = len(self.seeds)
        return float(2 * stdtr(count - 1, -abs(self.value) / (self.sd / math.sqrt(count))))

    def to_json(self) -> dict[str, Any]:
        """As a metrics file has it."""
        plain: dict[str, Any] = {
            name: getattr(self, name) for name in ("value", "low", "high", "n", "n_failed")
        }
        if self.seeds:
            plain["seeds"] = {str(seed): value for seed, value in self.seeds.items()}
        if self.sd is not None:
            plain |= {"sd": self.sd, "t_interval": list(self.t_interval)}
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Cell:
        own = {name: plain[name] for name in ("value", "low", "high", "n", "n_failed")}
        seeds = {int(seed): value for seed, value in plain.get("seeds", {}).items()}
        return cls(**own, seeds=seeds)


Cells = Mapping[str, Mapping[str, Cell]]


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block may create a file or a folder there. What an exception leaves is removed, and
    `path` is then as it was before.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() or target.is_dir():
            # A file is replaced at once; a folder would have to be empty.
            _remove(target)
        os.replace(temporary, target)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
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


def write_metrics(path: str | Path, cells: Cells, provenance: Mapping[str, Any]) -> None:
    """Write a metrics file (see the module's docstring for its shape)."""
    write_json(
        path,
        {
            "cells": {
                group: {metric: cell.to_json() for metric, cell in row.items()}
                for group, row in cells.items()
            },
            "provenance": dict(provenance),
        },
    )


def read_metrics(path: str | Path) -> tuple[dict[str, dict[str, Cell]], dict[str, Any]]:
    """The cells and the provenance of a metrics file."""
    content = read_json(path)
    cells = {
        group: {metric: Cell.from_json(cell) for metric, cell in row.items()}
        for group, row in content["cells"].items()
    }
    return cells, content["provenance"]


def digest(value: BaseModel | Mapping[str, Any]) -> str:
    """A short SHA-256 of parameters, independent of the order of keys."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def provenance(stage: str, params: Params, **details: Any) -> dict[str, Any]:
    """Where a result comes from: stage, profile, seed, code, params, details, versions, machine.

    The code fingerprint is that of the stage's module (`fingerprints/<module>.json`); it is
    "unknown" only where no fingerprint was taken, as in a direct call outside the pipeline.
    """
    fingerprint = Path("fingerprints") / f"{stage.partition('@')[0]}.json"
    code = (
        hashlib.sha256(fingerprint.read_bytes()).hexdigest()[:16]
        if fingerprint.exists()
        else "unknown"
    )
    return {
        "stage": stage,
        "profile": params.profile,
        "family": params.family,
        "seed": params.seed,
        "code": code,
        "params": digest(params),
        **details,
        "versions": machine.versions(),
        "machine": machine.facts(),
    }
