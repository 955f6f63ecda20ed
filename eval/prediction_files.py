"""Files of predictions for `eval.score`, as rows: every cell and line is read as it stands.

- A .jsonl is UTF-8, a byte order mark or not; only line feeds (with a carriage return or not) end a
  line, for JSON's texts may hold U+2028, U+2029 and U+0085.
- An .xlsx has its rows on the first sheet below a line of names. Writers of spreadsheets make a
  formula of a text that begins with `=` and an error of `#N/A`: such a cell is its own text, never
  what a formula would give. (XlsxWriter keeps one `=` of several at the beginning.)
- A .tsv is UTF-8 with a line of names, tabs between cells, and quotes around those that hold tabs
  or line breaks, as pandas writes and VLMEvalKit asks of it.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

_UNREADABLE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    # Encrypted, or compressed in a way that Python does not know.
    RuntimeError,
    # Of XML, and of parts that are absent or other than they should be.
    SyntaxError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
)
"""What openpyxl raises on files that are no spreadsheet, or a damaged one."""


class InputError(ValueError):
    """A file that cannot be scored; the message says what to correct."""


def is_spreadsheet(file: Path) -> bool:
    """Whether a file is a table with a line of names, as VLMEvalKit writes."""
    return file.suffix.lower() in (".xlsx", ".tsv")


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl, .xlsx or .tsv file; raises `InputError` for anything else."""
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    if file.suffix.lower() == ".xlsx":
        return _spreadsheet(file)
    if file.suffix.lower() not in (".jsonl", ".tsv"):
        raise InputError(f"{file} must be a .jsonl, an .xlsx or a .tsv file")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): save "
            "it so"
        ) from error
    if file.suffix.lower() == ".tsv":
        return _separated(file, text)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_line(f"{file}, line {number}", line))
    return rows


def _line(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        # Half of a surrogate pair is no text: it could be neither printed nor sent to a judge.
        json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    # A number of more digits than Python converts, a lone surrogate, a thousand brackets.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read: {str(error).partition(';')[0]}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object")
    return row


def _spreadsheet(file: Path) -> list[dict[str, Any]]:
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with file.open("rb") as content:
            sheets = load_workbook(content).worksheets
        table = [[_cell(cell) for cell in line] for line in sheets[0].iter_rows()] if sheets else []
    except (*_UNREADABLE, InvalidFileException) as error:
        shown = " ".join(str(error).split())[:200]
        raise InputError(
            f"{file} cannot be read as a spreadsheet ({type(error).__name__}: {shown}): save it as "
            ".xlsx, or as .jsonl with a row a line"
        ) from error
    while table and all(cell == "" for cell in table[-1]):
        del table[-1]
    names = [str(name).strip() for name in table[0]] if table else []
    _check_names(file, names)
    # As they stand: "NA" and "None" are options like any other.
    return [
        {name: cell for name, cell in zip(names, line, strict=True) if name} for line in table[1:]
    ]


def _separated(file: Path, text: str) -> list[dict[str, Any]]:
    """The rows of a table with tabs, each cell the text that it is."""
    # VLMEvalKit's own tables hold images.
    csv.field_size_limit(sys.maxsize)
    try:
        names, *lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    except ValueError as error:
        raise InputError(f"{file} is empty") from error
    except csv.Error as error:
        raise InputError(f"{file} cannot be read as a table with tabs: {error}") from error
    names = [name.strip() for name in names]
    _check_names(file, names)
    rows = []
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        if len(line) != len(names):
            raise InputError(f"{file}, row {number} has {len(line)} cells, not {len(names)}")
        rows.append({name: cell for name, cell in zip(names, line, strict=True) if name})
    return rows


def _check_names(file: Path, names: list[str]) -> None:
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise InputError(f"{file} has more than one column {', '.join(twice)}")


def _cell(cell: Any) -> Any:
    """A cell's own content: a formula and an error as text, "" for an empty cell."""
    from openpyxl.worksheet.formula import ArrayFormula, DataTableFormula

    value = cell.value
    if value is None:
        return ""
    if isinstance(value, ArrayFormula):
        return f"{{{value.text}}}"
    if isinstance(value, DataTableFormula):
        raise ValueError(f"cell {cell.coordinate} belongs to a table of a what-if analysis")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
