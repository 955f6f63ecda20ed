"""What is compared: variants here, at a git revision, in another clone; files of others.

A *place* is a folder or a git revision with the results of a reproduction; its variants are those
of its own `params.yaml`, which may be older or newer than this code, so it is read as it stands.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from heima.config import Params
from heima.results.cells import Cell

Row = Mapping[str, Any]
"""A row of `scores/<variant>.jsonl`, or of a file of others: there `training_seed`, `seed` and
`image` may be None, and in place of `doc_id` it may have a `name`. `where` is its file and line."""

_COLUMNS = ("training_seed", "protocol", "seed", "benchmark", "doc_id", "unit", "score", "failed")


class CompareError(ValueError):
    """What cannot be compared; one sentence."""


@dataclass(frozen=True)
class Place:
    """The results below `root`, as they lie there or, with a `revision`, as git and DVC hold them.

    `name` is how it was given; that of the working folder is "".
    """

    root: Path
    name: str = ""
    revision: str | None = None

    def read(self, file: str) -> bytes | None:
        """A file that git holds; None where it does not."""
        if self.revision is None:
            path = self.root / file
            return path.read_bytes() if path.is_file() else None
        shown = _git(self.root, "show", f"{self.revision}:{file}")
        return None if shown.returncode else shown.stdout

    def fetch(self, file: str) -> bytes | None:
        """An output of a stage: as it lies here, else what DVC's cache or remote has by the hash in
        dvc.lock; None where nothing has it."""
        if self.revision is None and (here := self.read(file)) is not None:
            return here
        from dvc import api
        from dvc.exceptions import DvcException

        try:
            found: bytes = api.read(file, repo=str(self.root), rev=self.revision, mode="rb")
        except (DvcException, OSError):
            return None
        return found

    def hash_of(self, file: str) -> str | None:
        """An output's hash in dvc.lock."""
        content = self.read("dvc.lock")
        stages = yaml.load(content, yaml.CSafeLoader).get("stages") or {} if content else {}
        outs = [out for stage in stages.values() for out in stage.get("outs", ())]
        return next((out.get("md5") for out in outs if out["path"] == file), None)

    @cached_property
    def params(self) -> Mapping[str, Any]:
        """Its parameters as they are written; raises `CompareError` where there are none."""
        content = self.read("params.yaml")
        if content is None:
            raise CompareError(f"{self.name or '.'} has no params.yaml, so no results")
        loaded: Mapping[str, Any] = yaml.safe_load(content)
        return loaded

    @property
    def variants(self) -> list[str]:
        return list(self.params.get("variants", {}))

    def variant(self, name: str) -> str | None:
        """A variant by its name, or by that of its checkpoint; None: there is none.

        Of several on one checkpoint it is the one that changes nothing else.
        """
        variants = self.params.get("variants", {})
        if name in variants:
            return name
        same = [one for one, content in variants.items() if content.get("model") == name]
        return min(same, key=lambda one: len(variants[one]), default=None)

    def allowed(self) -> str:
        """The names that `variant` knows, for messages."""
        models = [content.get("model") for content in self.params.get("variants", {}).values()]
        others = [name for name in dict.fromkeys(models) if name and name not in self.variants]
        known = f"variants {', '.join(self.variants)}"
        return known + (f"; checkpoints {', '.join(others)}" if others else "")


@dataclass
class Side:
    """One side of a comparison: scored rows, or `missing`, a sentence on why they are not here.

    `cells` are those of the variant's metrics file, `hash` that of missing rows in dvc.lock.
    `variant` and `place` are of our own results.
    """

    label: str
    rows: list[Row] = field(default_factory=list)
    missing: str = ""
    cells: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    variant: str | None = None
    place: Place | None = None
    hash: str | None = None
    notes: list[str] = field(default_factory=list)


def pairs(
    a: str, b: str, params: Params, root: Path, benchmark: str | None
) -> Iterator[tuple[Side, Side]]:
    """The sides that two arguments name: one pair, or one for each variant that two places share.

    Raises `CompareError` for a name that is nothing, and for places without a common variant.
    """
    here = Place(root)
    found = [_named(one, here) for one in (a, b)]
    wholes = [one for one in found if isinstance(one, Place)]
    if len(wholes) == 2:
        first, second = wholes
        common = [name for name in first.variants if name in second.variants]
        if not common:
            raise CompareError(
                f"{a} ({', '.join(first.variants)}) and {b} ({', '.join(second.variants)}) have no "
                "variant in common"
            )
        alone = sorted({*first.variants} ^ {*second.variants})
        for place, name in enumerate(common):
            one, other = side(first, name), side(second, name)
            if alone and place == 0:
                one.notes.append(f"not compared, in one of both only: {', '.join(alone)}")
            yield one, other
        return
    sides = [
        _side(argument, one, other, params, benchmark)
        for argument, one, other in zip((a, b), found, reversed(found), strict=True)
    ]
    if _counts(sides[0]) != _counts(sides[1]):
        from reports.comparing import others

        for one_side in filter(_counts, sides):
            others.name_rows(one_side, params, root)
    yield sides[0], sides[1]


