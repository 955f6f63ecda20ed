"""Hand-made predictions, scored by lmms-eval itself, against scores counted by hand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from eval import benchmark_data, prompts
from eval.judge import JudgeError
from heima import config
from heima.config import EmbeddedRules, OpenAIJudge
from heima.cot import parsing
from heima.cot.sections import thinking_token
from heima.results.cells import read_metrics
from heima.results.files import read_jsonl, write_json, write_jsonl
from heima.results.scores import expected_cells
from stages import resolve
from tests.eval.judge_server import REJECTED, JudgeServer, text_of

RULES = EmbeddedRules(backend="embedded-rules")
ROOT = Path(__file__).parents[2]
COUNTS = {"prompt": 30, "decoded": 9, "thinking": 3, "tag": 4, "conclusion": 1}

RIGHT = {
    "mmstar": lambda doc: doc["answer"],
    "mmbench": lambda doc: doc["answer"],
    "mmvet": lambda doc: f"a {doc['answer']}",
    "mathvista": lambda doc: f"the total is {doc['answer']}",
    "ai2d": lambda doc: "ABCD"[int(doc["answer"])],
    "hallusionbench": lambda doc: "yes" if doc["gt_answer"] == "1" else "no",
}
WRONG = {
    "mmstar": lambda doc: "B" if doc["answer"] == "A" else "A",
    "mmbench": lambda doc: "cannot tell",
    "mmvet": lambda doc: "a house",
    "mathvista": lambda doc: "999",
    "ai2d": lambda doc: "E",
    "hallusionbench": lambda doc: "no" if doc["gt_answer"] == "1" else "yes",
}

ANSWERS = 13 + 12 * (len(RIGHT) - 1)
"""Of all benchmarks: 13 of MMStar, 12 of each other."""


def concluded(text):
    return f"<SUMMARY> {thinking_token('summary')} </SUMMARY>\n\n<CONCLUSION> {text}"


FORMS = {
    "right": lambda benchmark, doc: concluded(RIGHT[benchmark](doc)) + " </CONCLUSION>",
    "wrong": lambda benchmark, doc: concluded(WRONG[benchmark](doc)) + " </CONCLUSION>",
    # Without a conclusion the task sees the whole text, which here happens to be right.
    "bare": lambda benchmark, doc: RIGHT[benchmark](doc),
    "empty": lambda benchmark, doc: "",
    "empty conclusion": lambda benchmark, doc: concluded("") + " </CONCLUSION>",
    "cut off": lambda benchmark, doc: concluded(RIGHT[benchmark](doc)),
}


def write_predictions(folder, form_of, trained=42):
    """Predictions of every protocol and seed, of the form `form_of(protocol, seed, b, id, doc)`.

    All are of the training seed `trained`, beside those of others that are there.
    """
    params = config.load()
    for protocol, rules in params.protocols.items():
        for benchmark in RIGHT:
            source = Path("data/benchmarks") / benchmark
            docs = pd.read_parquet(next(source.glob("*.parquet"))).to_dict("records")
            for seed in rules.seeds:
                rows = []
                for doc_id, doc in enumerate(docs):
                    form = form_of(protocol, seed, benchmark, doc_id, doc)
                    text = FORMS[form](benchmark, doc)
                    answer = {
                        "text": text,
                        "conclusion": parsing.conclusion(text),
                        "counts": COUNTS,
                    }
                    rows.append(
                        {"doc_id": doc_id, **answer, "finish": "stop" if text else "length"}
                    )
                file = folder / str(trained) / protocol / str(seed) / f"{benchmark}.jsonl"
                write_jsonl(file, rows)
    write_json(
        folder / "provenance.json",
        {
            "model": "recover",
            "training_seeds": sorted(int(one.name) for one in folder.iterdir() if one.is_dir()),
            "data": benchmark_data.revisions(params),
        },
    )


def change_params(change):
    """Edit the workspace's parameters in place."""
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    change(raw)
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    resolve.write(config.load())


def without_lmms(raw):
    raw["latency"].update(protocol="vlmevalkit")
    del raw["protocols"]["lmms"]


@pytest.fixture
def lmms_only(workspace):
    """A workspace with one protocol."""
    change_params(lambda raw: raw["protocols"].pop("vlmevalkit"))
    return workspace


