"""Results of several profiles side by side: what is kept of one, and where the others show it."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import pytest

from heima.config.profiles import written_out
from heima.results import recorded
from heima.results.files import read_json
from reports import claims, tables
from reports.tables import families, kept, series
from reports.tables.model import Entry
from reports.tables.published import PAPERS
from stages import keep, revision
from tests.reports.conftest import COMMIT


def test_a_block_that_was_kept_is_the_same_but_for_its_source(others):
    for results, record in others.values():
        own = kept.Kept.model_validate(read_json(record))
        assert own.commit == COMMIT and own.seeds == results.params.seeds
        wanted = tables.of_results(results)["benchmarks"].blocks
        for block, original in zip(own.blocks("benchmarks"), wanted, strict=False):
            assert (block.title, block.caption) == (original.title, original.caption)
            for panel in block.panels:
                [same] = [one for one in original.panels if one.title == panel.title]
                assert (panel.rows, dict(panel.digits)) == (same.rows, dict(same.digits))
                for place, entry in panel.entries.items():
                    assert entry == replace(same.entries[place], source=own.source)


def test_the_series_shows_ours_of_the_profile_that_has_it(beside_built, others):
    results, _ = others["toy-thinking"]
    for name, row, variant in (
        ("tokens_per_stage", "4", "heima-4"),
        ("retention_ratio", "0.3", "heima-share"),
    ):
        *ours, theirs = beside_built[name].blocks
        assert [block.origin for block in ours] == [
            f"toy-thinking profile, protocol {protocol}" for protocol in results.params.protocols
        ]
        for block, protocol in zip(ours, results.params.protocols, strict=True):
            assert f"commit {COMMIT}; toy: not comparable" in block.caption
            cells, _ = results.scores[variant]
            entry = block.panels[0].entries[row, "mmstar"]
            assert entry.value == cells[f"{protocol}/mmstar"]["accuracy"].value
            assert entry.source == "reports/kept/toy-thinking.json"
        assert theirs.origin.startswith("paper (")


def test_reported_has_it_beside_the_paper_s_and_stays_without_verdict(beside, others):
    found = {
        (one.panel, one.row, one.column): one
        for one in tables.comparisons(beside)
        if one.panel in series.SERIES
    }
    results, _ = others["toy-thinking"]
    one = found["tokens_per_stage", "4 a section", "ai2d"]
    cells, _ = results.scores["heima-4"]
    assert one.ours.value == cells["vlmevalkit/ai2d"]["accuracy"].value
    assert (one.source, one.verdict) == ("reports/kept/toy-thinking.json", "toy: not comparable")
    assert found["tokens_per_stage", "8 a section", "ai2d"].ours is None
    own = found["tokens_per_stage", "1 a section", "ai2d"]
    assert own.source == "metrics/score/heima.json", "what is here comes before what was kept"


def test_families_stand_in_one_table(beside, beside_built, others):
    *ours, states, theirs = beside_built["families"].blocks
    assert [block.origin.rpartition(" ")[2] for block in ours] == list(beside.params.protocols)
    variants = list(beside.params.variants)
    accuracy, tokens = ours[0].panels
    assert list(accuracy.rows) == [
        f"{family}, {variant}"
        for family in ("toy-mllama", "toy-llava-next")
        for variant in variants
    ]
    results, _ = others["toy-llava-next"]
    for family, found in (("toy-mllama", beside), ("toy-llava-next", results)):
        cells, _ = found.scores["heima"]
        for panel, metric in ((accuracy, "accuracy"), (tokens, "decoded_tokens")):
            value = panel.entries[f"{family}, heima", "mean"].value
            assert value == cells["lmms/mean"][metric].value
        gains, _ = found.similarities["caption"]
        entry = states.panels[0].entries[f"{family}, caption", "shuffled"]
        assert entry.value == gains["own-minus-shuffled"]["nll_gain"].value
    assert "training seeds 42, commit 0123" in ours[0].caption.replace(", judge embedded-rules", "")
    assert {row.partition(", ")[0] for row in theirs.panels[0].rows} == {
        "llava-cot-11b", "llava-next-vicuna-7b"
    }  # fmt: skip


def test_one_family_alone_says_how_another_one_comes_there(built):
    none, theirs = built["families"].blocks
    assert "python -m stages.keep" in none.caption and none.panels == ()
    assert len(theirs.panels[0].rows) == 8


def test_of_a_family_the_record_with_most_seeds_is_taken(others):
    record = kept.Kept.model_validate(read_json(others["toy-llava-next"][1]))
    more = record.model_copy(update={"profile": "more", "seeds": (1, 2, 3)})
    for given in ((record, more), (more, record)):
        assert kept.of_other_families(given, "toy-mllama") == [more]
    assert kept.of_other_families((record,), "toy-llava-next") == []


def test_a_claim_that_was_not_run_here_is_judged_where_it_was(beside, beside_built, others):
    sheet = {one.claim.name: one for one in claims.sheet(beside, beside_built)}
    one = sheet["one-token-is-enough"].finding
    assert one.kept == f"toy-thinking, commit {COMMIT}" and one.cell is not None
    _, record = others["toy-thinking"]
    assert one.verdict == "undecided", "one training seed"
    own = read_json(record)["findings"]["one-token-is-enough"]
    assert one.cell.value == own["ours"]["value"]
    second = sheet["second-family"].finding
    assert second.kept.startswith("toy-llava-next") and second.cell is not None
    assert second.verdict == "not testable here"
    assert sheet["theorem-3.1"].finding.kept == "", "nobody has measured it"
    assert sheet["fewer-tokens"].finding.kept == "", "what is here comes first"
    plain = claims.as_json(tuple(sheet.values()), beside.params, {})["claims"]
    assert {c["name"] for c in plain if c["kept"]} == {
        "one-token-is-enough", "a-share-of-tokens-is-no-better", "second-family"
    }  # fmt: skip
    text = claims.markdown(tuple(sheet.values()), beside.params, {})
    assert f"points (toy-thinking, commit {COMMIT})" in text


def test_a_profile_reads_neither_its_own_record_nor_one_of_another_size(
    tmp_path, results, others, paper_results
):
    root = shutil.copytree(others["toy-thinking"][0].root, tmp_path / "own")
    again = tables.read(root, others["toy-thinking"][0].params)
    assert again.kept == (), "its own record lies there"
    problems: list[str] = []
    assert PAPERS and kept.read_kept(root, "paper", "paper", problems) == ()
    assert kept.read_kept(root, "toy", "toy", problems) and problems == []
    assert kept.read_kept(tmp_path, "toy", "toy", problems) == () and problems == []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda record: "not JSON", "Expecting value"),
        (lambda record: "[]", "the file"),
        (lambda record: json.dumps(record | {"commit": "unknown"}), "commit"),
        (lambda record: json.dumps({k: v for k, v in record.items() if k != "seeds"}), "seeds"),
        (lambda record: json.dumps(record | {"more": 1}), "more"),
        (lambda record: json.dumps(record | {"tables": {"benchmarks": [{}]}}), "tables.benchmarks"),
        (lambda record: json.dumps(record | {"scale": "large"}), "scale"),
        (lambda record: json.dumps(record | {"profile": "another"}), "name it another.json"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path, others, damage, named):
    record = read_json(others["toy-thinking"][1])
    (tmp_path / kept.FOLDER).mkdir(parents=True)
    (tmp_path / kept.FOLDER / "toy-thinking.json").write_text(damage(record), encoding="utf-8")
    problems: list[str] = []
    assert kept.read_kept(tmp_path, "toy", "toy", problems) == ()
    [problem] = problems
    assert "reports/kept/toy-thinking.json" in problem and named in problem
    assert "\n" not in problem


def git(folder, *words: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_a_commit_is_named_only_where_it_has_this_code_and_these_parameters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "toy.yaml").write_text("seed: 42\nseeds: [42]\n", encoding="utf-8")
    (profiles / "one.yaml").write_text("base: toy\nseeds: [43]\n", encoding="utf-8")
    (tmp_path / "code.py").write_text("X = 1\n", encoding="utf-8")
    (tmp_path / "params.yaml").write_text("seed: 42\nseeds: [42]\n", encoding="utf-8")
    with pytest.raises(revision.RevisionError, match="no git repository"):
        revision.named("toy")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    head = revision.named("toy")
    assert len(head) == 12 and revision.commit("toy") == head
    with pytest.raises(revision.RevisionError, match=r"not those of profiles/one\.yaml"):
        revision.named("one")
    # As stages.profile puts it there: params.yaml is another than the commit's, and known.
    (tmp_path / "params.yaml").write_text(written_out(profiles / "one.yaml"), encoding="utf-8")
    assert revision.named("one") == head
    (tmp_path / "notes.txt").write_text("no code", encoding="utf-8")
    assert revision.named("one") == head
    (tmp_path / "code.py").write_text("X = 2\n", encoding="utf-8")
    assert revision.commit("one") == f"{head}, changed since (code.py)"
    with pytest.raises(revision.RevisionError, match="changed since"):
        revision.named("one")


def test_what_is_not_finished_is_not_kept(tmp_path, params, monkeypatch):
    monkeypatch.setattr(keep.config, "load_resolved", lambda: params)
    monkeypatch.setattr(keep.revision, "named", lambda profile: COMMIT)
    monkeypatch.setattr(keep, "outdated", lambda: ["score@heima"])
    with pytest.raises(SystemExit, match=r"score@heima would run again: run `make repro` first"):
        keep.main()
    monkeypatch.setattr(keep, "outdated", list)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"nothing was kept:\nmetrics/score/"):
        keep.main()


def pipeline(root) -> None:
    """One stage that has made every metrics file below `root`."""
    made = sorted(path.relative_to(root).as_posix() for path in root.glob("metrics/**/*.json"))
    outs = [{"path": path, "md5": "0" * 32} for path in (*made, "models")]
    (root / "dvc.yaml").write_text("stages: {all: {cmd: make}}\n", encoding="utf-8")
    (root / "dvc.lock").write_text(json.dumps({"stages": {"all": {"outs": outs}}}), "utf-8")


@pytest.mark.parametrize("own", [True, False], ids=["of the root", "of another profile"])
def test_a_record_is_kept_where_git_has_none_at_the_root(
    tmp_path, others, monkeypatch, capsys, own
):
    results, _ = others["toy-thinking"]
    root = shutil.copytree(results.root, tmp_path / "root")
    pipeline(root)
    here = (root / "params.yaml").read_text(encoding="utf-8")
    if not own:
        (root / "params.yaml").write_text("profile: toy\n", encoding="utf-8")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "all")
    (root / "params.yaml").write_text(here, encoding="utf-8")
    monkeypatch.chdir(root)
    monkeypatch.setattr(keep.config, "load_resolved", lambda: results.params)
    monkeypatch.setattr(keep.revision, "named", lambda profile: COMMIT)
    monkeypatch.setattr(keep, "outdated", list)
    keep.main()
    told, record = capsys.readouterr().out, root / "reports/toy-thinking/record.json"
    assert record.exists() is not own
    if own:
        assert "dvc.lock, metrics/" in told
        return
    assert "reports/toy-thinking/record.json" in told
    (root / "params.yaml").write_text("profile: toy\n", encoding="utf-8")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "kept")
    (root / "params.yaml").write_text(here, encoding="utf-8")
    found = recorded.at_revision(root, "HEAD", "toy-thinking")
    rerun = recorded.in_folder(root, ["all"])
    assert (
        found == rerun and len(found.metrics) > 10 and found.outs == {"all": {"models": "0" * 32}}
    )

    before = record.read_bytes()
    (root / "metrics/probe/of-the-toy.json").parent.mkdir(exist_ok=True)
    (root / "metrics/probe/of-the-toy.json").write_text("{}", encoding="utf-8")
    keep.main()
    assert "not recorded: metrics/probe/of-the-toy.json (left over" in capsys.readouterr().out
    assert record.read_bytes() == before


def test_entries_without_an_interval_are_no_cells():
    with pytest.raises(ValueError, match="needs a number with its interval"):
        Entry(1.0, "f").cell()
    assert families.GAINS.endswith("control")
