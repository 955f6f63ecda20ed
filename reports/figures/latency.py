"""The figure of latency: where the time of a batch goes, case by case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.figures import style
from reports.figures.inputs import FigureError, Inputs
from reports.tables.model import Entry
from reports.tables.reading import LATENCY, latency_group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASES = ("preprocess", "vision", "prefill", "decode")


def latency_by_phase(inputs: Inputs) -> Figure:
    """Median time of each phase of a batch, a panel a batch size that fitted; and end to end."""
    cells, provenance = inputs.latency
    cases = list(inputs.params.latency.cases)
    sizes = [s for s in inputs.params.latency.batch_sizes if str(s) not in provenance["skipped"]]
    colours = style.colours(PHASES)
    drawn = style.figure(figsize=(6.75, 0.8 + 0.24 * len(cases)))
    grid = drawn.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(grid, sizes, strict=True):
        for place, case in enumerate(cases):
            if (found := cells.get(latency_group(case, size))) is None:
                # What is looked up is measured at batch 1 alone.
                if inputs.params.latency.cases[case].lookup is None or size == 1:
                    raise FigureError(f"{LATENCY} lacks the cells {latency_group(case, size)}")
                continue
            begin = 0.0
            for phase in PHASES:
                if (cell := found.get(f"{phase}_ms")) is None:
                    raise FigureError(f"{LATENCY} lacks the cell {case}/{phase}_ms")
                axes.barh(place, cell.value, left=begin, height=0.6, color=colours[phase])
                begin += cell.value
            whole = Entry.of(found["e2e_ms"], LATENCY)
            axes.errorbar(
                whole.value, place, xerr=style.error(whole), fmt="|", color="#444444", zorder=3
            )
        axes.set_yticks(range(len(cases)), cases)
        axes.set_ylim(len(cases) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(f"batch {size}")
        axes.set_xlabel("ms a batch")
    for phase in PHASES:
        grid[0].barh(0, 0, color=colours[phase], label=phase)
    grid[0].errorbar([], [], xerr=[], fmt="|", color="#444444", label="end to end, 95 %")
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return drawn
