"""Figures of a reproduction, as SVG and PDF: a figure is one function and one entry of `FIGURES`.

A figure is drawn from the result files that the parameters name (`Inputs`), and from no other. The
same files give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reports.figures import style
from reports.figures.audit import audit_effects, closed_ways, truncation_curves
from reports.figures.inputs import FigureError, Inputs
from reports.figures.interpreters import (
    interpreter_metrics,
    own_against_controls,
    state_geometry,
)
from reports.figures.latency import latency_by_phase
from reports.figures.methods import frontier
from reports.figures.scores import accuracy_by_tokens, answer_lengths, paired_differences
from reports.figures.series import thinking_series
from reports.figures.training import loss_by_phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "Drawing", "FigureError", "Inputs", "write"]


@dataclass(frozen=True)
class Drawing:
    """A figure: what draws it, and what its reader is told.

    `table` names the table that has its numbers, if one does.
    """

    draw: Callable[[Inputs], Figure]
    title: str
    caption: str
    table: str | None = None


FIGURES = {
    "accuracy-by-tokens": Drawing(
        accuracy_by_tokens,
        "Accuracy against decoded tokens",
        "Each variant's mean over the benchmarks; bars are 95 % intervals over training seeds and "
        "questions. Up and to the left is better; points of one place stand side by side. The "
        "dotted line is what guessing scores.",
        "benchmarks",
    ),
    "frontier": Drawing(
        frontier,
        "What accuracy costs: tokens and seconds",
        "Each variant's mean over the benchmarks under the protocol of the latency, against "
        "decoded tokens and, where a case times it, its share of a batch's end-to-end time; bars "
        "are 95 % intervals. Up and to the left is better: no variant beats those on the grey "
        "line. Seconds are a measurement of the machine that the table of latency names.",
        "methods",
    ),
    "paired-differences": Drawing(
        paired_differences,
        "Each variant minus heima, on the same questions",
        "Points; dots are means, bars 95 % intervals over training seeds and questions, rings the "
        "single training seeds. Only what all seeds agree on counts as a conclusion.",
        "ablation",
    ),
    "thinking-series": Drawing(
        thinking_series,
        "How many thinking tokens",
        "Accuracy by thinking tokens a section, and by the share of a section's tokens that is "
        "retained; bars are 95 % intervals. A row for each run of a series, with the profile that "
        "made it, and the paper's: other models, data and judges, no intervals. Each row has an "
        "axis of its own.",
        "tokens_per_stage",
    ),
    "interpreter-metrics": Drawing(
        interpreter_metrics,
        "How close the reconstructions are",
        "The paper's measures of each section, in percent, and the judge's grade (1 to 5) at the "
        "right: rebuilt from the own state by the section's interpreter and by one for all "
        "sections, from another turn's state, and from the question alone. Bars have 95 % "
        "intervals. Below, the paper's, which has no controls; the two are not comparable where "
        "the profile is not the paper's.",
        "interpreters",
    ),
    "own-against-controls": Drawing(
        own_against_controls,
        "What the interpreters read from the own state, against each control",
        "Own minus control: likelihood of the section's text above, the judge's grade below. Dots "
        "are means, bars 95 % intervals, rings the single training seeds. At the line the state "
        "tells nothing that the control does not.",
        "interpreters",
    ),
    "audit-effects": Drawing(
        audit_effects,
        "What conclusions owe to the thinking states",
        "Above, thinking states are replaced by zeros, the mean of training turns, noise, and by "
        "a donor's with the same or another conclusion; below, parts of the forced prefix are "
        "left out, or ways of attention closed in some layers. Dots are means, bars 95 % intervals "
        "over training seeds and questions. At the line nothing changes. Hollow squares are "
        "planted checkpoints, whose effects are known.",
        "audit",
    ),
    "truncation-curves": Drawing(
        truncation_curves,
        "Answers after the first part of a chain",
        "How often greedy decoding gives the answer that it gives after the whole chain: after the "
        "first thinking tokens of a checkpoint's prefix, and after the first part of the tokens "
        "of text-CoT's own chain, where it was cut; a cross is that chain with a wrong fact, a "
        "plus as much filler. Bars are 95 % intervals; after the whole chain nothing changes. "
        "Hollow squares are planted checkpoints. Where a line is high early, the rest of the chain "
        "changes few answers.",
        "audit",
    ),
    "closed-ways": Drawing(
        closed_ways,
        "What a conclusion costs where it cannot see its thinking tokens, or the image",
        "Negative log-likelihood gained where attention from the conclusion to thinking tokens, or "
        "to the image, is closed in each window of layers, and in all. Dots are means, bars "
        "95 % intervals over training seeds and questions. Hollow squares are planted checkpoints: "
        "blind to thinking tokens, or to all else.",
        "audit",
    ),
    "loss-by-phase": Drawing(
        loss_by_phase,
        "Training loss by phase",
        "Each chain of checkpoints from text-cot on, a dashed line where a phase ends, its updates "
        "in the legend; then the interpreters. A line a training seed; a point is the mean of "
        "neighbouring updates.",
    ),
    "latency-by-phase": Drawing(
        latency_by_phase,
        "Where the time of an answer goes",
        "Medians of each phase, stacked; the mark is the median end to end with its 95 % interval. "
        "A measurement of the machine that the table of latency names.",
        "latency",
    ),
    "answer-lengths": Drawing(
        answer_lengths,
        "Lengths of the answers",
        "Decoded tokens of every answer, tags, thinking tokens and end of turn included: quartiles "
        "and median in the box, lines to the shortest and the longest.",
        "benchmarks",
    ),
    "state-geometry": Drawing(
        state_geometry,
        "Where the thinking states lie",
        "Held-out states of the first training seed in the plane of most variance (below it the "
        "shares of both axes), coloured by kind of question; at the right, the share of the "
        "variance that the first dimensions hold, a line a training seed.",
    ),
}


def write(inputs: Inputs, folder: Path) -> None:
    """Every figure as SVG and PDF below `folder`."""
    with style.applied():
        for name, drawing in FIGURES.items():
            style.write(drawing.draw(inputs), folder, name)
