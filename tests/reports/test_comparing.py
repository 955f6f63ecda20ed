"""Two results beside each other: the tables' numbers, counts by hand, and no question lost."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest
import yaml

from eval import gateway
from heima import config
from heima.results.files import read_jsonl, write_jsonl
from reports import comparing
from reports.comparing.model import Run
from reports.comparing.sides import Place, side
from reports.tables.ablation import DIFFERENCES
from stages import compare as stage


def one(root, params, a, b, benchmark=None):
    [found] = list(comparing.pairs(a, b, params, root, benchmark))
    return comparing.compare(*found, params)


def groups(found):
    return {(group.protocol, group.benchmark): group for group in found.groups}


def test_differences_are_those_of_the_ablations_table(root, params, built):
    """Every cell, with its interval, training seeds and verdict; turned round its negative."""
    for block in built["ablation"].blocks:
        if not block.origin.startswith("toy profile"):
            continue
        protocol = block.origin.rpartition(" ")[2]
        panel = next(panel for panel in block.panels if panel.title == DIFFERENCES)
        for variant in panel.rows:
            found = groups(one(root, params, variant, "heima"))
            back = groups(one(root, params, "heima", variant))
            for column in panel.digits:
                entry = panel.entries[variant, column]
                ours = found[protocol, column].difference
                theirs = back[protocol, column].difference
                shown = (ours.value, ours.low, ours.high, *ours.seeds.values())
                wanted = (entry.value, entry.low, entry.high, *entry.seeds.values())
                assert shown == pytest.approx(wanted, abs=1e-9)
                assert (ours.n, ours.n_failed) == (entry.n, entry.n_failed)
                assert (-theirs.value, -theirs.high, -theirs.low) == pytest.approx(shown[:3])


def test_flips_and_counts_are_those_counted_by_hand(root, params):
    found = one(root, params, "heima", "answer-only")
    rows = {
        name: {
            (r["training_seed"], r["protocol"], r["seed"], r["benchmark"], r["doc_id"]): r["score"]
            for r in read_jsonl(root / "scores" / f"{name}.jsonl")
        }
        for name in ("heima", "answer-only")
    }
    wanted = {
        (*key, "A" if score > rows["answer-only"][key] else "B")
        for key, score in rows["heima"].items()
        if score != rows["answer-only"][key]
    }
    flips = {
        (f.training_seed, f.protocol, f.seed, f.benchmark, f.docs[0], f.right) for f in found.flips
    }
    assert flips == wanted and len(found.flips) == len(wanted) > 100
    for (protocol, benchmark), group in groups(found).items():
        for run in group.runs:
            seeds = run.training_seed, run.seed
            own = [f for f in found.flips if (f.training_seed, f.seed) == seeds]
            own = [f for f in own if f.protocol == protocol and benchmark in (f.benchmark, "mean")]
            assert (run.only_a, run.only_b) == tuple(
                sum(f.right == name for f in own) for name in "AB"
            )
            total = 20 * (len(params.benchmarks) if benchmark == "mean" else 1)
            assert run.both + run.only_a + run.only_b + run.neither == total
    for flip in found.flips[:50]:
        file, line = flip.where[0].rsplit(":", 1)
        assert file == (
            f"predictions/heima/{flip.training_seed}/{flip.protocol}/{flip.seed}/"
            f"{flip.benchmark}.jsonl"
        )
        assert int(line) == flip.docs[0] + 1


def exact(b: int, c: int) -> float:
    """McNemar's p by the sum over all ways in which b + c flips fall."""
    flips = b + c
    tail = sum(Fraction(math.comb(flips, k), 2**flips) for k in range(min(b, c) + 1))
    return float(min(Fraction(1), 2 * tail))


@pytest.mark.parametrize(("b", "c"), itertools.product((0, 1, 3, 8, 41), repeat=2))
def test_the_test_is_exact(b, c):
    run = Run(42, 42, 5, b, c, 7)
    assert run.p == pytest.approx(exact(b, c), abs=1e-12)
    assert run.p == Run(42, 42, 0, c, b, 0).p