def score(gateway, predictions=Path("predictions/heima")):
    from eval.scoring import score

    score("heima", Path("rows"), Path("cells"), predictions=predictions, gateway=gateway)
    return read_jsonl("rows"), read_metrics("cells")


def rotation(doc, wrong, bare):
    """MMBench's question 0: all right. 1: one rotation wrong. 2: one without a conclusion."""
    place = doc["index"] % 1_000_000, doc["index"] // 1_000_000
    return {wrong: "wrong", bare: "bare"}.get(place, "right")


def test_tasks_of_lmms_eval(lmms_only, open_gateway):
    def form_of(protocol, seed, benchmark, doc_id, doc):
        if benchmark == "mmbench":
            return rotation(doc, wrong=(1, 2), bare=(2, 0))
        return ("right", "wrong", "bare", "empty")[doc_id % 4]

    write_predictions(Path("predictions/heima"), form_of)
    rows, (cells, provenance) = score(open_gateway(RULES))
    assert set(cells) == set(expected_cells(config.load()))

    for benchmark in ("mmvet", "mathvista", "ai2d", "hallusionbench"):
        accuracy = cells[f"lmms/{benchmark}"]["accuracy"]
        assert (accuracy.value, accuracy.n, accuracy.n_failed) == (50.0, 12, 6), benchmark
        assert accuracy.low < 50 < accuracy.high
    # 13 rows in six categories: three categories all right, three all wrong.
    assert cells["lmms/mmstar"]["accuracy"].value == pytest.approx(50)
    assert cells["lmms/mmstar"]["accuracy"].n == 13
    mmbench = cells["lmms/mmbench"]
    assert mmbench["accuracy"].value == pytest.approx(200 / 3)
    assert (mmbench["accuracy"].n, mmbench["accuracy"].n_failed) == (3, 1)
    assert cells["lmms/mean"]["accuracy"].value == pytest.approx(50 + (200 / 3 - 50) / len(RIGHT))

    assert cells["lmms/mmstar"]["chance"].value == cells["lmms/ai2d"]["chance"].value == 25
    assert mmbench["chance"].value == pytest.approx(100 / 4**4)
    assert cells["lmms/hallusionbench"]["chance"].value == 50
    for count in ("decoded", "thinking", "tag", "conclusion"):
        assert mmbench[f"{count}_tokens"].value == COUNTS[count]
        assert mmbench[f"{count}_tokens"].n == 12

    found = {(row["benchmark"], row["doc_id"]): row for row in rows}
    assert len(found) == len(rows) == ANSWERS
    for benchmark in ("mmstar", "mmvet", "mathvista", "ai2d", "hallusionbench"):
        # right, wrong, bare (right by luck, but failed), empty
        scores = [found[benchmark, doc_id]["score"] for doc_id in range(4)]
        failed = [found[benchmark, doc_id]["failed"] for doc_id in range(4)]
        assert (scores, failed) == ([1, 0, 1, 0], [False, False, True, True]), benchmark
    assert provenance["judge"]["model"] == "embedded-rules"
    assert provenance["model"] == "recover"


def test_tasks_of_the_paper_over_two_seeds(workspace, open_gateway):
    """One seed gets half right, the other nothing; a question's two answers stay together."""
    change_params(without_lmms)

    def form_of(protocol, seed, benchmark, doc_id, doc):
        if seed == 43:
            return "wrong"
        if benchmark == "mmbench":
            return rotation(doc, wrong=(1, 2), bare=(2, 0))
        return ("right", "wrong", "bare", "empty")[doc_id % 4]

    write_predictions(Path("predictions/heima"), form_of)
    rows, (cells, provenance) = score(open_gateway(RULES))
    assert set(cells) == set(expected_cells(config.load()))
    assert provenance["seeds"] == {"vlmevalkit": [42, 43]}
    for benchmark in ("mmstar", "mmvet", "mathvista", "ai2d", "hallusionbench"):
        group = cells[f"vlmevalkit/{benchmark}"]
        n = 13 if benchmark == "mmstar" else 12
        right = 7 if benchmark == "mmstar" else 6
        assert group["accuracy_seed_42"].value == pytest.approx(100 * right / n), benchmark
        assert group["accuracy_seed_43"].value == 0, benchmark
        assert group["accuracy"].value == pytest.approx(50 * right / n), benchmark
        assert (group["accuracy"].n, group["accuracy"].n_failed) == (2 * n, 6)
        # Resampling single answers as if each were a question would be too sure of itself.
        alone, both = group["accuracy_seed_42"], group["accuracy"]
        assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2)
    mmbench = cells["vlmevalkit/mmbench"]
    assert mmbench["accuracy_seed_42"].value == pytest.approx(200 / 3)
    assert mmbench["accuracy"].value == pytest.approx(100 / 3)
    assert (mmbench["accuracy"].n, mmbench["accuracy"].n_failed) == (6, 1)
    assert len(rows) == 2 * ANSWERS


