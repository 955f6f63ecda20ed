"""The real DAG, small: every stage runs once, and re-runs only for what it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from sacrebleu.metrics.bleu import BLEU

from heima import chat, config
from heima.cot.rendering import constant_prefix, render
from heima.data.images import ImageZip
from heima.data.turns import load_turns
from heima.interpreting import readers
from heima.results import measures
from heima.results.cells import read_metrics
from heima.results.files import read_jsonl
from heima.vlm import models
from reports.figures import FIGURES
from reports.figures.plots import PLOTS
from tests.conftest import ROOT
from tests.pipeline.conftest import ran

REPORTS = ("tables", "figures", "page", "track")
"""Stages that make reports of results."""


def expected_stages(params: config.Params) -> set[str]:
    return {
        "resolve",
        "prepare",
        "rewrite",
        *(f"teach@{name}" for name in config.PRETRAINED),
        *(f"distill@{name}-{seed}" for name in params.checkpoints for seed in params.seeds),
        *(f"states@{seed}" for seed in params.seeds),
        *(
            f"interpret@{name}-{way}-{seed}"
            for name in params.interpreters
            for way in ("own", "question-only")
            for seed in params.seeds
        ),
        *(f"reconstruct@{name}-{seed}" for name in params.reconstructions for seed in params.seeds),
        "judge",
        *(f"similarity@{name}" for name in params.reconstructions),
        *(f"predict@{name}" for name in params.variants),
        *(f"score@{name}" for name in params.variants),
        *(f"audit@{name}-{seed}" for name in params.audit.checkpoints for seed in params.seeds),
        *(f"effects@{name}" for name in params.audit.checkpoints),
        "latency",
        "leaks",
        "probe",
        "flops",
        *REPORTS,
    }


@pytest.fixture(scope="session")
def small(reproduction) -> config.Params:
    return config.load(reproduction.root / "params.yaml")


def test_every_stage_runs_once(reproduction, small):
    stages = ran(reproduction.output)
    assert sorted(stages) == sorted(expected_stages(small))


def test_a_second_repro_runs_nothing_and_is_quick(reproduction):
    started = time.monotonic()
    assert reproduction.checkout.repro() == []
    assert time.monotonic() - started < 12, "6 s on an idle machine; twice that under load"


def test_every_metrics_file_says_where_its_numbers_come_from(reproduction, small):
    for stage in expected_stages(small) - {"resolve", "prepare", "rewrite", *REPORTS}:
        name, _, part = stage.partition("@")
        folder = reproduction.root / "metrics"
        if name == "interpret":
            part = re.sub(r"-(own|question-only)-", r"/\1/", part)
        if name == "distill":
            part = "/".join(part.rsplit("-", 1))
        path = folder / name / f"{part}.json" if part else folder / f"{name}.json"
        if name in ("reconstruct", "states", "judge", "audit"):
            assert not path.exists()
            continue
        cells, provenance = read_metrics(path)
        assert provenance["stage"] == stage and provenance["profile"] == "toy"
        assert re.fullmatch("[0-9a-f]{16}", provenance["code"])
        for row in cells.values():
            for metric, cell in row.items():
                assert cell.low <= cell.value <= cell.high, (stage, metric, cell)
                if cell.seeds:
                    mean = sum(cell.seeds.values()) / len(cell.seeds)
                    assert cell.value == pytest.approx(mean), (stage, metric, cell)


def test_base_gets_the_compute_of_text_cot(reproduction):
    _, base = read_metrics(reproduction.root / "metrics" / "teach" / "base.json")
    _, teacher = read_metrics(reproduction.root / "metrics" / "teach" / "text-cot.json")
    spent = base["updates"] * base["flops_per_sample"]
    allowed = teacher["updates"] * base["flops_per_sample_text_cot"]
    assert abs(spent - allowed) <= base["flops_per_sample"] / 2, "equal to half an update"


def test_held_out_images_were_never_trained_on(reproduction):
    from heima.data.turns import load_turns

    folder = reproduction.root / "data" / "rewritten"
    train, heldout = (
        {turn.image for turn in load_turns(folder / f"{split}.parquet")}
        for split in ("train", "heldout")
    )
    assert train and heldout and not train & heldout


def test_every_heldout_turn_has_every_control_once(reproduction, small):
    from heima.data.turns import load_turns

    turns = load_turns(reproduction.root / "data" / "rewritten" / "heldout.parquet")
    for name in _by_seed(small, small.reconstructions):
        rows = read_jsonl(reproduction.root / "reconstructions" / f"{name}.jsonl")
        found = [(row["control"], row["id"]) for row in rows]
        assert found == [(c, turn.id) for c in small.reconstruct.controls for turn in turns]
        assert all(row["nll"] > 0 and row["n_tokens"] > 0 for row in rows)


def _by_seed(params: config.Params, names: Iterable[str]) -> list[str]:
    """`<name>/<training seed>`: the files of what is trained."""
    return [f"{name}/{seed}" for name in names for seed in params.seeds]


def test_another_seed_is_another_training(reproduction, small):
    """The same data, other weights: all of them, and nothing else differs."""
    for name in ("models/p1", "models/recover", "interpreters/reasoning/own"):
        first, second = (digest(reproduction.root / name / str(seed)) for seed in small.seeds)
        assert first.keys() == second.keys()
        differing = {file for file in first if first[file] != second[file]}
        assert differing == {"adapter_model.safetensors", "loss.jsonl"}


def test_every_reconstruction_under_every_judged_control_has_a_grade(reproduction, small):
    for name in _by_seed(small, small.reconstructions):
        rows = read_jsonl(reproduction.root / "reconstructions" / f"{name}.jsonl")
        judged = read_jsonl(reproduction.root / "judgements" / f"{name}.jsonl")
        assert [(row["control"], row["id"]) for row in judged] == [
            (row["control"], row["id"]) for row in rows if row["control"] in small.similarity.judged
        ]
        for row in judged:
            assert 1 <= row["grade"] <= 5
            assert (row["model"] == "embedded-rules") == (row["failure"] is None)


def test_every_cell_of_similarity_derives_from_the_samples(reproduction, small):
    """Means, differences and corpus BLEU again, from the parquet file alone."""
    for name in small.reconstructions:
        table = pd.read_parquet(reproduction.root / "scores" / "similarity" / f"{name}.parquet")
        cells, provenance = read_metrics(reproduction.root / "metrics/similarity" / f"{name}.json")
        parts = {
            control: part.set_index(["training_seed", "id"])
            for control, part in table.groupby("control")
        }
        for control, part in parts.items():
            metrics = measures.metrics_of(control, small)
            for metric in {*metrics, "nll"} - {measures.CORPUS_BLEU}:
                assert cells[control][metric].value == pytest.approx(part[metric].mean())
                assert cells[control][metric].n == len(part)
                if control != "own":
                    gap = (parts["own"][metric] - part[metric]).mean()
                    group, sign = measures.difference(control), -1 if metric == "nll" else 1
                    found = cells[group]["nll_gain" if metric == "nll" else metric].value
                    assert found == pytest.approx(sign * gap, abs=1e-9)
            per_token = part["nll"].sum() / part["n_tokens"].sum()
            assert cells[control]["nll_per_token"].value == pytest.approx(per_token)
            for seed, own in part.groupby("training_seed"):
                sums = own[list(measures.BLEU_STATISTICS)].sum().tolist()
                matches, totals = sums[2:6], sums[6:]
                expected = BLEU.compute_bleu(
                    [int(n) for n in matches], [int(n) for n in totals], int(sums[0]), int(sums[1]),
                    smooth_method="exp",
                ).score  # fmt: skip
                assert cells[control][measures.CORPUS_BLEU].seeds[seed] == pytest.approx(expected)
        assert provenance["judge"]["missing"] == []


@pytest.mark.slow
def test_a_killed_judge_stage_pays_again_only_for_what_was_under_way(reproduction, tmp_path):
    """The real stage under DVC, a judge in another process, SIGKILL to both DVC and the stage."""
    checkout, log = reproduction.checkout, tmp_path / "log"
    path = checkout.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.eval.judge_server", str(log), "--seconds", "0.02"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    raw = yaml.safe_load(before)
    raw["judge"] = {
        "backend": "openai",
        "base_url": server.stdout.readline().strip(),
        "model": "local-judge",
        "api_key_env": "PATH",
        "workers": 4,
        "price": {"input": 2.5, "output": 10},
        "max_missing": 0,
    }
    raw["similarity"]["judged"] = ["own", "shuffled"]
    edit(path, yaml.safe_dump(raw, sort_keys=False))
    try:
        wanted = {
            (row["question"], row["reference"], row["text"])
            for name in _by_seed(config.load(path), raw["reconstructions"])
            for row in read_jsonl(checkout.root / "reconstructions" / f"{name}.jsonl")
            if row["text"].strip() and row["control"] in raw["similarity"]["judged"]
        }
        stage = checkout.start("dvc", "repro", "judge")
        while len(answered(log)) < len(wanted) // 2:
            assert stage.poll() is None, stage.communicate()[0]
            time.sleep(0.01)
        os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
        assert checkout.repro("judge") == ["judge"]
        replies = Counter(answered(log))
        # The canary of each run is no sample, and four workers had a request under way.
        assert len(replies) == len(wanted) + 1
        assert sum(replies.values()) - len(replies) <= 1 + 4
        graded = read_jsonl(checkout.root / "judgements" / "reasoning" / "42.jsonl")
        assert {row["model"] for row in graded if row["model"]} == {"judge-2026-01-01"}
        asked = len(answered(log))
        checkout.run("dvc", "repro", "--force", "--single-item", "judge")
        assert len(answered(log)) == asked, "a warm run asks nothing"

        raw["judge"]["budget_usd"] = 1e-4
        raw["judge"]["model"] = "another-judge"
        edit(path, yaml.safe_dump(raw, sort_keys=False))
        stopped = checkout.run("dvc", "repro", "judge", check=False)
        assert stopped.returncode != 0 and "the budget does not suffice" in stopped.stdout
        assert len(answered(log)) == asked
    finally:
        server.kill()
        server.wait()
        edit(path, before)
        # The run cache brings the first grades back.
        checkout.restore("judge")


def answered(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def test_token_counts_of_every_prediction_add_up(reproduction, small):
    for variant in small.variants:
        folder = reproduction.root / "predictions" / variant
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl")}
        assert files == {
            f"{trained}/{protocol}/{seed}/{benchmark}.jsonl"
            for trained in small.training_seeds(small.variants[variant].model)
            for protocol, rules in small.protocols.items()
            for seed in rules.seeds
            for benchmark in small.benchmarks
        }
        for file in files:
            rows = read_jsonl(folder / file)
            assert rows
            for row in rows:
                counts = row["counts"]
                parts = counts["thinking"] + counts["tag"] + counts["conclusion"]
                assert parts <= counts["decoded"]
                assert (row["finish"] == "length") == (
                    counts["decoded"] == small.predict.max_new_tokens and row["finish"] != "stop"
                )


def test_a_forced_prefix_is_read_and_not_decoded(reproduction, small, toy_vocabulary):
    """Its tokens stand in the prompt: as many more there as the prefix has."""
    folder = reproduction.root / "predictions"
    for benchmark in small.benchmarks:
        plain, forced = (
            read_jsonl(folder / variant / "42" / "lmms" / "42" / f"{benchmark}.jsonl")
            for variant in ("heima", "heima-forced-prefix")
        )
        pairs = zip(plain, forced, strict=True)
        longer = {b["counts"]["prompt"] - a["counts"]["prompt"] for a, b in pairs}
        prefix = toy_vocabulary.tokenizer(
            toy_vocabulary._to_reserved(constant_prefix("p3")), add_special_tokens=False
        )
        assert longer == {len(prefix["input_ids"])}


@pytest.mark.slow
def test_a_killed_prediction_goes_on_where_it_was(reproduction):
    """The real stage under DVC, SIGKILL to both; the files are those of an undisturbed run."""
    checkout, variant = reproduction.checkout, "heima-forced-prefix"
    params, journals = checkout.root / "params.yaml", checkout.root / ".cache" / "predictions"
    before = params.read_text(encoding="utf-8")
    raw = yaml.safe_load(before)
    raw["predict"]["batch_size"] = 2
    edit(params, yaml.safe_dump(raw, sort_keys=False))
    again = ("dvc", "repro", "--force", "--single-item", f"predict@{variant}")
    try:
        checkout.repro(f"predict@{variant}")
        undisturbed = digest(checkout.root / "predictions" / variant)
        shutil.rmtree(journals)
        stage = checkout.start(*again)
        while len(finished_batches(journals)) < 20:
            assert stage.poll() is None, stage.communicate()[0]
            time.sleep(0.01)
        os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
        kept = finished_batches(journals)
        output = checkout.run(*again).stdout
        counts = re.findall(r"(\d+) of (\d+) answers known, (\d+) to decode", output)
        known, total, left = map(sum, zip(*(map(int, one) for one in counts), strict=True))
        assert len(counts) == 2, "a line a training seed"
        assert known == 2 * len(kept) and known + left == total and left > 0
        assert finished_batches(journals)[: len(kept)] == kept
        assert digest(checkout.root / "predictions" / variant) == undisturbed
    finally:
        edit(params, before)
        # The answers are the same again, the seconds that they took are not.
        checkout.restore()


def finished_batches(journals: Path) -> list[str]:
    """The whole lines of all journals, the oldest journal first."""
    files = sorted(journals.glob("*/*.jsonl"), key=lambda file: file.stat().st_ctime_ns)
    text = [file.read_text(encoding="utf-8") for file in files]
    return [line for one in text for line in one.splitlines(keepends=True) if line.endswith("\n")]


def test_a_changed_judge_decodes_nothing(reproduction):
    path = reproduction.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    raw = yaml.safe_load(before)
    raw["judge"] = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "other"}
    edit(path, yaml.safe_dump(raw, sort_keys=False))
    try:
        reproduction.checkout.repro("resolve")
        pending = set(json.loads(reproduction.checkout.run("dvc", "status", "--json").stdout))
        variants = config.load(path).variants
        assert {f"score@{name}" for name in variants} <= pending
        assert not {f"predict@{name}" for name in variants} & pending
    finally:
        edit(path, before)
        reproduction.checkout.restore("resolve")


def test_dvc_lists_the_cells(reproduction, small):
    shown = reproduction.checkout.run("dvc", "metrics", "show", "--md").stdout
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line
    ]
    header, rows = lines[0], {line[0]: line for line in lines[2:]}
    assert {
        f"reports/toy/summary/{n}.json" for n in (*small.variants, *small.reconstructions)
    } == set(rows)
    cells, _ = read_metrics(reproduction.root / "metrics" / "score" / "heima.json")
    for protocol in small.protocols:
        value = rows["reports/toy/summary/heima.json"][header.index(protocol)]
        expected = cells[f"{protocol}/mean"]["accuracy"].value
        assert float(value) == pytest.approx(expected, abs=1e-3)
    assert len(header) <= 7, "it fits a terminal"


def test_dvc_draws_its_plots(reproduction, tmp_path):
    """Each file of dvc.yaml's `plots`, by our templates, with every row."""
    shown = reproduction.checkout.run("dvc", "plots", "show", "--out", str(tmp_path)).stdout
    assert shown.strip().endswith("index.html"), shown
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    specs = [json.loads(spec) for spec in re.findall(r"var spec = (\{.*?\});\n", text, re.S)]
    assert len(specs) == len(PLOTS)
    folder = reproduction.root / "reports" / "toy" / "plots"
    counts = {len((folder / f"{name}.csv").read_text().splitlines()) - 1 for name in PLOTS}
    assert {len(spec["data"]["values"]) for spec in specs} == counts
    assert "DVC_METRIC" not in text


