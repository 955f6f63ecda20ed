"""Links of the documentation lead somewhere, and so do the code's references to it."""

from __future__ import annotations

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
