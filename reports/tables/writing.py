"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import itertools

from reports.tables.model import Block, Entry, Label, Panel, Table


def markdown(table: Table) -> str:
    """The table as Markdown whose columns also line up in a terminal."""
    parts = [f"# {table.name}"]
    for block in table.blocks:
        parts.append(f"## {block.title}\n\n{block.caption}")
        parts.extend(_markdown_panel(panel) for panel in block.panels)
    return "\n\n".join(parts) + "\n"


def _markdown_panel(panel: Panel) -> str:
    grid = [[panel.corner, *panel.digits]]
    for row in panel.rows:
        shown = (
            _plain(panel.entries[row, column], digits) for column, digits in panel.digits.items()
        )
        grid.append([row, *shown])
    grid = [[_line(cell).replace("|", "\\|") for cell in line] for line in grid]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in grid
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return f"**{panel.title}**\n\n" + "\n".join([lines[0], rule, *lines[1:]])


def _plain(entry: Entry | Label, digits: int) -> str:
    if isinstance(entry, Label):
        return entry.text
    value = _fixed(entry.value, digits)
    if entry.sd is not None:
        value += f" ± {_fixed(entry.sd, digits)}"
    if entry.low is None or entry.high is None:
        return value
    return f"{value} [{_fixed(entry.low, digits)}, {_fixed(entry.high, digits)}]"


def _fixed(value: float, digits: int) -> str:
    """A decimal number; what rounds to nothing has no sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


_PAGE = 540
_CAPTION_CHARACTERS, _CAPTION_LINE, _PANEL, _ROW = 75, 12, 28, 16
"""Heights in points of what stands on a page of `article`: enough to share panels out."""


def latex(table: Table) -> str:
    r"""The table as LaTeX that needs only booktabs: a `table` for each page of a block.

    Numbers stand above their interval. `\input` it in any document.
    """
    parts = [f"% {table.name}: written by stages/tables.py; needs \\usepackage{{booktabs}}"]
    for block in table.blocks:
        for number, (text, panels) in enumerate(_pages(block)):
            parts.append(
                "\\begin{table}[p]\n\\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}\n"
                + ("" if number == 0 else "\\addtocounter{table}{-1}")
                + f"\\caption{{{_escape(text)}}}\\par\\medskip\n"
                + "\n\\par\\medskip\n".join(map(_latex_panel, panels))
                + "\n\\end{table}"
            )
    return "\n".join(parts) + "\n"


def _pages(block: Block) -> list[tuple[str, list[Panel]]]:
    """The captions and panels of each page, as many as fit; the first has the whole caption."""
    pages: list[tuple[str, list[Panel]]] = []
    left = 0
    for panel in block.panels:
        height = _PANEL + _ROW * len(panel.rows)
        if not pages or left < height:
            text = f"{block.title}, continued." if pages else f"{block.title}. {block.caption}"
            pages.append((text, []))
            left = _PAGE - _CAPTION_LINE * (2 + len(text) // _CAPTION_CHARACTERS)
        pages[-1][1].append(panel)
        left -= height
    return pages


def _latex_panel(panel: Panel) -> str:
    import pandas as pd

    frame = pd.DataFrame(
        [
            # Styler escapes texts, not the texts within objects.
            [
                _line(e.text) if isinstance(e := panel.entries[row, c], Label) else e
                for c in panel.digits
            ]
            for row in panel.rows
        ],
        index=pd.Index([_line(row) for row in panel.rows]),
        columns=pd.Index([_line(column) for column in panel.digits]),
        dtype=object,
    )
    style = frame.style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    for column, digits in panel.digits.items():
        # Escaping comes first and leaves numbers alone, so the formatter may write LaTeX.
        style = style.format(
            lambda entry, digits=digits: _latex_entry(entry, digits),
            subset=[_line(column)],
            escape="latex",
        )
    tabular = style.to_latex(hrules=True, column_format="l" + "r" * len(panel.digits))
    # In a narrow column a wide grid stands out on both sides alike.
    return (
        f"\\textbf{{{_escape(panel.title)}}}\\par\\smallskip\n"
        f"\\makebox[\\linewidth][c]{{%\n{tabular.strip()}}}"
    )


def _latex_entry(entry: Entry | str, digits: int) -> str:
    if isinstance(entry, str):
        return entry
    # A hyphen becomes a minus sign.
    value, *bounds = (
        _fixed(number, digits).replace("-", "$-$")
        for number in (entry.value, entry.low, entry.high)
        if number is not None
    )
    if entry.sd is not None:
        value += f"{{\\tiny $\\pm${_fixed(entry.sd, digits)}}}"
    if not bounds:
        return value
    interval = f"{{\\tiny [{bounds[0]}, {bounds[1]}]}}"
    strut = "\\rule{0pt}{7pt}"
    return f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{strut}{value}\\\\[-3pt]{interval}\\end{{tabular}}"


_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _escape(text: str) -> str:
    """Escape text outside the cells; pandas escapes those and the labels."""
    return "".join(_ESCAPES.get(character, character) for character in _line(text))


def _line(text: str) -> str:
    """A text in one line: an empty line would end a row, or a caption in the middle."""
    return " ".join(text.split())


_NUMBERS = ("value", "low", "high", "n", "n_failed", "sd", "t_low", "t_high")


def comma_separated(table: Table) -> str:
    """The table as CSV, a line for each number: its interval, n, failures, training seeds, source.

    Numbers are complete, not rounded; texts and published values have no interval and no n.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("origin", "panel", "row", "column", *_NUMBERS, "seeds", "source"))
    for block in table.blocks:
        for panel in block.panels:
            for row, column in itertools.product(panel.rows, panel.digits):
                entry = panel.entries[row, column]
                if isinstance(entry, Entry):
                    t_low, t_high = entry.t_interval or (None, None)
                    numbers = (entry.value, entry.low, entry.high, entry.n, entry.n_failed)
                    shown = [
                        "" if number is None else repr(number)
                        for number in (*numbers, entry.sd, t_low, t_high)
                    ]
                    shown.append(
                        " ".join(f"{seed}={value!r}" for seed, value in entry.seeds.items())
                    )
                else:
                    shown = [entry.text] + [""] * len(_NUMBERS)
                writer.writerow((block.origin, panel.title, row, column, *shown, entry.source))
    return file.getvalue()