def test_what_is_the_same_does_not_differ(root, params):
    found = one(root, params, "heima", "heima")
    assert not found.flips and not found.unmatched
    for group in found.groups:
        assert (group.difference.value, group.difference.low, group.difference.high) == (0, 0, 0)
        assert all(run.p == 1 for run in group.runs)


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "other")


def edit(folder, variant, change):
    path = folder / "scores" / f"{variant}.jsonl"
    write_jsonl(path, [row for row in map(change, read_jsonl(path)) if row is not None])


def test_questions_on_one_side_alone_are_counted_and_named(root, params, copy):
    def change(row):
        if row["benchmark"] == "ai2d" and row["doc_id"] >= 15:
            return None
        if row["benchmark"] == "mmvet":
            return None
        if row["benchmark"] == "mmstar" and row["doc_id"] < 2:
            return {**row, "image": "another"}
        if row["benchmark"] == "mathvista" and row["doc_id"] == 4 and row["training_seed"] == 43:
            return None
        return row

    edit(copy, "heima", change)
    found = one(root, params, "heima", f"{copy}:heima")
    told: dict[tuple[str, str, str], set[str]] = {}
    for item in found.unmatched:
        key = item["side"], item["benchmark"], item["why"]
        told.setdefault(key, set()).add(item["unit"])
    assert told == {
        ("A", "ai2d", "not on the other side"): {str(n) for n in range(15, 20)},
        ("A", "mmvet", "not on the other side"): {str(n) for n in range(20)},
        ("A and B", "mmstar", "asked about another image"): {"0", "1"},
        ("A and B", "mathvista", "not in every run of both sides"): {"4"},
    }
    counted = groups(found)
    assert counted["lmms", "ai2d"].difference.n == 3 * 15
    assert counted["lmms", "mmstar"].difference.n == 3 * 18
    assert counted["lmms", "mathvista"].difference.n == 3 * 19
    shown = comparing.write([found], "text", 3)
    assert f"{len(found.unmatched)} questions were not compared" in shown
    assert "5 of ai2d (lmms) in A, not on the other side: 15, 16, 17, 18, 19" in shown
    assert json.loads(comparing.write([found], "json", 0))["unmatched"] == found.unmatched


def test_other_training_seeds_are_averaged_and_common_ones_paired(root, params, copy):
    edit(copy, "heima", lambda row: {**row, "training_seed": row["training_seed"] + 10})
    found = one(root, params, "heima", f"{copy}:heima")
    [note] = [note for note in found.notes if "no training seed in common" in note]
    assert "A has 42, 43, 44, B has 52, 53, 54" in note
    for group in found.groups:
        assert group.difference.value == pytest.approx(0) and len(group.difference.seeds) == 1
    edit(copy, "heima", lambda row: {**row, "training_seed": row["training_seed"] - 9})
    found = one(root, params, "heima", f"{copy}:heima")
    assert [note for note in found.notes if note.startswith("training seeds compared: 43, 44 (")]
    assert all(set(group.difference.seeds) == {43, 44} for group in found.groups)


def test_a_model_of_one_seed_meets_every_seed(root, params):
    found = groups(one(root, params, "heima", "text-cot"))["lmms", "ai2d"]
    assert [run.training_seed for run in found.runs] == [42, 43, 44]
    assert found.a.n == found.difference.n == 60 and found.b.n == 20


