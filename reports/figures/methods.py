"""The frontier of methods: accuracy against what an answer takes, in tokens and in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from heima.results.scores import ACCURACY, MEAN, score_group
from reports.figures import style
from reports.figures.inputs import Inputs
from reports.figures.scores import aside
from reports.tables.methods import measured_sizes, timed
from reports.tables.model import Entry
from reports.tables.reading import LATENCY, latency_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X<>hd"


def frontier(inputs: Inputs) -> Figure:
    """Mean accuracy under the protocol of `latency`: against decoded tokens, and against seconds an
    answer at the smallest and the largest batch that was timed, for the variants that were."""
    from matplotlib.transforms import ScaledTranslation

    params = inputs.params
    protocol = params.latency.protocol
    cells, provenance = inputs.latency
    scores = {v: inputs.entries(v, score_group(protocol, MEAN)) for v in params.variants}
    panels: dict[str, dict[str, Entry]] = {
        "decoded tokens an answer": {v: found["decoded_tokens"] for v, found in scores.items()}
    }
    for size in measured_sizes(params, provenance["skipped"]):
        panels[f"seconds an answer, batch {size}"] = {
            variant: _each(Entry.of(found["e2e_ms"], LATENCY), size)
            for variant in params.variants
            if (case := timed(params, variant)) is not None
            and "e2e_ms" in (found := cells.get(latency_group(case, size), {}))
        }
    colours = style.colours(params.variants)
    markers = dict(zip(params.variants, MARKERS * len(params.variants), strict=False))
    lines = -(-len(params.variants) // 4)
    drawn = style.figure(figsize=(6.75, 2.7 + 0.16 * lines))
    grid = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, costs) in zip(grid, panels.items(), strict=True):
        accuracies = {variant: scores[variant][ACCURACY] for variant in costs}
        inches = drawn.dpi_scale_trans
        tokens = title.startswith("decoded")
        shifts = aside({v: cost.value for v, cost in costs.items()}, beside=0.04) if tokens else {}
        for variant, cost in costs.items():
            axes.errorbar(
                cost.value,
                accuracies[variant].value,
                xerr=style.error(cost),
                yerr=style.error(accuracies[variant]),
                fmt=markers[variant],
                color=colours[variant],
                label=variant,
                ms=3.5,
                transform=axes.transData + ScaledTranslation(shifts.get(variant, 0.0), 0, inches),
            )
            (left,), (right,) = style.error(cost)
            (below,), (above,) = style.error(accuracies[variant])
            y = accuracies[variant].value
            axes.update_datalim([(cost.value - left, y - below), (cost.value + right, y + above)])
        axes.autoscale_view()
        axes.set_xlim(left=0)
        _step(axes, costs, accuracies)
        axes.set_xlabel(title)
    grid[0].set_ylabel(f"accuracy (%), protocol {protocol}")
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


def _each(entry: Entry, size: int) -> Entry:
    """Milliseconds of a batch as seconds an answer."""
    scale = 1e3 * size
    low, high = (None if one is None else one / scale for one in (entry.low, entry.high))
    return Entry(entry.value / scale, entry.source, low, high, n=entry.n)


def on_frontier(points: Mapping[str, tuple[float, float]]) -> Sequence[str]:
    """Names of (cost, accuracy) that no other one beats: none is as cheap or cheaper and better.

    In the order of their costs.
    >>> on_frontier({"a": (1, 5), "b": (2, 4), "c": (3, 9), "d": (1, 3)})
    ['a', 'c']
    """
    found: list[str] = []
    best = float("-inf")
    for name, (_, accuracy) in sorted(points.items(), key=lambda one: (one[1][0], -one[1][1])):
        if accuracy > best:
            found.append(name)
            best = accuracy
    return found


def _step(axes: Axes, costs: Mapping[str, Entry], accuracies: Mapping[str, Entry]) -> None:
    """A line through what no other method beats, level up to the next one and to the edge."""
    points = {name: (cost.value, accuracies[name].value) for name, cost in costs.items()}
    names = on_frontier(points)
    if names:
        x, y = zip(*(points[name] for name in names), strict=True)
        end = axes.get_xlim()[1]
        axes.step([*x, end], [*y, y[-1]], where="post", color="#777777", linewidth=0.9, zorder=1)
        axes.set_xlim(right=end)
