"""Are the numbers of README and docs those of their cells? `python -m stages.docs [--write]`

A paragraph, list item or table with results ends in a comment that names, in their order, the
cells of its decimal numbers, as the committed tables (`reports/<profile>/tables/*.csv`) have them:

    <!-- numbers: ablation / lmms / points / text-cot / mean: value low high seeds -->

that is table / origin / panel / row / column: fields; `toy-methods:methods` is a table of another
profile. Origin and panel are named by any part that only one has. Fields are `value`, `low`,
`high`, `sd`, a training seed, `seeds` (all of them), and `_` for a number of another run. `;`
separates cells. A table of the benchmarks' shape needs only

    <!-- table: benchmarks / lmms / Accuracy (%); decoded tokens = Decoded tokens / mean -->

where a column that is none of the panel's is one of another panel. A sign counts where the text has
one. Lists what differs, and then exits 1; `--write` puts the cells' numbers in place.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import reports
from heima import config

NUMBER = re.compile(r"(?<![\d.\w])([-−+]?)(\d*\.\d+)(?!\.?\d)")
"""A decimal number with its sign: no version, time or part of a name."""

_MARK = re.compile(r"<!-- (numbers|table): (.*?) -->", re.DOTALL)
_BORDER = re.compile(r"\n[ \t]*\n|^#.*\n|^(?=[ \t]*- )|-->", re.MULTILINE)

OTHER_RUN = "_"


class DocsError(ValueError):
    """A mark that names no cell, or not as many numbers as stand there."""


@dataclass
class Cells:
    """The cells of committed tables."""

    folder: Path
    _lines: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def line(self, selector: str) -> dict[str, str]:
        """The one line of `table / origin / panel / row / column`. Raises `DocsError`."""
        parts = [part.strip() for part in selector.split(" / ")]
        if len(parts) != 5:
            raise DocsError(f"{selector!r} is not table / origin / panel / row / column")
        table, origin, panel, row, column = parts
        if table not in self._lines:
            profile, _, name = table.rpartition(":")
            folder = self.folder.parents[1] / profile / "tables" if profile else self.folder
            path = folder / f"{name}.csv"
            if not path.is_file():
                raise DocsError(f"{selector!r}: there is no {path}")
            with path.open(encoding="utf-8", newline="") as file:
                self._lines[table] = list(csv.DictReader(file))
        found = [
            line
            for line in self._lines[table]
            if (line["row"], line["column"]) == (row, column)
            and origin in line["origin"]
            and panel in line["panel"]
        ]
        if len(found) != 1:
            raise DocsError(f"{selector!r} names {len(found)} cells of {table}.csv, not one")
        return found[0]

    def values(self, selector: str, fields: str) -> list[float | None]:
        """The numbers of a cell; None for one of another run."""
        line = self.line(selector)
        seeds = dict(pair.split("=") for pair in line["seeds"].split())
        known = {name: line[name] for name in ("value", "low", "high", "sd")} | seeds
        found: list[float | None] = []
        for name in fields.split():
            if name == OTHER_RUN:
                found.append(None)
            elif name == "seeds" and seeds:
                found += map(float, seeds.values())
            elif known.get(name):
                found.append(float(known[name]))
            else:
                raise DocsError(f"{selector!r} has no {name}")
        return found


@dataclass(frozen=True)
class Difference:
    """A number that is not its cell's: where it stands, and what should stand there."""

    begin: int
    end: int
    shown: str
    right: str


def marked(text: str) -> Iterator[tuple[int, int, str, str]]:
    """Begin and end of each part of a page that has a mark, its kind and what it says."""
    for mark in _MARK.finditer(text):
        begin = 0
        if text[: mark.start()].rstrip("\n").rpartition("\n")[2].lstrip().startswith("|"):
            lines = text[: mark.start()].rstrip("\n").split("\n")
            count = next(
                (n for n, line in enumerate(reversed(lines)) if not line.lstrip().startswith("|")),
                len(lines),
            )
            begin = len("\n".join(lines[: len(lines) - count])) + 1
        else:
            for border in _BORDER.finditer(text, 0, mark.start()):
                begin = border.end()
        yield begin, mark.start(), mark[1], " ".join(mark[2].split())