def test_places_are_compared_variant_by_variant(root, params, copy):
    text = (copy / "params.yaml").read_text(encoding="utf-8")
    (copy / "params.yaml").write_text(text.replace("  base: {model: base}\n", ""), encoding="utf-8")
    found = list(comparing.pairs(str(root), str(copy), params, root, None))
    assert [a.variant for a, _ in found] == [b.variant for _, b in found]
    assert [a.variant for a, _ in found] == [name for name in params.variants if name != "base"]
    assert found[0][0].notes == ["not compared, in one of both only: base"]
    # A variant beside a place is looked up there.
    [(a, b)] = comparing.pairs("one-shot", str(copy), params, root, None)
    assert (a.label, b.label) == ("heima-no-progressive", f"{copy}:heima-no-progressive")
    assert a.notes == ["one-shot is the checkpoint of the variant heima-no-progressive"]


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("heima", "nonesuch", r"'nonesuch' is no variant or checkpoint here \(variants base, .*"),
        ("heima", "{copy}:nonesuch", r".*/other has no 'nonesuch', only variants base, text-cot"),
        ("{copy}", "{copy}/metrics", r".*/other has 7 variants: name one of them as /.*:base"),
        ("heima", "{copy}/metrics", r".*/metrics is no reproduction \(no params.yaml\)"),
        ("heima", "{copy}/odd.xlsx", r".* names no benchmark; say --benchmark mmstar, "),
    ],
)
def test_a_wrong_name_is_answered_in_a_sentence(root, params, copy, a, b, said):
    (copy / "odd.xlsx").touch()
    with pytest.raises(comparing.CompareError, match=said) as raised:
        one(root, params, a.format(copy=copy), b.format(copy=copy))
    assert "\n" not in str(raised.value)


def test_damaged_rows_are_named(root, params, copy):
    edit(copy, "heima", lambda row: {key: row[key] for key in row if key != "unit"})
    with pytest.raises(comparing.CompareError, match=r"scores/heima.jsonl, line 1 lacks unit"):
        one(root, params, "heima", f"{copy}:heima")


def test_without_samples_the_committed_numbers_are_compared(root, params, copy, built):
    """A fresh clone: metrics and tables, with one sentence on what is missing."""
    (copy / "reports/toy/tables").mkdir(parents=True)
    from reports import tables

    text = tables.comma_separated(built["ablation"])
    (copy / "reports/toy/tables/ablation.csv").write_text(text, encoding="utf-8")
    whole = groups(one(copy, params, "heima", "answer-only"))
    for name in ("heima", "answer-only", "heima-no-recover"):
        (copy / "scores" / f"{name}.jsonl").unlink()
    found = one(copy, params, "heima", "answer-only")
    assert not found.paired and not found.flips
    assert "scores/heima.jsonl and scores/answer-only.jsonl are neither here" in found.notes[0]
    for place, group in groups(found).items():
        full = whole[place].difference
        shown = group.difference
        assert (shown.value, shown.low, shown.high) == pytest.approx(
            (full.value, full.low, full.high), abs=1e-9
        )
        assert shown.seeds == pytest.approx(full.seeds)
    # Of two others the table has no difference: the seeds' own, and their t interval.
    found = one(copy, params, "heima-no-recover", "answer-only")
    for group in found.groups:
        assert group.difference.value == pytest.approx(group.a.value - group.b.value)
        assert group.difference.low <= group.difference.value <= group.difference.high
    assert "McNemar" in comparing.write([found], "text", 3)


