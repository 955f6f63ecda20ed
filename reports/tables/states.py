"""The table of thinking states: how they lie, and what simple readers find of the answer there.

And what becomes of text-CoT's answers where its chain is cut, made wrong or filled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any, Generic, TypeVar

from heima.config import Params
from heima.results.cells import Cell, read_metrics
from heima.results.files import read_json
from reports.tables import captions, expected
from reports.tables.model import Block, Entry, Label, Panel

T = TypeVar("T")

GEOMETRY = "How states lie to each other, by position"
SELECTIVITY = "What a probe finds of the answer: selectivity (points)"
BITS = "The online code of the answer (bits a question)"
SAVED = "What states save interpreters (bits a token)"
CHAINS = "Text-CoT's chain cut, made wrong or filled: its answer (%)"
AREA = "area over the curve"
CHANGED = "answer changed"

Described = Mapping[str, Mapping[str, float | None]]
"""Row -> column -> number of one training seed; None where there is none."""


@dataclass(frozen=True)
class Examined:
    """What `stages.examine` has found of each checkpoint, seed by seed, what interpreters save by
    name and seed, and the changed chains; each with the files that it is from."""

    geometry: Mapping[str, Mapping[int, Described]] = field(default_factory=dict)
    probes: Mapping[str, Mapping[int, Mapping[str, Described]]] = field(default_factory=dict)
    saved: Mapping[int, Described] = field(default_factory=dict)
    chains: Mapping[str, Mapping[str, Mapping[str, Cell]]] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        return not (self.geometry or self.chains)


def read_examined(root: Path, params: Params, problems: list[str]) -> Examined:
    """Of what `examine` in the parameters names, and no other."""
    geometry: dict[str, dict[int, Any]] = {}
    probes: dict[str, dict[int, Any]] = {}
    for name in params.examine.checkpoints:
        for seed in params.training_seeds(name):
            source = file_of(name, seed)
            if not expected.is_there(root, source, f"examine@{name}-{seed}", problems):
                continue
            content = read_json(root / source)
            expected.of_profile(content["provenance"], source, params, problems)
            geometry.setdefault(name, {})[seed] = content["geometry"]
            probes.setdefault(name, {})[seed] = content["information"]
    chains: dict[str, Mapping[str, Mapping[str, Cell]]] = {}
    for name in params.examine.chains:
        source = f"metrics/truncate/{name}.json"
        read = expected.metrics(root, source, f"truncate@{name}", params, problems)
        if read is not None:
            chains[name], _ = read
    reads = params.states.checkpoint in params.examine.checkpoints
    saved = {
        seed: found
        for seed in (params.seeds if reads else ())
        if (found := of_interpreters(root / "metrics" / "interpret", params.interpreters, seed))
    }
    return Examined(geometry, probes, saved, chains)


def file_of(checkpoint: str, seed: int) -> str:
    """The file of `stages.examine`."""
    return f"metrics/examine/{checkpoint}/{seed}.json"


def of_interpreters(folder: Path, names: Iterable[str], seed: int) -> dict[str, dict[str, float]]:
    """What states save interpreters, in bits a token of the sections that they read.

    `folder` is that of `stages.interpret`'s metrics, `seed` a training seed. An interpreter that
    was not trained without states, or not yet, is not there.
    """
    found = {}
    for name in names:
        files = {one: folder / name / one / f"{seed}.json" for one in ("own", "question-only")}
        if all(file.is_file() for file in files.values()):
            bits = {
                one: read_metrics(file)[0]["heldout"]["loss"].value / math.log(2)
                for one, file in files.items()
            }
            found[name] = {**bits, "saved": bits["question-only"] - bits["own"]}
    return found


def states_block(params: Params, found: Examined) -> Block:
    """Geometry, probes, code lengths, interpreters and chains; a sentence where none is there."""
    panels = [
        *_geometry(found),
        *_probed(found, SELECTIVITY, "selectivity", 100, 1),
        *_probed(found, BITS, "bits", 1, 3),
        *_saved(found),
        *_chains(found),
    ]
    return Block(
        f"{params.profile} profile",
        f"Thinking states and their simple readers ({captions.about(params)})",
        captions.NOT_EXAMINED if found.nothing else captions.STATES,
        tuple(panels),
    )


def _mean(values: Mapping[int, float | None], source: str, scale: float = 1.0) -> Entry | Label:
    """The mean over training seeds; a dash where one has no number."""
    seeds = {seed: scale * one for seed, one in values.items() if one is not None}
    if not seeds or len(seeds) < len(values):
        return Label("–", source)
    value = math.fsum(seeds.values()) / len(seeds)
    sd = stdev(seeds.values()) if len(seeds) > 1 else None
    return Entry(value, source, sd=sd, seeds=seeds)


@dataclass(frozen=True)
class _Row(Generic[T]):
    """A row's name, the files that it is from, and what each training seed has of it."""

    name: str
    source: str
    seeds: Mapping[int, T]

    @property
    def first(self) -> T:
        return next(iter(self.seeds.values()))


