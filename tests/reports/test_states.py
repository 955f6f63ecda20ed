"""What stands beside audits: Theorem 3.1, states and their readers, chains."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from heima import config
from reports import claims, tables
from reports.page import cells
from reports.tables import kept, states, theorem
from reports.tables.model import Entry, Label
from tests import fabricated
from tests.reports.conftest import COMMIT

NOT_IN_TABLES = ("rewrite.json", "predict", "teach", "distill", "interpret")
"""What tables read no cell of, or (interpret) losses that other profiles have alike."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("audited")
    text = config.written_out(fabricated.ROOT / "profiles" / "toy-audit.yaml")
    fabricated.write(root, params_text=text)
    return root


@pytest.fixture(scope="module")
def audited(folder):
    return tables.read(folder, config.load(folder / "params.yaml"))


@pytest.fixture(scope="module")
def made(audited):
    return tables.of_results(audited)


def panel(table, title):
    return next(one for one in table.blocks[0].panels if one.title == title)


def test_the_theorem_has_a_table_in_every_form_and_a_verdict(audited, made):
    table = made["theorem"]
    gap = panel(table, theorem.SAVES).entries[theorem.GAP, theorem.BITS]
    assert gap.value == pytest.approx(1.25, abs=0.1) and gap.source == theorem.METRICS
    assert len(gap.seeds) == 3
    for render in (tables.markdown, tables.latex, tables.comma_separated):
        assert f"{gap.value:.2f}" in render(table)
    compact = tables.compact_files({"theorem": table}, audited.params)
    assert compact and all("gap, states" in text for text in compact.values())
    sheet = {one.claim.name: one for one in claims.sheet(audited, made)}
    found = sheet["theorem-3.1"].finding
    assert (found.verdict, found.source) == ("not supported", theorem.METRICS)
    assert found.cell.value == gap.value
    assert found.why.endswith("; predicted by predictor in all formats")


def test_states_are_means_over_training_seeds_with_the_files_of_all(audited, made):
    table = made["states"]
    shown = panel(table, states.GEOMETRY)
    assert "planted-positive, thinking-1" in shown.rows
    entry = shown.entries["recover, thinking-1", "sensitivity"]
    assert entry.value == pytest.approx(0.43) and list(entry.seeds) == [42, 43, 44]
    assert entry.sd == pytest.approx(0.01) and entry.low is None
    assert entry.source.split(" + ") == [states.file_of("recover", seed) for seed in (42, 43, 44)]
    assert isinstance(shown.entries["recover, prompt", "sensitivity"], Label), "it has none"
    probed = panel(table, states.SELECTIVITY)
    assert probed.rows[0] == "p3, colour" and list(probed.digits) == ["prompt", "thinking-1"]
    assert probed.entries["p3, colour", "prompt"].value == 50.0
    assert panel(table, states.BITS).entries["p3, colour", "uniform"].value == 2.0
    chains = panel(table, states.CHAINS)
    area = chains.entries["own", states.AREA]
    assert isinstance(area, Entry) and 0 < area.low < area.value < area.high < 1
    assert chains.entries["wrong-fact", "right"].n == 19, "a question that has none"
    assert isinstance(chains.entries["filler", states.AREA], Label)
    for render in (tables.markdown, tables.latex, tables.comma_separated):
        assert "planted-negative, thinking-1" in render(table)


def test_the_caption_of_audits_says_whether_to_trust_them(made):
    caption = made["audit"].blocks[0].caption
    assert caption.endswith("must be 0."), "the fabricated controls read what was not planted"
    assert "The audit is not to be trusted: " in caption


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("theorem.json", "metrics/theorem.json is missing: run `dvc repro theorem`"),
        ("examine/p3/43.json", "43.json is missing: run `dvc repro examine@p3-43`"),
        ("truncate/text-cot.json", "is missing: run `dvc repro truncate@text-cot`"),
    ],
)
@pytest.mark.parametrize("other", [False, True], ids=["missing", "of another profile"])
def test_what_is_missing_or_of_another_profile_is_named(folder, audited, file, problem, other):
    path = folder / "metrics" / file
    before = path.read_text(encoding="utf-8")
    problems: list[str] = []
    try:
        if other:
            content = json.loads(before)
            content["provenance"]["profile"] = "paper"
            path.write_text(json.dumps(content), encoding="utf-8")
        else:
            path.unlink()
        theorem.read_theorem(folder, audited.params, problems)
        states.read_examined(folder, audited.params, problems)
    finally:
        path.write_text(before, encoding="utf-8")
    (found,) = problems
    assert ("is of the profile paper" if other else problem) in found


