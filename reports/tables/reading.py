"""Result files and published values as the tables read them: what is expected, and nothing else.

What is missing, left over or inconsistent is added to a list of problems, a line each.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import probe
from heima.config import Checkpoint, Params
from heima.results.cells import Cell
from heima.results.files import read_jsonl
from heima.results.measures import NLL, NLL_GAIN, difference, metrics_of
from heima.results.scores import CHANCE, expected_cells, score_group
from reports.tables import expected

if TYPE_CHECKING:
    import pandas as pd


REFERENCE = "heima"
"""The variant that an ablation is compared with."""

Scores = Mapping[str, tuple[dict[str, dict[str, Cell]], str]]
"""Name -> (group -> metric -> cell, source file)."""

Samples = dict[int, dict[tuple[str, str, int, int], dict[str, Any]]]
"""Training seed -> (protocol, benchmark, seed, unit) -> a row of `scores/<variant>.jsonl`."""


def read_scores(root: Path, params: Params, problems: list[str]) -> Scores:
    """Variant -> (cells by benchmark, source file)."""
    groups = dict.fromkeys(params.variants, expected_cells(params))
    scores = _read_folder(root, "score", groups, params, problems)
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


def read_similarities(root: Path, params: Params, problems: list[str]) -> Scores:
    """Reconstruction -> (cells by control and by difference, source file)."""
    groups: dict[str, tuple[str, ...]] = {}
    for control in params.reconstruct.controls:
        metrics = metrics_of(control, params)
        groups[control] = (*metrics, *NLL)
        if control != "own":
            groups[difference(control)] = (*metrics, NLL_GAIN)
    names = dict.fromkeys(params.reconstructions, groups)
    return _read_folder(root, "similarity", names, params, problems)


PROBE = "metrics/probe.json"


def read_probe(root: Path, params: Params, problems: list[str]) -> dict[str, dict[str, Cell]]:
    """Reconstruction -> how many words are read of its section, by a probe and an interpreter."""
    found = expected.metrics(root, PROBE, "probe", params, problems)
    if found is None:
        return {}
    cells, _ = found
    wanted = {(name, one) for name in params.reconstructions for one in probe.columns(params)}
    present = {(group, metric) for group, metrics in cells.items() for metric in metrics}
    problems += [f"{PROBE} lacks the cell {'/'.join(one)}" for one in sorted(wanted - present)]
    problems += [
        f"{PROBE} has the left-over cell {'/'.join(one)}" for one in sorted(present - wanted)
    ]
    return cells


def read_reconstructed(root: Path, params: Params, problems: list[str]) -> dict[str, pd.DataFrame]:
    """Reconstruction -> the samples from its own states, from `scores/similarity/<name>.parquet`.

    Reconstructions of one section must have the same training seeds and turns: they are compared
    turn by turn.
    """
    import pandas as pd

    found = {}
    for name in params.reconstructions:
        source = f"scores/similarity/{name}.parquet"
        if not expected.is_there(root, source, f"similarity@{name}", problems):
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
    groups_of: Mapping[str, Mapping[str, Collection[str]]],
    params: Params,
    problems: list[str],
) -> Scores:
    """Read `metrics/<folder>/<name>.json` for each name; report what differs from `groups_of`."""
    found = {}
    for name, groups in groups_of.items():
        source = f"metrics/{folder}/{name}.json"
        read = expected.metrics(root, source, f"{folder}@{name}", params, problems)
        if read is None:
            continue
        cells, _ = read
        wanted = {(group, metric) for group, metrics in groups.items() for metric in metrics}
        present = {(group, metric) for group, metrics in cells.items() for metric in metrics}
        for group, metric in sorted(wanted - present):
            problems.append(f"{source} lacks the cell {group}/{metric}")
        for group, metric in sorted(present - wanted):
            problems.append(f"{source} has the left-over cell {group}/{metric}")
        found[name] = (cells, source)
    expected.no_other(root, f"metrics/{folder}", groups_of, problems)
    return found


def ablated(params: Params) -> tuple[str, ...]:
    """The variants on the text-CoT model, `heima` first: what an ablation can compare."""
    others = [name for name, variant in params.variants.items() if variant.model != "base"]
    return tuple(sorted(others, key=lambda name: name != REFERENCE))


def read_samples(root: Path, params: Params, problems: list[str]) -> dict[str, Samples]:
    """Variant -> what was scored, from `scores/<variant>.jsonl`."""
    samples: dict[str, Samples] = {}
    if REFERENCE not in params.variants:
        problems.append(f"params.yaml variants must name {REFERENCE}: ablations compare with it")
    for variant in ablated(params):
        source = f"scores/{variant}.jsonl"
        if not expected.is_there(root, source, f"score@{variant}", problems):
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


FLOPS = "metrics/flops.json"


def read_flops(root: Path, params: Params, problems: list[str]) -> dict[str, dict[str, Cell]]:
    """Checkpoint -> the cells `updates` and `flops`, of those that were trained here."""
    found = expected.metrics(root, FLOPS, "flops", params, problems)
    if found is None:
        return {}
    cells, _ = found
    trained = {name for name, one in params.checkpoints.items() if isinstance(one, Checkpoint)}
    for name in sorted(trained ^ cells.keys()):
        state = "the left-over" if name in cells else "no"
        problems.append(f"{FLOPS} has {state} cells of {name}: run `dvc repro flops`")
    for name in sorted(trained & cells.keys()):
        lacking = {"updates", "flops"} - cells[name].keys()
        problems += [f"{FLOPS} lacks the cell {name}/{metric}" for metric in sorted(lacking)]
    return cells


LATENCY = "metrics/latency.json"
_LATENCIES = (
    "preprocess_ms",
    "vision_ms",
    "prefill_ms",
    "ttft_ms",
    "tpot_ms",
    "e2e_ms",
    "e2e_p90_ms",
)
LATENCY_DIGITS = {**dict.fromkeys(_LATENCIES, 1), "samples_per_s": 1, "decoded_tokens": 1}
PASSES = "passes"
"""Of cases that look tokens up: fewer than the tokens that are decoded."""
UTILISATION = {"gflop_per_sample": 2, "flop_utilisation": 3, "bandwidth_utilisation": 3}
_MAY_LACK = ("tpot_ms", "bandwidth_utilisation")
"""What answers of one token do not have."""


def read_latency(
    root: Path, params: Params, problems: list[str]
) -> tuple[dict[str, dict[str, Cell]], dict[str, Any]]:
    """The cells of every case at every batch size that the device could hold, and provenance."""
    found = expected.metrics(root, LATENCY, "latency", params, problems)
    if found is None:
        return {}, {}
    cells, provenance = found
    sizes = [size for size in params.latency.batch_sizes if str(size) not in provenance["skipped"]]
    wanted = {
        latency_group(name, size)
        for name, case in params.latency.cases.items()
        for size in sizes
        # What is looked up is measured at batch 1 alone.
        if case.lookup is None or size == 1
    }
    present = {group for group in cells if VERSUS not in group}
    for group in sorted(wanted ^ present):
        state = "the left-over" if group in present else "no"
        problems.append(f"{LATENCY} has {state} cells of {group}: run `dvc repro latency`")
    for group in sorted(wanted & present):
        for metric in (*LATENCY_DIGITS, *UTILISATION):
            if metric not in cells[group] and metric not in _MAY_LACK:
                problems.append(f"{LATENCY} lacks the cell {group}/{metric}")
    return cells, provenance


VERSUS = "-vs-"


def latency_group(case: str, size: int) -> str:
    return f"{case}/batch-{size}"


PUBLISHED = {
    "benchmarks": ("accuracy", "generated_tokens"),
    "interpreters": ("value",),
    "tokens_per_stage": ("accuracy",),
    "retention_ratio": ("accuracy",),
}
"""The paper's tables, each with its columns of numbers."""


def read_published(
    root: Path, params: Params, problems: list[str]
) -> dict[str, list[dict[str, str]]]:
    """Each of the paper's tables, the rows about `params.published_family`.

    A table without a column `family` is about the first family, LLaVA-CoT 11B. `families` has the
    rows of `benchmarks` about all of them.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for name, numbers in PUBLISHED.items():
        path = root / "reports" / "published" / f"{name}.csv"
        if not path.is_file():
            problems.append(f"reports/published/{path.name} is missing: restore it from git")
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{"family": "llava-cot-11b", **row} for row in csv.DictReader(file)]
        for line, row in enumerate(rows, 2):
            if None in row:
                problems.append(f"reports/published/{path.name}:{line} has too many values")
            for column in numbers:
                if re.fullmatch(r"\d+(\.\d+)?", row.get(column) or "") is None:
                    value = row.get(column)
                    problems.append(f"reports/published/{path.name}:{line}: {column} = {value!r}")
        found[name] = [row for row in rows if row["family"] == params.published_family]
        if name == "benchmarks":
            found["families"] = rows
    return found