def test_the_tables_are_labelled(reproduction):
    folder = reproduction.root / "reports" / "toy"
    tables = folder / "tables"
    assert "| toy | " in (folder / "claims.md").read_text(encoding="utf-8")
    assert (tables / "compact" / "benchmarks-lmms-column.tex").stat().st_size > 0
    for name in ("benchmarks", "interpreters", "latency", "leaks", "samples", "reported"):
        for suffix in ("tex", "md", "csv"):
            assert (tables / f"{name}.{suffix}").stat().st_size > 0
        for suffix in ("tex", "md"):
            assert "toy profile" in (tables / f"{name}.{suffix}").read_text(encoding="utf-8")


def test_figures_and_the_page_are_there(reproduction, small):
    folder = reproduction.root / "reports" / "toy"
    for name in FIGURES:
        for suffix in ("svg", "pdf"):
            assert (folder / "figures" / f"{name}.{suffix}").stat().st_size > 0
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert all(f'id="figure-{name}"' in page for name in FIGURES)
    assert all(f'"{variant}"' in page for variant in small.variants)
    shown = reproduction.checkout.run(sys.executable, "-m", "stages.page", "--show").stdout
    assert shown.strip().endswith("reports/toy/index.html")


def test_the_lock_and_the_results_name_no_path_of_this_machine(reproduction):
    root = reproduction.root
    files = [path for path in root.glob("reports/**/*") if path.is_file()]
    for path in [root / "dvc.lock", *root.glob("metrics/**/*.json"), *files]:
        assert str(root).encode() not in path.read_bytes(), path


