"""Tables of a reproduction: which cells each expects, and how they become LaTeX, Markdown and CSV.

A table reads the files that the parameters name and no other; a cell that is missing, left over or
of another profile raises `TableError` with all of them. Every entry knows the file it came from.
The paper's own values stand in a block of their own beside ours, with a caption that says so: they
come from other models, data and judges.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heima.config import Checkpoint, Params
from heima.results import statistics
from heima.results.cells import Cell, read_metrics
from heima.results.files import read_jsonl
from heima.results.measures import (
    CORPUS_BLEU,
    NLL,
    NLL_GAIN,
    difference,
    further_metrics,
    judge_column,
    judge_name,
    judged,
    metrics_of,
    paper_metrics,
)
from heima.results.scores import ACCURACY, CHANCE, MEAN, expected_cells, score_group, seed_metric

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "heima"
"""The variant that an ablation is compared with."""

PUBLISHED = "paper ({}, VLMEvalKit protocol, not comparable)"
_PUBLISHED_NAMES = {
    "mmstar": "MMStar",
    "mmbench": "MMBench",
    "mmvet": "MMVet",
    "mathvista": "MathVista",
    "ai2d": "AI2D",
    "hallusionbench": "HallusionBench",
}


Scores = Mapping[str, tuple[dict[str, dict[str, Cell]], str]]
"""Name -> (group -> metric -> cell, source file)."""

Samples = dict[int, dict[tuple[str, str, int, int], dict[str, Any]]]
"""Training seed -> (protocol, benchmark, seed, unit) -> a row of `scores/<variant>.jsonl`."""


class TableError(ValueError):
    """Cells that a table expects and lacks, or that it does not know; one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Entry:
    """A number in a table and the file that it came from; a published one has only a value.

    `seeds` has each training seed's value, `sd` the standard deviation between them.
    """

    value: float
    source: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    n_failed: int | None = None
    sd: float | None = None
    t_interval: tuple[float, float] | None = None
    seeds: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, cell: Cell, source: str) -> Entry:
        return cls(
            cell.value,
            source,
            cell.low,
            cell.high,
            cell.n,
            cell.n_failed,
            cell.sd,
            cell.t_interval,
            cell.seeds,
        )


@dataclass(frozen=True)
class Label:
    """A text in a table and the file that it came from."""

    text: str
    source: str


@dataclass(frozen=True)
class Panel:
    """A grid: `entries[row, column]` is a number or a text.

    `digits` gives the decimals of each column, in the order of the columns.
    """

    title: str
    corner: str
    rows: tuple[str, ...]
    digits: Mapping[str, int]
    entries: Mapping[tuple[str, str], Entry | Label]


@dataclass(frozen=True)
class Block:
    """Panels under one title and caption: ours, or the paper's."""

    origin: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Table:
    name: str
    blocks: tuple[Block, ...]


def build(root: Path, params: Params) -> dict[str, Table]:
    """The tables benchmarks, ablation, interpreters and latency from the result files below `root`.

    Raises `TableError` naming every file or cell that is missing, left over or inconsistent.
    """
    problems: list[str] = []
    scores = _read_scores(root, params, problems)
    similarities = _read_similarities(root, params, problems)
    reconstructed = _read_reconstructed(root, params, problems)
    samples = _read_samples(root, params, problems)
    latency = _read_latency(root, params, problems)
    published = {
        name: _read_published(root / "reports" / "published" / f"{name}.csv", problems)
        for name in ("benchmarks", "interpreters")
    }
    if problems:
        raise TableError(problems)
    tables = (
        Table(
            "benchmarks",
            (
                *(
                    _benchmarks(params, protocol, scores, published["benchmarks"])
                    for protocol in params.protocols
                ),
                _published_benchmarks(published["benchmarks"]),
            ),
        ),
        Table(
            "ablation",
            (
                *(_ablation(params, protocol, scores, samples) for protocol in params.protocols),
                _published_ablation(published["benchmarks"]),
            ),
        ),
        Table(
            "interpreters",
            (
                _interpreters(root, params, similarities, reconstructed, published["interpreters"]),
                _published_interpreters(params, published["interpreters"]),
            ),
        ),
    )
    tables += (Table("latency", (_latency(params, *latency),)),)
    return {table.name: table for table in tables}


# Reading: what is expected, and nothing else


def _read_scores(root: Path, params: Params, problems: list[str]) -> Scores:
    """Variant -> (cells by benchmark, source file)."""
    expected = dict.fromkeys(params.variants, expected_cells(params))
    scores = _read_folder(root, "score", expected, params, problems)
    for protocol, benchmark in itertools.product(params.protocols, params.benchmarks):
        group = score_group(protocol, benchmark)
        values = {
            cells[group][CHANCE].value
            for cells, _ in scores.values()
            if CHANCE in cells.get(group, {})
        }
        if len(values) > 1:
            problems.append(
                f"metrics/score: chance on {benchmark} ({protocol}) differs between variants "
                f"({sorted(values)}): they were scored on different editions, run `dvc repro`"
            )
    return scores


