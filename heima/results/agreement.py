"""Is a rerun the same result? By bytes first; else each number against the recorded seeds.

A record is what git holds of a run (`heima.results.recorded`). A number of the rerun is inside if
it is the recorded one, or lies in the 95 % prediction interval of the recorded training seeds'
values x,

    mean(x) +- t(.975, n - 1) sd(x) sqrt(1 + 1 / n),

as CORE-Bench judges reproductions: of a faithful rerun's numbers with other seeds, 5 % lie outside.
A number with one recorded value says nothing of its spread and must be equal, and so must strings,
lists and counts of samples.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heima.results.recorded import Run

_TIMES = frozenset({"seconds_per_sample"})
"""Cells that are measurements of a machine."""

_IDENTITY = frozenset(
    "stage profile family seed seeds training_seed training_seeds code params versions machine "
    "seconds libraries lmms_eval replies".split()
)
"""Keys of a provenance that say what was run where: they are told apart (`differences`). How many
replies a judge was asked for follows from the answers."""

_SUMMARY = ("value", "low", "high", "n_failed")
"""What a cell says of all its training seeds together."""

_ROW = ("origin", "panel", "row", "column")
"""What names a row of a table's CSV; its numbers are those of the metrics files."""

Kind = Literal["number of seeds", "single number", "text"]
"""What is compared: a number with several recorded seeds, another one, or anything else."""


@dataclass(frozen=True)
class Outside:
    """A value that a rerun should not have: where, what it is, and what it may be."""

    kind: Kind
    file: str
    key: str
    value: str
    allowed: str


@dataclass
class Report:
    """`stages`: how many are equal, or not; `agree`: how often, by kind, a value is `equal` or
    `inside`; `outside`: all that is neither.
    """

    stages: Counter[str] = field(default_factory=Counter)
    agree: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    outside: list[Outside] = field(default_factory=list)

    def counts(self, *kinds: Kind) -> dict[str, int]:
        """How many values of these kinds are `equal`, `inside` and `outside`."""
        found = {how: sum(self.agree[kind, how] for kind in kinds) for how in ("equal", "inside")}
        return found | {"outside": sum(one.kind in kinds for one in self.outside)}


def compare(record: Run, rerun: Run) -> Report:
    """Every stage by bytes, and every number, string and list of the metrics by its value."""
    report = Report()
    _compare_stages(record, rerun, report)
    _compare_metrics(record, rerun, report)
    _compare_rows(record, rerun, report)
    return report


def _compare_stages(record: Run, rerun: Run, report: Report) -> None:
    for stage in sorted({*record.outs, *rerun.outs}):
        recorded, found = record.outs.get(stage), rerun.outs.get(stage)
        if not (recorded or found):
            continue  # it has no outputs that count
        if recorded is not None and found is not None:
            report.stages["equal" if recorded == found else "with other bytes"] += 1
        elif _seed_of(stage, {*record.seeds} ^ {*rerun.seeds}):
            report.stages["of other seeds"] += 1
        else:
            report.outside.append(_lacking("text", "dvc.lock", stage, additional=recorded is None))


def _seed_of(stage: str, seeds: Iterable[int]) -> bool:
    """Whether a stage's name ends in one of these training seeds."""
    return any(stage.endswith((f"-{seed}", f"@{seed}")) for seed in seeds)


def _lacking(kind: Kind, file: str, key: str, *, additional: bool) -> Outside:
    if additional:
        return Outside(kind, file, key, "is there", "none, as in the record")
    return Outside(kind, file, key, "is missing", "as in the record, which has it")


@dataclass
class _Number:
    """Training seed -> value, '' where no training seed is named; and what else must be equal.

    `summary` follows from the values, and must be equal where all of them are: a mean, an interval.
    """

    values: dict[str, float] = field(default_factory=dict)
    facts: set[str] = field(default_factory=set)
    summary: set[str] = field(default_factory=set)

    @property
    def kind(self) -> Kind:
        return "number of seeds" if len(self.values) > 1 else "single number"


Place = tuple[str, str]
"""File and key."""


def _values(run: Run) -> tuple[dict[Place, _Number], dict[Place, set[str]]]:
    """The numbers of a run, and all else as JSON; several texts for files of several seeds."""
    numbers: dict[Place, _Number] = defaultdict(_Number)
    texts: dict[Place, set[str]] = defaultdict(set)
    for path, content in run.metrics.items():
        file, own_seed = _split_seed(path)
        for group, row in content.get("cells", {}).items():
            for metric, cell in row.items():
                if metric in _TIMES:
                    continue
                number = numbers[file, f"{group}/{metric}"]
                number.values |= cell.get("seeds") or {own_seed: cell["value"]}
                number.facts.add(f"n {cell['n']}")
                number.summary |= {f"{name} {cell[name]}" for name in _SUMMARY}
        others = {name: value for name, value in content.items() if name != "cells"}
        for key, leaf in _leaves(others):
            if isinstance(leaf, float):
                numbers[file, key].values[own_seed] = leaf
            else:
                texts[file, key].add(json.dumps(leaf, ensure_ascii=False))
    return numbers, texts