Named = tuple[Place, str] | Place | Path


def _side(argument: str, one: Named, other: Named, params: Params, benchmark: str | None) -> Side:
    if isinstance(one, Path):
        from reports.comparing import others

        return others.side(one, params, benchmark)
    if isinstance(one, Place):
        # A variant beside a whole place is looked up there, too.
        if not isinstance(other, tuple):
            raise CompareError(
                f"{argument} has {len(one.variants)} variants: name one of them as "
                f"{argument}:{one.variants[0] if one.variants else 'VARIANT'}"
            )
        return side(one, _variant(one, other[1], argument))
    found = side(*one)
    name = argument.rpartition(":")[2]
    if found.variant != name:
        found.notes.append(f"{name} is the checkpoint of the variant {found.variant}")
    return found


def _counts(one: Side) -> bool:
    """Whether its rows count their place in the benchmark, and have no names."""
    return any("name" not in row for row in one.rows)


def _named(argument: str, here: Place) -> Named:
    """A variant of a place, a whole place, or a file or folder of others."""
    if (here.root / "params.yaml").is_file() and (name := here.variant(argument)):
        return here, name
    before, colon, after = argument.rpartition(":")
    if colon and (place := _place(before, here)) is not None:
        return place, _variant(place, after, before)
    if (place := _place(argument, here)) is not None:
        return place
    path = Path(argument)
    if path.is_file() or path.is_dir():
        return path
    known = here.allowed() if (here.root / "params.yaml").is_file() else "no params.yaml here"
    raise CompareError(
        f"{argument!r} is no variant or checkpoint here ({known}), no git revision or experiment, "
        "no folder of a reproduction, and no file"
    )


def _place(argument: str, here: Place) -> Place | None:
    if not argument:
        return None
    path = Path(argument)
    if (path / "params.yaml").is_file():
        return Place(path, argument)
    if path.exists():
        return None
    asked = _git(here.root, "rev-parse", "--verify", "--quiet", f"{argument}^{{commit}}")
    commit = asked.stdout.decode().strip()
    if asked.returncode:
        commit = _experiment(argument, here.root)
    return Place(here.root, argument, commit) if commit else None


def _experiment(name: str, root: Path) -> str:
    """The commit of one of DVC's experiments, which git knows below another name; "": none.

    Of several of one name (of other commits) it is the newest.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        return ""
    found = _git(
        root,
        "for-each-ref",
        "--sort=-committerdate",
        "--count=1",
        "--format=%(objectname)",
        f"refs/exps/*/*/{name}",
    )
    return found.stdout.decode().strip()


def _variant(place: Place, name: str, argument: str) -> str:
    found = place.variant(name)
    if found is None:
        raise CompareError(f"{argument} has no {name!r}, only {place.allowed()}")
    return found


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True)
    except FileNotFoundError:
        # Without git there are no revisions.
        return subprocess.CompletedProcess(words, 127, b"", b"")


def side(place: Place, variant: str) -> Side:
    """A variant's scored rows, or why they are not here, and its cells."""
    label = f"{place.name}:{variant}" if place.name else variant
    metrics, file = f"metrics/score/{variant}.json", f"scores/{variant}.jsonl"
    found = Side(label, variant=variant, place=place)
    if (content := place.read(metrics)) is not None:
        found.cells = {
            group: {metric: Cell.from_json(cell) for metric, cell in row.items()}
            for group, row in json.loads(content)["cells"].items()
        }
    rows = place.fetch(file)
    if rows is None:
        if not found.cells:
            raise CompareError(
                f"{label} has neither {file} nor {metrics}: run `make repro` "
                f"{'there' if place.name else 'first'}"
            )
        found.missing = f"{file}{f' of {place.name}' if place.name else ''}"
        found.hash = place.hash_of(file)
        return found
    origin = f"{place.name}/" if place.name and place.revision is None else ""
    lines = rows.decode("utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        if lacking := [column for column in _COLUMNS if column not in row]:
            raise CompareError(f"{label}: {file}, line {number} lacks {', '.join(lacking)}")
        where = (
            f"{origin}predictions/{variant}/{row['training_seed']}/{row['protocol']}/"
            f"{row['seed']}/{row['benchmark']}.jsonl:{row['doc_id'] + 1}"
        )
        found.rows.append({"image": None, **row, "where": where})
    return found
