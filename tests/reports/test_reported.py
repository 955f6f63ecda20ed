"""The paper's cells beside ours: every one, and a verdict only where both are the paper's."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from heima.results import verdicts
from heima.results.cells import Cell
from reports import tables
from reports.tables import reported
from tests import fabricated


def lines_of(table: tables.Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tables.comma_separated(table))))


def published_rows(name: str, family: str | None) -> int:
    path = fabricated.ROOT / "reports" / "published" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return sum(row.get("family", family) == family for row in csv.DictReader(file))


@pytest.mark.parametrize("of", ["results", "paper_results"])
def test_every_cell_of_the_paper_is_there_once(request, of):
    found = tables.comparisons(request.getfixturevalue(of))
    family = "llava-cot-11b"
    expected = 2 * published_rows("benchmarks", family) + sum(
        published_rows(name, family)
        for name in ("interpreters", "tokens_per_stage", "retention_ratio")
    )
    assert len(found) == expected == 174
    assert len({(one.panel, one.row, one.column) for one in found}) == expected
    assert sum(tables.counts(found).values()) == expected


def test_a_toy_has_no_difference_and_no_verdict(results, built):
    found = tables.comparisons(results)
    assert tables.counts(found) == {"toy: not comparable": 174}
    lines = lines_of(built["reported"])
    assert {line["column"] for line in lines} == {"reported", "ours", "verdict"}
    assert {one["value"] for one in lines if one["column"] == "verdict"} == {"toy: not comparable"}
    assert "the two are not comparable" in built["reported"].blocks[0].caption
    compact = tables.compact_files(built, results.params)["reported.tex"]
    assert "not comparable: no difference is computed" in compact and "verdict &" not in compact


def test_ours_stands_beside_the_paper_s(paper_results, paper_built):
    """The same cell of the same variant, section or point of a series, minus the published one."""
    lines = {
        (line["panel"], line["row"], line["column"]): line
        for line in lines_of(paper_built["reported"])
    }
    scores, similarities = paper_results.scores, paper_results.similarities
    for panel, row, published, cell in (
        (
            "accuracy",
            "heima, MM-Vet",
            43.3,
            scores["heima"][0]["vlmevalkit/mmvet"]["accuracy"],
        ),
        (
            "interpreters",
            "3 interpreters, caption, METEOR",
            35.5,
            similarities["caption"][0]["own"]["meteor"],
        ),
        (
            "interpreters",
            "1 interpreter, caption, METEOR",
            25.4,
            similarities["shared-caption"][0]["own"]["meteor"],
        ),
        (
            "tokens_per_stage",
            "4 a section, MMBench",
            71.0,
            scores["heima-4"][0]["vlmevalkit/mmbench"]["accuracy"],
        ),
        (
            "tokens_per_stage",
            "1 a section, MMStar",
            49.9,
            scores["heima"][0]["vlmevalkit/mmstar"]["accuracy"],
        ),
        (
            "retention_ratio",
            "0.3 of the tokens, AI2D",
            75.3,
            scores["heima-adaptive"][0]["vlmevalkit/ai2d"]["accuracy"],
        ),
    ):
        title = reported.TITLES[panel]
        assert float(lines[title, row, "reported"]["value"]) == published
        assert float(lines[title, row, "ours"]["value"]) == cell.value
        gap = [float(lines[title, row, "difference"][key]) for key in ("value", "low", "high")]
        assert gap == pytest.approx(
            [cell.value - published, cell.low - published, cell.high - published]
        )
    assert lines[reported.TITLES["tokens_per_stage"], "8 a section, AI2D", "ours"]["value"] == "–"


def test_what_is_counted_otherwise_or_was_not_run_has_no_verdict(paper_results):
    found = tables.comparisons(paper_results)
    by_panel = {}
    for one in found:
        by_panel.setdefault(one.panel, set()).add(one.verdict)
    assert by_panel["tokens"] == {reported.COUNTED}
    assert reported.NOT_RUN in by_panel["retention_ratio"]
    assert reported.NOT_RUN not in by_panel["interpreters"]


def comparison(reported_value: float, *seeds: float, half: float = 0.2, **details):
    mean = sum(seeds) / len(seeds)
    values = dict(enumerate(seeds)) if len(seeds) > 1 else {}
    ours = Cell(mean, mean - half, mean + half, n=99, seeds=values)
    return reported.Comparison(
        "accuracy",
        "m",
        "b",
        reported_value,
        "p",
        ours=ours,
        source="s",
        **{"margin": 3.0} | details,
    )


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (comparison(50.0, 50.1, 50.2, 50.3), reported.REPRODUCED),
        (comparison(50.0, 51.1, 51.2, 51.3), reported.REPRODUCED),
        (comparison(50.0, 60.1, 60.2, 60.3), reported.HIGHER),
        (comparison(50.0, 40.1, 40.2, 40.3), reported.LOWER),
        (comparison(50.0, 30.0, 50.0, 70.0), reported.UNDECIDED),
        (comparison(50.0, 50.1, 50.2, 50.3, half=9.0), reported.UNDECIDED),
        (comparison(50.0, 53.0, 53.1, 52.9, half=1.0), reported.HIGHER),
        (comparison(50.0, 50.1), reported.ONE_SEED),
        (comparison(50.0, 50.1, trained=False), reported.REPRODUCED),
        (comparison(50.0, 60.1, trained=False), reported.HIGHER),
        (comparison(50.0, 50.1, margin=None, why_not=reported.COUNTED), reported.COUNTED),
        (replace(comparison(50.0, 50.1), ours=None), reported.NOT_RUN),
    ],
)
def test_each_verdict_by_its_rule(one, verdict):
    (found,) = reported.judged([one])
    assert found.verdict == verdict
    assert (found.p is not None) == (
        verdict in (reported.REPRODUCED, reported.HIGHER, reported.LOWER, reported.UNDECIDED)
    )


def test_a_verdict_gets_harder_with_the_number_of_cells():
    """What one cell alone decides is undecided among many that say nothing."""
    one = comparison(50.0, 53.4, trained=False, half=3.2)
    unknown = comparison(50.0, 50.0, trained=False, half=40.0)
    assert verdicts.differs(one.ours, 50.0) < 0.05
    assert reported.judged([one])[0].verdict == reported.HIGHER
    among = reported.judged([one, *[unknown] * 20])
    assert among[0].verdict == reported.UNDECIDED
    assert reported.judged([one, *[replace(unknown, ours=None)] * 20])[0].verdict == reported.HIGHER


def test_another_metric_than_the_paper_s_is_not_compared(tmp_path, paper_text):
    text = paper_text.replace("meteor: wordnet", "meteor: exact-stem")
    results = tables.read(tmp_path, fabricated.write(tmp_path, params_text=text))
    found = {
        one.verdict
        for one in tables.comparisons(results)
        if one.panel == "interpreters" and one.column == "meteor"
    }
    assert found == {reported.OTHER_METRIC}