def _split_seed(path: str) -> tuple[str, str]:
    """A file's name with its training seed left out, and that seed.

    >>> _split_seed("metrics/distill/p3/42.json"), _split_seed("metrics/rewrite.json")
    (('metrics/distill/p3/<seed>.json', '42'), ('metrics/rewrite.json', ''))
    """
    own = Path(path)
    if own.stem.isdigit():
        return (own.parent / "<seed>.json").as_posix(), own.stem
    return path, ""


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is no mapping, a provenance's identity apart."""
    if not isinstance(value, dict):
        yield ".".join(path), value
        return
    for name, inner in value.items():
        if not (path and path[0] == "provenance" and name in _IDENTITY):
            yield from _leaves(inner, (*path, name))


def _compare_metrics(record: Run, rerun: Run, report: Report) -> None:
    (numbers, texts), (found_numbers, found_texts) = _values(record), _values(rerun)
    for place in sorted({*numbers, *found_numbers}):
        recorded, found = numbers.get(place), found_numbers.get(place)
        if recorded is None or found is None:
            report.outside += [
                _lacking(one.kind, *place, additional=recorded is None)
                for one in (recorded, found)
                if one is not None
            ]
            continue
        for seed, value in sorted(found.values.items()):
            verdict, allowed = judge(recorded.values, seed, value)
            if verdict == "outside":
                key = f"{place[1]} (seed {seed})" if seed else place[1]
                there = Outside(recorded.kind, place[0], key, f"{value:.6g}", allowed)
                report.outside.append(there)
            else:
                report.agree[recorded.kind, verdict] += 1
        same = recorded.values == found.values
        facts, others = (
            one.facts | one.summary if same else one.facts for one in (recorded, found)
        )
        if facts or others:
            _compare_texts(place, facts, others, report)
    for place in sorted({*texts, *found_texts}):
        if place in texts and place in found_texts:
            _compare_texts(place, texts[place], found_texts[place], report)
        else:
            report.outside.append(_lacking("text", *place, additional=place not in texts))


def _compare_texts(place: Place, recorded: set[str], found: set[str], report: Report) -> None:
    if recorded == found:
        report.agree["text", "equal"] += 1
    else:
        allowed = f"exactly {_shown(recorded - found or recorded)}"
        report.outside.append(Outside("text", *place, _shown(found - recorded or found), allowed))


def _shown(texts: set[str]) -> str:
    whole = ", ".join(sorted(texts))
    return whole if len(whole) <= 60 else f"{whole[:57]}..."


def judge(recorded: Mapping[str, float], seed: str, value: float) -> tuple[str, str]:
    """`equal`, `inside` or `outside`, and what is allowed, for the value of one training seed.

    `recorded` has the value of each training seed that the record has.
    """
    if recorded.get(seed) == value:
        return "equal", ""
    if len(recorded) == 1:
        return "outside", f"exactly {next(iter(recorded.values())):.6g} (one recorded value)"
    low, high = interval(list(recorded.values()))
    # The mean of equal values may be rounded.
    if low <= value <= high or math.isclose(value, low) or math.isclose(value, high):
        return "inside", ""
    return "outside", f"{low:.6g} to {high:.6g}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % prediction interval of one value more, by at least two."""
    from scipy.special import stdtrit

    count = len(values)
    mean = statistics.fmean(values)
    half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(values) * math.sqrt(1 + 1 / count)
    return mean - half, mean + half


def _compare_rows(record: Run, rerun: Run, report: Report) -> None:
    # A column of a seed that only one run has says nothing but that; its number is judged above.
    alone = {f"seed {seed}" for seed in {*record.seeds} ^ {*rerun.seeds}}
    for name in sorted({*record.tables, *rerun.tables}):
        recorded, found = (
            {row for row in _rows(run.tables.get(name, "")) if row[-1] not in alone}
            for run in (record, rerun)
        )
        report.agree["text", "equal"] += len(recorded & found)
        for row in sorted(recorded ^ found):
            key = " / ".join(row)
            report.outside.append(_lacking("text", name, key, additional=row in found))


def _rows(table: str) -> set[tuple[str, ...]]:
    return {
        tuple(row[name] for name in _ROW if name in row)
        for row in csv.DictReader(io.StringIO(table))
    }


def differences(record: Run, rerun: Run) -> list[str]:
    """What was not the same before anything was computed: seeds, parameters, code, machine …"""
    found = []
    if record.seeds != rerun.seeds:
        found.append(f"training seeds {_listed(rerun.seeds)} (recorded {_listed(record.seeds)})")
    names = {*record.params, *rerun.params} - {"seeds"}
    changed = sorted(n for n in names if record.params.get(n) != rerun.params.get(n))
    if changed:
        found.append(f"parameters below {_listed(changed)}")
    old, new = record.provenance("code"), rerun.provenance("code")
    stages = sorted({Path(path).parts[1] for path in old.keys() & new if old[path] != new[path]})
    if stages:
        found.append(f"code of {_listed(Path(stage).stem for stage in stages)}")
    for name, read in (("machine", _machines), ("versions", _versions)):
        before, after = read(record), read(rerun)
        if before != after:
            only = _listed(sorted(after - before)) or "-"
            found.append(f"{name} {only} (recorded {_listed(sorted(before - after)) or 'none'})")
    return found


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))


def _machines(run: Run) -> set[str]:
    """CPUs, with the canary's verdict where it is not that they give the recorded bits."""
    return {
        machine["cpu"] + ("" if machine["canary"] == "matches" else f", canary {machine['canary']}")
        for machine in run.provenance("machine").values()
    }


def _versions(run: Run) -> set[str]:
    return {
        f"{name} {version}"
        for versions in run.provenance("versions").values()
        for name, version in versions.items()
    }
