"""The table of latency: the parts of an answer, case by case and batch size by batch size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from heima.config import Params
from heima.results.cells import Cell
from reports.tables import captions
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.reading import (
    LATENCY,
    LATENCY_DIGITS,
    PASSES,
    UTILISATION,
    VERSUS,
    latency_group,
)


def latency_block(
    params: Params, cells: Mapping[str, Mapping[str, Cell]], provenance: Mapping[str, Any]
) -> Block:
    skipped = provenance["skipped"]
    sizes = [size for size in params.latency.batch_sizes if str(size) not in skipped]
    cases = tuple(params.latency.cases)

    def grid(
        title: str, digits: Mapping[str, int], size: int, rows: tuple[str, ...] = cases
    ) -> Panel:
        entries: dict[tuple[str, str], Entry | Label] = {}
        # What is looked up is measured at batch 1 alone.
        rows = tuple(case for case in rows if latency_group(case, size) in cells)
        for case, column in itertools.product(rows, digits):
            cell = cells[latency_group(case, size)].get(column)
            entries[case, column] = Label("–", LATENCY) if cell is None else Entry.of(cell, LATENCY)
        return Panel(title, "case", rows, digits, entries)

    looks_up = any(case.lookup is not None for case in params.latency.cases.values())
    panels = [
        grid(
            f"Batch {size}: latency",
            # What is looked up is written in fewer passes than it has tokens, at batch 1.
            {**LATENCY_DIGITS, **({PASSES: 1} if looks_up and size == 1 else {})},
            size,
        )
        for size in sizes
    ]
    panels += [grid(f"Batch {size}: work", UTILISATION, size) for size in sizes]
    others = tuple(case for case in cases if any(f"{case}{VERSUS}" in group for group in cells))
    if others:
        (base,) = {group.partition(VERSUS)[2].partition("/")[0] for group in cells} - {""}
        columns = {f"batch {size}": size for size in sizes}
        panels.append(
            Panel(
                f"End-to-end time of {base} over that of the case",
                "case",
                others,
                dict.fromkeys(columns, 2),
                {
                    (case, column): Entry.of(found["speedup"], LATENCY)
                    if (found := cells.get(latency_group(f"{case}{VERSUS}{base}", size)))
                    else Label("–", LATENCY)
                    for case in others
                    for column, size in columns.items()
                },
            )
        )
    return Block(
        origin=f"{params.profile} profile",
        title=f"Latency ({captions.about(params)})",
        caption=captions.latency(params, provenance),
        panels=tuple(panels),
    )
