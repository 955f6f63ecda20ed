"""Results of other profiles, kept beside those of this one: `reports/kept/<profile>.json`.

`metrics/` and `dvc.lock` are of one profile at a time. `stages.keep` writes down what the tables of
other profiles show of it, with the commit that made it; a profile's own file is not read by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heima.results.cells import Cell
from heima.results.files import read_json
from reports.tables.model import Block, Entry, Label, Panel

Scale = Literal["toy", "paper"]
"""What results are of: models that are trained from scratch, or the paper's."""

FOLDER = Path("reports") / "kept"
"""Where it lies, from the root of the repository."""


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PlainPanel(_Plain):
    """A panel as JSON has it: entries in a list, each behind its row and column."""

    title: str
    corner: str
    rows: tuple[str, ...]
    digits: dict[str, int]
    entries: tuple[tuple[str, str, Entry | Label], ...]


class PlainBlock(_Plain):
    origin: str
    title: str
    caption: str
    panels: tuple[PlainPanel, ...]

    @classmethod
    def of(cls, block: Block) -> PlainBlock:
        return cls(
            origin=block.origin,
            title=block.title,
            caption=block.caption,
            panels=tuple(
                PlainPanel(
                    title=panel.title,
                    corner=panel.corner,
                    rows=panel.rows,
                    digits=dict(panel.digits),
                    entries=tuple((*place, entry) for place, entry in panel.entries.items()),
                )
                for panel in block.panels
            ),
        )

    def block(self, source: str) -> Block:
        """The block, every entry of which names `source`."""
        panels = [
            Panel(
                one.title,
                one.corner,
                one.rows,
                one.digits,
                {(r, column): replace(entry, source=source) for r, column, entry in one.entries},
            )
            for one in self.panels
        ]
        return Block(self.origin, self.title, self.caption, tuple(panels))


class KeptCell(_Plain):
    """A cell as metrics files have it."""

    value: float
    low: float
    high: float
    n: int = Field(ge=1)
    n_failed: int = Field(ge=0)
    seeds: dict[int, float] = {}
    sd: float | None = None
    t_interval: tuple[float, float] | None = None
    unanswered: tuple[str, ...] = ()
    if_right: float | None = None


class KeptFinding(_Plain):
    """What that profile's claim sheet says of a claim."""

    verdict: Literal["supported", "not supported", "undecided", "not testable here"]
    why: str
    ours: KeptCell | None
    source: str


class KeptProvenance(_Plain):
    """Stage -> fingerprint of its code, hash of the parameters, versions and machine."""

    code: dict[str, str]
    params: str
    versions: dict[str, str]
    machine: dict[str, Any]


class Kept(_Plain):
    """A profile's results.

    `commit` is that of the code which made them; `tables` has its own blocks by table, `findings`
    its claim sheet.
    """

    profile: str
    family: str
    published_family: str | None
    scale: Scale
    commit: str = Field(pattern=r"^[0-9a-f]{12}$")
    seeds: tuple[int, ...]
    judge: str
    provenance: KeptProvenance
    tables: dict[str, tuple[PlainBlock, ...]]
    findings: dict[str, KeptFinding]

    @property
    def source(self) -> str:
        """The file, from the root of the repository."""
        return (FOLDER / f"{self.profile}.json").as_posix()

    def blocks(self, table: str) -> tuple[Block, ...]:
        """Its own blocks of a table; every entry names this file as its source."""
        return tuple(plain.block(self.source) for plain in self.tables.get(table, ()))

    def cell(self, name: str) -> Cell | None:
        """What it found of a claim, as a number; None: nothing, or no number."""
        finding = self.findings.get(name)
        if finding is None or (ours := finding.ours) is None:
            return None
        return Cell.from_json(ours.model_dump())


def read_kept(root: Path, profile: str, scale: Scale, problems: list[str]) -> tuple[Kept, ...]:
    """What other profiles of the same size have left below `root`, in the order of their names.

    A file that is no such record, or not the one that its name says, is a problem.
    """
    found = []
    for path in sorted((root / FOLDER).glob("*.json")):
        name = f"{FOLDER.as_posix()}/{path.name}"
        try:
            one = Kept.model_validate(read_json(path))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the file"
            problems.append(_unreadable(name, path.stem, f"{where}: {fault['msg']}"))
            continue
        except ValueError as error:
            problems.append(_unreadable(name, path.stem, str(error)))
            continue
        if one.profile != path.stem:
            problems.append(f"{name} is of the profile {one.profile}: name it {one.profile}.json")
        elif one.profile != profile and one.scale == scale:
            found.append(one)
    return tuple(found)


def _unreadable(name: str, profile: str, why: str) -> str:
    return (
        f"{name} is no record of kept results ({why}): write it again with `python -m stages.keep` "
        f"where the profile {profile} was run, or remove it"
    )


def of_other_families(kept: Iterable[Kept], family: str) -> list[Kept]:
    """One record for each other family: of several the one with the most training seeds."""
    best: dict[str, Kept] = {}
    for one in kept:
        known = best.get(one.family)
        if one.family != family and (known is None or len(one.seeds) > len(known.seeds)):
            best[one.family] = one
    return list(best.values())


def of_family(kept: Sequence[Kept], published_family: str | None) -> list[Kept]:
    """The records whose values may stand beside the paper's of that family."""
    return [one for one in kept if one.published_family == published_family]