def _files(checkpoint: str, seeds: Mapping[int, Any]) -> str:
    return " + ".join(file_of(checkpoint, seed) for seed in seeds)


def _by_row(found: Mapping[str, Mapping[int, Mapping[str, T]]]) -> Iterator[_Row[T]]:
    """A row for each checkpoint and what its first training seed has of it."""
    for checkpoint, seeds in found.items():
        source = _files(checkpoint, seeds)
        for name in next(iter(seeds.values())):
            each = {seed: one[name] for seed, one in seeds.items()}
            yield _Row(f"{checkpoint}, {name}", source, each)


def _geometry(found: Examined) -> list[Panel]:
    rows = tuple(_by_row(found.geometry))
    digits: dict[str, int] = {}
    entries: dict[tuple[str, str], Entry | Label] = {}
    for row in rows:
        for what in row.first:
            digits[what] = 1 if what == "participation ratio" else 3
            each = {seed: one[what] for seed, one in row.seeds.items()}
            entries[row.name, what] = _mean(each, row.source)
    names = tuple(row.name for row in rows)
    return [Panel(GEOMETRY, "state", names, digits, entries)] if rows else []


def _probed(found: Examined, title: str, what: str, scale: float, digits: int) -> list[Panel]:
    """A row for each checkpoint and kind of question, a column a position."""
    rows = tuple(_by_row(found.probes))
    positions = tuple(dict.fromkeys(position for row in rows for position in row.first))
    # What knows the number of conclusions alone stands last.
    columns = (*positions, _UNIFORM) if what == "bits" else positions
    entries: dict[tuple[str, str], Entry | Label] = {
        (row.name, column): Label("–", row.source) for row in rows for column in columns
    }
    for row in rows:
        for position in row.first:
            each = {seed: one[position][what] for seed, one in row.seeds.items()}
            entries[row.name, position] = _mean(each, row.source, scale)
        if what == "bits":
            each = {
                seed: next(iter(one.values()))["uniform bits"] for seed, one in row.seeds.items()
            }
            entries[row.name, _UNIFORM] = _mean(each, row.source)
    corner = "checkpoint, kind of question"
    names = tuple(row.name for row in rows)
    return [Panel(title, corner, names, dict.fromkeys(columns, digits), entries)] if rows else []


_UNIFORM = "uniform"


def _saved(found: Examined) -> list[Panel]:
    if not found.saved:
        return []
    names = tuple(next(iter(found.saved.values())))
    columns = {"own": "own state", "question-only": "question only", "saved": "saved"}
    entries = {}
    for name in names:
        source = " + ".join(
            f"metrics/interpret/{name}/{one}/{seed}.json"
            for seed in found.saved
            for one in ("own", "question-only")
        )
        for what, shown in columns.items():
            each = {seed: one.get(name, {}).get(what) for seed, one in found.saved.items()}
            entries[name, shown] = _mean(each, source)
    return [Panel(SAVED, "interpreter", names, dict.fromkeys(columns.values(), 3), entries)]


def _chains(found: Examined) -> list[Panel]:
    panels = []
    for name, cells in found.chains.items():
        source = f"metrics/truncate/{name}.json"
        rows = tuple(cells)
        columns = tuple(dict.fromkeys(what for one in cells.values() for what in one))
        panels.append(
            Panel(
                CHAINS,
                "chain",
                rows,
                {_SHOWN[what]: 3 if what == "area" else 1 for what in columns},
                {
                    (row, _SHOWN[what]): (
                        Entry.of(cells[row][what], source)
                        if what in cells[row]
                        else Label("–", source)
                    )
                    for row in rows
                    for what in columns
                },
            )
        )
    return panels


_SHOWN = {"written": "has a chain", "right": "right", "changed": CHANGED, "area": AREA}