def _read_similarities(root: Path, params: Params, problems: list[str]) -> Scores:
    """Reconstruction -> (cells by control and by difference, source file)."""
    expected: dict[str, tuple[str, ...]] = {}
    for control in params.reconstruct.controls:
        metrics = metrics_of(control, params)
        expected[control] = (*metrics, *NLL)
        if control != "own":
            expected[difference(control)] = (*metrics, NLL_GAIN)
    names = dict.fromkeys(params.reconstructions, expected)
    return _read_folder(root, "similarity", names, params, problems)


def _read_reconstructed(root: Path, params: Params, problems: list[str]) -> dict[str, pd.DataFrame]:
    """Reconstruction -> the samples from its own states, from `scores/similarity/<name>.parquet`.

    Reconstructions of one section must have the same training seeds and turns: they are compared
    turn by turn.
    """
    import pandas as pd

    found = {}
    for name in params.reconstructions:
        source = f"scores/similarity/{name}.parquet"
        if not (root / source).is_file():
            problems.append(f"{source} is missing: run `dvc repro similarity@{name}`")
            continue
        table = pd.read_parquet(root / source)
        found[name] = table[table["control"] == "own"].set_index(["training_seed", "id"])
    for name, table in found.items():
        section = params.reconstructions[name].section
        if section in found and not table.index.equals(found[section].index):
            problems.append(
                f"scores/similarity/{name}.parquet and scores/similarity/{section}.parquet must "
                "have the same turns in the same order: run `dvc repro similarity`"
            )
    return found


def _read_folder(
    root: Path,
    folder: str,
    expected: Mapping[str, Mapping[str, Collection[str]]],
    params: Params,
    problems: list[str],
) -> Scores:
    """Read `metrics/<folder>/<name>.json` for each name; report what differs from `expected`."""
    found = {}
    for name, groups in expected.items():
        source = f"metrics/{folder}/{name}.json"
        if not (root / source).is_file():
            problems.append(f"{source} is missing: run `dvc repro {folder}@{name}`")
            continue
        cells, provenance = read_metrics(root / source)
        wanted = {(group, metric) for group, metrics in groups.items() for metric in metrics}
        present = {(group, metric) for group, metrics in cells.items() for metric in metrics}
        for group, metric in sorted(wanted - present):
            problems.append(f"{source} lacks the cell {group}/{metric}")
        for group, metric in sorted(present - wanted):
            problems.append(f"{source} has the left-over cell {group}/{metric}")
        if provenance["profile"] != params.profile:
            problems.append(
                f"{source} is of the profile {provenance['profile']}, params.yaml is "
                f"{params.profile}: run `dvc repro`"
            )
        found[name] = (cells, source)
    if (root / "metrics" / folder).is_dir():
        for path in sorted((root / "metrics" / folder).iterdir()):
            if path.suffix == ".json" and path.stem not in expected:
                problems.append(
                    f"metrics/{folder}/{path.name} is left over, params.yaml names no "
                    f"{path.stem}: remove the file"
                )
    return found


def _read_samples(root: Path, params: Params, problems: list[str]) -> dict[str, Samples]:
    """Variant -> what was scored, from `scores/<variant>.jsonl`."""
    samples: dict[str, Samples] = {}
    if REFERENCE not in params.variants:
        problems.append(f"params.yaml variants must name {REFERENCE}: ablations compare with it")
    for variant in _ablated(params):
        source = f"scores/{variant}.jsonl"
        if not (root / source).is_file():
            problems.append(f"{source} is missing: run `dvc repro score@{variant}`")
            continue
        samples[variant] = {}
        for row in read_jsonl(root / source):
            # MMBench's rotations share a unit and with it a score.
            key = row["protocol"], row["benchmark"], row["seed"], row["unit"]
            rows = samples[variant].setdefault(row["training_seed"], {})
            first = rows.setdefault(key, row)
            first["failed"] |= row["failed"]
        trained = params.training_seeds(params.variants[variant].model)
        counted = {(seed, *key[:2]) for seed, rows in samples[variant].items() for key in rows}
        wanted = set(itertools.product(trained, params.protocols, params.benchmarks))
        for seed, protocol, benchmark in sorted(counted ^ wanted):
            state = "left-over" if (seed, protocol, benchmark) in counted else "no"
            problems.append(
                f"{source} has {state} samples of {benchmark} ({protocol}), training seed {seed}"
            )
    reference = next(iter(samples.get(REFERENCE, {}).values()), {})
    for variant, by_seed in samples.items():
        for seed, rows in by_seed.items():
            if reference and (unpaired := sorted(rows.keys() ^ reference.keys())):
                shown = ", ".join("/".join(map(str, key)) for key in unpaired[:3])
                problems.append(
                    f"scores/{variant}.jsonl (training seed {seed}) and scores/{REFERENCE}.jsonl "
                    f"must have the same samples; {len(unpaired)} are in one of them only: {shown}"
                )
    return samples