def test_a_revision_is_what_git_and_dvc_hold(root, params, tmp_path):
    """Committed and cached, then changed here: the revision keeps the old scores."""
    here = shutil.copytree(root, tmp_path / "repository")
    (here / "dvc.yaml").write_text(
        "stages:\n  score:\n    foreach: [heima, base]\n    do:\n      cmd: echo ${item}\n"
        "      outs: ['scores/${item}.jsonl']\n",
        encoding="utf-8",
    )
    (here / ".gitignore").write_text("/scores/\n", encoding="utf-8")
    dvc = [sys.executable, "-m", "dvc"]
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (
        ["git", "init", "--quiet"],
        [*dvc, "init", "--quiet"],
        [*dvc, "commit", "--quiet", "--force"],
        ["git", "add", "."],
        [*git, "commit", "--quiet", "--message", "first"],
    ):
        subprocess.run(words, cwd=here, check=True, capture_output=True)
    edit(here, "heima", lambda row: {**row, "score": 0.0})
    found = groups(one(here, params, "HEAD:heima", "heima"))
    for group in found.values():
        assert group.b.value == 0 and group.difference.value == group.a.value > 0
    with pytest.raises(comparing.CompareError, match="HEAD has no 'nonesuch'"):
        one(here, params, "HEAD:nonesuch", "heima")
    # An experiment of DVC's is a commit that git knows below a longer name.
    name = "refs/exps/0a/1b2c3d4e5f/odd-name"
    subprocess.run(["git", "update-ref", name, "HEAD"], cwd=here, check=True)
    assert groups(one(here, params, "odd-name:heima", "HEAD:heima"))["lmms", "ai2d"].runs
    # Gone from here, the file is that of dvc.lock again.
    (here / "scores" / "heima.jsonl").unlink()
    assert not one(here, params, "HEAD:heima", "heima").flips
    shutil.rmtree(here / ".dvc" / "cache")
    found = one(here, params, "HEAD:heima", "heima")
    assert "both are one file" in found.notes[1] and not found.paired


def test_flips_link_to_the_page_where_it_shows_them(params, copy):
    here = copy
    few = (here / "params.yaml").read_text(encoding="utf-8")
    (here / "params.yaml").write_text(
        re.sub(r"page: \{samples: \d+\}", "page: {samples: 4}", few), encoding="utf-8"
    )
    (here / "reports/toy").mkdir(parents=True, exist_ok=True)
    (here / "reports/toy/index.html").touch()
    found = one(here, params, "heima", "base")
    flips = comparing.as_json(found)["flips"]
    for flip in flips:
        doc = flip["docs"][0]
        wanted = (
            f"reports/toy/index.html#questions?protocol={flip['protocol']}&benchmark="
            f"{flip['benchmark']}&doc={doc}&a=heima&b=base"
        )
        assert flip["page"] == ([wanted] if doc in (0, 5, 10, 15) else [])
    assert any(flip["page"] for flip in flips)
    for form in ("text", "md"):
        shown = comparing.write([found], form, 2)
        assert "reports/toy/index.html#questions?protocol=lmms" in shown
        assert "more: --flips all, or --json" in shown
    lines = comparing.write([found], "md", None).splitlines()
    targets = [t for line in lines for t in re.findall(r"\]\(([^)]+)\)", line)]
    assert len([t for t in targets if "#L" in t]) == 2 * len(found.flips)


def test_names_in_markdown_stay_text():
    from reports.comparing import writing

    assert writing._escaped("a|b<c>_d_") == r"a\|b\<c\>\_d\_"
    assert writing._target("a folder/x (1).xlsx:7") == "a%20folder/x%20%281%29.xlsx#L7"


def test_places_are_asked_for_what_they_have(root):
    place = Place(root)
    assert place.variant("recover") == "heima" and place.variant("p3") == "heima-no-recover"
    assert place.variant("nonesuch") is None
    assert place.fetch("scores/nonesuch.jsonl") is None
    with pytest.raises(comparing.CompareError, match=r"has neither scores/nonesuch\.jsonl nor"):
        side(place, "nonesuch")


# Files of others.

MMSTAR = [
    {"doc_id": n, "average": {"score": float(n % 3 == 0)}, "filtered_resps": ["B"]}
    for n in range(20)
]


