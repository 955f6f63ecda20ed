"""Result files: cells with n, failures and interval, provenance beside them, written atomically.

Every metrics file of the pipeline has one shape:

    {"cells": {"<group>": {"<metric>": {"value": …, "low": …, "high": …, "n": …, "n_failed": …}}},
     "provenance": {"stage": …, "profile": …, "seed": …, "code": …, "params": …, …,
                    "versions": {"torch": …, …}, "machine": {"cpu": …, …}}}

A cell that depends on training seeds also has `seeds` (each seed's value), and, of several, `sd`
and `t_interval`, which follow from it. Where a judge has left samples without a grade, `unanswered`
names them, and `if_right` is the value with all of them right.

`versions` may decide a number. `machine` and `seconds` decide none and differ from run to run: two
results are compared without them (`stages.check`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from heima.results.files import read_json, write_json


@dataclass(frozen=True)
class Cell:
    """One number of a table: `low` and `high` bound its 95 % interval.

    `n` counts the samples that the value averages, failures scored as such included;
    `n_failed` counts those that failed (an empty text, an answer without a conclusion). `seeds` has
    the value of each training seed, of which `value` is the mean; it is empty where no training is
    involved.

    `unanswered` names the samples that no judge has graded, with the reason. They count as wrong in
    `value` and `low`, as right in `if_right` and `high`: what they are lies between.
    """

    value: float
    low: float
    high: float
    n: int
    n_failed: int = 0
    seeds: Mapping[int, float] = field(default_factory=dict)
    unanswered: tuple[str, ...] = ()
    if_right: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"a cell's {name} must be finite, got {getattr(self, name)!r}")
        if not 0 <= self.n_failed <= self.n or self.n < 1:
            raise ValueError(f"a cell needs 0 <= n_failed <= n and n >= 1, got {self}")
        if bool(self.unanswered) != (self.if_right is not None):
            raise ValueError(f"a cell has if_right where samples are unanswered, got {self}")

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
        if (interval := self.t_interval) is not None:
            plain |= {"sd": self.sd, "t_interval": list(interval)}
        if self.unanswered:
            plain |= {"unanswered": list(self.unanswered), "if_right": self.if_right}
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Cell:
        own = {name: plain[name] for name in ("value", "low", "high", "n", "n_failed")}
        seeds = {int(seed): value for seed, value in plain.get("seeds", {}).items()}
        return cls(
            **own,
            seeds=seeds,
            unanswered=tuple(plain.get("unanswered", ())),
            if_right=plain.get("if_right"),
        )

    def with_unanswered(self, names: Sequence[str], if_right: Cell) -> Cell:
        """This cell, of samples some of which no judge has graded; `if_right` has them right."""
        return replace(self, high=if_right.high, unanswered=tuple(names), if_right=if_right.value)


Cells = Mapping[str, Mapping[str, Cell]]


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