_LATENCY = "metrics/latency.json"
_PHASES = ("preprocess_ms", "vision_ms", "prefill_ms", "ttft_ms", "tpot_ms", "e2e_ms", "e2e_p90_ms")
_LATENCY_DIGITS = {**dict.fromkeys(_PHASES, 1), "samples_per_s": 1, "decoded_tokens": 1}
_UTILISATION = {"gflop_per_sample": 2, "flop_utilisation": 3, "bandwidth_utilisation": 3}
_MAY_LACK = ("tpot_ms", "bandwidth_utilisation")
"""What answers of one token do not have."""


def _read_latency(
    root: Path, params: Params, problems: list[str]
) -> tuple[dict[str, dict[str, Cell]], dict[str, Any]]:
    """The cells of every case at every batch size that the device could hold, and provenance."""
    if not (root / _LATENCY).is_file():
        problems.append(f"{_LATENCY} is missing: run `dvc repro latency`")
        return {}, {}
    cells, provenance = read_metrics(root / _LATENCY)
    if provenance["profile"] != params.profile:
        problems.append(
            f"{_LATENCY} is of the profile {provenance['profile']}, params.yaml is "
            f"{params.profile}: run `dvc repro`"
        )
    sizes = [size for size in params.latency.batch_sizes if str(size) not in provenance["skipped"]]
    wanted = {_latency_group(case, size) for case in params.latency.cases for size in sizes}
    present = {group for group in cells if _VERSUS not in group}
    for group in sorted(wanted ^ present):
        state = "the left-over" if group in present else "no"
        problems.append(f"{_LATENCY} has {state} cells of {group}: run `dvc repro latency`")
    for group in sorted(wanted & present):
        for metric in (*_LATENCY_DIGITS, *_UTILISATION):
            if metric not in cells[group] and metric not in _MAY_LACK:
                problems.append(f"{_LATENCY} lacks the cell {group}/{metric}")
    return cells, provenance


_VERSUS = "-vs-"


def _latency_group(case: str, size: int) -> str:
    return f"{case}/batch-{size}"


def _read_published(path: Path, problems: list[str]) -> list[dict[str, str]]:
    if not path.is_file():
        problems.append(f"reports/published/{path.name} is missing: restore it from git")
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Building


def _about(params: Params) -> str:
    """What every caption of ours says first."""
    seeds = "training seed" if len(params.seeds) == 1 else "training seeds"
    return (
        f"{params.profile} profile, family {params.family}, seed {params.seed}, "
        f"{seeds} {', '.join(map(str, params.seeds))}"
    )


_INTERVAL = "95 % percentile bootstrap intervals in brackets"


def _spread(params: Params) -> str:
    """What the intervals of a caption are over, and what of chance they leave out."""
    if len(params.seeds) == 1:
        return (
            f"{_INTERVAL}, over questions alone: of one training seed nothing is concluded about a "
            "method"
        )
    return (
        f"means over {len(params.seeds)} training seeds, after ± the standard deviation between "
        f"them; {_INTERVAL}, training seeds and questions resampled. All seeds share the data and "
        "one text-CoT model, base and LLM, whose own spread is not in there (a value without ± has "
        "one model)"
    )


_DECODED = (
    "Decoded tokens are all generated tokens of an answer: thinking tokens, tags and the end of "
    "turn included"
)


_RULES = {
    "lmms": "protocol lmms, lmms-eval's own prompts and rules",
    "vlmevalkit": "protocol vlmevalkit, VLMEvalKit's prompts and rules",
}


def _decoding(params: Params, protocol: str) -> str:
    """How the answers of a protocol were decoded, for a caption."""
    rules = params.protocols[protocol]
    if rules.temperature == 0:
        return "greedy decoding"
    seeds = ", ".join(map(str, rules.seeds))
    return (
        f"sampled decoding (temperature {rules.temperature:g}, top-k {rules.top_k}, decoding seeds "
        f"{seeds}; n counts every answer, answers to one question are resampled together)"
    )


