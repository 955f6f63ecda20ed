"""Panels that several tables have."""

from __future__ import annotations

from collections.abc import Mapping

from heima.config import Params, ProtocolName
from heima.results.scores import MEAN, score_group
from reports.tables.model import Entry, Label, Panel
from reports.tables.reading import Scores

ACCURACIES = "Accuracy (%)"
DECODED = "Decoded tokens per answer"
PUBLISHED_TOKENS = "Generated tokens, as the paper counts them"
"""Titles by which other forms of a table find a panel."""


def score_panel(
    title: str,
    metric: str,
    protocol: ProtocolName,
    params: Params,
    variants: tuple[str, ...],
    scores: Scores,
) -> Panel:
    columns = (*params.benchmarks, MEAN)
    return Panel(
        title,
        "variant",
        variants,
        dict.fromkeys(columns, 1),
        {
            (variant, column): Entry.of(
                scores[variant][0][score_group(protocol, column)][metric], scores[variant][1]
            )
            for variant in variants
            for column in columns
        },
    )


def by_training_seed(
    title: str,
    corner: str,
    params: Params,
    entries: Mapping[str, Entry | Label],
    digits: int = 1,
) -> tuple[Panel, ...]:
    """Each training seed's value of each row's entry, and the t interval over them.

    Nothing where there is one training seed. A row whose model has no training seeds of its own
    has no such line.
    """
    rows = {
        row: one for row, one in entries.items() if isinstance(one, Entry) and one.sd is not None
    }
    if not rows:
        return ()
    grid: dict[tuple[str, str], Entry | Label] = {}
    for row, one in rows.items():
        grid |= {(row, f"seed {seed}"): Entry(v, one.source) for seed, v in one.seeds.items()}
        if one.sd is not None and one.t_interval is not None:
            grid[row, "sd"] = Entry(one.sd, one.source)
            grid[row, _T_INTERVAL] = Entry(one.value, one.source, *one.t_interval)
    columns = (*(f"seed {seed}" for seed in params.seeds), "sd", _T_INTERVAL)
    return (Panel(title, corner, tuple(rows), dict.fromkeys(columns, digits), grid),)


_T_INTERVAL = "mean [t interval over seeds]"
