import csv
import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from heima import config
from heima.config.profiles import written_out
from heima.results import statistics
from heima.results.cells import read_metrics
from heima.results.files import read_json, read_jsonl, write_json, write_jsonl
from reports import tables
from reports.tables import ablation
from stages import resolve
from stages import tables as stage
from tests import fabricated


@pytest.fixture
def copy(root, tmp_path):
    """A reproduction that a test may damage."""
    return shutil.copytree(root, tmp_path / "copy")


def lines_of(table: tables.Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tables.comma_separated(table))))


def problems(root, params) -> str:
    with pytest.raises(tables.TableError) as caught:
        tables.build(root, params)
    return str(caught.value)


def test_every_cell_is_traceable(root, params, built):
    """Each number of ours in the CSV is the one in the file that it names."""
    metric_of = {"Accuracy (%)": "accuracy", "Decoded tokens per answer": "decoded_tokens"}
    seen = 0
    for line in lines_of(built["benchmarks"]):
        origin, _, protocol = line["origin"].partition(", protocol ")
        if origin != "toy profile" or line["panel"] not in metric_of:
            continue
        if line["row"] == "chance":
            continue
        cells, _ = read_metrics(root / line["source"])
        cell = cells[f"{protocol}/{line['column']}"][metric_of[line["panel"]]]
        assert [line[k] for k in ("value", "low", "high", "n", "n_failed")] == [
            repr(value) for value in (cell.value, cell.low, cell.high, cell.n, cell.n_failed)
        ]
        seen += 1
    # Under each protocol every benchmark and their mean, in both measures.
    rows = len(params.protocols) * len(params.variants)
    assert seen == rows * (len(params.benchmarks) + 1) * len(metric_of)


def test_the_paper_s_values_stand_beside_ours_in_its_profile_only(tmp_path, built):
    """Under its own metrics; what it does not publish has a dash."""
    text = (fabricated.ROOT / "profiles" / "paper.yaml").read_text(encoding="utf-8")
    fabricated.write(tmp_path, params_text=text)
    table = tables.build(tmp_path, config.load(tmp_path / "params.yaml"))["interpreters"]
    lines = {(line["panel"], line["row"], line["column"]): line for line in lines_of(table)}
    row = {
        column: lines["caption: state given", "published", column]["value"]
        for column in ("bleu4", "meteor", "rougeL", "bertscore", "gpt4o_similarity", "empty of n")
    }
    assert row == {
        "bleu4": "12.8",
        "meteor": "35.5",
        "rougeL": "37.9",
        "bertscore": "71.4",
        "gpt4o_similarity": "–",
        "empty of n": "–",
    }
    shared = lines["Other interpreters: own state", "published, one for all: caption", "bleu4"]
    assert (shared["value"], shared["source"]) == ("6.8", "reports/published/interpreters.csv")
    assert lines["summary: state given", "zero", "gpt4o_similarity"]["value"] == "not judged"
    assert tables.latex(table).count("published") >= 4
    ours, _ = built["interpreters"].blocks
    assert not any("published" in row for panel in ours.panels for row in panel.rows)


def test_other_interpreters_are_paired_with_the_section_s_own(root, params, built):
    lines = {
        (line["panel"], line["row"], line["column"]): line
        for line in lines_of(built["interpreters"])
    }
    ours, theirs = (
        table[table["control"] == "own"]
        for table in (
            pd.read_parquet(root / "scores" / "similarity" / f"{name}.parquet")
            for name in ("shared-caption", "caption")
        )
    )
    differences = ours.assign(gap=ours["bleu4"] - theirs["bleu4"]).groupby("training_seed")
    cell = statistics.seeded_cell(
        {seed: found["gap"] for seed, found in differences},
        clusters=ours["image"].tolist()[:20],
        draws=params.similarity.draws,
        seed=params.seed,
    )
    panel = "Other interpreters minus the section's own (nll: nats a text)"
    line = lines[panel, "shared-caption", "bleu4"]
    numbers = [float(line[k]) for k in ("value", "low", "high", "sd")]
    assert numbers == pytest.approx([cell.value, cell.low, cell.high, cell.sd])


