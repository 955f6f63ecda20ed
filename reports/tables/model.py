"""What a table is made of: blocks of panels, and in them numbers and texts with their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from heima.results.cells import Cell


class TableError(ValueError):
    """Cells that a table expects and lacks, or that it does not know; one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Entry:
    """A number in a table and the file that it came from; a published one has only a value.

    `seeds` has each training seed's value, `sd` the standard deviation between them.
    """

    value: float
    source: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    n_failed: int | None = None
    sd: float | None = None
    t_interval: tuple[float, float] | None = None
    seeds: Mapping[int, float] = field(default_factory=dict)
    n_unanswered: int = 0

    @classmethod
    def of(cls, cell: Cell, source: str) -> Entry:
        return cls(
            cell.value,
            source,
            cell.low,
            cell.high,
            cell.n,
            cell.n_failed,
            cell.sd,
            cell.t_interval,
            cell.seeds,
            len(cell.unanswered),
        )

    def cell(self) -> Cell:
        """As a cell. Raises `ValueError` for a number without an interval."""
        if self.low is None or self.high is None:
            raise ValueError(f"a cell needs a number with its interval, got {self}")
        return Cell(self.value, self.low, self.high, self.n or 1, self.n_failed or 0, self.seeds)


@dataclass(frozen=True)
class Label:
    """A text in a table and the file that it came from."""

    text: str
    source: str


@dataclass(frozen=True)
class Panel:
    """A grid: `entries[row, column]` is a number or a text.

    `digits` gives the decimals of each column, in the order of the columns.
    """

    title: str
    corner: str
    rows: tuple[str, ...]
    digits: Mapping[str, int]
    entries: Mapping[tuple[str, str], Entry | Label]


@dataclass(frozen=True)
class Block:
    """Panels under one title and caption: ours, or the paper's."""

    origin: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Table:
    name: str
    blocks: tuple[Block, ...]
