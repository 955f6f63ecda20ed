"""The figure of the two series: accuracy by thinking tokens a section, and by retained share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from heima.results.scores import MEAN
from reports.figures import style
from reports.figures.inputs import Inputs
from reports.tables.model import Block, Entry, Panel
from reports.tables.panels import ACCURACIES, DECODED
from reports.tables.series import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {
    "tokens_per_stage": "thinking tokens a section",
    "retention_ratio": "retained share of a section's tokens",
}


def thinking_series(inputs: Inputs) -> Figure:
    """A row for each run of a series, the paper's last; a column for each series.

    Rows have axes of their own: a toy's numbers are not comparable with the paper's.
    """
    rows = _rows(inputs)
    drawn = style.figure(figsize=(6.75, 0.5 + 1.7 * max(1, len(rows))))
    if not rows:
        drawn.text(0.5, 0.5, "neither trained here nor published", ha="center", va="center")
        return drawn
    grid = drawn.subplots(len(rows), len(SERIES), sharey="row", squeeze=False)
    for line, (name, found) in zip(grid, rows.items(), strict=True):
        for axes, series in zip(line, SERIES, strict=True):
            _draw(axes, series, found.get(series, ()))
        line[0].set_ylabel("accuracy (%), mean")
        line[0].set_title(name, loc="left")
    return drawn


def _rows(inputs: Inputs) -> dict[str, dict[str, list[Block]]]:
    """Title of a row -> series -> its blocks, one a protocol."""
    found: dict[str, dict[str, list[Block]]] = {}
    for series in SERIES:
        for block in inputs.tables[series].blocks:
            if block.panels:
                profile, _, _ = block.origin.partition(" profile, ")
                title = block.origin
                if not block.origin.startswith("paper ("):
                    title = f"{profile} profile ({inputs.scale}: not comparable)"
                    if inputs.scale == "paper":
                        title = f"{profile} profile"
                found.setdefault(title, {}).setdefault(series, []).append(block)
    return found


def _draw(axes: Axes, series: str, blocks: Sequence[Block]) -> None:
    axes.set_xlabel(_LABELS[series])
    doubling = series == "tokens_per_stage"
    if not blocks:
        axes.text(0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        return
    labels = [block.origin.rpartition(" ")[2] for block in blocks]
    colours = style.colours(labels)
    for place, (label, block) in enumerate(zip(labels, blocks, strict=True)):
        panels = {panel.title: panel for panel in block.panels}
        values = _means(panels[ACCURACIES])
        # Intervals of two protocols would cover each other.
        aside = {x: x * (1 + 0.06 * place) if doubling else x + 0.012 * place for x in values}
        axes.errorbar(
            [aside[x] for x in values],
            [one.value for one in values.values()],
            yerr=[[style.error(one)[side][0] for one in values.values()] for side in (0, 1)],
            fmt="o-",
            color=colours[label],
            label=label if len(blocks) > 1 else None,
        )
        if place == 0 and DECODED in panels:
            for x, one in _means(panels[DECODED]).items():
                axes.annotate(
                    f"{one.value:.0f} decoded",
                    (aside[x], values[x].value),
                    textcoords="offset points",
                    xytext=(4, 4),
                    fontsize=6,
                )
    if doubling:
        axes.set_xscale("log", base=2)
    axes.set_xlim((0.8, 45) if doubling else (0, 1))
    ticks = (1, 2, 4, 8, 16, 32) if doubling else (0.1, 0.3, 0.5, 0.7, 0.9)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(y=0.2)
    if len(blocks) > 1:
        axes.legend(loc="best")


def _means(panel: Panel) -> dict[float, Entry]:
    """Point of the series -> its mean over the benchmarks."""
    return {
        float(row): entry
        for row in panel.rows
        if isinstance(entry := panel.entries[row, MEAN], Entry)
    }