def _score_panel(
    title: str,
    metric: str,
    protocol: str,
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


def _benchmarks(
    params: Params, protocol: str, scores: Scores, published: Sequence[Mapping[str, str]]
) -> Block:
    variants = tuple(params.variants)
    accuracy = _score_panel("Accuracy (%)", ACCURACY, protocol, params, variants, scores)
    first, source = scores[variants[0]]
    guesses = {
        benchmark: first[score_group(protocol, benchmark)][CHANCE]
        for benchmark in params.benchmarks
    }
    chance = {
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
            key: Label(f"{entry.n_failed} of {entry.n}", entry.source)
            for key, entry in accuracy.entries.items()
        },
    )
    return Block(
        origin=f"{params.profile} profile, protocol {protocol}",
        title=f"Benchmarks, protocol {protocol} ({_about(params)})",
        caption=(
            f"Accuracy in percent ({_RULES[protocol]}; judged by {judge_name(params.judge)}), and "
            f"decoded tokens per answer; {_decoding(params, protocol)}; {_spread(params)}; "
            f"questions on one image resampled together. {_DECODED}; a forced prefix stands in "
            "the prompt and is not decoded. A failed answer has no conclusion; it stays in n, "
            "scored on its whole text and with its real length. Chance is what guessing scores."
        ),
        panels=(
            replace(accuracy, rows=(*variants, CHANCE), entries={**accuracy.entries, **chance}),
            *_minus_published(params, protocol, accuracy, published),
            *_by_training_seed(
                "Accuracy (%) by training seed, mean of the benchmarks",
                "variant",
                params,
                {row: accuracy.entries[row, MEAN] for row in variants},
            ),
            *_by_seed(params, protocol, variants, scores),
            _score_panel(
                "Decoded tokens per answer", "decoded_tokens", protocol, params, variants, scores
            ),
            split,
            failed,
        ),
    )


