"""The tables of the number of thinking tokens a section, and of the share of tokens retained.

Ours where a profile trains such chains, what other profiles of this family have kept, the paper's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from heima.config import Params, ProtocolName
from heima.results.scores import ACCURACY, MEAN, score_group
from reports.tables import captions
from reports.tables.ablation import lineage
from reports.tables.kept import Kept, of_family
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.panels import ACCURACIES, DECODED
from reports.tables.published import PUBLISHED, PUBLISHED_NAMES
from reports.tables.reading import REFERENCE, Scores

SERIES = {"tokens_per_stage": "tokens", "retention_ratio": "ratio"}
"""Table -> what its rows are of `thinking`; it is also the first column of the published file."""

_CORNERS = {"tokens_per_stage": "thinking tokens", "retention_ratio": "retained share"}


def points(params: Params, name: str) -> dict[str, str]:
    """Row of a series -> the variant that is trained so: `{"1": "heima", "4": "heima-4"}`.

    A variant counts if its checkpoints are trained on the renderings of heima's, in their order,
    with what heima is fed and its loss, and neither a prefix nor a budget is forced upon it.
    """
    kind = SERIES[name]

    def renderings(variant: str) -> list[tuple[object, ...]]:
        return [
            (one.data, one.feed, one.thought_loss, one.losses)
            for _, one in lineage(params, params.variants[variant].model)
        ]

    found: dict[str, str] = {}
    for variant, one in params.variants.items():
        value = getattr(params.thinking(one.model), kind)
        same = renderings(variant) == renderings(REFERENCE)
        if value is not None and same and one.forced_prefix is None and one.budget is None:
            found.setdefault(f"{value:g}", variant)
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def series_blocks(
    params: Params,
    name: str,
    scores: Scores,
    kept: Sequence[Kept],
    published: Sequence[Mapping[str, str]],
) -> tuple[Block, ...]:
    """Ours, what other profiles have kept of this family, and the paper's."""
    beside = [
        captions.kept_block(block, one)
        for one in of_family(kept, params.published_family)
        for block in one.blocks(name)
    ]
    return (*own_series(params, name, scores), *beside, *_published(name, published))


def own_series(params: Params, name: str, scores: Scores) -> tuple[Block, ...]:
    """Ours under each protocol, where more than heima itself is of the series."""
    rows = points(params, name)
    if all(variant == REFERENCE for variant in rows.values()):
        return ()
    return tuple(_ours(params, name, protocol, rows, scores) for protocol in params.protocols)


def _ours(
    params: Params, name: str, protocol: ProtocolName, rows: Mapping[str, str], scores: Scores
) -> Block:
    columns = (*params.benchmarks, MEAN)

    def panel(title: str, metric: str) -> Panel:
        entries: dict[tuple[str, str], Entry | Label] = {}
        for (row, variant), column in itertools.product(rows.items(), columns):
            cells, source = scores[variant]
            entries[row, column] = Entry.of(cells[score_group(protocol, column)][metric], source)
        return Panel(title, _CORNERS[name], tuple(rows), dict.fromkeys(columns, 1), entries)

    return Block(
        origin=f"{params.profile} profile, protocol {protocol}",
        title=f"{captions.SERIES[name]}, protocol {protocol} ({captions.about(params)})",
        caption=captions.series(params, protocol, rows),
        panels=(panel(ACCURACIES, ACCURACY), panel(DECODED, "decoded_tokens")),
    )


def _published(name: str, rows: Sequence[Mapping[str, str]]) -> tuple[Block, ...]:
    """None for a family of which no such series was published."""
    if not rows:
        return ()
    source = f"reports/published/{name}.csv"
    found = {(row[name], row["benchmark"]): float(row["accuracy"]) for row in rows}
    values = tuple(dict.fromkeys(row[name] for row in rows))
    entries: dict[tuple[str, str], Entry | Label] = {}
    for value in values:
        each = [found[value, label] for label in PUBLISHED_NAMES.values()]
        for column, number in zip(PUBLISHED_NAMES, each, strict=True):
            entries[value, column] = Entry(number, source)
        entries[value, MEAN] = Entry(float(np.mean(each)), source)
    origin = PUBLISHED.format(rows[0]["family"])
    columns = dict.fromkeys((*PUBLISHED_NAMES, MEAN), 1)
    panel = Panel(ACCURACIES, _CORNERS[name], values, columns, entries)
    return (
        Block(origin, f"{captions.SERIES[name]}, {origin}", captions.PUBLISHED_SERIES, (panel,)),
    )


def nothing(name: str) -> tuple[Block, ...]:
    """What stands in a table of which neither side has a row."""
    return (Block("", captions.SERIES[name], captions.NOTHING_PUBLISHED, ()),)
