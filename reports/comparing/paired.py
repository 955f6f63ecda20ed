"""Two sides on the same questions: what differs, by how much, and which questions flipped.

- The difference of mean scores has the clustered bootstrap interval of the tables (questions about
  one image are resampled together, training seeds independently of them, see
  `heima.results.statistics`), and each question counts once, as in the ablation's table.
- McNemar's exact test (1947, Psychometrika 12) is of the questions that one side alone has right,
  once a training and decoding seed: answers of two seeds to one question are not independent. It
  knows nothing of shared images. A graded answer (MM-Vet) is right from half of its points on.

Whatever is on one side alone is counted and listed, never left out in silence.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heima.config import Params
from heima.config.benchmarks import BENCHMARKS
from heima.results import statistics
from heima.results.scores import MEAN
from reports.comparing import committed
from reports.comparing.model import RIGHT, Comparison, Flip, Group, Run, Seed
from reports.comparing.sides import CompareError, Row, Side
from reports.tables.model import Entry


@dataclass
class _Unit:
    """What one score belongs to; MMBench's rotations share one."""

    score: float
    failed: bool
    image: Hashable
    docs: tuple[int, ...]
    where: str


Units = dict[str, _Unit]
Runs = dict[Seed, dict[Seed, Units]]
"""Training seed -> decoding seed -> unit."""


def compare(a: Side, b: Side, params: Params) -> Comparison:
    """Compare two sides; `params` give the seed and the number of resamples.

    Raises `CompareError` where nothing can be compared.
    """
    found = Comparison(a, b, notes=[*a.notes, *b.notes])
    if a.missing or b.missing:
        committed.compare(found)
    else:
        _by_questions(found, params)
    if not found.groups:
        raise CompareError(
            f"{a.label} and {b.label} have no benchmark under one protocol in common"
        )
    return found


def _by_questions(found: Comparison, params: Params) -> None:
    a, b = (_grouped(side.rows) for side in (found.a, found.b))
    protocols = ({protocol for protocol, _ in one} for one in (a, b))
    first, second = protocols
    if not first & second and len(first) == len(second) == 1:
        [one], [other] = first, second
        found.notes.append(
            f"other prompts and rules on either side: A is {one}, B is {other}; the difference is "
            "theirs, too"
        )
        both = f"{one} / {other}"
        a = {(both, benchmark): runs for (_, benchmark), runs in a.items()}
        b = {(both, benchmark): runs for (_, benchmark), runs in b.items()}
    for side, own, others in (("A", a, b), ("B", b, a)):
        for group in sorted(own.keys() - others.keys()):
            found.unmatched += [
                _left(side, group, unit, "not on the other side") for unit in _units(own[group])
            ]
    differences: dict[str, list[tuple[Group, tuple[statistics.Resampled, ...]]]] = {}
    for group in sorted(a.keys() & b.keys(), key=lambda one: _place(one, a, params)):
        made = _group(found, group, a[group], b[group], params)
        if made is not None:
            differences.setdefault(group[0], []).append(made)
    for protocol, parts in differences.items():
        found.groups += [group for group, _ in parts]
        if len(parts) > 1:
            found.groups.append(_mean(found, protocol, parts, params))


def _place(group: tuple[str, str], all_: Mapping[Any, Any], params: Params) -> tuple[int, int]:
    protocols = list(dict.fromkeys(protocol for protocol, _ in all_))
    return protocols.index(group[0]), _number(group[1], params)


def _number(benchmark: str, params: Params) -> int:
    """Its place in the tables, by which its questions are resampled there too."""
    known = list(dict.fromkeys((*params.benchmarks, *BENCHMARKS, benchmark)))
    return known.index(benchmark)


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], Runs]:
    """(protocol, benchmark) -> runs; rows of one unit are one, failed where one of them is."""
    found: dict[tuple[str, str], Runs] = {}
    for row in rows:
        runs = found.setdefault((row["protocol"], row["benchmark"]), {})
        units = runs.setdefault(row["training_seed"], {}).setdefault(row["seed"], {})
        doc = row.get("doc_id")
        docs = () if doc is None else (doc,)
        name = str(row["unit"])
        if name in units:
            # A question is right where all of its rotations are; ours have its score already.
            units[name].score = min(units[name].score, row["score"])
            units[name].failed |= row["failed"]
            units[name].docs += docs
        else:
            units[name] = _Unit(row["score"], row["failed"], row["image"], docs, row["where"])
    return found


