"""Links of the documentation lead somewhere, and its numbers are those of the results."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages import docs
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


NO_RESULTS = {
    "README.md": {
        "Heima, reproduced": "versions, sizes",
        "Two profiles, one pipeline": "names of models",
    },
    "audit.md": {
        "Planted controls": "a rule",
        "What a simple reader finds": "a rule",
        "The theorem in bits": "a rule",
    },
    "benchmarks.md": {
        "Benchmarks: two protocols, one set of answers each": "others' reports, a rule"
    },
    "clusters.md": {
        "What was tried": "versions, and a time of stages that wait",
        "MLflow on PostgreSQL": "versions",
    },
    "methods.md": {
        "Renderings": "citations",
        "A mixture of renderings": "parameters",
        "The profiles `toy-methods` and `paper-methods`": "epochs",
        "States fed back": "a citation",
        "Decoding": "of timings.lookup, run by hand",
        "Terms of the loss": "parameters, citations",
        "Compressed chains of thought: tried, left out": "a citation",
    },
    "metrics-and-judge.md": {"A judge that is never paid twice": "a command"},
    "mlflow.md": {"What is there": "parameters"},
    "paper-profile.md": {
        "The paper profile: data, models, devices": "a command",
        "Data and models": "names of models and licences",
        "Several GPUs": "of timings.train, run by hand",
        "How many thinking tokens": "parameters",
        "Rehearsal": "a name",
        "One GPU": "versions",
    },
    "pipeline.md": {"What a run says": "a command"},
    "recipe.md": {
        "The recipe": "a citation",
        "1 Data": "the paper's",
        "2 Progressive distillation": "the paper's",
        "3 Interpreters": "the paper's",
        "4 Evaluation": "the paper's",
        "5 What the paper does not control for, and users of this field ask for": "the paper's",
        "6 Speed facts (calc)": "computed",
    },
    "reproducing.md": {
        "Which bits": "measured once, with other code",
        "Which CPUs were tried": "a time",
        "make check": "a rule",
    },
    "smol.md": {"A real language model, small": "names of models, sizes, a run's time"},
    "toy-world.md": {
        "Why": "what a question tells at best, computed",
        "What was measured": "trials before the shipped budgets",
        "What a run takes": "times",
        "The same with other seeds": "a share of agreement, with a run that is not recorded",
    },
    "training-seeds.md": {
        "Training seeds, intervals and verdicts": "an example of old",
        "Intervals": "a rule",
    },
    "verdicts.md": {
        "Bounds": "held to the code by tests/reports/test_reported.py",
        "Reported against ours": "a rule",
    },
}
"""Page -> heading under which unmarked decimal numbers are no results, and what they are."""


def cells() -> docs.Cells:
    return docs.Cells(ROOT / "reports" / "toy" / "tables")


@pytest.mark.parametrize("page", docs.pages(ROOT), ids=lambda page: page.name)
def test_numbers_are_those_of_their_cells(page):
    """Every decimal number that comes from results is marked, and its cell's value, rounded."""
    text = page.read_text(encoding="utf-8")
    found = docs.differences(text, cells())
    assert [(one.shown, one.right) for one in found] == [], "python -m stages.docs --write"
    known = NO_RESULTS.get(page.name, {})
    assert [line for heading, line in docs.unmarked(text) if heading not in known] == []


def test_what_is_said_of_pages_without_results_is_about_something():
    for name, known in NO_RESULTS.items():
        page = next(page for page in docs.pages(ROOT) if page.name == name)
        headings = {heading for heading, _ in docs.unmarked(page.read_text(encoding="utf-8"))}
        assert set(known) <= headings, name


