"""Links of the documentation lead somewhere, and so do the code's references to it."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_what_the_code_names_of_the_documentation_is_there():
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.yaml", "*.md"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    seen = 0
    for name in files:
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for page, section in re.findall(r"(docs/[\w-]+\.md)(?:, section (\d))?", text):
            seen += 1
            assert (ROOT / page).exists(), (name, page)
            if section:
                assert re.search(rf"^## {section} ", (ROOT / page).read_text("utf-8"), re.M), name
    assert seen > 20


def numbers(text: str) -> list[str]:
    """Decimal numbers, without their signs: the tables print differences in either direction."""
    return re.findall(r"(?<![\d.:])\d*\.\d+(?![\d.:])", text)


def test_numbers_of_the_readme_are_those_of_the_tables():
    """Every decimal number of its results is, rounded as it is there, a value of a table's CSV."""
    values = {
        abs(float(field))
        for path in (ROOT / "reports" / "toy" / "tables").glob("*.csv")
        for row in csv.DictReader(path.open(encoding="utf-8", newline=""))
        for text in row.values()
        for field in numbers(text or "") + re.findall(r"(?<![\d.])\d+(?![\d.])", text or "")
    }
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    results = text[text.index("| variant |") : text.index("## The ways to use it")]
    found = numbers(results)
    assert len(found) > 80
    for number in found:
        digits = len(number.partition(".")[2])
        assert any(round(value, digits) == float(number) for value in values), number


def test_the_table_of_the_readme_is_the_committed_one():
    with (ROOT / "reports/toy/tables/benchmarks.csv").open(encoding="utf-8", newline="") as file:
        cells = {
            (line["row"], line["column"]): line
            for line in csv.DictReader(file)
            if line["panel"] == "Accuracy (%)" and "lmms" in line["origin"]
        }
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[text.index("| variant |") :].splitlines()
        if line.startswith("|")
    ]
    assert len(rows) == 8
    for row in rows:
        for column, shown in zip(header[1:-1], row[1:-1], strict=True):
            line = cells[row[0], column]
            assert numbers(shown)[0] == f"{float(line['value']):.1f}", (row[0], column)
            if "[" in shown:
                interval = [f"{float(line[bound]):.1f}" for bound in ("low", "high")]
                assert numbers(shown)[-2:] == interval, (row[0], column)
