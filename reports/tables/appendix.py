"""The appendix form of a table: everything that it has, on pages that hold it.

A block is one `table*` or several ("continued"), which any page of `article` holds, and the full
width of a style in two columns. Wide panels become several grids below each other; long ones are
cut into pages; rows and panels that say the same in every cell become a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reports.tables.layout import (
    LONGEST_LABEL,
    TABCOLSEP,
    TEXT_WIDTH,
    Line,
    Typeset,
    breakable,
    escape,
    grids,
    plain,
    stacked,
    width,
)
from reports.tables.model import Block, Entry, Label, Panel, Table
from reports.tables.names import heading
from reports.tables.numbers import fixed, interval, spread

_PAGE = 525.0
"""Points of a page of `article` (550) that panels may fill."""
_CAPTION_LINE, _NOTE_LINE, _LINE, _STACKED, _GRID, _TITLE = 12.0, 8.5, 8.5, 16.5, 27.0, 16.0
"""Heights in points."""
_FLOATS = 8
"""Pages that are made before LaTeX has to put them out."""
_FEWEST_TO_FOLD = 3
"""Columns that a row must have to be folded into a sentence."""
_CAPTION_CHARACTERS = 65


@dataclass(frozen=True)
class _Piece:
    """What no page break divides."""

    latex: str
    height: float


def latex(table: Table) -> str:
    r"""The table as LaTeX that needs only booktabs; `\input` it in any document."""
    parts = [f"% {table.name}: written by stages/tables.py; needs \\usepackage{{booktabs}}"]
    for place, block in enumerate(table.blocks):
        label = f"tab:heima-{table.name}-full-{place + 1}".replace("_", "-")
        parts += _floats(block, label)
    return "\n".join(parts) + "\n"


def _floats(block: Block, label: str) -> list[str]:
    """A `table*` for each page of a block, the first with the caption, its notes and a label."""
    notes = _note(block.caption)
    caption = _CAPTION_LINE * (2 + len(block.title) // _CAPTION_CHARACTERS)
    pages: list[list[_Piece]] = [[notes]]
    left = _PAGE - caption - notes.height
    for piece in (piece for panel in block.panels for piece in _pieces(panel)):
        if piece.height > left:
            pages.append([])
            left = _PAGE - caption
        pages[-1].append(piece)
        left -= piece.height
    floats = []
    for number, pieces in enumerate(pages):
        title = escape(block.title)
        first = f"\\caption{{{title}.}}\\label{{{label}}}"
        further = f"\\addtocounter{{table}}{{-1}}\\caption{{{title}, continued.}}"
        floats.append(
            "\\begin{table*}[p]\n"
            f"\\centering\\scriptsize\\setlength{{\\tabcolsep}}{{{TABCOLSEP:g}pt}}\n"
            f"{further if number else first}\\par\\medskip\n"
            + "\n\\par\\medskip\n".join(piece.latex for piece in pieces)
            + "\n\\end{table*}"
            # LaTeX holds so many floats back, and whole pages wait for the end of the text.
            + ("\n\\clearpage" if (number + 1) % _FLOATS == 0 or pieces is pages[-1] else "")
        )
    return floats


def _note(text: str) -> _Piece:
    """Prose over the whole width, ragged, which breaks within long names as well."""
    lines = 1 + int(width(text) / (0.9 * TEXT_WIDTH))
    return _Piece(
        f"\\parbox{{\\textwidth}}{{\\raggedright\\scriptsize {breakable(text)}}}",
        _NOTE_LINE * lines + 6,
    )


def _pieces(panel: Panel) -> list[_Piece]:
    """A panel's title, its grids and its sentences."""
    folded = {row: text for row in panel.rows if (text := _folded(panel, row)) is not None}
    rows = [row for row in panel.rows if row not in folded]
    sentences = []
    if folded:
        sentences.append(_sentence(folded, all_rows=not rows))
    title = f"\\textbf{{{escape(panel.title)}}}"
    if not rows:
        note = _note(f"{panel.title}: {' '.join(sentences)}")
        return [note]
    alike = _alike(panel, rows)
    sentences += [f"{heading(column)}: {text} in every row." for column, text in alike.items()]
    columns = [column for column in panel.digits if column not in alike]
    lines = [
        Line(row, [_cell(panel.entries[row, column], panel.digits[column]) for column in columns])
        for row in rows
    ]
    counts = _counts(panel, rows, columns)
    if len(set(counts)) == 1 and counts[0]:
        sentences.append(f"n = {counts[0]} in every cell.")
    elif any(counts):
        lines.append(Line("n", [plain(text) for text in counts], rule_before=True))
    pieces = []
    for part, kept in _short_enough(lines):
        texts = grids(panel.corner, [heading(c) for c in columns], kept, TEXT_WIDTH)
        height = sum(_height(line) for line in kept) + _GRID
        for place, text in enumerate(texts):
            is_first = part == 0 and place == 0
            above = f"{title}\\par\\smallskip\n" if is_first else ""
            pieces.append(_Piece(above + text, height + (_TITLE if is_first else 0)))
    if sentences:
        note = _note(" ".join(sentences))
        last = pieces.pop()
        latex = f"{last.latex}\n\\par\\smallskip\n{note.latex}"
        pieces.append(_Piece(latex, last.height + note.height))
    return pieces


