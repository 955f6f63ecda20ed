"""The numbers that `dvc plots show` and editors draw, as CSV: DVC reads no JSON lines.

They are those of the figures and tables. Which file is drawn how stands below `plots` in dvc.yaml,
with the templates of `.dvc/plots/`: a curve for each `run`, bars for each `panel`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from heima.results.measures import NLL_GAIN, difference
from heima.results.scores import ACCURACY, MEAN, score_group
from reports.figures.inputs import Inputs
from reports.figures.training import binned

_POINTS = 60
"""Points of a curve: each is the mean loss of equally many updates."""

Row = tuple[str | int | float, ...]


def losses(inputs: Inputs) -> Iterator[Row]:
    """Training loss in nats a token: every checkpoint and interpreter, with each training seed."""
    params = inputs.params
    runs = [
        ("checkpoints", name, seed, f"models/{params.trained(name, seed)}")
        for name in params.checkpoints
        for seed in params.seeds
    ]
    runs += [
        (f"interpreters, {source}", name, seed, f"interpreters/{name}/{source}/{seed}")
        for source in ("own", "question-only")
        for name in params.interpreters
        for seed in params.seeds
    ]
    for panel, run, seed, folder in runs:
        for step, loss in zip(*binned(inputs.losses(folder), _POINTS), strict=True):
            yield panel, run, seed, float(step), _short(loss)


def accuracies(inputs: Inputs) -> Iterator[Row]:
    """Accuracy in percent of every variant on each benchmark under each protocol, and the mean."""
    for protocol in inputs.params.protocols:
        for benchmark in (*inputs.params.benchmarks, MEAN):
            for variant in inputs.params.variants:
                entry = inputs.entries(variant, score_group(protocol, benchmark))[ACCURACY]
                yield f"{benchmark} ({protocol})", variant, _short(entry.value)


def tokens(inputs: Inputs) -> Iterator[Row]:
    """Mean decoded tokens of every variant's answers under each protocol."""
    for protocol in inputs.params.protocols:
        for variant in inputs.params.variants:
            entry = inputs.entries(variant, score_group(protocol, MEAN))["decoded_tokens"]
            yield protocol, variant, _short(entry.value)


def gains(inputs: Inputs) -> Iterator[Row]:
    """What a section's own state saves against each control, in nats a text."""
    for name in inputs.params.reconstructions:
        cells, _ = inputs.similarities[name]
        for control in inputs.params.reconstruct.controls:
            if control != "own":
                yield name, control, _short(cells[difference(control)][NLL_GAIN].value)


def _short(value: float) -> float:
    """Six digits: the files lie in git, and nobody reads more off a plot."""
    return float(f"{value:.6g}")


PLOTS: dict[str, tuple[Sequence[str], Callable[[Inputs], Iterator[Row]]]] = {
    "loss": (("panel", "run", "seed", "update", "loss"), losses),
    "accuracy": (("panel", "variant", "accuracy"), accuracies),
    "tokens": (("panel", "variant", "tokens"), tokens),
    "gain": (("panel", "control", "nats"), gains),
}
"""File -> its columns and rows."""


def write(inputs: Inputs, folder: Path) -> None:
    """Every file of `PLOTS` below `folder`."""
    for name, (columns, rows) in PLOTS.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows(inputs))
