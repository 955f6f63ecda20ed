"""The figure of training: the loss of every phase, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heima.config import Checkpoint, Params
from reports.figures import style
from reports.figures.inputs import Inputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 120
"""Points of a curve: each is the mean loss of equally many updates."""


def loss_by_phase(inputs: Inputs) -> Figure:
    """Training loss of each chain of checkpoints with its borders, and of the interpreters."""
    params = inputs.params
    # A given adapter has no losses to be drawn.
    trained = [name for name in params.checkpoints if _is_trained(params, name)]
    inits = {params.checkpoints[name].init for name in trained}
    chains = [_chain(inputs, name) for name in trained if name not in inits]
    rows = len(chains) + 1
    drawn = style.figure(figsize=(6.75, 0.5 + 1.25 * rows))
    grid = drawn.subplots(rows, 1, squeeze=False)[:, 0]
    for axes, chain in zip(grid, chains, strict=False):
        _draw_chain(axes, inputs, chain)
    _draw_interpreters(grid[-1], inputs)
    drawn.supylabel("loss (nats a token)", fontsize=8)
    grid[-1].set_xlabel("updates (each line a training seed)")
    for axes in grid:
        axes.set_yscale("log")
        axes.margins(x=0.01)
    return drawn


def _chain(inputs: Inputs, name: str) -> list[str]:
    """The checkpoints that lead from text-CoT to `name`, first trained first."""
    chain = [name]
    while _is_trained(inputs.params, init := inputs.params.checkpoints[chain[0]].init):
        chain.insert(0, init)
    return chain


def _is_trained(params: Params, name: str) -> bool:
    return isinstance(params.checkpoints.get(name), Checkpoint)


def _draw_chain(axes: Axes, inputs: Inputs, chain: Sequence[str]) -> None:
    colours = style.colours(chain)
    begin = 0
    for name in chain:
        steps = 0
        for seed in inputs.params.seeds:
            rows = inputs.losses(f"models/{inputs.params.trained(name, seed)}")
            x, y = binned(rows)
            axes.plot(begin + x, y, color=colours[name], alpha=0.8, linewidth=0.8)
            steps = max(steps, rows[-1]["step"])
        if begin:
            axes.axvline(begin, color="#777777", linestyle="--", linewidth=0.8)
        axes.plot([], [], color=colours[name], label=f"{name} ({steps})")
        begin += steps
    style.legend_above(axes, len(chain))
    start = inputs.params.checkpoints[chain[0]].init
    axes.set_title(f"{start} → {' → '.join(chain)}")


def _draw_interpreters(axes: Axes, inputs: Inputs) -> None:
    trained = [name for name, one in inputs.params.interpreters.items() if one.adapter is None]
    colours = style.colours(trained)
    for name in trained:
        for source, line in (("own", "-"), ("question-only", ":")):
            for seed in inputs.params.seeds:
                x, y = binned(inputs.losses(f"interpreters/{name}/{source}/{seed}"))
                axes.plot(x, y, line, color=colours[name], alpha=0.8, linewidth=0.8)
        axes.plot([], [], color=colours[name], label=name)
    axes.plot([], [], ":", color="#777777", label="reads the question alone")
    style.legend_above(axes, len(colours) + 1)
    axes.set_title("interpreters")


def binned(
    rows: Sequence[dict[str, Any]], points: int = _POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean step and mean loss of at most `points` stretches of equally many updates, or nearly."""
    parts = np.array_split(np.arange(len(rows)), min(points, len(rows)))
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    losses = np.array([row["loss"] for row in rows], dtype=np.float64)
    return (
        np.array([steps[part].mean() for part in parts]),
        np.array([losses[part].mean() for part in parts]),
    )