def test_samples_of_lmms_eval_meet_ours_by_their_place(root, params, tmp_path):
    file = tmp_path / "20261128_120000_samples_mmstar.jsonl"
    write_jsonl(file, MMSTAR)
    found = one(root, params, "heima", str(file))
    group = groups(found)["lmms", "mmstar"]
    assert group.b.value == pytest.approx(100 * 7 / 20) and len(group.runs) == 3
    assert {item["benchmark"] for item in found.unmatched} >= {"ai2d", "mmvet"}
    assert found.flips[0].where[1].startswith(f"{file}:")
    write_jsonl(file, MMSTAR[:5] + MMSTAR[:1])
    with pytest.raises(comparing.CompareError, match="more than one sample of a doc_id"):
        one(root, params, "heima", str(file))
    write_jsonl(file, [{"doc_id": 0, "average": {}}])
    with pytest.raises(comparing.CompareError, match="holds no score of mmstar"):
        one(root, params, "heima", str(file))
    other = file.with_name("x_samples_other_task.jsonl")
    write_jsonl(other, MMSTAR)
    with pytest.raises(comparing.CompareError, match="'other_task' is that of no benchmark"):
        one(root, params, "heima", str(other))
    assert groups(one(root, params, "heima", str(other), "mmstar"))


def test_a_folder_of_lmms_eval_has_a_file_a_task(root, params, tmp_path):
    folder = tmp_path / "results" / "model"
    folder.mkdir(parents=True)
    write_jsonl(folder / "1_samples_mmstar.jsonl", MMSTAR)
    ai2d = [{"doc_id": n, "exact_match": float(n < 5), "filtered_resps": ["A"]} for n in range(20)]
    write_jsonl(folder / "1_samples_ai2d.jsonl", ai2d)
    found = groups(one(root, params, "heima", str(folder.parent)))
    assert set(found) == {("lmms", "mmstar"), ("lmms", "ai2d"), ("lmms", "mean")}
    assert found["lmms", "ai2d"].b.value == 25
    write_jsonl(folder / "2_samples_ai2d.jsonl", ai2d)
    with pytest.raises(comparing.CompareError, match="are both of ai2d: name one of them"):
        one(root, params, "heima", str(folder.parent))


def scored(path: Path, values: dict[int, object], column: str = "hit") -> Path:
    table = pd.DataFrame({"index": list(values), "prediction": "B", column: list(values.values())})
    if path.suffix == ".tsv":
        table.to_csv(path, sep="\t", index=False)
    else:
        table.to_excel(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".xlsx", ".tsv"])
def test_scored_files_of_vlmevalkit_meet_by_their_index(root, params, tmp_path, suffix):
    a = scored(tmp_path / f"one_AI2D_TEST{suffix}", {n: int(n < 8) for n in range(12)})
    b = scored(tmp_path / f"two_AI2D_TEST{suffix}", {n: n % 2 == 0 for n in range(2, 14)}, "score")
    found = one(root, params, str(a), str(b))
    group = groups(found)["vlmevalkit", "ai2d"]
    [run] = group.runs
    assert (run.both, run.only_a, run.only_b, run.neither) == (3, 3, 2, 2)
    assert group.difference.value == pytest.approx(10) and run.p == 1
    assert sorted((item["side"], item["unit"]) for item in found.unmatched) == [
        ("A", "0"), ("A", "1"), ("B", "12"), ("B", "13"),
    ]  # fmt: skip
    # A line of names comes first.
    first = min(found.flips, key=lambda flip: int(flip.unit))
    assert first.unit == "3" and first.where == (f"{a}:5", f"{b}:3")


def test_rotations_are_one_question(root, params, tmp_path):
    """Right is only what is right in every order of its options."""
    right = {1: 1, 1_000_001: 1, 2: 1, 1_000_002: 0, 3: 0, 1_000_003: 0}
    a = scored(tmp_path / "one_MMBench_DEV_EN.xlsx", right)
    b = scored(tmp_path / "two_MMBench_DEV_EN.xlsx", {**right, 2: 0, 1_000_003: 1, 3: 1})
    found = groups(one(root, params, str(a), str(b)))["vlmevalkit", "mmbench"]
    assert (found.a.value, found.b.value) == (pytest.approx(100 / 3), pytest.approx(200 / 3))
    assert found.difference.n == 3


