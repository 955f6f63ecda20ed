"""The table of leaks: what sets have in common, and scores without questions on training images."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.units import Units
from heima.config import Params, ProtocolName
from heima.results import statistics
from heima.results.cells import Cell
from heima.results.files import read_jsonl
from heima.results.scores import ACCURACY, score_group
from reports.tables import captions, expected
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.reading import Scores
from reports.tables.samples import shortened

LEAKS = "metrics/leaks.json"
_MATCHES, _ITEMS = "leaks/matches.jsonl", "leaks/items.jsonl"
_EXAMPLES = 2
"""Questions shown of two sets, those of the nearest images."""
_WITHOUT = "{}, without"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Leaks:
    """What `stages.leaks` has found.

    `cells` are counts for each two sets, `matches` the questions behind them. `strata` has, by data
    and then question, the groups that are averaged under a protocol; `leaked` the questions whose
    image is a training turn's; `scored` variant -> rows of its scores, where any is.
    """

    cells: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    unreadable: int = 0
    matches: Rows = ()
    strata: Mapping[str, Mapping[int, Mapping[str, str]]] = field(default_factory=dict)
    leaked: Mapping[str, frozenset[int]] = field(default_factory=dict)
    scored: Mapping[str, Rows] = field(default_factory=dict)


def read_leaks(root: Path, params: Params, problems: list[str]) -> Leaks:
    """The files of `stages.leaks`, and scores of every variant where a question is to be left out.

    Adds to `problems` what is missing.
    """
    found = expected.metrics(root, LEAKS, "leaks", params, problems)
    there = [expected.is_there(root, name, "leaks", problems) for name in (_MATCHES, _ITEMS)]
    if found is None or not all(there):
        return Leaks()
    cells, provenance = found
    strata: dict[str, dict[int, Mapping[str, str]]] = defaultdict(dict)
    leaked: dict[str, set[int]] = defaultdict(set)
    for row in read_jsonl(root / _ITEMS):
        strata[row["set"]][row["doc_id"]] = row["strata"]
        if row["image"] is not None:
            leaked[row["set"]].add(row["doc_id"])
    scored: dict[str, Rows] = {}
    for variant in params.variants if leaked else ():
        path = root / "scores" / f"{variant}.jsonl"
        if path.is_file():  # A missing one is told where scores are read.
            scored[variant] = read_jsonl(path)
    return Leaks(
        cells,
        provenance["unreadable"],
        read_jsonl(root / _MATCHES),
        strata,
        {name: frozenset(rows) for name, rows in leaked.items()},
        scored,
    )


def leaks_blocks(params: Params, found: Leaks, scores: Scores) -> tuple[Block, ...]:
    counted = Block(
        f"{params.profile} profile",
        f"Leaks ({captions.about(params)})",
        captions.leaks(params, found.unreadable),
        (_counts(found), *_examples(found)),
    )
    return (
        counted,
        *(_scores(params, protocol, found, scores) for protocol in params.protocols),
    )


def _counts(found: Leaks) -> Panel:
    columns: dict[str, int] = {"questions": 0}
    entries: dict[tuple[str, str], Entry | Label] = {}
    for group, counts in found.cells.items():
        for name, cell in counts.items():
            columns[name] = 0
            entries[group, name] = Entry(cell.value, LEAKS)
            entries[group, "questions"] = Entry(cell.n, LEAKS)
    return Panel("Questions of one set in another", "set", tuple(found.cells), columns, entries)


def _examples(found: Leaks) -> tuple[Panel, ...]:
    """The nearest images of each two sets; nothing where no image is in two."""
    there = [row for row in found.matches if row["image"] is not None]
    there.sort(key=lambda row: row["bits"])
    shown: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in there:
        if len(shown[row["in"], row["set"]]) < _EXAMPLES:
            shown[row["in"], row["set"]].append(row)
    entries: dict[tuple[str, str], Entry | Label] = {}
    columns = dict.fromkeys(("image", "bits apart", "question", "there", "question there"), 0)
    rows = []
    for row in itertools.chain.from_iterable(shown.values()):
        name = f"{row['set']} {row['item']}"
        if name in rows:
            name = f"{name} ({row['in']})"
        rows.append(name)
        texts = {
            "image": row["image"],
            "bits apart": str(row["bits"]),
            "question": shortened(row["question"], 120),
            "there": f"{row['in']} {row['there']}",
            "question there": shortened(row["question_there"], 120),
        }
        entries |= {(name, column): Label(text, _MATCHES) for column, text in texts.items()}
    return (Panel("Examples", "question", tuple(rows), columns, entries),) if rows else ()


def _scores(params: Params, protocol: ProtocolName, found: Leaks, scores: Scores) -> Block:
    """Accuracy with and without the questions whose image is in training turns."""
    hit = [
        benchmark
        for benchmark in params.benchmarks
        if found.leaked.get(params.data_name(protocol, benchmark))
    ]
    columns: dict[str, int] = {}
    entries: dict[tuple[str, str], Entry | Label] = {}
    for variant, benchmark in itertools.product(params.variants, hit):
        cells, source = scores[variant]
        whole = cells[score_group(protocol, benchmark)][ACCURACY]
        left = _without(params, protocol, benchmark, found, found.scored[variant])
        named = f"scores/{variant}.jsonl"
        columns |= {benchmark: 1, _WITHOUT.format(benchmark): 1}
        entries[variant, benchmark] = Entry.of(whole, source)
        entries[variant, _WITHOUT.format(benchmark)] = (
            Label("none is left", named) if left is None else Entry.of(left, named)
        )
    panels: tuple[Panel, ...] = ()
    if hit:
        panels = (
            Panel("Accuracy (%), all and without leaks", "variant", tuple(params.variants),
                  columns, entries),
        )  # fmt: skip
    return Block(
        f"{params.profile} profile, protocol {protocol}",
        f"Scores without leaks, protocol {protocol} ({captions.about(params)})",
        captions.without_leaks(
            params,
            protocol,
            {one: len(found.leaked[params.data_name(protocol, one)]) for one in hit},
        ),
        panels,
    )


def _without(
    params: Params, protocol: ProtocolName, benchmark: str, found: Leaks, rows: Rows
) -> Cell | None:
    """The accuracy on what is left, as `eval.scoring` counts it; None: nothing is."""
    data = params.data_name(protocol, benchmark)
    return accuracy(
        params,
        [row for row in rows if (row["protocol"], row["benchmark"]) == (protocol, benchmark)],
        place=params.benchmarks.index(benchmark),
        strata={doc: one[protocol] for doc, one in found.strata[data].items() if protocol in one},
        left_out=found.leaked[data],
    )


def accuracy(
    params: Params,
    rows: Rows,
    *,
    place: int,
    strata: Mapping[int, str],
    left_out: frozenset[int] = frozenset(),
) -> Cell | None:
    """A benchmark's accuracy in percent without some of its rows; None: none is left.

    A unit (MMBench's rotations) goes with any of its rows. `rows` are those of all training and
    decoding seeds, `place` is the benchmark's among all, `strata` (none: all weigh the same) has
    each row's group. With nothing left out it is the cell of `metrics/score`, bit for bit.
    """
    gone = {row["unit"] for row in rows if row["doc_id"] in left_out}
    kept: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["unit"] not in gone:
            kept[row["training_seed"]].append(row)
    units = {
        seed: Units.of(own, [strata[row["doc_id"]] for row in own] if strata else None)
        for seed, own in kept.items()
    }
    if not units:
        return None
    first = next(iter(units.values()))
    return statistics.resample(
        {ACCURACY: {seed: one.scores for seed, one in units.items()}},
        draws=params.similarity.draws,
        seed=(params.seed, place),
        clusters=first.images,
        weights=first.weights,
        n_failed={ACCURACY: sum(one.failed for one in units.values())},
        scale=100,
    )[ACCURACY].cell(seed=params.seed)