def _short_enough(lines: Sequence[Line]) -> list[tuple[int, list[Line]]]:
    """The lines of a grid, cut where they would fill more than half a page."""
    parts: list[list[Line]] = [[]]
    used = 0.0
    for line in lines:
        if parts[-1] and used + _height(line) > 0.6 * _PAGE:
            parts.append([])
            used = 0.0
        parts[-1].append(line)
        used += _height(line)
    return list(enumerate(parts))


def _height(line: Line) -> float:
    stacks = any("\\tiny" in cell.latex for cell in line.cells)
    lines = max(
        [
            plain(line.label, longest=LONGEST_LABEL * TEXT_WIDTH).lines,
            *(cell.lines for cell in line.cells),
        ]
    )
    return max(_LINE * lines, _STACKED if stacks else 0.0)


def _folded(panel: Panel, row: str) -> str | None:
    """What every cell of a row says; None where they differ, or where there are few."""
    if len(panel.digits) < _FEWEST_TO_FOLD:
        return None
    texts = {
        _constant(entry, digits)
        for column, digits in panel.digits.items()
        for entry in (panel.entries[row, column],)
    }
    return texts.pop() if len(texts) == 1 else None


def _constant(entry: Entry | Label, digits: int) -> str | None:
    """A text, or a number that no resample and no training seed changes; None: it varies."""
    if isinstance(entry, Label):
        # Whatever n is: none is none.
        return "none" if re.fullmatch(r"0 of \d+", entry.text) else entry.text
    bounds = {fixed(one, digits) for one in (entry.value, entry.low, entry.high) if one is not None}
    spread_of_seeds = entry.sd is not None and float(fixed(entry.sd, digits)) != 0
    return None if len(bounds) > 1 or spread_of_seeds else bounds.pop()


def _sentence(folded: dict[str, str], *, all_rows: bool) -> str:
    by_text: dict[str, list[str]] = {}
    for row, text in folded.items():
        by_text.setdefault(text, []).append(row)
    if all_rows and len(by_text) == 1:
        return f"{next(iter(by_text))} in every cell."
    parts = [f"{', '.join(rows)}: {text}" for text, rows in by_text.items()]
    return f"The same in every column: {'; '.join(parts)}."


def _alike(panel: Panel, rows: Sequence[str]) -> dict[str, str]:
    """The columns with one text in all rows, and that text."""
    found = {}
    for column in panel.digits:
        entries = [panel.entries[row, column] for row in rows]
        texts = {entry.text if isinstance(entry, Label) else None for entry in entries}
        if len(rows) >= _FEWEST_TO_FOLD and len(texts) == 1 and (text := texts.pop()) is not None:
            found[column] = text
    return found if len(found) < len(panel.digits) else {}


def _counts(panel: Panel, rows: Sequence[str], columns: Sequence[str]) -> list[str]:
    """For each column how many samples its numbers are of; "" where that is not told."""
    found = []
    for column in columns:
        entries = [panel.entries[row, column] for row in rows]
        counts = sorted({e.n for e in entries if isinstance(e, Entry) and e.n is not None})
        shown = counts if len(counts) < 3 else [counts[0], counts[-1]]
        found.append("–".join(map(str, shown)))
    return found


def _cell(entry: Entry | Label, digits: int) -> Typeset:
    if isinstance(entry, Label):
        return plain(entry.text)
    above = _signed(spread(entry, digits))
    below = interval(entry, digits)
    return plain(above) if below is None else stacked(above, _signed(below))


def _signed(numbers: str) -> str:
    """With minus signs in place of hyphens."""
    return numbers.replace("-", "−")
