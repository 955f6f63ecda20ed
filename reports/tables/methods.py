"""The table of methods: what each variant scores, decodes, took to train and takes to answer.

Each is compared with text-CoT and with answer-only on the same questions. Methods that the paper
names, or that users of such models ask for, and that are not here, have a line that says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from heima.config import GivenCheckpoint, Params, ProtocolName
from heima.results import statistics, verdicts
from heima.results.cells import Cell
from heima.results.scores import ACCURACY, MEAN, score_group
from reports.tables import captions
from reports.tables.ablation import lineage
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.numbers import probability
from reports.tables.reading import FLOPS, LATENCY, Samples, Scores, latency_group
from reports.tables.rivals import RIVALS

METHODS = "Methods"
"""The title by which other forms of the table find its first panel."""
REFERENCES = ("text-cot", "answer-only")
"""The variants that each method is compared with, where a profile has them."""

_NONE = "–"
_UNITS = {"GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15, "EFLOP": 1e18}
_UPDATES, _SEEDS = "updates", "training seeds"

Latencies = Mapping[str, Mapping[str, Cell]]
Counted = Mapping[str, Mapping[str, Cell]]


def methods_block(
    params: Params,
    scores: Scores,
    samples: Mapping[str, Samples],
    flops: Counted,
    latency: Latencies,
    skipped: Mapping[str, str],
) -> Block:
    """`flops` are the cells of `metrics/flops.json`, by checkpoint; `skipped` the batch sizes that
    were not measured."""
    rows = tuple(params.variants)
    return Block(
        origin=f"{params.profile} profile",
        title=f"Methods ({captions.about(params)})",
        caption=captions.methods(params),
        panels=(
            _overview(params, rows, scores, flops, latency, skipped),
            *_comparisons(params, rows, samples),
            *_phases(params, scores),
            _failed(params, rows, scores),
            _rivals(params),
        ),
    )


def _score(scores: Scores, variant: str, protocol: str, metric: str) -> Entry:
    cells, source = scores[variant]
    return Entry.of(cells[score_group(protocol, MEAN)][metric], source)


def measured_sizes(params: Params, skipped: Mapping[str, str]) -> tuple[int, ...]:
    """The smallest and the largest batch that were timed."""
    sizes = [size for size in params.latency.batch_sizes if str(size) not in skipped]
    return tuple(dict.fromkeys((min(sizes), max(sizes)))) if sizes else ()


def timed(params: Params, variant: str) -> str | None:
    """The case of latency that a variant is timed by: as it is, neither cut nor looked up."""
    return next(
        (
            name
            for name, case in params.latency.cases.items()
            if case.variant == variant and case.budget is None and case.lookup is None
        ),
        None,
    )


def _overview(
    params: Params,
    variants: tuple[str, ...],
    scores: Scores,
    flops: Counted,
    latency: Latencies,
    skipped: Mapping[str, str],
) -> Panel:
    """A row a variant, and one for each case that looks tokens up: there only its time differs."""
    looked_up = [n for n, case in params.latency.cases.items() if case.lookup is not None]
    rows = (*variants, *(name for name in looked_up if name not in variants))
    trained = {row: training(params, params.variants[row].model, flops) for row in variants}
    most = max(
        (one.value for both in trained.values() for one in both[1:] if isinstance(one, Entry)),
        default=0.0,
    )
    unit = next((name for name, size in reversed(_UNITS.items()) if most >= size), "GFLOP")
    digits = {
        **{f"{protocol} (%)": 1 for protocol in params.protocols},
        **{f"tokens, {protocol}": 1 for protocol in params.protocols},
        **{_SEEDS: 0, _UPDATES: 0, unit: 1},
        **{f"ms, batch {size}": 1 for size in measured_sizes(params, skipped)},
    }
    entries: dict[tuple[str, str], Entry | Label] = dict.fromkeys(
        itertools.product(rows, digits), Label(_NONE, "params.yaml")
    )
    for row in variants:
        for protocol in params.protocols:
            entries[row, f"{protocol} (%)"] = _score(scores, row, protocol, ACCURACY)
            entries[row, f"tokens, {protocol}"] = _score(scores, row, protocol, "decoded_tokens")
        model = params.variants[row].model
        seeds = len(params.training_seeds(model)) if model in params.checkpoints else 0
        entries[row, _SEEDS] = Label(str(seeds or "one model"), "params.yaml")
        updates, spent = trained[row]
        entries[row, _UPDATES] = updates
        entries[row, unit] = (
            replace(spent, value=spent.value / _UNITS[unit]) if isinstance(spent, Entry) else spent
        )
    for row, size in itertools.product(rows, measured_sizes(params, skipped)):
        case = row if row in looked_up else timed(params, row)
        found = latency.get(latency_group(case, size), {}) if case else {}
        if "e2e_ms" in found:
            entries[row, f"ms, batch {size}"] = Entry.of(found["e2e_ms"], LATENCY)
    return Panel(METHODS, "method", rows, digits, entries)


def training(
    params: Params, model: str, flops: Counted
) -> tuple[Entry, Entry] | tuple[Label, Label]:
    """Updates and FLOPs of all checkpoints from text-CoT to `model`, means over training seeds."""
    if model == "base":
        return Label(_NONE, "params.yaml"), Label(_NONE, "params.yaml")
    chain = lineage(params, model)
    if any(isinstance(one, GivenCheckpoint) for _, one in chain):
        return Label("given", "params.yaml"), Label("given", "params.yaml")
    updates, spent = (
        Entry(sum(flops[name][metric].value for name, _ in chain), FLOPS)
        for metric in ("updates", "flops")
    )
    return updates, spent


def differences(
    params: Params,
    protocol: ProtocolName,
    samples: Mapping[str, Samples],
    references: Sequence[str],
) -> dict[tuple[str, str], Entry]:
    """(variant, reference) -> the mean over benchmarks of its score minus the reference's.

    In points, each question once, paired on the same questions and training seed.
    """
    parts: dict[tuple[str, str], list[statistics.Resampled]] = {}
    for place, benchmark in enumerate(params.benchmarks):
        first = next(iter(samples[references[0]].values()))
        keys = [key for key in first if key[:2] == (protocol, benchmark)]
        rows = {
            name: {seed: [found[key] for key in keys] for seed, found in by_seed.items()}
            for name, by_seed in samples.items()
        }
        resampled = statistics.resample(
            {
                name: {seed: [row["score"] for row in found] for seed, found in by_seed.items()}
                for name, by_seed in rows.items()
            },
            draws=params.similarity.draws,
            seed=(params.seed, place),
            clusters=[first[key]["image"] for key in keys],
            scale=100,
        )
        failed = {
            name: np.array([[row["failed"] for row in found] for found in by_seed.values()])
            for name, by_seed in rows.items()
        }
        for name, reference in itertools.product(rows, references):
            if name != reference:
                parts.setdefault((name, reference), []).append(
                    statistics.minus(
                        resampled[name],
                        resampled[reference],
                        n_failed=int((failed[name] | failed[reference]).sum()),
                    )
                )
    return {
        pair: Entry.of(
            statistics.mean_of(found).cell(seed=params.seed),
            f"scores/{pair[0]}.jsonl - scores/{pair[1]}.jsonl",
        )
        for pair, found in parts.items()
    }


def _comparisons(
    params: Params, variants: Sequence[str], samples: Mapping[str, Samples]
) -> Iterator[Panel]:
    """A panel a protocol and reference; p after Holm over all of them that can be tested."""
    references = [name for name in REFERENCES if name in params.variants]
    if not references:
        return
    found = {
        (protocol, *pair): entry
        for protocol in params.protocols
        for pair, entry in differences(params, protocol, samples, references).items()
    }
    tested = {place: p for place, one in found.items() if (p := one.cell().p) is not None}
    adjusted = dict(zip(tested, verdicts.holm(list(tested.values())), strict=True))
    for protocol, reference in itertools.product(params.protocols, references):
        rows = tuple(row for row in variants if (protocol, row, reference) in found)
        entries: dict[tuple[str, str], Entry | Label] = {}
        for row in rows:
            place = (protocol, row, reference)
            entry = entries[row, "difference"] = found[place]
            for column, known in (("p", tested), ("p (Holm)", adjusted)):
                text = probability(known[place]) if place in known else "one seed"
                entries[row, column] = Label(text, entry.source)
        yield Panel(
            f"Mean score minus {reference}, protocol {protocol} (points)",
            "method",
            rows,
            {"difference": 1, "p": 0, "p (Holm)": 0},
            entries,
        )


def _phases(params: Params, scores: Scores) -> Iterator[Panel]:
    """Accuracy after each checkpoint of a chain, where variants ask more than one of it."""
    plain: dict[str, str] = {}
    for name, variant in params.variants.items():
        if not (variant.forced_prefix or variant.budget or variant.asks):
            plain.setdefault(variant.model, name)
    chains = {
        name: [checkpoint for checkpoint, _ in lineage(params, model)]
        for model, name in plain.items()
    }
    within = {one for chain in chains.values() for one in chain[:-1]}
    chains = {
        name: chain
        for name, chain in chains.items()
        if chain and chain[-1] not in within and sum(one in plain for one in chain) > 1
    }
    if not chains:
        return
    columns = dict.fromkeys((f"phase {n + 1}" for n in range(max(map(len, chains.values())))), 1)
    for protocol in params.protocols:
        entries: dict[tuple[str, str], Entry | Label] = {}
        for row, chain in chains.items():
            for column, one in itertools.zip_longest(columns, chain):
                known = one in plain
                entries[row, column] = (
                    _score(scores, plain[one], protocol, ACCURACY)
                    if known
                    else Label(_NONE, "params.yaml")
                )
        yield Panel(
            f"Accuracy (%) after each phase, protocol {protocol}",
            "method",
            tuple(chains),
            columns,
            entries,
        )


def _failed(params: Params, variants: tuple[str, ...], scores: Scores) -> Panel:
    entries: dict[tuple[str, str], Entry | Label] = {}
    for row, protocol in itertools.product(variants, params.protocols):
        one = _score(scores, row, protocol, ACCURACY)
        entries[row, protocol] = Label(
            f"{one.n_failed} of {one.n}"
            + (f", {one.n_unanswered} ungraded" if one.n_unanswered else ""),
            one.source,
        )
    columns = {str(protocol): 0 for protocol in params.protocols}
    return Panel("Failed answers of n", "method", variants, columns, entries)


def _rivals(params: Params) -> Panel:
    column = "row, or why there is none"
    entries: dict[tuple[str, str], Entry | Label] = {}
    for name, rival in RIVALS.items():
        text = ", ".join(rival.found(params)) or rival.why_not.format(profile=params.profile)
        entries[name, column] = Label(text, "params.yaml")
    title = "Methods that the paper names, or that are asked for"
    return Panel(title, "method", tuple(RIVALS), {column: 0}, entries)