def expected(part: str, kind: str, says: str, cells: Cells) -> list[float | None]:
    """The numbers that should stand in a part, in their order."""
    if kind == "table":
        return _of_table(part, says, cells)
    found: list[float | None] = []
    for entry in says.split(";"):
        selector, _, fields = entry.rpartition(":")
        found += cells.values(selector.strip(), fields)
    return found


def _of_table(part: str, says: str, cells: Cells) -> list[float | None]:
    found: list[float | None] = []
    panel, *others = (one.strip() for one in says.split(";"))
    table, origin, _ = (one.strip() for one in panel.split(" / "))
    elsewhere = {}
    for other in others:
        name, _, place = other.partition(" = ")
        title, _, column = place.rpartition(" / ")
        elsewhere[name] = f"{table} / {origin} / {title} / {{}} / {column}"
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in part.strip().splitlines()
        if line.lstrip().startswith("|")
    ]
    header, rows = lines[0], lines[2:]
    for row in rows:
        for column, shown in zip(header[1:], row[1:], strict=True):
            if NUMBER.search(shown) is None:
                continue
            selector = elsewhere.get(column, f"{panel} / {{}} / {column}").format(row[0])
            fields = ["value", *(["sd"] if "±" in shown else [])]
            fields += ["low", "high"] if "[" in shown else []
            found += cells.values(selector, " ".join(fields))
    return found


def differences(text: str, cells: Cells) -> list[Difference]:
    """The numbers of a page that are not their cells'. Raises `DocsError`."""
    found = []
    for begin, end, kind, says in marked(text):
        shown = list(NUMBER.finditer(text, begin, end))
        right = expected(text[begin:end], kind, says, cells)
        if len(shown) != len(right):
            raise DocsError(
                f"{len(right)} numbers are named and {len(shown)} stand there: "
                f"{', '.join(one[0] for one in shown)} <!-- {kind}: {says} -->"
            )
        for one, value in zip(shown, right, strict=True):
            if value is not None and (text_of := _written(one, value)) != one[0]:
                found.append(Difference(one.start(), one.end(), one[0], text_of))
    return found


def _written(shown: re.Match[str], value: float) -> str:
    """A value as the number that stands there is written: digits, nought, sign."""
    sign, digits = shown[1], len(shown[2].partition(".")[2])
    text = f"{abs(value):.{digits}f}"
    if shown[2].startswith(".") and text.startswith("0."):
        text = text[1:]
    if not sign:
        return text
    minus = sign if sign in "-−" else "-"
    return f"{minus if value < 0 else '+'}{text}"


def unmarked(text: str) -> list[tuple[str, str]]:
    """Heading and line of each decimal number that no mark is about."""
    parts = [(begin, end) for begin, end, _, _ in marked(text)]
    comments = [mark.span() for mark in re.finditer(r"<!--.*?-->", text, re.DOTALL)]
    found = []
    for number in NUMBER.finditer(text):
        if any(begin <= number.start() < end for begin, end in [*parts, *comments]):
            continue
        headings = re.findall(r"^#+ (.*)$", text[: number.start()], re.MULTILINE)
        line = text[text.rfind("\n", 0, number.start()) + 1 :].partition("\n")[0]
        found.append((headings[-1] if headings else "", line))
    return found


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the cells' numbers in place")
    write = parser.parse_args().write
    cells = Cells(reports.folder(config.load_resolved().profile) / "tables")
    wrong = 0
    for page in pages(Path(".")):
        text = page.read_text(encoding="utf-8")
        try:
            found = differences(text, cells)
        except DocsError as error:
            sys.exit(f"error: {page}: {error}")
        for one in reversed(found):
            line = text.count("\n", 0, one.begin) + 1
            print(f"{page}:{line}: {one.shown} is {one.right}")
            text = text[: one.begin] + one.right + text[one.end :]
        if found and write:
            page.write_text(text, encoding="utf-8")
        wrong += len(found)
    if wrong and not write:
        sys.exit(1)


if __name__ == "__main__":
    main()