def _units(runs: Runs) -> dict[str, None]:
    """The units that any run has, in their order."""
    return dict.fromkeys(
        unit for seeds in runs.values() for units in seeds.values() for unit in units
    )


def _left(side: str, group: tuple[str, str], unit: str, why: str) -> dict[str, Any]:
    return {"side": side, "protocol": group[0], "benchmark": group[1], "unit": unit, "why": why}


def _group(
    found: Comparison, group: tuple[str, str], a: Runs, b: Runs, params: Params
) -> tuple[Group, tuple[statistics.Resampled, ...]] | None:
    """One benchmark; None where no question is on both sides."""
    given = {"A": _units(a), "B": _units(b)}
    a, b = _aligned(found, group, a, b)
    decoding = list(next(iter(a.values())))
    # A question counts where every training seed of both sides has answered it.
    sets = [
        {(seed, unit) for seed, units in runs.items() for unit in units}
        for side in (a, b)
        for runs in side.values()
    ]
    keys = [
        (seed, unit)
        for seed, units in next(iter(a.values())).items()
        for unit in units
        if all((seed, unit) in one for one in sets)
    ]
    first = {"A": next(iter(a.values())), "B": next(iter(b.values()))}
    kept: list[tuple[Seed, str]] = []
    other_images: list[tuple[Seed, str]] = []
    for seed, unit in keys:
        images = [first[side][seed][unit].image for side in ("A", "B")]
        same = None in images or images[0] == images[1]
        (kept if same else other_images).append((seed, unit))
    shared = {unit for _, unit in keys}
    for unit in dict.fromkeys((*given["A"], *given["B"])):
        on = [side for side, units in given.items() if unit in units]
        if unit not in shared:
            why = "not on the other side" if len(on) == 1 else "not in every run of both sides"
            found.unmatched.append(_left(" and ".join(on), group, unit, why))
    found.unmatched += [
        _left("A and B", group, unit, "asked about another image")
        for unit in dict.fromkeys(unit for _, unit in other_images)
    ]
    if not kept:
        return None
    columns = {
        name: {
            trained if trained is not None else 0: [runs[seed][unit] for seed, unit in kept]
            for trained, runs in side.items()
        }
        for name, side in (("a", a), ("b", b))
    }
    failed = {
        name: np.array([[unit.failed for unit in units] for units in side.values()])
        for name, side in columns.items()
    }
    resampled = statistics.resample(
        {
            name: {trained: [unit.score for unit in units] for trained, units in side.items()}
            for name, side in columns.items()
        },
        draws=params.similarity.draws,
        seed=(params.seed, _number(group[1], params)),
        clusters=[
            unit.image if unit.image is not None else key
            for key, unit in zip(kept, next(iter(columns["a"].values())), strict=True)
        ],
        n_failed={name: int(flags.sum()) for name, flags in failed.items()},
        scale=100,
    )
    difference = statistics.minus(
        resampled["a"], resampled["b"], n_failed=int((failed["a"] | failed["b"]).sum())
    )
    runs = _runs(found, group, kept, a, b, decoding)
    parts = (resampled["a"], resampled["b"], difference)
    return _cells(group, parts, runs, found, params), parts


def _cells(
    group: tuple[str, str],
    parts: Sequence[statistics.Resampled],
    runs: tuple[Run, ...],
    found: Comparison,
    params: Params,
) -> Group:
    a, b, difference = (part.cell(seed=params.seed) for part in parts)
    return Group(*group, a, b, Entry.of(difference, f"{found.a.label} - {found.b.label}"), runs)


def _mean(
    found: Comparison,
    protocol: str,
    parts: Sequence[tuple[Group, tuple[statistics.Resampled, ...]]],
    params: Params,
) -> Group:
    """The unweighted mean of benchmarks, and all their questions in one test."""
    means = [statistics.mean_of(same) for same in zip(*(one for _, one in parts), strict=True)]
    runs: dict[tuple[Seed, Seed], Run] = {}
    for group, _ in parts:
        for run in group.runs:
            key = run.training_seed, run.seed
            so_far = runs.get(key, Run(*key, 0, 0, 0, 0))
            runs[key] = Run(
                *key,
                so_far.both + run.both,
                so_far.only_a + run.only_a,
                so_far.only_b + run.only_b,
                so_far.neither + run.neither,
            )
    return _cells((protocol, MEAN), means, tuple(runs.values()), found, params)


