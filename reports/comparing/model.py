"""What a comparison has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from heima.results.cells import Cell
from reports.comparing.sides import Side
from reports.tables.model import Entry

RIGHT = 0.5
"""From this score on an answer is right."""

Seed = int | None
"""None: a file of others, or the mean of several seeds."""


@dataclass(frozen=True)
class Run:
    """How the questions of one training seed and one decoding seed fell on both sides."""

    training_seed: Seed
    seed: Seed
    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def p(self) -> float:
        """McNemar's exact p, two-sided; 1 where no question flipped."""
        from scipy.stats import binomtest

        flipped = self.only_a + self.only_b
        return float(binomtest(self.only_a, flipped).pvalue) if flipped else 1.0


@dataclass(frozen=True)
class Group:
    """A benchmark under a protocol, or the mean of several.

    `difference` is A minus B in points; without an interval where there is none. `runs` is empty
    where questions are not paired.
    """

    protocol: str
    benchmark: str
    a: Cell
    b: Cell
    difference: Entry
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Flip:
    """A question that one side alone has right; `docs` are its rows in the benchmark, where known.

    `where` has file and line of the answer of each side.
    """

    protocol: str
    benchmark: str
    training_seed: Seed
    seed: Seed
    unit: str
    docs: tuple[int, ...]
    right: str
    scores: tuple[float, float]
    where: tuple[str, str]


@dataclass
class Comparison:
    """`unmatched` are questions that were not compared: side, protocol, benchmark, unit, why."""

    a: Side
    b: Side
    groups: list[Group] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    unmatched: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def paired(self) -> bool:
        return any(group.runs for group in self.groups)
