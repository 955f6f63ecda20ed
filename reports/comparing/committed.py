"""What committed metrics files and tables say of two variants whose samples are not here."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from heima.results.cells import Cell
from heima.results.scores import ACCURACY, score_group
from reports.comparing.model import Comparison, Group
from reports.comparing.sides import Side
from reports.tables.ablation import DIFFERENCES
from reports.tables.model import Entry
from reports.tables.reading import REFERENCE


def compare(found: Comparison) -> None:
    """What metrics files and the ablation's table say where samples are not here."""
    a, b = found.a, found.b
    lacking = [side.missing for side in (a, b) if side.missing]
    found.notes.append(
        f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} neither here nor in DVC's "
        "cache or remote, so no question is paired, tested or listed: `make repro` makes them "
        "(of a revision, in its checkout), or `dvc pull` where a remote has them"
    )
    if a.hash is not None and a.hash == b.hash:
        found.notes.append(
            "both are one file, by the hash in dvc.lock: the same answers and scores"
        )
    table = _table(a, b)
    for name, cells in a.cells.items():
        protocol, _, benchmark = name.partition("/")
        if ACCURACY not in cells or ACCURACY not in b.cells.get(name, {}):
            continue
        left, right = cells[ACCURACY], b.cells[name][ACCURACY]
        known = table.get(score_group(protocol, benchmark))
        found.groups.append(
            Group(protocol, benchmark, left, right, known or _of_seeds(left, right))
        )
    if any(group.difference.low is None for group in found.groups):
        found.notes.append("a difference without an interval is of one training seed's two numbers")
    if table:
        found.notes.append(
            f"differences with their paired, clustered intervals are those of {_source(table)}"
        )
    else:
        found.notes.append(
            "intervals are the t intervals of the training seeds' own differences, not of questions"
        )


def _of_seeds(a: Cell, b: Cell) -> Entry:
    """The difference of two cells, seed by seed where both have several in common."""
    common = [seed for seed in a.seeds if seed in b.seeds]
    seeds = {seed: a.seeds[seed] - b.seeds[seed] for seed in common}
    if len(a.seeds) != len(b.seeds) and 1 in (len(a.seeds), len(b.seeds)):
        [only] = min(a.seeds, b.seeds, key=len).values()
        longer = max(a.seeds, b.seeds, key=len)
        sign = 1 if longer is a.seeds else -1
        seeds = {seed: sign * (value - only) for seed, value in longer.items()}
    value = a.value - b.value
    if len(seeds) < 2:
        return Entry(value, "metrics/score", n=min(a.n, b.n))
    low, high = Cell(value, value, value, n=1, seeds=seeds).t_interval or (value, value)
    return Entry.of(Cell(value, low, high, n=min(a.n, b.n), seeds=seeds), "metrics/score")


def _table(a: Side, b: Side) -> dict[str, Entry]:
    """Group -> A minus B from the committed table of the ablation, where it has this pair."""
    if a.place is None or a.place != b.place or REFERENCE not in (a.variant, b.variant):
        return {}
    name = f"reports/{a.place.params.get('profile')}/tables/ablation.csv"
    content = a.place.read(name)
    if content is None:
        return {}
    sign = 1 if b.variant == REFERENCE else -1
    other = a.variant if b.variant == REFERENCE else b.variant
    found = {}
    for row in csv.DictReader(io.StringIO(content.decode("utf-8"))):
        if row["panel"] != DIFFERENCES or row["row"] != other:
            continue
        low, high = sorted(sign * float(row[bound]) for bound in ("low", "high"))
        seeds = dict(pair.split("=") for pair in row["seeds"].split())
        cell = Cell(
            sign * float(row["value"]),
            low,
            high,
            n=int(row["n"]),
            n_failed=int(row["n_failed"]),
            seeds={int(seed): sign * float(value) for seed, value in seeds.items()},
        )
        protocol = row["origin"].rpartition("protocol ")[2]
        found[score_group(protocol, row["column"])] = Entry.of(cell, name)
    return found


def _source(table: Mapping[str, Entry]) -> str:
    return next(iter(table.values())).source