def test_what_another_profile_has_kept_re_runs_what_shows_it(reproduction):
    """And results whose parameters no profile has are kept by nobody."""
    added = reproduction.root / "reports" / "kept" / "notes.txt"
    before = set(added.parent.glob("*.json"))
    added.write_text("something new", encoding="utf-8")
    try:
        pending = json.loads(reproduction.checkout.run("dvc", "status", "--json").stdout)
    finally:
        added.unlink()
    assert set(pending) == {"tables", "figures", "page"}
    done = reproduction.checkout.run(sys.executable, "-m", "stages.keep", check=False)
    assert done.returncode and "not those of profiles/toy.yaml" in done.stdout
    assert set(added.parent.glob("*.json")) == before


def edit(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_comments_and_docstrings_re_run_nothing(reproduction):
    modules = [
        "heima/training/loop.py",
        "heima/cot/rendering.py",
        "heima/vlm/models.py",
        "eval/plugin.py",
    ]
    paths = [reproduction.root / module for module in modules]
    before = {path: path.read_text(encoding="utf-8") for path in paths}
    for path, text in before.items():
        edit(path, text.replace('"""', '"""Edited. ', 1) + "\n# A comment.\n")
    try:
        assert reproduction.checkout.repro() == ["resolve"]
    finally:
        for path, text in before.items():
            edit(path, text)
        reproduction.checkout.restore("resolve")


@pytest.mark.slow
def test_code_re_runs_the_stages_that_import_it(reproduction):
    path = reproduction.root / "stages" / "tables.py"
    before = path.read_text(encoding="utf-8")
    edit(path, before + "\nTHE_ANSWER = 42\n")
    try:
        assert set(reproduction.checkout.repro()) <= {"resolve", *REPORTS}
    finally:
        edit(path, before)
        reproduction.checkout.restore()


@pytest.mark.slow
def test_a_learning_rate_re_runs_its_phase_and_what_follows(reproduction):
    checkout = reproduction.checkout
    before = (checkout.root / "params.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(before)
    raw["checkpoints"]["p2"]["learning_rate"] *= 2
    edit(checkout.root / "params.yaml", yaml.safe_dump(raw, sort_keys=False))
    try:
        stages = checkout.repro(
            "distill@recover-42", "distill@one-shot-42", "distill@answer-only-42"
        )
        assert stages == ["resolve", *(f"distill@{n}-42" for n in ("p2", "p3", "recover"))]
        pending = json.loads(checkout.run("dvc", "status", "--json").stdout)
        assert {"states@42", "predict@heima", "predict@heima-no-recover"} <= set(pending)
        assert not {"teach@text-cot", "distill@p1-42", "predict@answer-only"} & set(pending)
    finally:
        edit(checkout.root / "params.yaml", before)
        # The run cache brings the first results back without training.
        checkout.restore()


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("stage", "out"),
    [
        ("prepare", "data"),
        ("distill@p1-42", "models/p1/42"),
        # An adapter as those of distill, by the same loop.
        pytest.param(
            "interpret@reasoning-own-43", "interpreters/reasoning/own/43", marks=pytest.mark.slow
        ),
        ("predict@text-cot", "predictions/text-cot"),
    ],
)
def test_the_same_inputs_give_the_same_bytes(reproduction, stage, out):
    folder = reproduction.root / out
    before = digest(folder)
    # Answers that are known would not be decoded again.
    shutil.rmtree(reproduction.root / ".cache" / "predictions", ignore_errors=True)
    reproduction.checkout.run("dvc", "repro", "--force", "--single-item", stage)
    assert digest(folder) == before


@pytest.mark.slow
def test_a_seed_more_trains_that_seed_alone(reproduction):
    """And a list of runs that does not fit the parameters is made to fit, in so many words."""
    checkout = reproduction.checkout
    path = checkout.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    raw = yaml.safe_load(before)
    raw["seeds"].append(44)
    edit(path, yaml.safe_dump(raw, sort_keys=False))
    try:
        stopped = checkout.run("dvc", "repro", check=False)
        assert stopped.returncode != 0 and "`dvc repro` again" in stopped.stdout
        assert ran(stopped.stdout) == ["resolve"]
        assert checkout.repro("distill@recover-44")[1:] == [
            f"distill@{name}-44" for name in ("p1", "p2", "p3", "recover")
        ]
        pending = json.loads(checkout.run("dvc", "status", "--json").stdout)
        trained = {n for n in pending if n.startswith(("distill", "interpret", "states"))}
        assert trained and all(name.endswith("44") for name in trained)
        assert {"predict@heima", "similarity@reasoning"} <= set(pending)
        assert not any(name.startswith("teach") for name in pending)
    finally:
        edit(path, before)
        checkout.run(sys.executable, "-m", "stages.runs")
        for folder in checkout.root.glob("models/*/44"):
            shutil.rmtree(folder)
        checkout.restore()


def test_wrong_parameters_stop_the_pipeline_before_anything_runs(reproduction):
    path = reproduction.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    edit(path, before.replace("heldout: 0.1", "heldout: 7"))
    try:
        result = reproduction.checkout.run("dvc", "repro", check=False)
        assert result.returncode != 0
        assert ran(result.stdout) == ["resolve"]
        assert "rewrite.heldout = 7" in result.stdout
    finally:
        edit(path, before)
        reproduction.checkout.restore("resolve")


# The demo and the export read what the pipeline made


@pytest.fixture
def there(reproduction, monkeypatch):
    """The current folder is that of a finished small reproduction, whose parameters these are."""
    monkeypatch.chdir(reproduction.root)
    return config.load_resolved()


def test_its_readings_are_the_reconstructions_of_the_pipeline(there):
    """Of a held-out turn with the answer that the states were extracted from."""
    seed = there.seeds[0]
    turn = load_turns("data/rewritten/heldout.parquet")[0]
    image = ImageZip("data/source/images.zip").read(turn.image)
    name = there.trained(there.states.checkpoint, seed)
    model, processor = models.load_vlm(models.ROOT, name, there)
    vocabulary = models.vocabulary(processor.tokenizer, there)
    text = render(turn.sections, "p3")
    reading = readers.of_pipeline(there, seed)
    found = chat.readings(model, processor, vocabulary, image, turn.question, text, reading, seed)
    own = {one.section: one.own for one in found}
    assert own.keys() == set(there.sections), "by the interpreter of each, shared or its own"
    rows = read_jsonl(f"reconstructions/reasoning/{seed}.jsonl")
    [expected] = [r["text"] for r in rows if r["id"] == turn.id and r["control"] == "own"]
    assert own["reasoning"] == expected


def test_an_exported_folder_answers_as_the_pipelines_checkpoint(
    there, tmp_path, monkeypatch, capsys
):
    def ask(*arguments):
        monkeypatch.setattr(sys, "argv", ["chat", *map(str, arguments)])
        chat.main()

    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    asked = (tmp_path / "red.png", "What is at a1?", "--max-new-tokens", 12)
    export = [sys.executable, "-m", "stages.export", "recover", str(tmp_path / "out"), "--merged"]
    subprocess.run(export, check=True, capture_output=True)
    capsys.readouterr()
    ask(*asked, "--exported", tmp_path / "out")
    theirs = capsys.readouterr().out.strip()
    # It may have written no thinking tokens that an interpreter could read.
    with contextlib.suppress(SystemExit):
        ask(*asked)
    assert theirs and capsys.readouterr().out.startswith(theirs)


@pytest.mark.parametrize(
    ("image", "question", "more", "told"),
    [
        ("none.png", "What?", (), "none.png cannot be read as an image: "),
        ("params.yaml", "What?", (), "params.yaml cannot be read as an image: "),
        ("red.png", "  ", (), "the question is empty"),
        ("red.png", "What?", ("--checkpoint", "p9"), "checkpoint 'p9' is not one of text-cot, "),
        ("red.png", "What?", ("--exported", "models/base"), "was not written by stages.export"),
    ],
)
def test_what_it_cannot_answer_is_a_sentence(
    there, tmp_path, monkeypatch, capsys, image, question, more, told
):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    path = tmp_path / image if image == "red.png" else image
    monkeypatch.setattr(sys, "argv", ["chat", str(path), question, *more])
    with pytest.raises(SystemExit, match=r"^error: ") as ended:
        chat.main()
    assert told in str(ended.value)
