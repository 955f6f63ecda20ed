"""The table of the benchmarks: accuracy and decoded tokens of every variant."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from heima.config import Params, ProtocolName
from heima.results.scores import ACCURACY, CHANCE, MEAN, score_group, seed_metric
from reports.tables import captions
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.panels import by_training_seed, score_panel
from reports.tables.published import PAPERS, PUBLISHED_NAMES
from reports.tables.reading import Scores


def benchmarks_block(
    params: Params, protocol: ProtocolName, scores: Scores, published: Sequence[Mapping[str, str]]
) -> Block:
    variants = tuple(params.variants)
    accuracy = score_panel("Accuracy (%)", ACCURACY, protocol, params, variants, scores)
    first, source = scores[variants[0]]
    guesses = {
        benchmark: first[score_group(protocol, benchmark)][CHANCE]
        for benchmark in params.benchmarks
    }
    chance: dict[tuple[str, str], Entry] = {
        (CHANCE, column): Entry(cell.value, source, n=cell.n) for column, cell in guesses.items()
    }
    chance[CHANCE, MEAN] = Entry(
        float(np.mean([cell.value for cell in guesses.values()])),
        source,
        n=sum(cell.n for cell in guesses.values()),
    )
    tokens = {
        "decoded": "decoded_tokens",
        "thinking": "thinking_tokens",
        "tags": "tag_tokens",
        "conclusion": "conclusion_tokens",
    }
    mean = score_group(protocol, MEAN)
    split = Panel(
        "Tokens per answer by kind, mean of the benchmarks",
        "variant",
        variants,
        dict.fromkeys(tokens, 1),
        {
            (variant, column): Entry.of(cells[mean][metric], source)
            for variant, (cells, source) in scores.items()
            for column, metric in tokens.items()
        },
    )
    failed = Panel(
        "Failed answers of n",
        "variant",
        variants,
        accuracy.digits,
        {
            key: Label(
                f"{entry.n_failed} of {entry.n}"
                + (f", {entry.n_unanswered} ungraded" if entry.n_unanswered else ""),
                entry.source,
            )
            for key, entry in accuracy.entries.items()
            if isinstance(entry, Entry)
        },
    )
    return Block(
        origin=f"{params.profile} profile, protocol {protocol}",
        title=f"Benchmarks, protocol {protocol} ({captions.about(params)})",
        caption=captions.benchmarks(params, protocol),
        panels=(
            replace(accuracy, rows=(*variants, CHANCE), entries={**accuracy.entries, **chance}),
            *_minus_published(params, protocol, accuracy, published),
            *by_training_seed(
                "Accuracy (%) by training seed, mean of the benchmarks",
                "variant",
                params,
                {row: accuracy.entries[row, MEAN] for row in variants},
            ),
            *_by_seed(params, protocol, variants, scores),
            score_panel(
                "Decoded tokens per answer", "decoded_tokens", protocol, params, variants, scores
            ),
            split,
            failed,
        ),
    )


def _by_seed(
    params: Params, protocol: ProtocolName, variants: tuple[str, ...], scores: Scores
) -> tuple[Panel, ...]:
    """What a run of one decoding seed alone would have said; nothing where there is one."""
    seeds = params.protocols[protocol].seeds
    if len(seeds) == 1:
        return ()
    mean = score_group(protocol, MEAN)
    entries: dict[tuple[str, str], Entry | Label] = {
        (variant, f"seed {seed}"): Entry.of(
            scores[variant][0][mean][seed_metric(seed)], scores[variant][1]
        )
        for variant in variants
        for seed in seeds
    }
    columns = dict.fromkeys((f"seed {seed}" for seed in seeds), 1)
    title = "Accuracy (%) by decoding seed, mean of the benchmarks"
    return (Panel(title, "variant", variants, columns, entries),)


def _minus_published(
    params: Params, protocol: ProtocolName, accuracy: Panel, published: Sequence[Mapping[str, str]]
) -> tuple[Panel, ...]:
    """Whether the paper's accuracies came out: ours minus theirs, by their rules and models.

    Only where both are the paper's: no toy number stands beside one of the paper.
    """
    if params.profile not in PAPERS or protocol != "vlmevalkit":
        return ()
    found = {(row["model"], row["benchmark"]): float(row["accuracy"]) for row in published}
    models = {model for model, _ in found}
    rows = tuple(row for row in accuracy.rows if row in models)
    columns = tuple(name for name in params.benchmarks if name in PUBLISHED_NAMES)
    entries: dict[tuple[str, str], Entry | Label] = {}
    for row, column in itertools.product(rows, columns):
        ours = accuracy.entries[row, column]
        theirs = found[row, PUBLISHED_NAMES[column]]
        if isinstance(ours, Entry) and ours.low is not None and ours.high is not None:
            entries[row, column] = replace(
                ours,
                value=ours.value - theirs,
                low=ours.low - theirs,
                high=ours.high - theirs,
                t_interval=ours.t_interval
                and (ours.t_interval[0] - theirs, ours.t_interval[1] - theirs),
                seeds={seed: value - theirs for seed, value in ours.seeds.items()},
            )
    title = "Accuracy minus the published one (points; intervals are ours alone)"
    return (Panel(title, "variant", rows, dict.fromkeys(columns, 1), entries),)
