"""LaTeX that fits: escaping, the width of a text, and grids of columns cut to a width.

Widths are those of Computer Modern, the widest of the usual text fonts, rounded up: what fits by
them fits in Times, too. Nothing is scaled and nothing stands out over a margin; a grid that is too
wide becomes several below each other.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

TEXT_WIDTH = 345.0
"""Points (TeX's): the text of `article`, the narrowest page that a `table*` must fit."""

PAGE_WIDTH = 470.0
"""Points: less than the text of styles in two columns (ICML: 6.75 in, 487.8 points)."""

COLUMN_WIDTH = 229.0
"""Points: a column of `article` in two columns; that of ICML's style is 3.25 in, 234.9 points."""

TABCOLSEP = 3.5
"""Points on either side of a column."""

_POINTS = {
    2.5: "!',.:;[]`fijl|",
    3.0: "-I_ ",
    3.5: "()rst",
    4.0: '"$*/0123456789?^acegoz~–',
    4.5: "JS\\bdhknpquvxy{}",
    5.0: "LZ",
    5.5: "EFP",
    6.0: "ABCHNRTUVXYw",
    6.5: "&+<=>@DGKOQ±×−",
    7.0: "#%m",
    7.5: "M",
    8.5: "W",
}
_WIDTHS = {character: points for points, characters in _POINTS.items() for character in characters}
_UNKNOWN = 11.0
_NUMBERED = len("[U+0000]")
_SIZES = {"scriptsize": 1.0, "tiny": 0.9}

_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "…": r"\dots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "—": "---",
    "\u00a0": " ",
}
_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0308", "`'^~\"", strict=True))
"""Combining accents -> LaTeX's."""


_ENDLESS = re.compile(r"[A-Za-z0-9]{20}(?=[A-Za-z0-9])")
_BREAK = re.compile(r"\s*[\r\n\v\f\x85\u2028\u2029]\s*")


def escape(text: str) -> str:
    """Text as LaTeX shows it, in any encoding of its input: letters beyond ASCII by their accents.

    What has none is named by its number: not every font has it, and LaTeX would stop.

    >>> escape("50 % of a_b < 1"), escape("né → 2")
    ('50 \\\\% of a\\\\_b \\\\textless{} 1', "n\\\\'e [U+2192] 2")
    """
    # An empty line would end a row, or a caption in its middle.
    line = _BREAK.sub(" ", text)
    return "".join(_ESCAPES.get(character) or _in_ascii(character) for character in line)


def _in_ascii(character: str) -> str:
    """A character as it is, with its accent as a command, or its number."""
    if " " <= character <= "~":
        return character
    base, *marks = list(unicodedata.normalize("NFD", character))
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in _ACCENTS:
        return f"\\{_ACCENTS[marks[0]]}{base}"
    return f"[U+{ord(character):04X}]"


def width(text: str, size: str = "scriptsize") -> float:
    """At most how many points a text takes in a font size of a document in 10 points.

    >>> width("0.5")
    10.5
    """
    return _SIZES[size] * sum(
        _WIDTHS.get(character, _UNKNOWN)
        if character in _ESCAPES or len(_in_ascii(character)) < _NUMBERED
        else width(_in_ascii(character))
        for character in text
    )


def breakable(text: str) -> str:
    """Escaped prose that may break within long names, too, and within endless words."""
    endless = _ENDLESS.sub(r"\g<0>\\allowbreak{}", escape(text))
    return re.sub(r"(\\_|\\textbar\{\}|(?<!-)-|[:/\]])(?=[^\s-])", r"\1\\allowbreak{}", endless)


@dataclass(frozen=True)
class Typeset:
    """A cell: its LaTeX, the points that it takes, and how many lines."""

    latex: str
    width: float
    lines: int = 1


LONGEST = 110.0
"""Points that a cell may take before it is broken into lines."""

LONGEST_LABEL = 0.36
"""The share of a grid that the label of a row may take before it is."""


def plain(text: str, *, bold: bool = False, longest: float = LONGEST) -> Typeset:
    """A text, on several lines where it is long."""
    # Bold letters are about a sixth wider.
    taken = (1.17 if bold else 1.0) * width(text)
    mark = "\\textbf{{{}}}" if bold else "{}"
    if taken <= longest:
        return Typeset(mark.format(escape(text)), taken)
    latex = f"\\parbox[t]{{{longest:g}pt}}{{\\raggedright {mark.format(breakable(text))}\\strut}}"
    # What cannot be broken leaves part of a line empty.
    return Typeset(latex, longest, 1 + math.ceil(1.5 * taken / longest))


def stacked(above: str, below: str) -> Typeset:
    """A value with its interval below it, smaller."""
    latex = (
        f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}\\rule{{0pt}}{{7pt}}{escape(above)}\\\\[-3pt]"
        f"{{\\tiny {escape(below)}}}\\end{{tabular}}"
    )
    return Typeset(latex, max(width(above), width(below, "tiny")))


@dataclass(frozen=True)
class Line:
    """A row of a grid, or a rule before the next one."""

    label: str
    cells: Sequence[Typeset]
    rule_before: bool = False
    heading: bool = False
    """The label alone, over all columns: rows of one kind follow."""


def grids(
    corner: str,
    columns: Sequence[str],
    lines: Sequence[Line],
    available: float,
    tabcolsep: float = TABCOLSEP,
    align: str = "r",
) -> list[str]:
    """Booktabs tabulars no wider than `available` points, all rows in each, columns shared out.

    `align` is LaTeX's letter for the columns of cells: `r` for numbers, `l` for prose.

    Raises `ValueError` where the labels and one column are too wide already.
    """
    rows = [line for line in lines if not line.heading]
    longest = LONGEST_LABEL * available
    labels = max(plain(t, longest=longest).width for t in (corner, *(one.label for one in rows)))
    needs = []
    for place, column in enumerate(columns):
        cells = [line.cells[place].width for line in rows]
        needs.append(max([plain(column).width, *cells]) + 2 * tabcolsep)
    room = available - labels - tabcolsep
    if max(needs) > room:
        widest = columns[needs.index(max(needs))]
        raise ValueError(f"the column {widest!r} does not fit into {available} points")
    parts = _shared_out(needs, room)
    return [_tabular(corner, columns, lines, part, longest, align) for part in parts]


def _shared_out(needs: Sequence[float], room: float) -> list[range]:
    """Consecutive columns, in as few parts as fit, the parts as even as they can be.

    >>> _shared_out([3, 3, 3, 3], 9)
    [range(0, 2), range(2, 4)]
    """

    def parts(limit: float) -> list[range]:
        found, first, used = [], 0, 0.0
        for place, need in enumerate(needs):
            if place > first and used + need > limit:
                found.append(range(first, place))
                first, used = place, 0.0
            used += need
        return [*found, range(first, len(needs))]

    fewest = len(parts(room))
    limits = sorted(
        {sum(needs[a:b]) for a in range(len(needs)) for b in range(a + 1, len(needs) + 1)}
    )
    for limit in limits:
        if limit >= max(needs) and len(parts(limit)) == fewest:
            return parts(limit)
    return parts(room)


def _tabular(
    corner: str,
    columns: Sequence[str],
    lines: Sequence[Line],
    part: range,
    longest: float,
    align: str,
) -> str:
    heads = [plain(corner, longest=longest), *(plain(columns[place]) for place in part)]
    head = " & ".join(one.latex for one in heads)
    rows = [
        f"\\begin{{tabular}}{{@{{}}l{align * len(part)}@{{}}}}",
        "\\toprule",
        f"{head} \\\\",
        "\\midrule",
    ]
    for line in lines:
        if line.rule_before:
            rows.append("\\midrule")
        if line.heading:
            rows.append(f"\\multicolumn{{{len(part) + 1}}}{{@{{}}l}}{{{escape(line.label)}}} \\\\")
            continue
        cells = [
            plain(line.label, longest=longest).latex,
            *(line.cells[place].latex for place in part),
        ]
        rows.append(" & ".join(cells) + " \\\\")
    return "\n".join([*rows, "\\bottomrule", "\\end{tabular}"])