def test_every_file_that_tables_read_is_of_this_profile(folder, audited, tmp_path):
    """Whatever is read of `metrics/`, nothing of another profile becomes a number."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    read = [
        path.relative_to(copy).as_posix()
        for path in sorted((copy / "metrics").rglob("*.json"))
        if path.relative_to(copy).parts[1] not in NOT_IN_TABLES
    ]
    for name in read:
        content = json.loads((copy / name).read_text(encoding="utf-8"))
        content["provenance"]["profile"] = "paper"
        (copy / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(tables.TableError) as caught:
        tables.read(copy, audited.params)
    said = [
        f"{name} is of the profile paper, params.yaml is toy-audit: run `dvc repro`"
        for name in read
    ]
    assert len(read) > 20 and [one for one in said if one not in str(caught.value)] == []


def test_what_was_measured_is_kept_and_shown_beside_what_is_here(audited, made, results):
    """Every block of the three tables, word for word; the toy has an audit of its own alone."""
    blocks = tables.to_keep(audited)
    assert "theorem" not in tables.to_keep(results), "no sentence is kept that nothing is there"
    record = kept.Kept(
        profile="toy-audit",
        family=audited.params.family,
        published_family=None,
        scale="toy",
        commit=COMMIT,
        seeds=audited.params.seeds,
        judge="embedded-rules",
        provenance=kept.KeptProvenance(code={}, params="", versions={}, machine={}),
        tables=blocks,
        findings={},
    )
    record = kept.Kept.model_validate_json(record.model_dump_json(exclude_defaults=True))
    here = tables.of_results(results)
    beside = tables.of_results(replace(results, kept=(record,)))
    for name in ("audit", "theorem", "states"):
        own, theirs = beside[name].blocks
        (original,) = made[name].blocks
        assert own == here[name].blocks[0], "what is here comes first, and stays as it is"
        assert theirs.panels and theirs.title == f"{original.title}, kept"
        assert f"profile toy-audit, made by the code of commit {COMMIT}" in theirs.caption
        for shown, measured in zip(theirs.panels, original.panels, strict=True):
            assert (shown.title, shown.rows) == (measured.title, measured.rows)
            for place, entry in shown.entries.items():
                assert entry == replace(measured.entries[place], source=record.source)
        for render in (tables.markdown, tables.latex, tables.comma_separated):
            assert "toy-audit" in render(beside[name])
    compact = [tables.compact_files(one, results.params) for one in (beside, here)]
    assert compact[0] == compact[1]


def test_curves_end_where_nothing_is_left_out(folder, audited):
    """Of thinking tokens, whose last point is known, and of text-CoT's chain as it was measured."""
    from reports.figures import audit, style
    from reports.figures.inputs import Inputs

    with style.applied():
        drawn = audit.truncation_curves(Inputs(folder, audited.params))
        axes = drawn.axes[0]
        found = {one.get_label(): one.lines[0].get_xydata() for one in axes.containers}
        ways = audit.closed_ways(Inputs(folder, audited.params))
    assert found["recover"][-1].tolist() == [100, 100] and len(found["recover"]) == 3
    assert found["recover"][0][0] == pytest.approx(100 / 3)
    assert found["text-cot, its text"][:, 0].tolist() == [0, 25, 50, 75, 100]
    left, right = ways.axes
    assert [one.get_text() for one in left.get_xticklabels()] == ["0-1", "2-4", "all"]
    labels = {one.get_label() for one in right.containers}
    assert set(audited.params.audit.checkpoints) <= labels


def test_what_is_not_measured_is_said(results):
    made = tables.of_results(results)
    for name, words in (("theorem", "not measured here"), ("states", "names none")):
        assert words in tables.markdown(made[name]) and tables.latex(made[name])
        assert not tables.compact_files({name: made[name]}, results.params)


def test_the_page_knows_what_made_each_number(folder, audited, made):
    """Files of a checkpoint's training seeds lie in its folder."""
    sources = cells.cells_of(folder, audited.params, made).sources
    files = {file for one in sources for file in one["file"].split(" + ")}
    assert {"metrics/examine/p3/42.json", "metrics/theorem.json"} <= files
    for one in sources:
        assert one["code"] or one["file"].partition("/")[0] not in ("metrics", "scores"), one