def test_training_seeds_are_scored_apart_and_averaged(lmms_only, open_gateway):
    """All right, half right and nothing: each seed has its value, the mean has an interval."""
    folder = Path("predictions/heima")
    forms = {42: ("right", "right"), 43: ("right", "wrong"), 44: ("wrong", "empty")}
    for trained, pair in forms.items():
        write_predictions(folder, lambda p, s, b, number, doc, pair=pair: pair[number % 2], trained)
    rows, (cells, provenance) = score(open_gateway(RULES))
    assert provenance["training_seeds"] == [42, 43, 44]
    for benchmark in ("mmvet", "mathvista", "ai2d", "hallusionbench"):
        accuracy = cells[f"lmms/{benchmark}"]["accuracy"]
        assert accuracy.seeds == pytest.approx({42: 100, 43: 50, 44: 0}), benchmark
        assert (accuracy.value, accuracy.n, accuracy.n_failed) == (pytest.approx(50), 36, 6)
        assert accuracy.sd == pytest.approx(50)
        # Three seeds so far apart: a resample may have but the best one, or the worst.
        assert accuracy.low < 5 and accuracy.high > 95
        assert cells[f"lmms/{benchmark}"]["chance"].n == 12
    mean = cells["lmms/mean"]["accuracy"]
    assert mean.seeds[42] == pytest.approx(100) and mean.low < 5 and mean.high > 95
    by_seed = {seed: [row for row in rows if row["training_seed"] == seed] for seed in forms}
    assert {seed: len(found) for seed, found in by_seed.items()} == dict.fromkeys(forms, ANSWERS)


@pytest.fixture
def real_columns(workspace):
    """MMBench as the hub and VLMEvalKit have it: without E, and some editions lack more."""
    from datasets import Dataset

    elsewhere = Path("data").resolve()
    Path("data").unlink()
    shutil.copytree(elsewhere, "data")
    (file,) = Path("data/benchmarks/mmbench").glob("*.parquet")
    rows = Dataset.from_parquet(str(file), cache_dir="cache")
    rows = rows.remove_columns(["hint", "E", "source", "L2-category", "split", "comment"])
    file.unlink()
    rows.to_parquet(str(file))
    return workspace


def test_mmbench_as_it_is(real_columns, open_gateway):
    """Checked, asked, scored and broken down under both protocols."""
    from eval import tasks
    from eval.benchmark_check import check_folder

    folder = Path("data/benchmarks/mmbench")
    assert check_folder("mmbench", folder) == []
    change_params(lambda raw: raw["protocols"]["vlmevalkit"].update(seeds=[42]))
    for protocol in ("lmms", "vlmevalkit"):
        task = tasks.load(config.load(), protocol, "mmbench", Path("tasks"))
        (text,) = (
            part["text"]
            for message in task.doc_to_messages(task.eval_docs[0])
            for part in message["content"]
            if part["type"] == "text"
        )
        assert "nan" not in text and "D. " in text and "E. " not in text
    write_predictions(
        Path("predictions/heima"),
        lambda p, s, benchmark, number, doc: (
            rotation(doc, wrong=(1, 2), bare=(2, 0)) if benchmark == "mmbench" else "right"
        ),
    )
    _, (cells, _) = score(open_gateway(RULES))
    for protocol in ("lmms", "vlmevalkit"):
        found = cells[f"{protocol}/mmbench"]
        assert found["accuracy"].value == pytest.approx(200 / 3)
        assert found["chance"].value == pytest.approx(100 / 4**4)


