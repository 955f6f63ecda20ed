"""How figures look and how they are written: `matplotlibrc`, colours, SVG and PDF without a date.

matplotlib is imported when a figure is drawn, so that whoever wants only the captions waits for
nothing. Figures are made without pyplot: they share no state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.tables.model import Entry

RC = Path(__file__).with_name("matplotlibrc")
SUFFIXES = ("svg", "pdf")

_NO_DATE: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """`matplotlibrc` and nothing of the user's own settings, for as long as the block runs."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc_file(str(RC))
        yield


def figure(**options: Any) -> Figure:
    """An empty figure; to be called within `applied`."""
    from matplotlib.figure import Figure

    return Figure(**options)


def write(drawn: Figure, folder: Path, name: str) -> None:
    """`<name>.svg` and `<name>.pdf` below `folder`, the same bytes for the same figure."""
    # The layout is found once, for both.
    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")
    for suffix in SUFFIXES:
        metadata: Any = _NO_DATE[suffix]
        drawn.savefig(folder / f"{name}.{suffix}", format=suffix, metadata=metadata)


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in their order; after the last one the first comes again."""
    import matplotlib

    known = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return {name: known[place % len(known)] for place, name in enumerate(names)}


def marks(names: Iterable[str]) -> dict[str, str]:
    """A mark for each name, in their order: another one each time that the colours begin again."""
    import matplotlib

    known = len(matplotlib.rcParams["axes.prop_cycle"].by_key()["color"])
    shapes = "oDv^"
    return {name: shapes[place // known % len(shapes)] for place, name in enumerate(names)}


def error(entry: Entry) -> list[list[float]]:
    """How far an interval reaches below and above its value, as `errorbar` has it; never below 0.

    A percentile interval need not hold the mean; the side that it lies beyond has no bar.
    """
    low = entry.value if entry.low is None else entry.low
    high = entry.value if entry.high is None else entry.high
    return [[max(0.0, entry.value - low)], [max(0.0, high - entry.value)]]


def legend_above(axes: Axes, columns: int) -> None:
    """A legend in the line of the title, where no curve is."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=columns)


def forest(axes: Axes, rows: Mapping[str, Entry], *, colour: str) -> None:
    """A row for each entry: its interval as a bar, its value as a dot, training seeds as rings.

    Rows are drawn from the top, beside a line at 0.
    """
    axes.axvline(0, color="#777777", linewidth=0.8)
    for place, entry in enumerate(rows.values()):
        axes.errorbar(entry.value, place, xerr=error(entry), fmt="o", color=colour, zorder=3)
        seeds = list(entry.seeds.values())
        axes.plot(
            seeds, [place] * len(seeds), "o", mfc="none", mec=colour, ms=3, mew=0.6, alpha=0.8
        )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
