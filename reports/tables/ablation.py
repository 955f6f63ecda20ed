"""The table of the ablation: what each variant on the text-CoT model gains or loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from heima.config import Checkpoint, GivenCheckpoint, Params, ProtocolName
from heima.results import statistics
from heima.results.cells import Cell
from heima.results.scores import ACCURACY, MEAN
from reports.tables import captions
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.numbers import probability
from reports.tables.panels import ACCURACIES, DECODED, by_training_seed, score_panel
from reports.tables.reading import REFERENCE, Samples, Scores, ablated

DIFFERENCES = f"Mean score minus {REFERENCE} (points, each question counts once)"
VERDICTS = f"Do the training seeds agree on a difference to {REFERENCE}?"
"""Titles by which figures and the page find these panels."""


def ablation_block(
    params: Params, protocol: ProtocolName, scores: Scores, samples: Mapping[str, Samples]
) -> Block:
    variants = ablated(params)
    others = tuple(variant for variant in variants if variant != REFERENCE)
    training = {}
    for variant in variants:
        chain = lineage(params, params.variants[variant].model)
        # The text-CoT model is where distillation starts: no checkpoint, no update.
        for column, text in (
            ("checkpoints", " + ".join(name for name, _ in chain) or "none"),
            ("updates", _updates([checkpoint for _, checkpoint in chain])),
            ("learning rates", _learning_rates([checkpoint for _, checkpoint in chain])),
        ):
            training[variant, column] = Label(text, "params.yaml")
    paired = {variant: paired_scores(params, protocol, samples, variant) for variant in others}
    columns = (*params.benchmarks, MEAN)
    return Block(
        origin=f"{params.profile} profile, protocol {protocol}",
        title=f"Ablation, protocol {protocol} ({captions.about(params)})",
        caption=captions.ablation(params, protocol),
        panels=(
            Panel(
                "Training",
                "variant",
                variants,
                dict.fromkeys(("checkpoints", "updates", "learning rates"), 0),
                training,
            ),
            score_panel(ACCURACIES, ACCURACY, protocol, params, variants, scores),
            Panel(
                DIFFERENCES,
                "variant",
                others,
                dict.fromkeys(columns, 1),
                {(v, column): paired[v][column] for v in others for column in columns},
            ),
            *by_training_seed(
                f"Mean score minus {REFERENCE} by training seed, mean of the benchmarks",
                "variant",
                params,
                {v: paired[v][MEAN] for v in others},
            ),
            Panel(
                VERDICTS,
                "variant",
                others,
                dict.fromkeys(columns, 0),
                {(v, column): verdict(paired[v][column]) for v in others for column in columns},
            ),
            score_panel(DECODED, "decoded_tokens", protocol, params, variants, scores),
        ),
    )


def lineage(params: Params, model: str) -> list[tuple[str, Checkpoint | GivenCheckpoint]]:
    """The checkpoints that lead from the text-CoT model to `model`, first trained first."""
    chain: list[tuple[str, Checkpoint | GivenCheckpoint]] = []
    while model in params.checkpoints:
        chain.insert(0, (model, params.checkpoints[model]))
        model = params.checkpoints[model].init
    return chain


_GIVEN = "given"
"""What a given checkpoint was trained with, which nothing here says."""


def _updates(checkpoints: Sequence[Checkpoint | GivenCheckpoint]) -> str:
    """The updates of checkpoints in a row: steps with their sum, or epochs.

    >>> _updates([])
    '0'
    """
    chain = [checkpoint for checkpoint in checkpoints if isinstance(checkpoint, Checkpoint)]
    if len(chain) < len(checkpoints):
        # Only the first of a chain can be one.
        return " + ".join([_GIVEN, *([_updates(chain)] if chain else [])])
    if all(checkpoint.steps is not None for checkpoint in chain):
        steps = [checkpoint.steps or 0 for checkpoint in chain]
        parts = f" ({' + '.join(map(str, steps))})" if len(steps) > 1 else ""
        return f"{sum(steps)}{parts}"
    return " + ".join(
        f"{checkpoint.epochs:g} epochs" if checkpoint.steps is None else f"{checkpoint.steps}"
        for checkpoint in chain
    )


def _learning_rates(chain: Sequence[Checkpoint | GivenCheckpoint]) -> str:
    rates = [f"{one.learning_rate:g}" if isinstance(one, Checkpoint) else _GIVEN for one in chain]
    return ", ".join(rates) or "none"


_LEVEL = 0.05


def verdict(difference: Entry) -> Label:
    """Whether a difference is a conclusion, in words; of one training seed there is none."""
    if difference.low is None or difference.high is None:
        raise ValueError(f"a difference needs its interval, got {difference}")
    cell = Cell(difference.value, difference.low, difference.high, n=1, seeds=difference.seeds)
    if cell.p is None:
        return Label("one seed: no verdict", difference.source)
    if not statistics.agreed(cell) or cell.p >= _LEVEL:
        return Label("undecided", difference.source)
    direction = "higher" if cell.value > 0 else "lower"
    return Label(f"{direction} (p {probability(cell.p)})", difference.source)


def paired_scores(
    params: Params,
    protocol: ProtocolName,
    samples: Mapping[str, Samples],
    variant: str,
) -> dict[str, Entry]:
    """Benchmark -> mean score of the variant minus that of the reference, in points; and `mean`."""
    source = f"scores/{variant}.jsonl - scores/{REFERENCE}.jsonl"
    differences = []
    for place, benchmark in enumerate(params.benchmarks):
        keys = [
            key
            for key in next(iter(samples[REFERENCE].values()))
            if key[:2] == (protocol, benchmark)
        ]
        rows = {
            name: {seed: [found[key] for key in keys] for seed, found in samples[name].items()}
            for name in (variant, REFERENCE)
        }
        resampled = statistics.resample(
            {
                name: {seed: [row["score"] for row in found] for seed, found in by_seed.items()}
                for name, by_seed in rows.items()
            },
            draws=params.similarity.draws,
            seed=(params.seed, place),
            clusters=[row["image"] for row in next(iter(rows[REFERENCE].values()))],
            scale=100,
        )
        failed = {
            name: np.array([[row["failed"] for row in found] for found in by_seed.values()])
            for name, by_seed in rows.items()
        }
        differences.append(
            statistics.minus(
                resampled[variant],
                resampled[REFERENCE],
                n_failed=int((failed[variant] | failed[REFERENCE]).sum()),
            )
        )
    named: dict[str, statistics.Resampled] = dict(zip(params.benchmarks, differences, strict=True))
    named[MEAN] = statistics.mean_of(differences)
    return {name: Entry.of(one.cell(seed=params.seed), source) for name, one in named.items()}