def test_reconstructions_of_other_turns_are_refused(copy, params):
    path = copy / "scores/similarity/shared-caption.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    (copy / "scores/similarity/reasoning.parquet").unlink()
    found = problems(copy, params)
    assert (
        "shared-caption.parquet and scores/similarity/caption.parquet must have the same" in found
    )
    assert "reasoning.parquet is missing: run `dvc repro similarity@reasoning`" in found


def test_published_numbers_are_labelled_and_alone(built):
    for name in ("benchmarks", "ablation", "interpreters"):
        table = built[name]
        *ours, theirs = table.blocks
        for block in ours:
            assert block.origin.startswith("toy profile") and "toy profile" in block.title
        assert theirs.title.endswith("paper (llava-cot-11b, VLMEvalKit protocol, not comparable)")
        for line in lines_of(table):
            published = line["source"].startswith("reports/published")
            assert published == line["origin"].startswith("paper"), name


def test_captions_say_what_is_counted(built):
    caption = built["benchmarks"].blocks[0].caption
    assert "embedded-rules" in caption
    assert "thinking tokens, tags and the end of turn included" in caption
    assert "meteor_exact_stem" in built["interpreters"].blocks[0].caption


def test_ablation_pairs_samples_and_counts_updates(root, params, built):
    lines = {
        (line["panel"], line["row"], line["column"]): line
        for line in lines_of(built["ablation"])
        if not line["origin"].endswith("lmms")
    }
    steps = [params.checkpoints[name].steps for name in ("p1", "p2", "p3", "recover")]
    updates = f"{sum(steps)} ({' + '.join(map(str, steps))})"
    assert lines["Training", "heima", "updates"]["value"] == updates
    assert lines["Training", "heima-no-recover", "checkpoints"]["value"] == "p1 + p2 + p3"
    assert lines["Training", "text-cot", "updates"]["value"] == "0"
    assert not any(
        row == "base" and "profile" in line["origin"] for (_, row, _), line in lines.items()
    )

    def scores(variant):
        rows = read_jsonl(root / "scores" / f"{variant}.jsonl")
        return [
            row for row in rows if (row["protocol"], row["benchmark"]) == ("vlmevalkit", "ai2d")
        ]

    ours, theirs = scores("answer-only"), scores("heima")
    gaps = {
        seed: [
            a["score"] - b["score"]
            for a, b in zip(ours, theirs, strict=True)
            if a["training_seed"] == seed
        ]
        for seed in params.seeds
    }
    cell = statistics.seeded_cell(
        gaps,
        clusters=[row["image"] for row in theirs][:40],
        draws=params.similarity.draws,
        seed=(params.seed, params.benchmarks.index("ai2d")),
        scale=100,
    )
    line = lines[
        "Mean score minus heima (points, each question counts once)", "answer-only", "ai2d"
    ]
    assert float(line["value"]) == pytest.approx(cell.value)
    assert float(line["sd"]) == pytest.approx(cell.sd)
    assert [float(line[k]) for k in ("t_low", "t_high")] == pytest.approx(cell.t_interval)
    assert [float(line[k]) for k in ("low", "high")] == pytest.approx([cell.low, cell.high], abs=3)
    seeds = dict(part.split("=") for part in line["seeds"].split())
    assert {int(k): float(v) for k, v in seeds.items()} == pytest.approx(cell.seeds)
    assert (line["n"], line["n_failed"]) == ("120", "6"), "3 and 2 seeds of twenty questions"


def test_a_verdict_needs_every_training_seed():
    def verdict(low: float, high: float, **seeds: float) -> str:
        values = {int(name[1:]): value for name, value in seeds.items()}
        mean = sum(values.values()) / len(values)
        return ablation.verdict(tables.Entry(mean, "f", low, high, seeds=values)).text

    assert verdict(1, 5, s1=2.0) == "one seed: no verdict"
    assert verdict(1, 5, s1=2.0, s2=3.0, s3=4.0) == "higher (p .035)"
    assert verdict(-5, -1, s1=-2.0, s2=-3.0, s3=-4.0) == "lower (p .035)"
    assert verdict(1, 5, s1=-0.1, s2=3.0, s3=4.0) == "undecided", "one seed says otherwise"
    assert verdict(-1, 5, s1=2.0, s2=3.0, s3=4.0) == "undecided", "the questions could"
    assert verdict(4, 14, s1=5.0, s2=7.9, s3=14.3) == "undecided", "so few seeds could"


