"""Figures of the interpreters: own states against controls, and where the states lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heima.data.turns import load_turns
from heima.results.measures import NLL_GAIN, difference, judge_column, judged
from reports.figures import style
from reports.figures.inputs import FigureError, Inputs
from reports.tables.model import Entry

if TYPE_CHECKING:
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