def _runs(
    found: Comparison,
    group: tuple[str, str],
    kept: Sequence[tuple[Seed, str]],
    a: Runs,
    b: Runs,
    decoding: Sequence[Seed],
) -> tuple[Run, ...]:
    """Right and wrong on both sides by run; the flips are added to `found`."""
    made = []
    longer = a if len(a) >= len(b) else b
    for trained in longer:
        own = a[trained] if trained in a else next(iter(a.values()))
        other = b[trained] if trained in b else next(iter(b.values()))
        for seed in decoding:
            counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
            for unit in (unit for one, unit in kept if one == seed):
                left, right = own[seed][unit], other[seed][unit]
                outcome = left.score >= RIGHT, right.score >= RIGHT
                counts[outcome] += 1
                if outcome[0] != outcome[1]:
                    found.flips.append(
                        Flip(
                            *group,
                            trained,
                            seed,
                            unit,
                            left.docs or right.docs,
                            "A" if outcome[0] else "B",
                            (left.score, right.score),
                            (left.where, right.where),
                        )
                    )
            made.append(Run(trained, seed, *counts.values()))
    return tuple(made)


def _aligned(found: Comparison, group: tuple[str, str], a: Runs, b: Runs) -> tuple[Runs, Runs]:
    """Both sides with the same seeds: the common ones, or the mean of each side's own.

    One seed on one side is compared with every seed of the other, as the tables do.
    """
    decoding = [list(dict.fromkeys(s for runs in side.values() for s in runs)) for side in (a, b)]
    common = _common(found, "decoding", *decoding)
    if common is None:
        seeds = max(decoding, key=len)
        a, b = ({t: _spread(runs, seeds) for t, runs in one.items()} for one in (a, b))
    elif common:
        a, b = ({t: {s: r[s] for s in common if s in r} for t, r in one.items()} for one in (a, b))
    else:
        a, b = (_mean_of_decoding(one) for one in (a, b))
    common = _common(found, "training", list(a), list(b))
    if common is None:
        return a, b
    if common:
        return {seed: a[seed] for seed in common}, {seed: b[seed] for seed in common}
    return _mean_of_training(a), _mean_of_training(b)


def _mean_of_decoding(runs: Runs) -> Runs:
    return {trained: {None: _averaged(list(own.values()))} for trained, own in runs.items()}


def _mean_of_training(runs: Runs) -> Runs:
    first, *others = runs.values()
    seeds = [seed for seed in first if all(seed in own for own in others)]
    return {None: {seed: _averaged([own[seed] for own in runs.values()]) for seed in seeds}}


def _spread(runs: Mapping[Seed, Units], seeds: Iterable[Seed]) -> dict[Seed, Units]:
    """The units of each seed; of one seed alone, for all of them."""
    [*own] = runs.values()
    return {seed: runs[seed] if seed in runs else own[0] for seed in seeds}


def _common(found: Comparison, kind: str, a: list[Seed], b: list[Seed]) -> list[Seed] | None:
    """The seeds of both sides; None where one side has but one, which all of the other meet.

    Where no seed is on both, the mean over each side's own is compared, and a note says so.
    """
    common = [seed for seed in a if seed in b]
    if set(a) == set(b):
        return common
    if len(a) == 1 or len(b) == 1:
        return None
    named = f"A has {', '.join(map(str, a))}, B has {', '.join(map(str, b))}"
    if common:
        note = f"{kind} seeds compared: {', '.join(map(str, common))} ({named})"
    else:
        note = (
            f"no {kind} seed in common ({named}): each question has the mean over its side's "
            "seeds, and the interval is of the questions alone"
        )
    if note not in found.notes:
        found.notes.append(note)
    return common


def _averaged(runs: Sequence[Units]) -> Units:
    """The units of several runs as one, each with its mean score; those that not all runs have are
    left out (and then stand on one side alone)."""
    shared = [unit for unit in runs[0] if all(unit in one for one in runs)]
    return {
        unit: _Unit(
            float(np.mean([one[unit].score for one in runs])),
            any(one[unit].failed for one in runs),
            runs[0][unit].image,
            runs[0][unit].docs,
            runs[0][unit].where,
        )
        for unit in shared
    }
