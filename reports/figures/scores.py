"""Figures of the benchmarks: accuracy against tokens, paired differences, lengths of answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from heima.results.files import read_jsonl
from heima.results.scores import ACCURACY, CHANCE, MEAN, score_group
from reports.figures import style
from reports.figures.inputs import FigureError, Inputs
from reports.tables.ablation import DIFFERENCES
from reports.tables.model import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_by_tokens(inputs: Inputs) -> Figure:
    """Mean accuracy of each variant against its mean decoded tokens, a panel a protocol."""
    from matplotlib.transforms import ScaledTranslation

    protocols, variants = list(inputs.params.protocols), list(inputs.params.variants)
    drawn = style.figure(figsize=(6.75, 2.9))
    grid = drawn.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    inches = drawn.dpi_scale_trans
    colours = style.colours(variants)
    markers = dict(zip(variants, "osD^vP*X" * len(variants), strict=False))
    for axes, protocol in zip(grid, protocols, strict=True):
        means = {v: inputs.entries(v, score_group(protocol, MEAN)) for v in variants}
        shifts = aside({v: found["decoded_tokens"].value for v, found in means.items()})
        for variant, found in means.items():
            accuracy, tokens = found[ACCURACY], found["decoded_tokens"]
            axes.errorbar(
                tokens.value,
                accuracy.value,
                xerr=style.error(tokens),
                yerr=style.error(accuracy),
                fmt=markers[variant],
                color=colours[variant],
                label=variant,
                transform=axes.transData + ScaledTranslation(shifts[variant], 0, inches),
            )
            # What is drawn beside its place does not count for the limits of the axes.
            (left,), (right,) = style.error(tokens)
            (below,), (above,) = style.error(accuracy)
            axes.update_datalim(
                [
                    (tokens.value - left, accuracy.value - below),
                    (tokens.value + right, accuracy.value + above),
                ]
            )
        axes.autoscale_view()
        first = inputs.scores[variants[0]][0]
        guessed = [first[score_group(protocol, b)][CHANCE].value for b in inputs.params.benchmarks]
        axes.axhline(float(np.mean(guessed)), color="#777777", linestyle=":", label=CHANCE)
        axes.set_xlim(left=0)
        axes.set_title(protocol)
        axes.set_xlabel("decoded tokens per answer")
    grid[0].set_ylabel("accuracy (%), mean of the benchmarks")
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


_BESIDE = 0.07
"""Inches between the points of variants that decode equally many tokens."""


def aside(tokens: Mapping[str, float], *, beside: float = _BESIDE) -> dict[str, float]:
    """How far each point is drawn beside its place, in inches: 0 where it is alone there."""
    found = {}
    for name, value in tokens.items():
        alike = [other for other, one in tokens.items() if abs(one - value) < 0.5]
        found[name] = beside * (alike.index(name) - (len(alike) - 1) / 2)
    return found


def paired_differences(inputs: Inputs) -> Figure:
    """Each variant's score minus heima's on the same questions, a column a benchmark."""
    found = list(inputs.panels("ablation", DIFFERENCES))
    columns = [MEAN, *(name for name in inputs.params.benchmarks)]
    rows = found[0][1].rows
    drawn = style.figure(figsize=(6.75, 0.6 + len(found) * (0.55 + 0.2 * len(rows))))
    grid = drawn.subplots(len(found), len(columns), sharey="row", squeeze=False)
    colours = style.colours(columns)
    for line, (origin, panel) in zip(grid, found, strict=True):
        for axes, column in zip(line, columns, strict=True):
            entries = {row: panel.entries[row, column] for row in rows}
            style.forest(
                axes,
                {row: entry for row, entry in entries.items() if isinstance(entry, Entry)},
                colour=colours[column],
            )
            axes.set_title(column, fontsize=6)
            axes.locator_params(axis="x", nbins=3)
        line[0].set_ylabel(origin.rpartition(" ")[2])
    drawn.supxlabel("points more than heima (right of the line) or fewer", fontsize=8)
    return drawn


def answer_lengths(inputs: Inputs) -> Figure:
    """Decoded tokens of all answers, a box a variant and a panel a protocol."""
    protocols, variants = list(inputs.params.protocols), list(inputs.params.variants)
    drawn = style.figure(figsize=(6.75, 0.7 + 0.22 * len(variants)))
    grid = drawn.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    lengths: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for variant in variants:
        path = inputs.root / "scores" / f"{variant}.jsonl"
        if not path.is_file():
            raise FigureError(f"scores/{path.name} is missing: run `dvc repro score@{variant}`")
        for row in read_jsonl(path):
            lengths[row["protocol"]][variant].append(row["decoded"])
    colours = style.colours(variants)
    for axes, protocol in zip(grid, protocols, strict=True):
        boxes = axes.boxplot(
            [lengths[protocol][variant] for variant in variants],
            orientation="horizontal",
            whis=(0, 100),
            widths=0.6,
            patch_artist=True,
            medianprops={"color": "#222222", "linewidth": 1.4},
        )
        for box, variant in zip(boxes["boxes"], variants, strict=True):
            box.set(facecolor=colours[variant], alpha=0.7, linewidth=0.6)
        axes.set_yticks(range(1, len(variants) + 1), variants)
        axes.set_ylim(len(variants) + 0.6, 0.4)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_title(protocol)
        axes.set_xlabel("decoded tokens of an answer")
    return drawn