def test_nothing_right(workspace, open_gateway):
    """MathVista's own aggregate of this is None; no answer at all is 0, too, and all failed."""
    write_predictions(
        Path("predictions/heima"),
        lambda protocol, seed, b, doc_id, doc: ("wrong", "empty", "empty conclusion")[doc_id % 3],
    )
    _, (cells, _) = score(open_gateway(RULES))
    for protocol in ("lmms", "vlmevalkit"):
        for benchmark in RIGHT:
            assert cells[f"{protocol}/{benchmark}"]["accuracy"].value == 0, (protocol, benchmark)
    mathvista = cells["lmms/mathvista"]["accuracy"]
    assert (mathvista.n, mathvista.n_failed) == (12, 8)


def test_unusable_replies_name_their_samples(lmms_only, open_gateway, monkeypatch):
    """Not one score is written, and lmms-eval's own retries do not slow the failure down."""
    from eval import rules

    monkeypatch.setitem(rules._RULES, "mmvet", lambda asked: "a fine answer")
    write_predictions(Path("predictions/heima"), lambda *_: "cut off")
    from eval.gateway import JudgeError

    with pytest.raises(JudgeError, match=r"left \d+ requests without") as caught:
        score(open_gateway(RULES))
    # Samples that ask the same are one request.
    for sample in range(12):
        assert re.search(rf"mmvet sample {sample}[,:].* 'a fine answer'", str(caught.value)), sample
    assert not Path("rows").exists()
    assert not Path("cells").exists()


def test_unusable_replies_of_the_papers_judge_name_their_samples(
    workspace, open_gateway, monkeypatch
):
    """Its prompts do not say which benchmark asks."""
    from eval import rules
    from eval.gateway import JudgeError

    change_params(without_lmms)
    change_params(lambda raw: raw["protocols"]["vlmevalkit"].update(seeds=[42]))
    monkeypatch.setitem(rules._RULES, "choice", lambda asked: "hard to say")
    write_predictions(Path("predictions/heima"), lambda p, s, benchmark, *_: (
        "wrong" if benchmark == "mmbench" else "right"))  # fmt: skip
    with pytest.raises(JudgeError, match="without a usable") as caught:
        score(open_gateway(RULES))
    named = {int(number) for number in re.findall(r"mmbench sample (\d+)", str(caught.value))}
    assert named == set(range(12))
    assert "choice cannot read the reply 'hard to say'" in str(caught.value)
    assert not re.search(r"(mmstar|ai2d) sample", str(caught.value))
    assert not Path("rows").exists()


def scored_alone(gateway):
    """`score`, and then the judge's cache is free for another gateway of this process."""
    try:
        return score(gateway)
    finally:
        gateway._backend.close()


def refusing(server, benchmarks):
    """Let a judge refuse one answer to each benchmark for ever; the samples that it is about."""
    expected = {}
    texts = []
    for benchmark, column in benchmarks.items():
        source = next((Path("data/benchmarks") / benchmark).glob("*.parquet"))
        docs = pd.read_parquet(source).to_dict("records")
        picked = (docs[5]["question"], str(docs[5][column]))
        expected[benchmark] = [
            place for place, doc in enumerate(docs) if (doc["question"], str(doc[column])) == picked
        ]
        texts.append(picked[0])

    def plan(body, attempt):
        asked = prompts.recognise(text_of(body))
        refused = any(text in asked.question for text in texts) and (
            asked.kind in expected and (asked.kind, asked.answer) in wanted
        )
        return REJECTED if refused else None

    wanted = {
        (benchmark, RIGHT[benchmark](pd.read_parquet(next((Path("data/benchmarks") / benchmark)
         .glob("*.parquet"))).to_dict("records")[5]))
        for benchmark in benchmarks
    }  # fmt: skip
    server.plan = plan
    return expected


@pytest.fixture
def judged(workspace, monkeypatch):
    """A judge on loopback, and its parameters."""
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    with JudgeServer() as server:

        def judge(**options):
            given = {"base_url": server.url, "model": "my-judge", "max_retries": 0, **options}
            return OpenAIJudge(backend="openai", api_key_env="TEST_JUDGE_KEY", **given)

        yield server, judge