def test_nothing_is_concluded_from_one_training_seed(tmp_path):
    text = fabricated.toy_text()
    text = text.replace("seeds: [42, 43, 44] ", "seeds: [42] ")
    params = fabricated.write(tmp_path, params_text=text)
    built = tables.build(tmp_path, params)
    for table in built.values():
        for line in lines_of(table):
            assert line["sd"] == line["t_low"] == ""
            assert " p " not in line["panel"]
    verdicts = {
        line["value"]
        for line in lines_of(built["ablation"])
        if line["panel"].startswith("Do the training seeds agree")
    }
    assert verdicts == {"one seed: no verdict"}
    assert "of one training seed nothing is concluded" in built["ablation"].blocks[0].caption


def test_models_without_training_seeds_have_no_spread(params, built):
    lines = {
        (line["panel"], line["row"], line["column"]): line
        for line in lines_of(built["benchmarks"])
        if line["origin"].endswith("lmms")
    }
    assert lines["Accuracy (%)", "text-cot", "mean"]["sd"] == ""
    assert float(lines["Accuracy (%)", "heima", "mean"]["sd"]) > 0
    panel = "Accuracy (%) by training seed, mean of the benchmarks"
    rows = {row for found, row, _ in lines if found == panel}
    trained = {n for n, v in params.variants.items() if v.model in params.checkpoints}
    assert rows == trained


def test_a_run_of_each_decoding_seed_is_shown(built):
    """And nothing where a protocol has one seed."""
    panels = {
        (block.origin, panel.title): panel
        for block in built["benchmarks"].blocks
        for panel in block.panels
    }
    title = "Accuracy (%) by decoding seed, mean of the benchmarks"
    assert ("toy profile, protocol lmms", title) not in panels
    panel = panels["toy profile, protocol vlmevalkit", title]
    assert list(panel.digits) == ["seed 42", "seed 43"]
    accuracy = panels["toy profile, protocol vlmevalkit", "Accuracy (%)"]
    for row in panel.rows:
        mean = np.mean([panel.entries[row, column].value for column in panel.digits])
        assert mean == pytest.approx(accuracy.entries[row, "mean"].value)


def test_ours_minus_the_published_accuracy_under_its_own_protocol_and_models_only(tmp_path, built):
    title = "Accuracy minus the published one (points; intervals are ours alone)"
    assert not any(line["panel"] == title for line in lines_of(built["benchmarks"]))
    text = (fabricated.ROOT / "profiles" / "paper.yaml").read_text(encoding="utf-8")
    fabricated.write(tmp_path, params_text=text)
    lines = lines_of(tables.build(tmp_path, config.load(tmp_path / "params.yaml"))["benchmarks"])
    found = {
        (line["panel"], line["row"], line["column"]): line
        for line in lines
        if line["origin"] == "paper profile, protocol vlmevalkit"
    }
    ours, gap = (
        [float(found[panel, "heima", "mmstar"][key]) for key in ("value", "low", "high")]
        for panel in ("Accuracy (%)", title)
    )
    assert np.subtract(ours, gap) == pytest.approx([49.9] * 3)
    rows = {line["row"] for line in lines if line["panel"] == title}
    assert rows == {"base", "text-cot", "heima", "heima-no-recover", "heima-no-progressive"}
    assert {line["origin"] for line in lines if line["panel"] == title} == {
        "paper profile, protocol vlmevalkit"
    }


