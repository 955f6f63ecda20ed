"""The tables as the page shows them: texts to read, and of each cell what it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heima.config import Params
from heima.results.files import read_json
from reports.tables.kept import FOLDER
from reports.tables.model import Block, Entry, Label, Panel, Table
from reports.tables.names import heading
from reports.tables.published import PUBLISHED
from reports.tables.reported import PROTOCOL
from reports.tables.samples import STATES

Place = tuple[str, str, str, str, str]
"""Table, origin of the block, title of the panel, row, column."""


@dataclass(frozen=True)
class Shown:
    """A cell as it is read: its name in the page, its number, and what stands beside that."""

    id: str
    text: str
    beside: str
    numeric: bool


@dataclass(frozen=True)
class Grid:
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Shown | None, ...]], ...]

    @property
    def prose(self) -> tuple[bool, ...]:
        """Of each column, whether it has texts alone."""
        return tuple(
            not any(cell and cell.numeric for cell in column)
            for column in zip(*(line for _, line in self.rows), strict=True)
        )


@dataclass(frozen=True)
class Group:
    """A block of a table."""

    id: str
    title: str
    caption: str
    grids: tuple[Grid, ...]


@dataclass
class Cells:
    """All tables of the page.

    `ids` finds a cell's name by its place. `details` has, by that name, what a reader sees who asks
    where a number comes from; `sources` the files that they name.
    """

    tables: dict[str, list[Group]] = field(default_factory=dict)
    entries: dict[Place, Entry | Label] = field(default_factory=dict)
    ids: dict[Place, str] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)


def cells_of(root: Path, params: Params, tables: Mapping[str, Table]) -> Cells:
    """The cells of `tables`, with the code and the command behind each file that they name."""
    found = Cells()
    numbers: dict[str, int] = {}
    for table in tables.values():
        found.tables[table.name] = [
            _group(found, numbers, params, table, place, block)
            for place, block in enumerate(table.blocks)
        ]
    found.sources = [_source(root, name) for name in numbers]
    return found


def _group(
    found: Cells, numbers: dict[str, int], params: Params, table: Table, place: int, block: Block
) -> Group:
    name = f"{table.name}-{place}"
    grids = []
    for number, panel in enumerate(block.panels):
        rows: list[tuple[str, tuple[Shown | None, ...]]] = []
        for row in panel.rows:
            line: list[Shown | None] = []
            for column in panel.digits:
                # A row without training seeds has none of their columns.
                if (entry := panel.entries.get((row, column))) is None:
                    line.append(None)
                    continue
                own = f"{name}-{number}-{len(rows)}-{len(line)}"
                at = (table.name, block.origin, panel.title, row, column)
                found.entries[at], found.ids[at] = entry, own
                source = numbers.setdefault(entry.source, len(numbers))
                found.details[own] = _detail(entry, source) | _samples(
                    params, block, panel, row, column, entry.source
                )
                line.append(_shown(own, entry, panel.digits[column]))
            rows.append((row, tuple(line)))
        grids.append(Grid(panel.title, panel.corner, tuple(panel.digits), tuple(rows)))
    return Group(name, block.title, block.caption, tuple(grids))


def number(value: float, digits: int) -> str:
    """A decimal number; what rounds to nothing has no sign."""
    return f"{value:z.{digits}f}"


def _shown(own: str, entry: Entry | Label, digits: int) -> Shown:
    if isinstance(entry, Label):
        return Shown(own, entry.text, "", numeric=False)
    parts = [] if entry.sd is None else [f"± {number(entry.sd, digits)}"]
    if entry.low is not None and entry.high is not None:
        parts.append(f"[{number(entry.low, digits)}, {number(entry.high, digits)}]")
    return Shown(own, number(entry.value, digits), " ".join(parts), numeric=True)


def _detail(entry: Entry | Label, source: int) -> dict[str, Any]:
    if isinstance(entry, Label):
        return {"s": source}
    known = {
        "v": entry.value,
        "low": entry.low,
        "high": entry.high,
        "n": entry.n,
        "failed": entry.n_failed,
        "sd": entry.sd,
        "t": entry.t_interval and [_short(bound) for bound in entry.t_interval],
        "seeds": {str(seed): _short(value) for seed, value in entry.seeds.items()} or None,
    }
    short = {k: _short(v) if isinstance(v, float) else v for k, v in known.items() if v is not None}
    return {"s": source, **short}


def _short(value: float) -> float:
    """Six digits: the tables' CSV files have all of them.

    >>> _short(47.93611111111111)
    47.9361
    """
    return float(f"{value:.6g}")


def _samples(
    params: Params, block: Block, panel: Panel, row: str, column: str, source: str
) -> dict[str, str]:
    """Where in the page the samples behind a cell are, if they are its own."""
    stages = stages_of(source)
    items = [stage.partition("@")[2] for stage in stages]
    protocol = _protocol(params, block, panel, column)
    if PUBLISHED.format(params.published_family) in block.origin:
        protocol = PROTOCOL  # A row of the table `reported` ends in its benchmark.
        headings = {heading(name): name for name in params.benchmarks}
        column = headings.get(row.rpartition(", ")[2], column)
    if protocol and items and stages[0].startswith("score@"):
        chosen = {"protocol": protocol, "a": items[0]}
        if column in params.benchmarks:
            chosen["benchmark"] = column
        if len(items) > 1:
            chosen["b"] = items[1]
        return {"at": "questions?" + "&".join(f"{key}={one}" for key, one in chosen.items())}
    if items and stages[0].startswith("reconstruct@"):
        name = items[0].rpartition("-")[0]
        return {"at": f"turns?reconstruction={name}&control={_control(column)}"}
    if (profile := kept_profile(source)) is not None:
        return {"page": f"../{profile}/index.html"}
    if items and stages[0].startswith("similarity@"):
        control = next((c for c in params.reconstruct.controls if c in (row, column)), "own")
        return {"at": f"turns?reconstruction={items[0]}&control={control}"}
    return {}


def _protocol(params: Params, block: Block, panel: Panel, column: str) -> str | None:
    """The one that a block, else a panel, is under; in the table of methods a column."""
    for protocol in params.protocols:
        named = block.origin.endswith(f"protocol {protocol}")
        if named or f"protocol {protocol}" in panel.title or protocol in re.split("[ ,]+", column):
            return protocol
    return None


def _control(heading: str) -> str:
    """The control that a column of the samples' table is of; `own` for the section's own text."""
    found = (control for control, words in STATES.items() if words == heading)
    return next(found, "own")


def kept_profile(source: str) -> str | None:
    """The profile whose kept results a source is.

    >>> kept_profile("reports/kept/toy-thinking.json"), kept_profile("params.yaml")
    ('toy-thinking', None)
    """
    match = re.fullmatch(rf"{FOLDER.as_posix()}/([\w.-]+)\.json", source)
    return match.group(1) if match else None


_STAGES = (
    (r"metrics/(score|similarity|effects|truncate)/([\w.-]+)\.json", r"\1@\2"),
    (r"metrics/examine/([\w.-]+)/(\d+)\.json", r"examine@\1-\2"),
    (r"scores/similarity/([\w.-]+)\.parquet", r"similarity@\1"),
    (r"scores/([\w.-]+)\.jsonl", r"score@\1"),
    (r"metrics/(latency|flops|leaks|probe|theorem)\.json", r"\1"),
    (r"metrics/interpret/([\w.-]+)/([\w-]+)/(\d+)\.json", r"interpret@\1-\2-\3"),
    (r"leaks/[\w.-]+\.jsonl", "leaks"),
    (r"reconstructions/([\w.-]+)/(\d+)\.jsonl", r"reconstruct@\1-\2"),
)


def stages_of(source: str) -> list[str]:
    """The stages that make the files of a source.

    >>> stages_of("scores/answer-only.jsonl - scores/heima.jsonl")
    ['score@answer-only', 'score@heima']
    >>> stages_of("reports/published/benchmarks.csv")
    []
    """
    found = []
    for file in _files(source):
        for pattern, stage in _STAGES:
            if match := re.fullmatch(pattern, file):
                found.append(match.expand(stage))
    return found


def _source(root: Path, name: str) -> dict[str, Any]:
    """A source's file names, the fingerprints of the code that made them, and what remakes them.

    Kept results of another profile have a commit of their own.
    """
    stages = stages_of(name)
    if (profile := kept_profile(name)) is not None:
        kept = read_json(root / name)
        return {
            "file": name,
            "code": list(kept["provenance"]["code"].values()),
            "commit": kept["commit"],
            "command": f"python -m stages.profile {profile} && make repro && python -m stages.keep",
        }
    if stages:
        command = f"dvc repro {' '.join(stages)} tables page"
    elif name.startswith("reports/published/"):
        command = f"git checkout -- {name}"
    else:
        command = "dvc repro tables page"
    return {"file": name, "code": _codes(root, name), "command": command}


def _codes(root: Path, source: str) -> list[str]:
    codes = [str(read_json(path)["provenance"]["code"]) for path in _metrics(root, source)]
    return list(dict.fromkeys(codes))


def _metrics(root: Path, source: str) -> Iterator[Path]:
    """The metrics files whose provenance says how the files of a source were made."""
    for file in _files(source):
        if file.startswith("metrics/"):
            yield root / file
            continue
        for stage in stages_of(file):
            kind, _, item = stage.partition("@")
            if kind == "reconstruct":
                # It leaves texts alone; what measured them says how they were made.
                kind, item = "similarity", item.rpartition("-")[0]
            yield root / "metrics" / (f"{kind}/{item}.json" if item else f"{kind}.json")


def _files(source: str) -> list[str]:
    """Those that a source names: one, or some that were added or subtracted."""
    return re.split(r" [+-] ", source)
