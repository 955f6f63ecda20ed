"""Figures of the interpreters: what they rebuild, from which state, and where the states lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heima.data.turns import load_turns
from heima.results.measures import NLL_GAIN, difference, judge_column, judged, paper_metrics
from reports.figures import style
from reports.figures.inputs import FigureError, Inputs
from reports.tables.model import Entry
from reports.tables.names import heading
from reports.tables.published import EACH, SHARED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def own_against_controls(inputs: Inputs) -> Figure:
    """What the own state gains over each control: likelihood above, the judge's grade below."""
    params = inputs.params
    others = [control for control in params.reconstruct.controls if control != "own"]
    column = judge_column(params.judge)
    measures = [(NLL_GAIN, "nats a text", others)]
    if graded := [control for control in others if judged(control, params)]:
        measures.append((column, f"grades of {column.removesuffix('_similarity')}", graded))
    heights = [len(rows) + 1.6 for _, _, rows in measures]
    drawn = style.figure(figsize=(6.75, 0.17 * sum(heights) + 0.5))
    grid = drawn.subplots(
        len(measures), len(params.sections), sharey="row", squeeze=False, height_ratios=heights
    )
    colours = style.colours(params.sections)
    for line, (metric, unit, rows) in zip(grid, measures, strict=True):
        for axes, section in zip(line, params.sections, strict=True):
            cells, source = inputs.similarities[section]
            found: dict[str, Entry] = {}
            for row in rows:
                found[row] = Entry.of(cells[difference(row)][metric], source)
            style.forest(axes, found, colour=colours[section])
            axes.set_title(section)
            axes.set_xlabel(unit)
    drawn.supylabel("own state against", fontsize=8)
    return drawn


_SHOWN = ("shuffled", "question-only")
"""Controls beside which the own state's metrics are drawn."""
_EACH, _ALL = "own state, an interpreter each", "own state, one for all sections"


def interpreter_metrics(inputs: Inputs) -> Figure:
    """The paper's measures of each section's reconstructions, ours and, below, the paper's."""
    params = inputs.params
    metrics = list(paper_metrics(params.similarity))
    grade = judge_column(params.judge)
    kinds = [_EACH, _ALL, *(c for c in _SHOWN if c in params.reconstruct.controls)]
    colours = style.colours(kinds)
    published = _published(inputs)
    rows = 1 + bool(published)
    drawn = style.figure(figsize=(6.75, 0.7 + 1.75 * rows))
    grid = drawn.subplots(rows, len(params.sections), sharey="row", squeeze=False)
    for place, (axes, section) in enumerate(zip(grid[0], params.sections, strict=True)):
        found = _measured(inputs, section, [*metrics, grade])
        columns = [m for m in (*metrics, grade) if any(m in own for own in found.values())]
        for kind, own in found.items():
            _bars(axes, columns, own, kinds.index(kind), len(kinds), colours[kind])
        axes.set_xticks(range(len(columns)), [heading(one) for one in columns])
        axes.set_title(section)
        if grade in columns and place == len(params.sections) - 1:
            right = axes.secondary_yaxis(
                "right", functions=(lambda y: 1 + y / 25, lambda g: 25 * (g - 1))
            )
            right.set_ylabel("grade")
            right.set_yticks(range(1, 6))
    grid[0][0].set_ylabel(f"{params.profile} profile (%)")
    for axes, section in zip(grid[1] if published else (), params.sections, strict=False):
        columns = list(dict.fromkeys(metric for _, _, metric in published))
        for kind, count in ((_EACH, "3"), (_ALL, "1")):
            own = {m: published[count, section, m] for m in columns}
            _bars(axes, columns, own, kinds.index(kind), 2, colours[kind])
        axes.set_xticks(range(len(columns)), [heading(one) for one in columns])
    if published:
        grid[1][0].set_ylabel("the paper (%)")
        apart = "" if inputs.scale == "paper" else f" ({inputs.scale} above: not comparable)"
        grid[1][0].set_title(f"the paper's{apart}")
    for axes in grid.flat:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor", fontsize=6)
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, 100)
    for kind in kinds:
        grid[0][0].bar(0, 0, color=colours[kind], label=_KINDS.get(kind, kind))
    drawn.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


_KINDS = {"shuffled": "another turn's state", "question-only": "the question alone"}


def _measured(inputs: Inputs, section: str, metrics: Sequence[str]) -> dict[str, dict[str, Entry]]:
    """Kind -> metric -> number in percent, of a section; a grade from 1 to 5 as 0 to 100."""
    params = inputs.params
    grade = judge_column(params.judge)
    everything = {
        name
        for name, one in params.reconstructions.items()
        if one.section == section
        and set(params.interpreters[one.interpreter].sections) == set(params.sections)
    }
    wanted = {_EACH: (section, "own")}
    if everything - {section}:
        wanted[_ALL] = (min(everything - {section}), "own")
    wanted |= {c: (section, c) for c in _SHOWN if c in params.reconstruct.controls}
    found: dict[str, dict[str, Entry]] = {}
    for kind, (name, control) in wanted.items():
        cells, source = inputs.similarities[name]
        own = {m: Entry.of(cells[control][m], source) for m in metrics if m in cells[control]}
        if grade in own:
            own[grade] = _in_percent(own[grade])
        found[kind] = own
    return found


