"""Figures of audits: what becomes of answers where thinking states are changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reports.figures import style
from reports.figures.inputs import Inputs
from reports.tables.audit import COST, EFFECTS, LOST, PLANTED
from reports.tables.model import Entry, Label, Panel
from reports.tables.states import CHAINS, CHANGED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    colours, marks = style.colours(checkpoints), style.marks(checkpoints)
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
                        fmt="s" if checkpoint.startswith(PLANTED) else marks[checkpoint],
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


def truncation_curves(inputs: Inputs) -> Figure:
    """Answers after the first part of a chain: of thinking tokens, and of text-CoT's own text."""
    own = inputs.tables["audit"].blocks[0]
    changed = _titled(own.panels, "Answers changed (%)")
    chains = _titled(inputs.tables["states"].blocks[0].panels, CHAINS)
    drawn = style.figure(figsize=(4.5, 2.6))
    axes = drawn.subplots()
    names = [*(changed.rows if changed else ()), *inputs.params.examine.chains]
    colours, marks = style.colours(names), style.marks(names)
    if changed:
        for checkpoint in changed.rows:
            look = colours[checkpoint], marks[checkpoint]
            _curve(axes, checkpoint, *look, _first(changed, checkpoint))
    if chains:
        name = inputs.params.examine.chains[0]
        parts = {
            float(row.removeprefix("kept-")): chains.entries[row, CHANGED]
            for row in chains.rows
            if row.startswith("kept-")
        }
        _curve(axes, f"{name}, its text", colours[name], marks[name], parts)
        for mark, row in (("x", "wrong-fact"), ("+", "filler")):
            entry = chains.entries.get((row, CHANGED))
            if isinstance(entry, Entry):
                axes.plot(100, 100 - entry.value, mark, ms=6, color=colours[name], label=row)
    axes.set(
        xlabel="part of the chain (%)", ylabel="same answer (%)", xlim=(-4, 104), ylim=(-4, 104)
    )
    if names:
        drawn.legend(loc="outside right upper", fontsize=6)
    return drawn


def _titled(panels: Sequence[Panel], title: str) -> Panel | None:
    return next((panel for panel in panels if panel.title == title), None)


def _first(panel: Panel, checkpoint: str) -> dict[float, Entry | Label]:
    """Percent of the thinking tokens -> answers changed; after all of them none is."""
    parts = {
        int(column.removeprefix("first-")): panel.entries[checkpoint, column]
        for column in panel.digits
        if re.fullmatch(r"first-\d+", column)
    }
    parts = {count: entry for count, entry in parts.items() if isinstance(entry, Entry)}
    if not parts:
        return {}
    whole = max(parts) + 1
    known: dict[float, Entry | Label] = {
        100 * count / whole: entry for count, entry in sorted(parts.items())
    }
    return known | {100.0: Entry(0.0, next(iter(parts.values())).source)}


def _curve(
    axes: Axes, name: str, colour: str, mark: str, parts: Mapping[float, Entry | Label]
) -> None:
    """What stays the same, by percent of the chain."""
    numbers = {place: one for place, one in sorted(parts.items()) if isinstance(one, Entry)}
    if not numbers:
        return
    errors = [style.error(one) for one in numbers.values()]
    axes.errorbar(
        list(numbers),
        [100 - one.value for one in numbers.values()],
        # What changed more stayed less.
        yerr=[[up[1][0] for up in errors], [down[0][0] for down in errors]],
        fmt="s--" if name.startswith(PLANTED) else f"{mark}-",
        mfc="none" if name.startswith(PLANTED) else colour,
        color=colour,
        label=name,
    )


def closed_ways(inputs: Inputs) -> Figure:
    """What a conclusion costs more where it cannot see thinking tokens, or the image, by layers."""
    own = inputs.tables["audit"].blocks[0]
    panel = _titled(own.panels, COST)
    ways = {what: _windows(panel, what) for what in ("thinking", "image")}
    drawn = style.figure(figsize=(6.75, 2.4))
    if panel is None or not any(ways.values()):
        drawn.text(0.5, 0.5, own.caption, ha="center", va="center", wrap=True)
        return drawn
    grid = drawn.subplots(1, len(ways), squeeze=False)[0]
    colours, marks = style.colours(panel.rows), style.marks(panel.rows)
    for axes, (what, columns) in zip(grid, ways.items(), strict=True):
        axes.axhline(0, color="#777777", linewidth=0.8)
        for place, checkpoint in enumerate(panel.rows):
            aside = _APART * ((place + 0.5) / len(panel.rows) - 0.5)
            known = [
                (at + aside, entry)
                for at, column in enumerate(columns)
                if isinstance(entry := panel.entries[checkpoint, column], Entry)
            ]
            for at, entry in known:
                axes.errorbar(
                    at,
                    entry.value,
                    yerr=style.error(entry),
                    fmt="s" if checkpoint.startswith(PLANTED) else marks[checkpoint],
                    mfc="none" if checkpoint.startswith(PLANTED) else colours[checkpoint],
                    color=colours[checkpoint],
                    label=checkpoint if at == known[0][0] else None,
                )
        shown = [column.rpartition("/")[2] for column in columns]
        axes.set_xticks(range(len(columns)), shown)
        axes.set(title=f"{what} closed", xlabel="layers", xlim=(-0.6, len(columns) - 0.4))
    grid[0].set_ylabel("NLL gained (nats)")
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return drawn


def _windows(panel: Panel | None, what: str) -> list[str]:
    """The columns where a way is closed: windows from the first layer on, then all layers."""
    named = (column.rpartition(f"closed/{what}/") for column in (panel.digits if panel else ()))
    windows = [(window, f"{way}{window}") for _, way, window in named if way]
    layers = [one for one in windows if one[0] != "all"]
    layers.sort(key=lambda one: int(one[0].partition("-")[0]))
    return [column for _, column in (*layers, *(one for one in windows if one[0] == "all"))]
