"""The claim sheet: every claim by its rule, with results that give each verdict."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from eval.audit import effects
from heima.results.cells import Cell
from reports import claims, tables
from reports.claims import rules
from tests import fabricated

BY_NAME = {claim.name: claim for claim in claims.CLAIMS}


def cell(*seeds: float, half: float = 0.2) -> Cell:
    mean = sum(seeds) / len(seeds)
    values = dict(enumerate(seeds)) if len(seeds) > 1 else {}
    return Cell(mean, mean - half, mean + half, n=99, seeds=values)


class Given(claims.Evidence):
    """Evidence of one fabricated number, whatever is asked for."""

    number: Cell | None

    @classmethod
    def of(cls, results: tables.Results, number: Cell | None) -> Given:
        made = cls(results, {})
        object.__setattr__(made, "number", number)
        return made

    def _given(self, *asked: object) -> tuple[Cell, str] | None:
        return None if self.number is None else (self.number, "fabricated")

    gain = token_ratio = state_gain = shared_minus_own = speedup = theorem_gap = _given

    def audit(self, variant: str) -> tuple[dict[str, dict[str, Cell]], str] | None:
        if self.number is None:
            return None
        lost = {"accuracy lost": self.number}
        other = {**lost, "follows the donor": self.number}
        mediation = {"share": self.number}
        return {"mean": lost, "other": other, "mediation": mediation}, "fabricated"

    def accuracy(self, *asked: object) -> Cell | None:
        return self.number

    def chance(self, *asked: object) -> float | None:
        return None if self.number is None else 0.4

    def series(self, name: str) -> dict[str, str]:
        return {} if self.number is None else {"4": "heima-4"}


HIGH, LOW = cell(9.0, 9.1, 9.2), cell(-9.0, -9.1, -9.2)
NONE, UNKNOWN = cell(0.001, -0.001, 0.0, half=0.01), cell(-9.0, 3.0, 14.0)
YES, NO, OPEN = claims.SUPPORTED, claims.NOT_SUPPORTED, claims.UNDECIDED
DIRECTION = [(HIGH, YES), (LOW, NO), (NONE, NO), (UNKNOWN, OPEN), (cell(9.0), OPEN)]
RATIO = [(cell(20.0), YES), (cell(0.5), NO), (cell(14.0, half=13.5), OPEN)]
NOT_LOWER = [(HIGH, YES), (NONE, YES), (LOW, NO), (UNKNOWN, OPEN), (cell(9.0), OPEN)]
TURNED = [(LOW, YES), (HIGH, NO), (NONE, NO), (UNKNOWN, OPEN), (cell(-9.0), OPEN)]
STATES = [(HIGH, YES), (NONE, NO), (UNKNOWN, OPEN), (LOW, OPEN), (cell(9.0), OPEN)]
CASES = {
    "fourteen-times-fewer-tokens": RATIO,
    "fewer-tokens": RATIO,
    "faster": RATIO,
    "keeps-accuracy": NOT_LOWER,
    "surpasses-on-mmbench": DIRECTION,
    "surpasses-on-ai2d": DIRECTION,
    "progressive-helps": DIRECTION,
    "recovering-helps": DIRECTION,
    "interpreter-reconstructs-summary": DIRECTION,
    "interpreter-reconstructs-caption": DIRECTION,
    "interpreter-reconstructs-reasoning": DIRECTION,
    "an-interpreter-each": TURNED,
    "one-token-is-enough": NOT_LOWER,
    "a-share-of-tokens-is-no-better": NOT_LOWER,
    "second-family": [],
    "theorem-3.1": [
        (cell(-1.0, -1.1, -1.2), YES),
        (cell(0.01, 0.02, 0.03, half=0.02), YES),
        (HIGH, NO),
        (cell(0.1, 0.3, 0.2, half=0.2), OPEN),
        (cell(0.01, half=0.001), OPEN),
    ],
    "thinking-states-matter": STATES,
    "thinking-states-matter-before-recovering": STATES,
    "thinking-states-matter-without-progress": STATES,
    "compressing-costs": TURNED,
    "caption-state-is-read": DIRECTION,
    "reasoning-state-is-read": DIRECTION,
    "caption-state-tells-more-than-the-answer": DIRECTION,
    "reasoning-state-tells-more-than-the-answer": DIRECTION,
    "better-than-bare-answers": DIRECTION,
    "forced-prefix-changes-nothing": [(NONE, YES), (HIGH, NO), (LOW, NO), (UNKNOWN, OPEN)],
    "compressed-is-at-chance-on-mmbench": [
        (cell(0.4, 0.2, 0.6, half=0.3), YES),
        (cell(0.0, 0.0, half=0.0), YES),
        (HIGH, NO),
        (cell(3.0, 3.1, half=3.0), OPEN),
        (cell(0.4, half=0.3), OPEN),
    ],
}
"""Claim -> numbers and the verdict that each gives."""


def test_every_claim_has_its_cases():
    assert CASES.keys() == BY_NAME.keys()
    assert len(claims.CLAIMS) == len(BY_NAME) >= 12
    assert {claim.of for claim in claims.CLAIMS} == {"paper", "project"}


@pytest.mark.parametrize(
    ("name", "number", "verdict"),
    [(name, number, verdict) for name, cases in CASES.items() for number, verdict in cases],
)
def test_each_verdict_by_its_rule(paper_results, name, number, verdict):
    found = BY_NAME[name].find(Given.of(paper_results, number))
    assert found.verdict == verdict, found.why
    assert found.cell is not None and found.why


@pytest.mark.parametrize("name", CASES)
def test_what_was_not_run_is_not_testable(paper_results, name):
    found = BY_NAME[name].find(Given.of(paper_results, None))
    assert found.verdict == claims.NOT_TESTABLE and found.cell is None and found.why


def test_the_second_family_is_decided_by_its_own_results(paper_results):
    claim = BY_NAME["second-family"]
    assert claim.find(Given.of(paper_results, HIGH)).verdict == claims.NOT_TESTABLE
    params = paper_results.params.model_copy(update={"family": "llava-next-vicuna-7b"})
    for number, verdict in DIRECTION:
        found = claim.find(Given.of(replace(paper_results, params=params), number))
        assert found.verdict == verdict


def test_a_toy_decides_nothing_about_the_paper_s_models(results):
    for claim in claims.CLAIMS:
        judged = claims.judge(claim, Given.of(results, HIGH))
        assert judged.scale == "toy"
        if claim.scale == "paper":
            assert judged.finding.verdict == claims.NOT_TESTABLE
        elif claim.scale == "any" and CASES[claim.name]:
            assert judged.finding.verdict != claims.NOT_TESTABLE


def test_the_paper_s_models_decide_nothing_about_the_toy(paper_results):
    claim = BY_NAME["compressed-is-at-chance-on-mmbench"]
    judged = claims.judge(claim, Given.of(paper_results, cell(0.4)))
    assert (judged.scale, judged.finding.verdict) == ("paper", claims.NOT_TESTABLE)


def test_several_statements_together():
    yes, no, undecided = (rules.greater(one, "f") for one in (HIGH, LOW, UNKNOWN))
    assert rules.all_of([yes, yes]).verdict == YES
    assert rules.all_of([yes, undecided, no]).verdict == NO
    assert rules.all_of([yes, undecided]).verdict == OPEN
    assert rules.all_of([yes, rules.not_testable("x")]).verdict == claims.NOT_TESTABLE
    better = rules.greater(cell(99.0, 98.0, 97.0), "f")
    assert rules.all_of([better, yes]).cell == HIGH, "the least of them"


def test_reported_values_are_those_of_the_paper_s_cells(results, built):
    evidence = claims.Evidence(results, built)
    reported = {name: claim.reported(evidence) for name, claim in BY_NAME.items()}
    expected = {
        "fourteen-times-fewer-tokens": 14.1,
        "keeps-accuracy": -3.2,
        "surpasses-on-mmbench": 2.1,
        "surpasses-on-ai2d": -0.1,
        "progressive-helps": 1.7,
        "recovering-helps": 1.3,
        "an-interpreter-each": -0.1,
        "one-token-is-enough": 0.8,
        "a-share-of-tokens-is-no-better": 1.8,
        "second-family": 2.0,
    }
    assert {n: round(v, 1) for n, v in reported.items() if v is not None} == expected


@pytest.mark.parametrize("of", ["toy", "paper"])
def test_ours_is_the_cell_that_the_source_has(request, of):
    """Through the files: paired differences, gains of states, ratios of tokens."""
    names = {"toy": ("results", "built"), "paper": ("paper_results", "paper_built")}[of]
    results, built = map(request.getfixturevalue, names)
    found = {one.claim.name: one.finding for one in claims.sheet(results, built)}
    state = results.similarities["caption"][0]["own-minus-shuffled"]["nll_gain"]
    assert found["caption-state-is-read"].cell == state
    (panel,) = (
        panel
        for block in built["ablation"].blocks
        for panel in block.panels
        if "vlmevalkit" in block.origin and panel.title == tables.ablation.DIFFERENCES
    )
    gap, ours = panel.entries["heima-no-recover", "mean"], found["recovering-helps"].cell
    assert ours is not None
    assert (ours.value, ours.low, ours.high) == (-gap.value, -gap.high, -gap.low)
    assert {seed: -value for seed, value in gap.seeds.items()} == ours.seeds
    tokens = [
        results.scores[name][0]["vlmevalkit/mean"]["decoded_tokens"].value
        for name in ("text-cot", "heima")
    ]
    assert found["fewer-tokens"].cell.value == tokens[0] / tokens[1]
    assert found["fewer-tokens"].verdict == claims.SUPPORTED
    tested = of == "paper"
    assert (found["one-token-is-enough"].cell is not None) == tested
    assert (found["a-share-of-tokens-is-no-better"].cell is not None) == tested


def test_one_training_seed_decides_nothing_about_a_method(tmp_path):
    text = fabricated.toy_text().replace("seeds: [42, 43, 44] ", "seeds: [42] ")
    results = tables.read(tmp_path, fabricated.write(tmp_path, params_text=text))
    for one in claims.sheet(results, tables.of_results(results)):
        if one.claim.name not in ("fewer-tokens", "faster"):
            assert one.finding.verdict in (claims.UNDECIDED, claims.NOT_TESTABLE), one.claim.name


def test_the_sheet_is_written_with_reported_ours_n_interval_size_and_verdict(results, built):
    sheet = claims.sheet(results, built)
    plain = json.loads(json.dumps(claims.as_json(sheet, results.params, {"undecided": 3})))
    assert [one["name"] for one in plain["claims"]] == list(BY_NAME)
    assert sum(plain["counts"].values()) == len(sheet)
    text = claims.markdown(sheet, results.params, {"undecided": 3})
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(sheet)
    for line, one in zip(lines, plain["claims"], strict=True):
        _, claim, of, reported, ours, n, size, verdict, _ = (c.strip() for c in line.split("|"))
        assert one["name"] in claim and one["claim"] in claim and one["of"] == of
        assert (reported == "–") == (one["reported"] is None)
        assert size == one["scale"] == "toy"
        assert verdict.strip("*") == one["verdict"]
        if one["ours"] is None:
            assert ours == n == "–"
        else:
            assert int(n) == one["ours"]["n"] and re.search(r"\[-?\d+\.\d+, -?\d+\.\d+\]", ours)
    for one in plain["claims"]:
        assert f"- `{one['name']}` ({one['where']}): {one['verdict']}, {one['why']}." in text
    assert "nan" not in text


def test_the_summary_counts_all(results, built):
    sheet = claims.sheet(results, built)
    plain = claims.as_json(sheet, results.params, tables.counts(tables.comparisons(results)))
    first, second = claims.summary(plain).splitlines()
    assert first.startswith(f"{len(sheet)} claims at the size toy: ")
    assert sum(map(int, re.findall(r"\d+", first.partition(":")[2]))) == len(sheet)
    assert second == "174 cells of the paper: 174 toy: not comparable"
    alone = claims.summary(claims.as_json(sheet, results.params, {}))
    assert len(alone.splitlines()) == 1, "a family of which nothing was published"


CELL = re.compile(r"\n---\n<!-- trackio-cell\n(.*?)\n-->\n", re.DOTALL)


def test_the_logbook_is_complete_and_the_same_again(results, built):
    """Trackio's layout: an index that links to each page, and pages whose cells have a header."""
    sheet = claims.sheet(results, built)
    pages = claims.pages(sheet, results.params, {})
    assert pages == claims.pages(sheet, results.params, {})
    index = pages[".trackio/logbook/pages/index.md"]
    linked = re.findall(r"\(#/([A-Za-z0-9._-]+)\)", index)
    assert [f".trackio/logbook/pages/{slug}/page.md" for slug in linked] == [
        name for name in pages if name.endswith("page.md")
    ]
    assert len(linked) == len(sheet) + 1
    identities = []
    for name, text in pages.items():
        if name.endswith("page.md"):
            assert text.startswith("# ")
            (header,) = CELL.findall(text)
            identities.append(json.loads(header)["id"])
            assert json.loads(header)["type"] == "markdown"
    assert len(set(identities)) == len(identities)
    for one in sheet:
        page = pages[f".trackio/logbook/pages/{one.claim.name.replace('.', '-')}/page.md"]
        assert one.finding.verdict.upper() in page and one.claim.rule in page


def test_the_rules_of_the_documentation_are_those_of_the_code():
    """docs/verdicts.md states each bound, and names each verdict."""
    text = Path(fabricated.ROOT / "docs" / "verdicts.md").read_text(encoding="utf-8")
    from reports.claims import registry
    from reports.tables import reported

    for name, value in (
        ("accuracy", reported.MARGINS["accuracy"]),
        ("reconstruction", reported.MARGINS["reconstruction"]),
        ("least difference", registry.LEAST),
        ("kept accuracy", registry.MARGIN),
        ("least gain of a state", registry.LEAST_NATS),
        ("replaced states", effects.MARGIN),
        ("least share through the states", effects.SHARE),
        ("lost information", registry.LOST_BITS),
    ):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert re.search(rf"(?<![\d.]){value:g}(?![\d.])", line), line
    for verdict in (
        *(claims.SUPPORTED, claims.NOT_SUPPORTED, claims.UNDECIDED, claims.NOT_TESTABLE),
        *(reported.REPRODUCED, reported.HIGHER, reported.LOWER, reported.ONE_SEED),
        *(reported.NOT_RUN, reported.OTHER_METRIC, reported.COUNTED),
    ):
        assert verdict in text, verdict