@pytest.mark.parametrize("value", ["", "x", 2, -1])
def test_a_row_without_a_score_is_named(root, params, tmp_path, value):
    file = scored(tmp_path / "one_AI2D_TEST.xlsx", {0: 1, 7: value})
    with pytest.raises(comparing.CompareError, match=r"1 rows without .*\n  row 3: index '7'"):
        one(root, params, str(file), str(file))


def test_unscored_predictions_are_scored_by_vlmevalkits_rules(root, params, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for name in gateway._TASKS_THAT_KEEP_THE_URL:
        # Another test may have imported them, which a command of its own has not.
        monkeypatch.delitem(sys.modules, name, raising=False)
    rows = [
        {
            "index": n, "question": "Which?", "A": "a cat", "B": "a dog", "answer": "B",
            "prediction": "B" if n < 3 else "A", "category": "pets",
        }
        for n in range(4)
    ]  # fmt: skip
    a, b = tmp_path / "one_AI2D_TEST.xlsx", tmp_path / "two_AI2D_TEST.tsv"
    pd.DataFrame(rows).to_excel(a, index=False)
    pd.DataFrame([{**row, "prediction": "a dog"} for row in rows]).to_csv(b, sep="\t", index=False)
    found = one(root, params, str(a), str(b))
    group = groups(found)["vlmevalkit", "ai2d"]
    assert (group.a.value, group.b.value) == (75, 100)
    assert any("holds no scores: its predictions were scored here" in note for note in found.notes)


def test_files_of_two_kinds_meet_by_the_names_of_the_data(root, params, tmp_path, monkeypatch):
    """lmms-eval counts its rows, VLMEvalKit names them: the benchmark's data tells which."""
    from reports.comparing import others

    monkeypatch.setattr(others.score, "load", lambda *_: [{"index": 100 + n} for n in range(20)])
    write_jsonl(tmp_path / "1_samples_mmstar.jsonl", MMSTAR)
    b = scored(tmp_path / "m_MMStar_openai_result.xlsx", {100 + n: 1 for n in range(5, 25)})
    found = one(root, params, str(tmp_path / "1_samples_mmstar.jsonl"), str(b))
    assert "A is lmms, B is vlmevalkit" in " ".join(found.notes)
    [group] = found.groups
    assert group.protocol == "lmms / vlmevalkit" and group.difference.n == 15
    assert {item["unit"] for item in found.unmatched if item["side"] == "A"} == {
        str(100 + n) for n in range(5)
    }


def test_without_the_data_such_files_cannot_be_joined(root, params, tmp_path):
    write_jsonl(tmp_path / "1_samples_mmstar.jsonl", MMSTAR)
    b = scored(tmp_path / "m_MMStar.xlsx", {0: 1})
    with pytest.raises(comparing.CompareError, match="run `dvc repro prepare`"):
        one(root, params, str(tmp_path / "1_samples_mmstar.jsonl"), str(b))


def test_the_command_answers_in_a_line(root, params, monkeypatch, capsys):
    resolved = yaml.safe_dump(config.resolved(params), sort_keys=False)
    (root / "resolved.yaml").write_text(resolved, encoding="utf-8")
    monkeypatch.chdir(root)
    for words, said in (
        (["heima", "nonesuch"], "error: 'nonesuch' is no variant or checkpoint here"),
        (["heima", "HEAD~1:x:y"], "error: 'HEAD~1:x:y' is no variant or checkpoint here"),
    ):
        monkeypatch.setattr(sys, "argv", ["compare", *words])
        with pytest.raises(SystemExit, match=said) as ended:
            stage.main()
        assert str(ended.value).count("\n") == 0
    monkeypatch.setattr(sys, "argv", ["compare", "heima", "recover", "--json"])
    stage.main()
    assert json.loads(capsys.readouterr().out)["groups"]
    monkeypatch.setattr(sys, "argv", ["compare", "heima", "base", "--flips", "few"])
    with pytest.raises(SystemExit):
        stage.main()
    assert "'few' is neither a number nor all" in capsys.readouterr().err
