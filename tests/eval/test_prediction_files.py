"""Files of predictions: each cell and line as it stands, or one sentence about what is wrong."""

from __future__ import annotations

import json
import zipfile

import openpyxl
import pandas as pd
import pytest
from openpyxl.worksheet.formula import ArrayFormula

from eval.prediction_files import InputError, read

SEPARATORS = [
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\r",
    "\r\n",
    "\n",
]
TEXTS = [
    "= 4",
    "=5",
    "= 3 - 3",
    "=SUM(A1:A9)",
    "=",
    "==",
    "#N/A",
    "#DIV/0!",
    "+1",
    "-1",
    "@x",
    "'x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_is_its_own_text(tmp_path, text):
    """Whatever a formula would give: openpyxl and Excel make one of a text that begins with `=`."""
    file = tmp_path / "x.xlsx"
    pd.DataFrame({"index": [0, 1], "prediction": [text, "B"]}).to_excel(file, index=False)
    assert read(file) == [{"index": 0, "prediction": text}, {"index": 1, "prediction": "B"}]


def test_other_kinds_of_cells(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["index", None, "prediction"])
    sheet.append([1.0, "no name", ArrayFormula("C2", "=1+1")])
    sheet.append([2.5, None, True])
    sheet.append([None, None, None])
    sheet.append(["NA", None, "None"])
    sheet.append([None, None, None])
    book.save(tmp_path / "X.XLSX")
    assert read(tmp_path / "X.XLSX") == [
        {"index": 1, "prediction": "{=1+1}"},
        {"index": 2.5, "prediction": True},
        {"index": "", "prediction": ""},
        {"index": "NA", "prediction": "None"},
    ]


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_only_line_feeds_end_a_line(tmp_path, separator, escaped):
    rows = [{"index": place, "text": f"a{separator}{place}"} for place in range(3)]
    file = tmp_path / "x.JSONL"
    lines = (json.dumps(row, ensure_ascii=escaped) for row in rows)
    file.write_bytes("\r\n".join(lines).encode())
    assert read(file) == rows
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b"\n\n")
    assert read(file) == rows


DIGITS = b"1" * 5000


def _workbook(change):
    """A spreadsheet with its first sheet's XML changed."""

    def write(file):
        pd.DataFrame({"index": [1234567], "prediction": ["B"]}).to_excel(file, index=False)
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, change(content) if "sheet1" in name else content)

    return write


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"index": 0, "text": "B"}'.encode("utf-16"), "is not UTF-8"),
        (
            "x.jsonl",
            '{"index": 0, "text": "é"}'.encode("latin-1"),
            "is not UTF-8 (byte 22 is 0xe9)",
        ),
        ("x.jsonl", b'{"index": 0}\n{"index": ' + DIGITS + b"}", "line 2 cannot be read: Exceeds"),
        ("x.jsonl", b'{"text": "\\ud800"}', "line 1 cannot be read: 'utf-8' codec can't encode"),
        ("x.jsonl", b"[" * 100_000, "line 1 cannot be read"),
        ("x.csv", b"index,prediction\n0,B\n", "must be a .jsonl, an .xlsx or a .tsv file"),
        ("x.xlsx", b"index,prediction\n0,B\n", "cannot be read as a spreadsheet"),
        ("x.xlsx", b"", "cannot be read as a spreadsheet"),
        ("x.xlsx", b"\xd0\xcf\x11\xe0" * 200, "cannot be read as a spreadsheet"),
        ("x.xlsx", _workbook(lambda xml: xml.replace(b"1234567", DIGITS)), "cannot be read"),
        ("x.xlsx", _workbook(lambda xml: xml[: len(xml) // 2]), "cannot be read"),
        (
            "x.xlsx",
            _workbook(lambda xml: xml.replace(b"prediction", b"index")),
            "more than one col",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path, name, content, message):
    file = tmp_path / name
    if callable(content):
        content(file)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(file)
    said = str(caught.value)
    assert message in said and str(file) in said
    assert "\n" not in said and len(said) < 500


@pytest.mark.parametrize("empty", [b"", b"\n \n"])
def test_an_empty_file_has_no_rows(tmp_path, empty):
    file = tmp_path / "x.jsonl"
    file.write_bytes(empty)
    assert read(file) == []


@pytest.mark.parametrize("text", [*TEXTS, "a\tb", 'say "yes"', "two\nlines", "NA", "nan", "  x "])
def test_a_cell_of_a_tsv_is_its_own_text(tmp_path, text):
    """As pandas writes it, and reads it without its own ideas of what is missing."""
    file = tmp_path / "x.tsv"
    table = pd.DataFrame({"index": ["0", "1"], "prediction": [text, "B"]})
    table.to_csv(file, sep="\t", index=False)
    assert read(file) == table.to_dict("records")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"index\tprediction\n0\tA\n1\n", "row 3 has 1 cells, not 2"),
        (b"index\tindex\n0\t1\n", "more than one column index"),
        (b'index\tprediction\n0\t"A', "cannot be read as a table with tabs"),
        (b"index\tprediction\n0\t\xff\n", "is not UTF-8"),
    ],
)
def test_a_damaged_tsv_is_named(tmp_path, content, said):
    file = tmp_path / "x.tsv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read(file)