def _in_percent(grade: Entry) -> Entry:
    def scaled(value: float | None) -> float | None:
        return None if value is None else 25 * (value - 1)

    return replace(
        grade, value=25 * (grade.value - 1), low=scaled(grade.low), high=scaled(grade.high)
    )


def _bars(
    axes: Axes, columns: Sequence[str], own: Mapping[str, Entry], place: int, of: int, colour: str
) -> None:
    """A bar for each column that has a number, the `place`-th of `of` beside each other."""
    width = 0.8 / of
    for number, column in enumerate(columns):
        if (entry := own.get(column)) is not None:
            x = number + (place - (of - 1) / 2) * width
            axes.bar(x, entry.value, width, color=colour)
            if entry.low is not None:
                axes.errorbar(
                    x,
                    entry.value,
                    yerr=style.error(entry),
                    fmt="none",
                    ecolor="#444444",
                    elinewidth=0.6,
                    capsize=1,
                )


def _published(inputs: Inputs) -> dict[tuple[str, str, str], Entry]:
    """Interpreters, section, metric -> the paper's value; empty for a family that has none."""
    found: dict[tuple[str, str, str], Entry] = {}
    for block in inputs.tables["interpreters"].blocks:
        for panel in block.panels:
            count = {EACH: "3", SHARED: "1"}.get(panel.title)
            for (section, metric), entry in panel.entries.items() if count else ():
                if count and isinstance(entry, Entry):
                    found[count, section, metric] = entry
    return found


_POINTS = 400
"""States drawn of each section, evenly over the held-out turns."""


def state_geometry(inputs: Inputs) -> Figure:
    """Held-out thinking states in the plane of most variance, and how many dimensions they fill."""
    params = inputs.params
    turns = load_turns(inputs.root / "data" / "rewritten" / "heldout.parquet")
    kinds = sorted({turn.kind for turn in turns})
    columns = len(params.sections) + 1
    drawn = style.figure(figsize=(6.75, 2.4))
    grid = drawn.subplots(1, columns, squeeze=False)[0]
    colours, lines = style.colours(kinds), style.colours(params.sections)
    for axes, section in zip(grid, params.sections, strict=False):
        for seed in params.seeds:
            states, counts = _states(inputs, seed, section)
            if len(counts) != len(turns):
                raise FigureError(
                    f"states/{seed}/heldout.safetensors has {len(counts)} turns, data/rewritten "
                    f"{len(turns)}: run `dvc repro states@{seed}`"
                )
            places, shares = principal(states)
            grid[-1].plot(
                np.arange(1, len(shares) + 1),
                np.cumsum(shares),
                color=lines[section],
                linewidth=0.8,
                label=section if seed == params.seeds[0] else None,
            )
            if seed != params.seeds[0]:
                continue
            owners = np.repeat([turn.kind for turn in turns], counts)
            chosen = np.linspace(0, len(places) - 1, min(_POINTS, len(places))).astype(int)
            for kind in kinds:
                own = chosen[owners[chosen] == kind]
                axes.plot(*places[own].T, ".", ms=3, mew=0, color=colours[kind], label=kind)
            axes.set_title(section)
            axes.set_xlabel(f"{shares[0]:.0%} × {shares[1]:.0%}")
            axes.set_xticks([])
            axes.set_yticks([])
    grid[-1].set(xscale="log", ylim=(0, 1.02), title="variance held", xlabel="dimensions")
    grid[-1].legend(loc="lower right")
    if len(kinds) <= 8:
        drawn.legend(
            *grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, markerscale=3
        )
    return drawn


def _states(
    inputs: Inputs, seed: int, section: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The held-out states of a section, (states, hidden_size), and how many each turn has."""
    from safetensors import safe_open

    path = inputs.root / "states" / str(seed) / "heldout.safetensors"
    if not path.is_file():
        raise FigureError(f"states/{seed}/{path.name} is missing: run `dvc repro states@{seed}`")
    # numpy has no bfloat16, which large models have their states in.
    with safe_open(path, framework="pt") as file:
        values, counts = file.get_tensor(section), file.get_tensor(f"{section}.counts")
    return values.double().numpy(), counts.long().numpy()


def principal(states: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """States in their plane of most variance, (states, 2), and each dimension's share of it.

    Of the two directions of an axis the one is taken in which the farthest state lies.
    """
    centred = states - states.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = left[:, :2] * sizes[:2]
    farthest = places[np.abs(places).argmax(axis=0), range(places.shape[1])]
    places = places * np.where(farthest < 0, -1.0, 1.0)
    total = (sizes**2).sum()
    return places, sizes**2 / total if total > 0 else sizes