def test_results_in_prose_are_marked():
    """Those of the README, and of the page that says what they mean."""
    marks, counted = [], 0
    for name in ("README.md", "docs/results.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = list(docs.marked(text))
        assert found, name
        marks += found
        counted += sum(len(docs.NUMBER.findall(text, begin, end)) for begin, end, _, _ in found)
    assert len(marks) >= 5 and counted > 120


CELL = "benchmarks / lmms / Accuracy (%) / heima / mean"
TABLE = """
| variant | mmstar | mean | tokens |
|---|---|---|---|
| heima | {} | {} | {} |
<!-- table: benchmarks / lmms / Accuracy (%); tokens = Decoded tokens per answer / mean -->
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A table with known numbers, and the same of another profile, whose mean is 12.3."""
    folder = tmp_path_factory.mktemp("reports") / "toy" / "tables"
    rows = ["origin,panel,row,column,value,low,high,n,n_failed,sd,t_low,t_high,seeds,source"]
    for panel, column, *numbers in (
        ("Accuracy (%)", "mean", 47.94, 44.46, 50.86, 2.8, "42=45.0 43=-0.25 44=50.05"),
        ("Accuracy (%)", "mmstar", 58.25, 53.3, 63.1, 1.8, "42=58.25"),
        ("Decoded tokens per answer", "mean", 13.0, 13.0, 13.0, 0.0, "42=13.0"),
        ("Difference", "mean", -0.149, "", "", "", ""),
    ):
        value, low, high, sd, seeds = numbers
        origin = '"toy profile, protocol lmms"'
        rows.append(f"{origin},{panel},heima,{column},{value},{low},{high},9,0,{sd},,,{seeds},f")
    text = "\n".join(rows) + "\n"
    other = folder.parents[1] / "other" / "tables"
    for here, written in ((folder, text), (other, text.replace("47.94", "12.3"))):
        here.mkdir(parents=True)
        (here / "benchmarks.csv").write_text(written, encoding="utf-8")
    return docs.Cells(folder)


def wrong(text: str, made: docs.Cells) -> list[tuple[str, str]]:
    return [(one.shown, one.right) for one in docs.differences(text, made)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"It is 47.9.\n<!-- numbers: {CELL}: value -->", []),
        (f"It is 47.94 (44.5 to 50.9).\n<!-- numbers: {CELL}: value low high -->", []),
        (f"It is 48.0: odd.\n<!-- numbers: {CELL}: value -->", [("48.0", "47.9")]),
        (f"It is 47.9, there 12.4.\n<!-- numbers: {CELL}: value; other:{CELL}: value -->",
         [("12.4", "12.3")]),
        (f"Seeds 45.0, .25, 50.05.\n<!-- numbers: {CELL}: seeds -->", []),
        (f"Seed 43: -.3 or +.3 or .2\n<!-- numbers: {CELL}: 43 43 43 -->",
         [("-.3", "-.2"), ("+.3", "-.2")]),
        (f"Before, 9.9.\n\nIt is 47.8.\n<!-- numbers: {CELL}: value -->", [("47.8", "47.9")]),
        (f"- one 9.9\n- two 47.9\n  <!-- numbers: {CELL}: value -->", []),
        (f"# About 3.1\nIt is 47.9.\n<!-- numbers: {CELL}: value -->", []),
        (f"It is 47.9, elsewhere 7.7.\n<!-- numbers: {CELL}: value _ -->", []),
        ("Less: -.1\n<!-- numbers: benchmarks / toy / Diff / heima / mean: value -->", []),
        ("More: +.1\n<!-- numbers: benchmarks / toy / Diff / heima / mean: value -->",
         [("+.1", "-.1")]),
        (TABLE.format("58.2", "47.9 ± 2.8 [44.5, 50.9]", "13.0"), []),
        (TABLE.format("58.3", "47.9 ± 2.9 [44.5, 51.0]", "12.0"),
         [("58.3", "58.2"), ("2.9", "2.8"), ("51.0", "50.9"), ("12.0", "13.0")]),
        (TABLE.format("58", "", "13.0"), []),
    ],
)  # fmt: skip
def test_a_number_that_is_not_its_cell_s_is_found(made, text, expected):
    assert wrong(text, made) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            f"It is 47.9 and 3.3.\n<!-- numbers: {CELL}: value -->",
            "1 numbers are named and 2 stand",
        ),
        (f"It is 47.9.\n<!-- numbers: {CELL}: value low -->", "2 numbers are named and 1 stand"),
        (f"It is 47.9.\n<!-- numbers: {CELL}: median -->", "has no median"),
        (f"It is 47.9.\n<!-- numbers: {CELL}: 45 -->", "has no 45"),
        ("1.0\n<!-- numbers: benchmarks / lmms / Accuracy (%) / mine / mean: value -->", "names 0"),
        ("1.0\n<!-- numbers: benchmarks / lmms / c / heima / mean: value -->", "names 3 cells"),
        ("1.0\n<!-- numbers: benchmarks / heima / mean: value -->", "is not table / origin"),
        (f"1.0\n<!-- numbers: third:{CELL}: value -->", "there is no"),
        ("1.0\n<!-- numbers: other / lmms / x / heima / mean: value -->", "there is no"),
    ],
)
def test_a_mark_that_names_no_cell_is_a_fault(made, text, fault):
    with pytest.raises(docs.DocsError, match=re.escape(fault)):
        docs.differences(text, made)


def test_writing_puts_the_cells_numbers_in_place(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    before = f"# A page\n\nIt is 48.1, seeds 1.0, .3, 2.0.\n<!-- numbers: {CELL}: value seeds -->\n"
    (tmp_path / "README.md").write_text(before, encoding="utf-8")
    monkeypatch.setattr(docs, "Cells", lambda folder: made)
    monkeypatch.setattr(docs.config, "load_resolved", lambda: SimpleNamespace(profile="toy"))
    monkeypatch.setattr("sys.argv", ["docs"])
    with pytest.raises(SystemExit, match="1"):
        docs.main()
    assert "README.md:3: 48.1 is 47.9" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == before
    monkeypatch.setattr("sys.argv", ["docs", "--write"])
    docs.main()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"It is 47.9, seeds 45.0, .2, {50.05:.1f}." in text
    monkeypatch.setattr("sys.argv", ["docs"])
    docs.main()


def test_unmarked_numbers_are_told_with_their_heading(made):
    text = f"# One\nA 1.5 here.\n\n## Two\n47.9\n<!-- numbers: {CELL}: value -->\n\nand 2.5.\n"
    assert docs.unmarked(text) == [("One", "A 1.5 here."), ("Two", "and 2.5.")]
    assert docs.unmarked("v 0.7.3 at 127.0.0.1, x1.5, 9:17 and 3\n") == []
