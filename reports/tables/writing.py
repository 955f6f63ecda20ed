"""Tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import itertools

from reports.tables.model import Entry, Label, Panel, Table
from reports.tables.numbers import interval, spread


def markdown(table: Table) -> str:
    """The table as Markdown whose columns also line up in a terminal."""
    parts = [f"# {table.name}"]
    for block in table.blocks:
        parts.append(f"## {block.title}\n\n{block.caption}")
        parts.extend(_markdown_panel(panel) for panel in block.panels)
    return "\n\n".join(parts) + "\n"


def _markdown_panel(panel: Panel) -> str:
    grid = [[panel.corner, *panel.digits]]
    for row in panel.rows:
        shown = (
            _plain(panel.entries[row, column], digits) for column, digits in panel.digits.items()
        )
        grid.append([row, *shown])
    grid = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in grid]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in grid
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return f"**{panel.title}**\n\n" + "\n".join([lines[0], rule, *lines[1:]])


def _plain(entry: Entry | Label, digits: int) -> str:
    if isinstance(entry, Label):
        return entry.text
    return " ".join(filter(None, (spread(entry, digits), interval(entry, digits))))


_NUMBERS = ("value", "low", "high", "n", "n_failed", "sd", "t_low", "t_high")


def comma_separated(table: Table) -> str:
    """The table as CSV, a line for each number: its interval, n, failures, training seeds, source.

    Numbers are complete, not rounded; texts and published values have no interval and no n.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("origin", "panel", "row", "column", *_NUMBERS, "seeds", "source"))
    for block in table.blocks:
        for panel in block.panels:
            for row, column in itertools.product(panel.rows, panel.digits):
                entry = panel.entries[row, column]
                if isinstance(entry, Entry):
                    t_low, t_high = entry.t_interval or (None, None)
                    numbers = (entry.value, entry.low, entry.high, entry.n, entry.n_failed)
                    shown = [
                        "" if number is None else repr(number)
                        for number in (*numbers, entry.sd, t_low, t_high)
                    ]
                    shown.append(
                        " ".join(f"{seed}={value!r}" for seed, value in entry.seeds.items())
                    )
                else:
                    shown = [entry.text] + [""] * len(_NUMBERS)
                writer.writerow((block.origin, panel.title, row, column, *shown, entry.source))
    return file.getvalue()
