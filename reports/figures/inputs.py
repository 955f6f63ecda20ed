"""What figures are drawn from: the result files that the parameters name, each read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from heima.config import Params
from heima.results.cells import Cell
from heima.results.files import read_jsonl
from reports import tables
from reports.tables.kept import Scale
from reports.tables.model import Entry, Panel, Table, TableError
from reports.tables.reading import Scores, read_latency, read_scores, read_similarities
from reports.tables.results import scale_of

T = TypeVar("T")


class FigureError(ValueError):
    """A file that a figure needs and that is not there, or is not what it should be."""


@dataclass(frozen=True)
class Inputs:
    """The results below `root`; raises `TableError` where a cell is missing or left over."""

    root: Path
    params: Params

    @cached_property
    def scores(self) -> Scores:
        problems: list[str] = []
        found = read_scores(self.root, self.params, problems)
        return _whole(found, problems)

    @cached_property
    def similarities(self) -> Scores:
        problems: list[str] = []
        found = read_similarities(self.root, self.params, problems)
        return _whole(found, problems)

    @cached_property
    def latency(self) -> tuple[dict[str, dict[str, Cell]], dict[str, Any]]:
        problems: list[str] = []
        found = read_latency(self.root, self.params, problems)
        return _whole(found, problems)

    @property
    def scale(self) -> Scale:
        """What the results are of."""
        return scale_of(self.params)

    @cached_property
    def tables(self) -> dict[str, Table]:
        return tables.build(self.root, self.params)

    def panels(self, table: str, title: str) -> Iterator[tuple[str, Panel]]:
        """The panels of that title, each with its block's origin; none raises `FigureError`."""
        found = [
            (block.origin, panel)
            for block in self.tables[table].blocks
            for panel in block.panels
            if panel.title == title
        ]
        if not found:
            raise FigureError(f"the table {table} has no panel {title!r}")
        yield from found

    def entries(self, variant: str, group: str) -> Mapping[str, Entry]:
        """Metric -> number of a variant's scores."""
        cells, source = self.scores[variant]
        return {metric: Entry.of(cell, source) for metric, cell in cells[group].items()}

    def losses(self, folder: str) -> list[dict[str, Any]]:
        """The rows of a training run's `loss.jsonl`: step and loss, in order."""
        path = self.root / folder / "loss.jsonl"
        if not path.is_file():
            raise FigureError(f"{folder}/loss.jsonl is missing: run `dvc repro`")
        if not (rows := read_jsonl(path)):
            raise FigureError(f"{folder}/loss.jsonl has no rows: run `dvc repro`")
        return rows


def _whole(found: T, problems: list[str]) -> T:
    if problems:
        raise TableError(problems)
    return found
