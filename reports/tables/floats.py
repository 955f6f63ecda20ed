"""Compact tables as LaTeX: floats of a page's width and of a column's, the best number in bold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heima.results.scores import CHANCE
from reports.tables.layout import (
    COLUMN_WIDTH,
    LONGEST,
    PAGE_WIDTH,
    TABCOLSEP,
    TEXT_WIDTH,
    Line,
    Typeset,
    escape,
    grids,
    plain,
)


@dataclass(frozen=True)
class Form:
    """A float, the points that it may take, and those on either side of its columns.

    `wide`: what it may take on a wider page; the document chooses by the width of its text.
    """

    environment: str
    width: float
    tabcolsep: float
    wide: float | None = None


FORMS = {
    "": Form("table*", TEXT_WIDTH, TABCOLSEP, PAGE_WIDTH),
    "-column": Form("table", COLUMN_WIDTH, 2.0),
}
"""By what the name of a form's file ends in."""


_LABELS = 112.0
"""Points of the labels beside prose, space between columns included."""


@dataclass(frozen=True)
class Value:
    """A cell: its text, what stands behind it, and a number that ranks it among those of its
    column; None: it has none."""

    text: str
    rank: float | None = None
    behind: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that are compared with each other, under a title if there are several groups."""

    rows: Mapping[str, Sequence[Value]]
    title: str = ""


@dataclass(frozen=True)
class Compact:
    """A table for a paper. `caption` has at most 50 words."""

    name: str
    caption: str
    corner: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    prose: bool = False
    """Its one column has texts, on as many lines as they need."""


def latex(one: Compact, form: Form) -> str:
    lines: list[Line] = []
    longest = form.width - _LABELS if one.prose else LONGEST
    for place, group in enumerate(one.groups):
        if group.title:
            lines.append(Line(group.title, (), rule_before=place > 0, heading=True))
        best = _best(group)
        for row, values in group.rows.items():
            cells = [
                _typeset(value, longest, bold=value.rank is not None and value.rank == top)
                for value, top in zip(values, best, strict=True)
            ]
            lines.append(Line(row, cells, rule_before=row == CHANCE))
    align = "l" if one.prose else "r"
    body = _below(grids(one.corner, one.columns, lines, form.width, form.tabcolsep, align))
    if form.wide is not None:
        wide = _below(grids(one.corner, one.columns, lines, form.wide, form.tabcolsep, align))
        if wide != body:
            body = f"\\ifdim\\textwidth<{form.wide:g}pt\n{body}\n\\else\n{wide}\n\\fi"
    label = f"tab:heima-{one.name}".replace("_", "-")
    return (
        f"% {one.name}: written by stages/tables.py; needs \\usepackage{{booktabs}}\n"
        f"\\begin{{{form.environment}}}[tb]\n"
        f"\\centering\\scriptsize\\setlength{{\\tabcolsep}}{{{form.tabcolsep:g}pt}}\n"
        f"\\caption{{{escape(one.caption)}}}\\label{{{label}}}\\par\\medskip\n"
        f"{body}\n\\end{{{form.environment}}}\n"
    )


def _below(texts: Sequence[str]) -> str:
    return "\n\\par\\smallskip\n".join(texts)


def _typeset(value: Value, longest: float, *, bold: bool) -> Typeset:
    cell = plain(value.text, bold=bold, longest=longest)
    behind = plain(value.behind)
    return Typeset(cell.latex + behind.latex, cell.width + behind.width)


def _best(group: Group) -> list[float | None]:
    """For each column its best rank, which several cells may have; None where one is alone."""
    columns = zip(*group.rows.values(), strict=True)
    ranks = [[value.rank for value in column if value.rank is not None] for column in columns]
    return [max(column) if len(column) > 1 else None for column in ranks]
