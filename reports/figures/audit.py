"""Figures of audits: what becomes of answers where thinking states are changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.figures import style
from reports.figures.inputs import Inputs
from reports.tables.audit import COST, EFFECTS, LOST, PLANTED
from reports.tables.model import Entry, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_APART = 0.6
"""Of a row's height, what the checkpoints in it take."""


def audit_effects(inputs: Inputs) -> Figure:
    """Each intervention's effect on accuracy, answers and likelihood, a colour a checkpoint."""
    own = inputs.tables["audit"].blocks[0]
    panels = [panel for panel in own.panels if panel.title in EFFECTS]
    rows = max((len(panel.digits) for panel in panels), default=1)
    checkpoints = panels[0].rows if panels else ()
    drawn = style.figure(figsize=(6.75, 1.0 + rows * max(0.16, 0.08 * len(checkpoints))))
    if not panels:
        drawn.text(0.5, 0.5, own.caption, ha="center", va="center")
        return drawn
    grid = drawn.subplots(1, len(panels), squeeze=False)[0]
    colours = style.colours(checkpoints)
    for axes, panel in zip(grid, panels, strict=True):
        axes.axvline(0, color="#777777", linewidth=0.8)
        for place, checkpoint in enumerate(checkpoints):
            aside = _APART * ((place + 0.5) / len(checkpoints) - 0.5)
            for row, entry in enumerate(_entries(panel, checkpoint)):
                if isinstance(entry, Entry):
                    axes.errorbar(
                        entry.value,
                        row + aside,
                        xerr=style.error(entry),
                        # What is known beforehand is drawn hollow.
                        fmt="s" if checkpoint.startswith(PLANTED) else "o",
                        mfc="none" if checkpoint.startswith(PLANTED) else colours[checkpoint],
                        color=colours[checkpoint],
                        label=checkpoint if row == 0 else None,
                    )
        axes.set_yticks(range(len(panel.digits)), list(panel.digits), fontsize=5)
        axes.set_ylim(len(panel.digits) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_title(_SHORT[panel.title], fontsize=7)
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


_SHORT = {title: title for title in EFFECTS} | {
    LOST: "accuracy lost (points)",
    COST: "NLL gained (nats)",
}


def _entries(panel: Panel, checkpoint: str) -> list[object]:
    return [panel.entries[checkpoint, column] for column in panel.digits]