def _by_training_seed(
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
        grid[row, "sd"] = Entry(one.sd, one.source)
        grid[row, _T_INTERVAL] = Entry(one.value, one.source, *one.t_interval)
    columns = (*(f"seed {seed}" for seed in params.seeds), "sd", _T_INTERVAL)
    return (Panel(title, corner, tuple(rows), dict.fromkeys(columns, digits), grid),)


_T_INTERVAL = "mean [t interval over seeds]"


def _by_seed(
    params: Params, protocol: str, variants: tuple[str, ...], scores: Scores
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
    params: Params, protocol: str, accuracy: Panel, published: Sequence[Mapping[str, str]]
) -> tuple[Panel, ...]:
    """Whether the paper's accuracies came out: ours minus theirs, by their rules and models.

    Only where both are the paper's: no toy number stands beside one of the paper.
    """
    if params.profile != "paper" or protocol != "vlmevalkit":
        return ()
    found = {
        (row["model"], row["benchmark"]): float(row["accuracy"])
        for row in published
        if row["family"] == params.family
    }
    rows = tuple(row for row in accuracy.rows if (row, "MMStar") in found)
    entries: dict[tuple[str, str], Entry | Label] = {}
    for row, column in itertools.product(rows, params.benchmarks):
        ours = accuracy.entries[row, column]
        theirs = found[row, _PUBLISHED_NAMES[column]]
        if isinstance(ours, Entry) and ours.low is not None and ours.high is not None:
            entries[row, column] = replace(
                ours,
                value=ours.value - theirs,
                low=ours.low - theirs,
                high=ours.high - theirs,
                t_interval=ours.t_interval and tuple(x - theirs for x in ours.t_interval),
                seeds={seed: value - theirs for seed, value in ours.seeds.items()},
            )
    columns = dict.fromkeys(params.benchmarks, 1)
    title = "Accuracy minus the published one (points; intervals are ours alone)"
    return (Panel(title, "variant", rows, columns, entries),)


def _ablated(params: Params) -> tuple[str, ...]:
    """The variants on the text-CoT model, `heima` first: what an ablation can compare."""
    others = [name for name, variant in params.variants.items() if variant.model != "base"]
    return tuple(sorted(others, key=lambda name: name != REFERENCE))


def _lineage(params: Params, model: str) -> list[tuple[str, Checkpoint]]:
    """The checkpoints that lead from the text-CoT model to `model`, first trained first."""
    chain = []
    while model in params.checkpoints:
        chain.insert(0, (model, params.checkpoints[model]))
        model = params.checkpoints[model].init
    return chain


def _updates(chain: Sequence[Checkpoint]) -> str:
    """The updates of checkpoints in a row: steps with their sum, or epochs.

    >>> _updates([])
    '0'
    """
    if all(checkpoint.steps is not None for checkpoint in chain):
        steps = [checkpoint.steps or 0 for checkpoint in chain]
        parts = f" ({' + '.join(map(str, steps))})" if len(steps) > 1 else ""
        return f"{sum(steps)}{parts}"
    return " + ".join(
        f"{checkpoint.epochs:g} epochs" if checkpoint.steps is None else f"{checkpoint.steps}"
        for checkpoint in chain
    )


def _ablation(
    params: Params, protocol: str, scores: Scores, samples: Mapping[str, Samples]
) -> Block:
    variants = _ablated(params)
    others = tuple(variant for variant in variants if variant != REFERENCE)
    training = {}
    for variant in variants:
        chain = _lineage(params, params.variants[variant].model)
        # The text-CoT model is where distillation starts: no checkpoint, no update.
        for column, text in (
            ("checkpoints", " + ".join(name for name, _ in chain) or "none"),
            ("updates", _updates([checkpoint for _, checkpoint in chain])),
            ("learning rates", ", ".join(f"{c.learning_rate:g}" for _, c in chain) or "none"),
        ):
            training[variant, column] = Label(text, "params.yaml")
    paired = {variant: _paired(params, protocol, samples, variant) for variant in others}
    columns = (*params.benchmarks, MEAN)
    return Block(
        origin=f"{params.profile} profile, protocol {protocol}",
        title=f"Ablation, protocol {protocol} ({_about(params)})",
        caption=(
            "All variants start from the same text-CoT model; updates and learning rates are "
            f"those of the checkpoints on the way, in their order. Differences to {REFERENCE} are "
            "paired on the same questions and training seed, in points of their mean score; "
            f"{_spread(params)}; questions on one image resampled together. {_VERDICTS} "
            f"Under {_RULES[protocol]}; {_decoding(params, protocol)}. "
            f"{_DECODED}. Judged by {judge_name(params.judge)}."
        ),
        panels=(
            Panel(
                "Training",
                "variant",
                variants,
                dict.fromkeys(("checkpoints", "updates", "learning rates"), 0),
                training,
            ),
            _score_panel("Accuracy (%)", ACCURACY, protocol, params, variants, scores),
            Panel(
                f"Mean score minus {REFERENCE} (points, each question counts once)",
                "variant",
                others,
                dict.fromkeys(columns, 1),
                {(v, column): paired[v][column] for v in others for column in columns},
            ),
            *_by_training_seed(
                f"Mean score minus {REFERENCE} by training seed, mean of the benchmarks",
                "variant",
                params,
                {v: paired[v][MEAN] for v in others},
            ),
            Panel(
                f"Do the training seeds agree on a difference to {REFERENCE}?",
                "variant",
                others,
                dict.fromkeys(columns, 0),
                {(v, column): _verdict(paired[v][column]) for v in others for column in columns},
            ),
            _score_panel(
                "Decoded tokens per answer", "decoded_tokens", protocol, params, variants, scores
            ),
        ),
    )


_LEVEL = 0.05
_VERDICTS = (
    "A difference is called higher or lower where all training seeds give it that sign and neither "
    "its interval nor the t interval over seeds has another; else it is undecided. Beside a "
    "verdict stands p (t test on the training seeds' differences,"
    " not corrected for the number of comparisons)."
)


def _verdict(difference: Entry) -> Label:
    """Whether a difference is a conclusion, in words; of one training seed there is none."""
    cell = Cell(difference.value, difference.low, difference.high, n=1, seeds=difference.seeds)
    if cell.p is None:
        return Label("one seed: no verdict", difference.source)
    if not statistics.agreed(cell) or cell.p >= _LEVEL:
        return Label("undecided", difference.source)
    p = "p < .001" if cell.p < 0.001 else f"p {cell.p:.3f}"
    return Label(f"{'higher' if cell.value > 0 else 'lower'} ({p})", difference.source)


def _paired(
    params: Params,
    protocol: str,
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
    named = dict(zip(params.benchmarks, differences, strict=True))
    named[MEAN] = statistics.mean_of(differences)
    return {name: Entry.of(one.cell(seed=params.seed), source) for name, one in named.items()}


def _latency(
    params: Params, cells: Mapping[str, Mapping[str, Cell]], provenance: Mapping[str, Any]
) -> Block:
    skipped = provenance["skipped"]
    sizes = [size for size in params.latency.batch_sizes if str(size) not in skipped]
    cases = tuple(params.latency.cases)
    peaks = provenance["peaks"]

    def grid(
        title: str, digits: Mapping[str, int], size: int, rows: tuple[str, ...] = cases
    ) -> Panel:
        entries: dict[tuple[str, str], Entry | Label] = {}
        for case, column in itertools.product(rows, digits):
            cell = cells[_latency_group(case, size)].get(column)
            entries[case, column] = (
                Label("–", _LATENCY) if cell is None else Entry.of(cell, _LATENCY)
            )
        return Panel(title, "case", rows, digits, entries)

    panels = [grid(f"Batch {size}: phases", _LATENCY_DIGITS, size) for size in sizes]
    panels += [grid(f"Batch {size}: work", _UTILISATION, size) for size in sizes]
    others = tuple(case for case in cases if any(f"{case}{_VERSUS}" in group for group in cells))
    if others:
        (base,) = {group.partition(_VERSUS)[2].partition("/")[0] for group in cells} - {""}
        columns = {f"batch {size}": size for size in sizes}
        panels.append(
            Panel(
                f"End-to-end time of {base} over that of the case",
                "case",
                others,
                dict.fromkeys(columns, 2),
                {
                    (case, column): Entry.of(
                        cells[_latency_group(f"{case}{_VERSUS}{base}", size)]["speedup"], _LATENCY
                    )
                    for case in others
                    for column, size in columns.items()
                },
            )
        )
    left_out = "; ".join(f"batch {size}: {reason}" for size, reason in skipped.items())
    cut = "; ".join(
        f"{name} stops after {provenance['limits'][name]} tokens, the median of {case.budget}"
        for name, case in params.latency.cases.items()
        if case.budget is not None
    )
    return Block(
        origin=f"{params.profile} profile",
        title=f"Latency ({_about(params)})",
        caption=(
            "Models of the first training seed. "
            f"On {provenance['device']} (threads: {provenance['threads']}, {provenance['dtype']}, "
            f"torch {provenance['torch']}): medians over batches in milliseconds, cases in turn on "
            "the same batches of "
            f"{params.latency.benchmark} ({params.latency.protocol}), greedy; 95 % bootstrap "
            "intervals of the median. ttft: to the first token, preprocessing and vision included; "
            "tpot: each further token; e2e: the whole batch; p90: 90th percentile. Utilisation is "
            f"against {peaks['tflops']:.3g} TFLOP/s and {peaks['gb_per_s']:.4g} GB/s "
            f"({peaks['source']} for {peaks['device']}); bandwidth while decoding: weights and "
            "cache read once a step."
            + (f" {cut}." if cut else "")
            + (f" Left out: {left_out}." if left_out else "")
        ),
        panels=tuple(panels),
    )


def _interpreters(
    root: Path,
    params: Params,
    similarities: Scores,
    reconstructed: Mapping[str, pd.DataFrame],
    published: Sequence[Mapping[str, str]],
) -> Block:
    panels: list[Panel] = []
    for section in params.sections:
        panels += _section_panels(section, params, similarities[section], published)
    others = tuple(name for name in params.reconstructions if name not in params.sections)
    if others:
        panels += _other_interpreters(others, params, similarities, reconstructed, published)
    official = params.similarity.references == "official"
    return Block(
        origin=f"{params.profile} profile",
        title=f"Interpreters ({_about(params)})",
        caption=(
            "Held-out sections rebuilt from their own thinking "
            f"state ({params.states.position}, checkpoint {params.states.checkpoint}) and from "
            "controls, by an interpreter for each section and by others. Text metrics in percent, "
            "means over samples, an empty reconstruction counts 0; corpus_bleu is of all samples "
            f"together; {_spread(params)}; turns on one image resampled together. nll_per_token is "
            "the section's negative log-likelihood in nats a token; nll_gain is NLL(control) - "
            "NLL(own) in nats a text. Differences are paired on the same turns. References are the "
            + (
                "sections in an answer sentence with tags, which predictions lack (exact: without)."
                if official
                else "sections alone."
            )
            + f" {_resources(root, params, similarities)} A metric named after a resource "
            "(meteor_exact_stem: no WordNet; bertscore_minilm_l6: MiniLM-L6) is not the paper's "
            "metric."
        ),
        panels=tuple(panels),
    )


def _resources(root: Path, params: Params, similarities: Scores) -> str:
    """What the metrics were computed with, from the provenance of the first reconstruction."""
    _, made = read_metrics(root / similarities[params.sections[0]][1])
    bert, meteor = made["bertscore"], made["meteor"]
    parts = [
        f"corpus_bleu: {made['corpus_bleu']['signature']}",
        f"{meteor['column']}: NLTK {made['libraries']['nltk']}, {meteor['sentences']}",
        f"{bert['column']}: {bert['model']}, layer {bert['layers']}, {bert['tokenizer']}",
    ]
    if params.similarity.judged:
        judge = made["judge"]
        parts.append(
            f"{judge['column']}: grades from 1 to 5 by {judge_name(params.judge)}, prompt "
            f"{', '.join(judge['prompt'])}, 1 for an empty reconstruction, "
            f"{len(judge['missing'])} missing"
        )
    return "; ".join(parts) + "."


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
    empty = {}
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
        *_by_training_seed(
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
                "Other interpreters: own state",
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
    if params.profile != "paper":
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


def _published_benchmarks(rows: Sequence[Mapping[str, str]]) -> Block:
    return Block(
        origin=PUBLISHED.format("llava-cot-11b"),
        title=f"Benchmarks, {PUBLISHED.format('llava-cot-11b')}",
        caption=(
            "Other models, data, prompts and judges than ours; its generated tokens leave out "
            "parts of the released format that ours count. No intervals or n were published."
        ),
        panels=_published_panels(rows, ("base", "text-cot", *_PUBLISHED_ABLATION)),
    )


_PUBLISHED_ABLATION = ("heima", "heima-no-recover", "heima-no-progressive")


def _published_ablation(rows: Sequence[Mapping[str, str]]) -> Block:
    return Block(
        origin=PUBLISHED.format("llava-cot-11b"),
        title=f"Ablation, {PUBLISHED.format('llava-cot-11b')}",
        caption=(
            "It states no updates for the run without progressive distillation, and has no "
            "answer-only control."
        ),
        panels=_published_panels(rows, (*_PUBLISHED_ABLATION, "text-cot")),
    )


def _published_panels(
    rows: Sequence[Mapping[str, str]], variants: tuple[str, ...]
) -> tuple[Panel, ...]:
    source = "reports/published/benchmarks.csv"
    found = {
        (row["model"], row["benchmark"]): row for row in rows if row["family"] == "llava-cot-11b"
    }
    panels = []
    for title, column, digits in (
        ("Accuracy (%)", "accuracy", 1),
        ("Generated tokens, as the paper counts them", "generated_tokens", 1),
    ):
        entries: dict[tuple[str, str], Entry | Label] = {}
        for variant in variants:
            values = []
            for name, label in _PUBLISHED_NAMES.items():
                values.append(float(found[variant, label][column]))
                entries[variant, name] = Entry(values[-1], source)
            entries[variant, MEAN] = Entry(float(np.mean(values)), source)
        panels.append(
            Panel(
                title,
                "variant",
                variants,
                dict.fromkeys((*_PUBLISHED_NAMES, MEAN), digits),
                entries,
            )
        )
    return tuple(panels)


def _published_interpreters(params: Params, rows: Sequence[Mapping[str, str]]) -> Block:
    source = "reports/published/interpreters.csv"
    metrics = tuple(dict.fromkeys(row["metric"] for row in rows))
    panels = []
    for count, title in (("3", "An interpreter for each section"), ("1", "One shared interpreter")):
        entries: dict[tuple[str, str], Entry | Label] = {
            (row["stage"], row["metric"]): Entry(float(row["value"]), source)
            for row in rows
            if row["interpreters"] == count
        }
        panels.append(Panel(title, "section", params.sections, dict.fromkeys(metrics, 1), entries))
    return Block(
        origin=PUBLISHED.format("llava-cot-11b"),
        title=f"Interpreters, {PUBLISHED.format('llava-cot-11b')}",
        caption=(
            "METEOR with WordNet, BERTScore F1 with deberta-xlarge-mnli; references with template "
            "sentence and tags; no control and no likelihood was published."
        ),
        panels=tuple(panels),
    )


# Writing


def markdown(table: Table) -> str:
    """The table as Markdown whose columns also line up in a terminal."""
    parts = [f"# {table.name}"]
    for block in table.blocks:
        parts.append(f"## {block.title}\n\n{block.caption}")
        parts.extend(_markdown_panel(panel) for panel in block.panels)
    return "\n\n".join(parts) + "\n"


def _markdown_panel(panel: Panel) -> str:
    grid = [[panel.corner, *panel.digits]]
    for row in panel.rows:
        shown = (
            _plain(panel.entries[row, column], digits) for column, digits in panel.digits.items()
        )
        grid.append([row, *shown])
    grid = [[cell.replace("|", "\\|") for cell in line] for line in grid]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in grid
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return f"**{panel.title}**\n\n" + "\n".join([lines[0], rule, *lines[1:]])


def _plain(entry: Entry | Label, digits: int) -> str:
    if isinstance(entry, Label):
        return entry.text
    value = _fixed(entry.value, digits)
    if entry.sd is not None:
        value += f" ± {_fixed(entry.sd, digits)}"
    if entry.low is None or entry.high is None:
        return value
    return f"{value} [{_fixed(entry.low, digits)}, {_fixed(entry.high, digits)}]"


def _fixed(value: float, digits: int) -> str:
    """A decimal number; what rounds to nothing has no sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


_PAGE = 540
_CAPTION_CHARACTERS, _CAPTION_LINE, _PANEL, _ROW = 75, 12, 28, 16
"""Heights in points of what stands on a page of `article`: enough to share panels out."""


def latex(table: Table) -> str:
    r"""The table as LaTeX that needs only booktabs: a `table` for each page of a block.

    Numbers stand above their interval. `\input` it in any document.
    """
    parts = [f"% {table.name}: written by stages/tables.py; needs \\usepackage{{booktabs}}"]
    for block in table.blocks:
        for number, (text, panels) in enumerate(_pages(block)):
            parts.append(
                "\\begin{table}[p]\n\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}\n"
                + ("" if number == 0 else "\\addtocounter{table}{-1}")
                + f"\\caption{{{_escape(text)}}}\\par\\medskip\n"
                + "\n\\par\\medskip\n".join(map(_latex_panel, panels))
                + "\n\\end{table}"
            )
    return "\n".join(parts) + "\n"


def _pages(block: Block) -> list[tuple[str, list[Panel]]]:
    """The captions and panels of each page, as many as fit; the first has the whole caption."""
    pages: list[tuple[str, list[Panel]]] = []
    left = 0
    for panel in block.panels:
        height = _PANEL + _ROW * len(panel.rows)
        if not pages or left < height:
            text = f"{block.title}, continued." if pages else f"{block.title}. {block.caption}"
            pages.append((text, []))
            left = _PAGE - _CAPTION_LINE * (2 + len(text) // _CAPTION_CHARACTERS)
        pages[-1][1].append(panel)
        left -= height
    return pages


def _latex_panel(panel: Panel) -> str:
    import pandas as pd

    frame = pd.DataFrame(
        [
            # Styler escapes texts, not the texts within objects.
            [e.text if isinstance(e := panel.entries[row, c], Label) else e for c in panel.digits]
            for row in panel.rows
        ],
        index=pd.Index(panel.rows),
        columns=pd.Index(tuple(panel.digits)),
        dtype=object,
    )
    style = frame.style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    for column, digits in panel.digits.items():
        # Escaping comes first and leaves numbers alone, so the formatter may write LaTeX.
        style = style.format(
            lambda entry, digits=digits: _latex_entry(entry, digits),
            subset=[column],
            escape="latex",
        )
    tabular = style.to_latex(hrules=True, column_format="l" + "r" * len(panel.digits))
    # In a narrow column a wide grid stands out on both sides alike.
    return (
        f"\\textbf{{{_escape(panel.title)}}}\\par\\smallskip\n"
        f"\\makebox[\\linewidth][c]{{%\n{tabular.strip()}}}"
    )


def _latex_entry(entry: Entry | str, digits: int) -> str:
    if isinstance(entry, str):
        return entry
    # A hyphen becomes a minus sign.
    value, *bounds = (
        _fixed(number, digits).replace("-", "$-$")
        for number in (entry.value, entry.low, entry.high)
        if number is not None
    )
    if entry.sd is not None:
        value += f"{{\\tiny $\\pm${_fixed(entry.sd, digits)}}}"
    if not bounds:
        return value
    interval = f"{{\\tiny [{bounds[0]}, {bounds[1]}]}}"
    strut = "\\rule{0pt}{7pt}"
    return f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{strut}{value}\\\\[-3pt]{interval}\\end{{tabular}}"


_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _escape(text: str) -> str:
    """Escape text outside the cells; pandas escapes those and the labels."""
    return "".join(_ESCAPES.get(character, character) for character in text)


_NUMBERS = ("value", "low", "high", "n", "n_failed", "sd", "t_low", "t_high")


def comma_separated(table: Table) -> str:
    """The table as CSV, a line for each number: its interval, n, failures, training seeds, source.

    Numbers are complete, not rounded; texts and published values have no interval and no n.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("origin", "panel", "row", "column", *_NUMBERS, "seeds", "source"))
    for block in table.blocks:
        for panel in block.panels:
            for row, column in itertools.product(panel.rows, panel.digits):
                entry = panel.entries[row, column]
                if isinstance(entry, Entry):
                    t_low, t_high = entry.t_interval or (None, None)
                    numbers = (entry.value, entry.low, entry.high, entry.n, entry.n_failed)
                    shown = [
                        "" if number is None else repr(number)
                        for number in (*numbers, entry.sd, t_low, t_high)
                    ]
                    shown.append(
                        " ".join(f"{seed}={value!r}" for seed, value in entry.seeds.items())
                    )
                else:
                    shown = [entry.text] + [""] * len(_NUMBERS)
                writer.writerow((block.origin, panel.title, row, column, *shown, entry.source))
    return file.getvalue()