def test_the_second_family_stands_beside_its_own_published_values(tmp_path):
    text = written_out(fabricated.ROOT / "profiles" / "paper-llava-next.yaml")
    fabricated.write(tmp_path, params_text=text)
    built = tables.build(tmp_path, config.load(tmp_path / "params.yaml"))
    with (tmp_path / "reports/published/benchmarks.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["family"] == "llava-next-vicuna-7b"]
    assert len(rows) == 18
    origin = "paper (llava-next-vicuna-7b, VLMEvalKit protocol, not comparable)"
    (theirs,) = [block for block in built["benchmarks"].blocks if block.origin == origin]
    shown = {key: entry.value for key, entry in theirs.panels[0].entries.items()}
    for row in rows:
        assert shown[row["model"], row["benchmark"].lower()] == float(row["accuracy"])
    assert {name for name, _ in shown} == {"base", "text-cot", "heima"}
    lines = [line for table in built.values() for line in lines_of(table)]
    assert not any("llava-cot-11b" in line["origin"] for line in lines)
    gap = "Accuracy minus the published one (points; intervals are ours alone)"
    assert {line["row"] for line in lines if line["panel"] == gap} == {"base", "text-cot", "heima"}


def test_a_published_value_that_is_no_number_is_named(copy, params):
    path = copy / "reports/published/retention_ratio.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("49.1", "49,1", 1), encoding="utf-8")
    assert "reports/published/retention_ratio.csv:2 has too many values" in problems(copy, params)
    path.write_text(text.replace("49.1", "good", 1), encoding="utf-8")
    assert "reports/published/retention_ratio.csv:2: accuracy = 'good'" in problems(copy, params)


def test_mmbench_rotations_count_once(copy, params):
    """Rows of one unit are one question, failed where any of them is."""
    for variant in params.variants:
        path = copy / "scores" / f"{variant}.jsonl"
        rows = read_jsonl(path)
        for row in rows:
            if row["benchmark"] == "mmbench":
                row["unit"] = row["doc_id"] // 4
        write_jsonl(path, rows)
    seen = []
    for line in lines_of(tables.build(copy, params)["ablation"]):
        if "each question counts once" in line["panel"] and line["column"] == "mmbench":
            seen.append((line["origin"], line["n"], line["n_failed"]))
    others = len(params.variants) - 2
    assert seen == [
        *[("toy profile, protocol lmms", "15", "3")] * others,
        *[("toy profile, protocol vlmevalkit", "30", "6")] * others,
    ]


def test_missing_and_left_over_cells_are_all_named(copy, params):
    (copy / "metrics/score/heima.json").unlink()
    shutil.copy(copy / "metrics/score/base.json", copy / "metrics/score/filler.json")
    path = copy / "metrics/similarity/caption.json"
    content = read_json(path)
    del content["cells"]["zero"]["nll"]
    content["cells"]["filler"] = {"bleu4": content["cells"]["own"]["bleu4"]}
    write_json(path, content)
    (copy / "reports/published/interpreters.csv").unlink()
    found = problems(copy, params)
    assert "metrics/score/heima.json is missing: run `dvc repro score@heima`" in found
    assert "metrics/score/filler.json is left over" in found
    assert "metrics/similarity/caption.json lacks the cell zero/nll" in found
    assert "metrics/similarity/caption.json has the left-over cell filler/bleu4" in found
    assert "reports/published/interpreters.csv is missing" in found


def test_results_of_another_profile_are_refused(copy, params):
    path = copy / "metrics/score/base.json"
    content = read_json(path)
    content["provenance"]["profile"] = "paper"
    write_json(path, content)
    assert "base.json is of the profile paper, params.yaml is toy" in problems(copy, params)


def test_other_editions_are_refused(copy, params):
    path = copy / "metrics/score/base.json"
    content = read_json(path)
    content["cells"]["lmms/ai2d"]["chance"] |= {"value": 20.0, "low": 20.0, "high": 20.0}
    write_json(path, content)
    assert "chance on ai2d (lmms) differs between variants ([20.0, 25.0])" in problems(copy, params)


def test_latency_names_device_cuts_and_what_did_not_fit(built):
    (block,) = built["latency"].blocks
    for part in ("On a device", "0.05 TFLOP/s and 20 GB/s (measured", "the median of heima",
                 "Left out: batch 64: out of memory"):  # fmt: skip
        assert part in block.caption
    lines = {
        (line["panel"], line["row"], line["column"]): line for line in lines_of(built["latency"])
    }
    assert lines["Batch 8: latency", "answer-only", "tpot_ms"]["value"] == "–"
    assert float(lines["Batch 8: latency", "heima", "tpot_ms"]["value"]) > 0
    speed = "End-to-end time of text-cot over that of the case"
    assert ("text-cot" in {row for panel, row, _ in lines if panel == speed}) is False
    assert {column for panel, _, column in lines if panel == speed} == {
        "batch 1", "batch 8", "batch 32"}  # fmt: skip


def test_missing_and_left_over_cells_of_latency_are_named(copy, params):
    path = copy / "metrics/latency.json"
    content = read_json(path)
    del content["cells"]["heima/batch-8"], content["cells"]["text-cot/batch-1"]["e2e_ms"]
    content["cells"]["filler/batch-8"] = content["cells"]["text-cot/batch-8"]
    write_json(path, content)
    found = problems(copy, params)
    assert "metrics/latency.json has no cells of heima/batch-8" in found
    assert "metrics/latency.json has the left-over cells of filler/batch-8" in found
    assert "metrics/latency.json lacks the cell text-cot/batch-1/e2e_ms" in found
    path.unlink()
    assert "latency.json is missing: run `dvc repro latency`" in problems(copy, params)


def test_unpaired_samples_are_named(copy, params):
    path = copy / "scores/answer-only.jsonl"
    write_jsonl(path, read_jsonl(path)[1:])
    found = problems(copy, params)
    assert "scores/answer-only.jsonl (training seed 42) and scores/heima.jsonl must have" in found
    assert "lmms/mmstar/42/0" in found


def test_markdown_shows_intervals_and_failures(params, built):
    text = tables.markdown(built["benchmarks"])
    assert re.search(r"\| heima +\| \d+\.\d ± \d+\.\d \[\d+\.\d, \d+\.\d\]", text)
    # One answer of each seed, and of each benchmark's 20.
    failed = len(params.seeds) * len(params.benchmarks)
    assert f"{failed} of {20 * failed}" in text
    assert "toy profile" in text and "not comparable" in text


def test_the_stage_writes_three_files_a_table_and_shows_one(copy, monkeypatch, capsys):
    monkeypatch.chdir(copy)
    resolve.write(config.load())
    monkeypatch.setattr("sys.argv", ["tables", "--show", "benchmarks"])
    with pytest.raises(SystemExit, match="does not exist yet: run `make repro`"):
        stage.main()
    monkeypatch.setattr("sys.argv", ["tables"])
    stage.main()
    folder = copy / "reports/toy/tables"
    written = sorted(path.name for path in folder.iterdir() if path.is_file())
    names = sorted(tables.NAMES)
    assert written == [f"{name}.{suffix}" for name in names for suffix in ("csv", "md", "tex")]
    assert (folder / "compact/benchmarks-lmms.tex").is_file()
    assert (*tables.NAMES, "claims") == stage.NAMES
    monkeypatch.setattr("sys.argv", ["tables", "--show", "benchmarks"])
    capsys.readouterr()
    stage.main()
    assert capsys.readouterr().out == (copy / "reports/toy/tables/benchmarks.md").read_text()


def test_the_stage_leaves_the_tables_when_a_cell_is_missing(copy, monkeypatch):
    monkeypatch.chdir(copy)
    resolve.write(config.load())
    monkeypatch.setattr("sys.argv", ["tables"])
    stage.main()
    before = (copy / "reports/toy/tables/benchmarks.csv").read_bytes()
    (copy / "metrics/score/heima.json").unlink()
    with pytest.raises(SystemExit, match="no table was written:\nmetrics/score/heima"):
        stage.main()
    assert (copy / "reports/toy/tables/benchmarks.csv").read_bytes() == before


def test_an_audit_without_ended_answers_has_a_table(results):
    """Effects without a question have no cell, and a panel without effects is not there."""
    for what in ("answers changed", "follows the donor", "nll gained"):
        audits = {
            name: replace(
                one,
                cells={
                    measure: {key: cell for key, cell in found.items() if key != what}
                    for measure, found in one.cells.items()
                },
            )
            for name, one in results.audits.items()
        }
        table = tables.of_results(replace(results, audits=audits))["audit"]
        assert tables.latex(table) and tables.markdown(table)
        assert tables.compact_files({"audit": table}, results.params)
    nothing = tables.of_results(replace(results, audits={}))["audit"]
    assert "names none" in tables.markdown(nothing) and tables.latex(nothing)
    assert not tables.compact_files({"audit": nothing}, results.params)
