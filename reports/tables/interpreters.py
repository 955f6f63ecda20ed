"""The table of the interpreters: what they rebuild from a thinking state, and from controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import probe
from heima.config import Params
from heima.results import statistics
from heima.results.cells import Cell, read_metrics
from heima.results.measures import (
    CORPUS_BLEU,
    NLL_GAIN,
    difference,
    further_metrics,
    judge_column,
    judged,
    paper_metrics,
)
from reports.tables import captions
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.panels import by_training_seed
from reports.tables.published import PAPERS
from reports.tables.reading import PROBE, Scores
from reports.tables.samples import Rebuilt

if TYPE_CHECKING:
    import pandas as pd


def interpreters_block(
    root: Path,
    params: Params,
    similarities: Scores,
    reconstructed: Mapping[str, pd.DataFrame],
    published: Sequence[Mapping[str, str]],
    rebuilt: Rebuilt,
    probed: Mapping[str, Mapping[str, Cell]],
) -> Block:
    panels: list[Panel] = []
    for section in params.sections:
        panels += _section_panels(section, params, similarities[section], published)
    others = tuple(name for name in params.reconstructions if name not in params.sections)
    if others:
        panels += _other_interpreters(others, params, similarities, reconstructed, published)
    panels.append(_words(params, probed))
    _, made = read_metrics(root / similarities[params.sections[0]][1])
    return Block(
        origin=f"{params.profile} profile",
        title=f"Interpreters ({captions.about(params)})",
        caption=captions.interpreters(params, made, _without_partner(rebuilt)),
        panels=tuple(panels),
    )


def _without_partner(rebuilt: Rebuilt) -> int:
    """How many turns are the only ones of their kind with their conclusion."""
    rows = next(iter(rebuilt.values()), ())
    return sum(not row["same_gold"] for row in rows if row["control"] == "shuffled-same-gold")


def _shown(params: Params) -> dict[str, int]:
    """The measures of the paper that a panel shows, with their decimals."""
    digits = dict.fromkeys(paper_metrics(params.similarity), 1)
    return {**digits, judge_column(params.judge): 2} if params.similarity.judged else digits


def _section_panels(
    section: str,
    params: Params,
    found: tuple[dict[str, dict[str, Cell]], str],
    published: Sequence[Mapping[str, str]],
) -> list[Panel]:
    """One section under every control, and own minus control."""
    cells, source = found
    controls = params.reconstruct.controls
    others = tuple(control for control in controls if control != "own")
    shown = _shown(params)
    further = dict.fromkeys((CORPUS_BLEU, *further_metrics()), 1)

    def grid(
        title: str, corner: str, rows: Sequence[str], digits: Mapping[str, int], group: Any
    ) -> Panel:
        entries: dict[tuple[str, str], Entry | Label] = {}
        for row in rows:
            for column in digits:
                # The controls that the judge does not see have no such cell.
                unjudged = column == judge_column(params.judge) and not judged(row, params)
                entries[row, column] = (
                    Label("not judged", "params.yaml")
                    if unjudged
                    else Entry.of(cells[group(row)][column], source)
                )
        return Panel(title, corner, tuple(rows), digits, entries)

    def own(row: str) -> str:
        return row

    given = grid(f"{section}: state given", "state", controls, {**shown, "nll_per_token": 3}, own)
    empty: dict[tuple[str, str], Label] = {}
    for control in controls:
        cell = cells[control]["bleu4"]
        empty[control, "empty of n"] = Label(f"{cell.n_failed} of {cell.n}", source)
    given = replace(
        given, digits={**given.digits, "empty of n": 0}, entries={**given.entries, **empty}
    )
    gains = grid(
        f"{section}: own minus control", "control", others, {**shown, NLL_GAIN: 2}, difference
    )
    return [
        _with_published(given, {_PUBLISHED_ROW: section}, "3", params, published),
        gains,
        *by_training_seed(
            f"{section}: nll_gain by training seed",
            "control",
            params,
            {control: gains.entries[control, NLL_GAIN] for control in others},
            digits=2,
        ),
        grid(f"{section}: state given, further measures", "state", controls, further, own),
        grid(
            f"{section}: own minus control, further measures",
            "control",
            others,
            further,
            difference,
        ),
    ]


def _words(params: Params, probed: Mapping[str, Mapping[str, Cell]]) -> Panel:
    """What a linear probe reads from the own state, beside what interpreters write."""
    columns = probe.columns(params)
    return Panel(
        WORDS,
        "reconstruction",
        tuple(params.reconstructions),
        dict.fromkeys(columns, 1),
        {
            (name, column): Entry.of(probed[name][column], PROBE)
            for name in params.reconstructions
            for column in columns
        },
    )


WORDS = "Words of the section that are told from a state (macro-F1, %)"


def _other_interpreters(
    names: tuple[str, ...],
    params: Params,
    similarities: Scores,
    reconstructed: Mapping[str, pd.DataFrame],
    published: Sequence[Mapping[str, str]],
) -> list[Panel]:
    """Reconstructions by other interpreters, and how they differ from the section's own."""
    shown = _shown(params)
    controls = tuple(c for c in params.reconstruct.controls if c != "own")
    own: dict[tuple[str, str], Entry | Label] = {}
    gains: dict[tuple[str, str], Entry | Label] = {}
    paired: dict[tuple[str, str], Entry | Label] = {}
    for name in names:
        cells, source = similarities[name]
        for column in (*shown, "nll_per_token"):
            own[name, column] = Entry.of(cells["own"][column], source)
        for control in controls:
            gains[name, control] = Entry.of(cells[difference(control)][NLL_GAIN], source)
        section = params.reconstructions[name].section
        ours, theirs = reconstructed[name], reconstructed[section]
        for column in (*shown, "nll"):
            # A row a training seed, a column a turn; a turn counts where all seeds have both.
            by_seed = (
                (ours[column] - theirs[column])
                .unstack()
                .reindex(index=params.seeds, columns=theirs.loc[params.seeds[0]].index)
            )
            there = by_seed.notna().all(axis=0).to_numpy()
            images = theirs.loc[params.seeds[0]]["image"].to_numpy()[there]
            paired[name, column] = Entry.of(
                statistics.seeded_cell(
                    {seed: by_seed.loc[seed].to_numpy()[there] for seed in params.seeds},
                    draws=params.similarity.draws,
                    seed=params.seed,
                    clusters=images.tolist(),
                ),
                f"scores/similarity/{name}.parquet - scores/similarity/{section}.parquet",
            )
    rows = {f"{_PUBLISHED_ROW}, one for all: {section}": section for section in params.sections}
    return [
        _with_published(
            Panel(
                OTHERS,
                "reconstruction",
                names,
                {**shown, "nll_per_token": 3},
                own,
            ),
            rows,
            "1",
            params,
            published,
        ),
        Panel(
            "Other interpreters minus the section's own (nll: nats a text)",
            "reconstruction",
            names,
            {**shown, "nll": 2},
            paired,
        ),
        Panel(
            "Other interpreters: nll_gain of the own state over each control",
            "reconstruction",
            names,
            dict.fromkeys(controls, 2),
            gains,
        ),
    ]


OTHERS = "Other interpreters: own state"
"""The title of the panel by which the compact form finds it."""

_PUBLISHED_ROW = "published"


def _with_published(
    panel: Panel,
    rows: Mapping[str, str],
    interpreters: str,
    params: Params,
    published: Sequence[Mapping[str, str]],
) -> Panel:
    """A panel of the paper's profile with the paper's values below ours: row -> section.

    Elsewhere the panel as it is: no toy number stands beside one of the paper. A measure that is
    not the paper's, or that it does not publish, has no value there.
    """
    if params.profile not in PAPERS or not published:
        return panel
    names = {"bleu4": "bleu4", "meteor": "meteor", "rougeL": "rougeL", "bertscore": "bertscore_f1"}
    source = "reports/published/interpreters.csv"
    values = {
        (row["stage"], row["metric"]): float(row["value"])
        for row in published
        if row["interpreters"] == interpreters
    }
    entries = dict(panel.entries)
    for row, section in rows.items():
        for column in panel.digits:
            value = values.get((section, names.get(column, "")))
            entries[row, column] = Label("–", source) if value is None else Entry(value, source)
    return replace(panel, rows=(*panel.rows, *rows), entries=entries)