@pytest.mark.parametrize("most", [0.0, 1 / 24, 0.5])
def test_answers_that_the_judge_always_refuses(judged, open_gateway, most):
    """They are wrong in the value, right in the upper bound, and named; within `max_missing`."""
    server, judge = judged
    change_params(lambda raw: raw["protocols"].pop("vlmevalkit"))
    write_predictions(Path("predictions/heima"), lambda *_: "right")
    columns = {"mmvet": "answer", "hallusionbench": "gt_answer_details", "mathvista": "answer"}
    expected = refusing(server, columns)
    gateway = open_gateway(judge(max_missing=most))
    if most < 1 / 12:
        with pytest.raises(JudgeError, match=r"(mmvet|mathvista|hallusionbench) sample 5"):
            score(gateway)
        assert not Path("rows").exists()
        return
    rows, (cells, _) = score(gateway)
    for benchmark in RIGHT:
        accuracy = cells[f"lmms/{benchmark}"]["accuracy"]
        left = expected.get(benchmark, [])
        found = [row for row in rows if row["benchmark"] == benchmark and "unanswered" in row]
        assert [row["doc_id"] for row in found] == left, benchmark
        assert all((row["score"], row["best"]) == (0, 1) for row in found)
        assert len(accuracy.unanswered) == len(left)
        if left:
            assert accuracy.value == pytest.approx(100 * (1 - len(left) / accuracy.n))
            assert accuracy.if_right == accuracy.high == pytest.approx(100)
            assert accuracy.low < accuracy.value
            assert "sample 5, training seed 42, decoding seed 42: BadReq" in accuracy.unanswered[0]
        else:
            assert (accuracy.value, accuracy.if_right) == (pytest.approx(100), None)
    mean = cells["lmms/mean"]["accuracy"]
    assert mean.value < mean.if_right == pytest.approx(100) == mean.high
    assert len(mean.unanswered) == sum(map(len, expected.values()))


def test_rotations_that_the_judge_always_refuses(judged, open_gateway):
    """A question is then right at best, unless another of its rotations is wrong already."""
    server, judge = judged
    change_params(without_lmms)
    change_params(lambda raw: raw["protocols"]["vlmevalkit"].update(seeds=[42]))
    write_predictions(
        Path("predictions/heima"),
        lambda p, s, benchmark, number, doc: (
            "wrong" if benchmark == "mmbench" and doc["index"] in (1, 2) else "right"
        ),
    )
    server.plan = lambda body, attempt: (
        REJECTED if prompts.recognise(text_of(body)).kind == "choice" else None
    )
    rows, (cells, _) = scored_alone(open_gateway(judge(max_missing=0.2)))
    found = {row["unit"]: row for row in rows if "unanswered" in row}
    assert {unit: (row["score"], row["best"]) for unit, row in found.items()} == {
        1: (0, 1),
        2: (0, 1),
    }
    accuracy = cells["vlmevalkit/mmbench"]["accuracy"]
    assert (accuracy.value, accuracy.if_right) == (pytest.approx(100 / 3), pytest.approx(100))
    with pytest.raises(JudgeError, match=r"2 of 12 answers to mmbench .*max_missing = 0\.1"):
        scored_alone(open_gateway(judge(max_missing=0.1)))


def test_another_edition_is_refused(lmms_only, open_gateway):
    write_predictions(Path("predictions/heima"), lambda *_: "right")
    made = json.loads(Path("predictions/heima/provenance.json").read_text(encoding="utf-8"))
    made["data"]["lmms"]["ai2d"] = "other"
    write_json("predictions/heima/provenance.json", made)
    with pytest.raises(ValueError, match=r"another edition of ai2d \(lmms\); run `dvc repro pred"):
        score(open_gateway(RULES))


def test_missing_prediction_is_refused(lmms_only, open_gateway):
    write_predictions(Path("predictions/heima"), lambda *_: "right")
    file = Path("predictions/heima/42/lmms/42/mmvet.jsonl")
    write_jsonl(file, read_jsonl(file)[:-1])
    with pytest.raises(KeyError, match=r"no prediction of .*mmvet, sample 11"):
        score(open_gateway(RULES))


def test_stage_with_the_judge_down(workspace):
    """The stage ends at once, before anything is scored, and says what to do."""
    change_params(
        lambda raw: raw.update(
            judge={
                "backend": "openai",
                "base_url": "http://127.0.0.1:9/v1",
                "model": "my-judge",
                "api_key_env": "TEST_JUDGE_KEY",
                "max_retries": 0,
            }
        )
    )
    ended = subprocess.run(
        [sys.executable, "-m", "stages.score", "heima"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TEST_JUDGE_KEY": "secret"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "my-judge" in ended.stderr and "http://127.0.0.1:9/v1" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not Path("metrics").exists()
