"""The tasks of protocol `vlmevalkit`, run by lmms-eval on hand-made predictions."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd
import pytest

from eval.gateway import JudgeError
from eval.vlmevalkit import cases, scoring
from heima import config
from heima.config import EmbeddedRules
from heima.config.benchmarks import BENCHMARKS
from heima.cot.sections import thinking_token
from heima.results.files import write_jsonl
from tests.eval.judge_server import CONTENT, FATAL, JudgeServer

RULES = EmbeddedRules(backend="embedded-rules")
COUNTS = {"prompt": 30, "decoded": 9, "thinking": 3}
ROTATION = BENCHMARKS["mmbench"].dataset.rotation


def options_of(benchmark, doc):
    return cases.read(benchmark, doc).options


def by_letter(benchmark):
    return lambda doc: f"The answer is {cases.read(benchmark, doc).answer}."


def by_text(benchmark):
    """As a wordy answer that no rule reads but the embedded judge does."""

    def text(doc):
        case = cases.read(benchmark, doc)
        return f"It could be A or B, but it is {case.options[case.answer]}"

    return text


RIGHT = {
    "mmstar": by_letter("mmstar"),
    "mmbench": by_letter("mmbench"),
    "mmvet": lambda doc: f"a {doc['answer']}",
    "mathvista": lambda doc: f"the total is {doc['answer']}",
    "ai2d": by_text("ai2d"),
    "hallusionbench": lambda doc: "Yes, it is." if doc["gt_answer"] == "1" else "no",
}
WRONG = {
    "mmstar": lambda doc: "B" if doc["answer"] == "A" else "A",
    "mmbench": lambda doc: "cannot tell",
    "mmvet": lambda doc: "a house",
    "mathvista": lambda doc: "999",
    "ai2d": lambda doc: "hard to say",
    "hallusionbench": lambda doc: "yes, but no",
}


def docs_of(benchmark):
    file = next((Path("data/benchmarks") / benchmark).glob("*.parquet"))
    docs = pd.read_parquet(file).to_dict("records")
    return [{"index": place, **doc} for place, doc in enumerate(docs)]


def concluded(text):
    return f"<SUMMARY> {thinking_token('summary')} </SUMMARY>\n\n<CONCLUSION> {text}"


def evaluate(answer_of, benchmarks=tuple(RIGHT)):
    """lmms-eval's results and samples of answers `answer_of(benchmark, doc_id, doc)`."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from eval import tasks
    from eval.chat_models import HeimaReplay

    for benchmark in RIGHT:
        rows = [
            {"doc_id": place, "text": answer_of(benchmark, place, doc), "counts": COUNTS}
            for place, doc in enumerate(docs_of(benchmark))
        ]
        write_jsonl(Path("predictions") / f"{benchmark}.jsonl", rows)
    params = config.load("params.yaml")
    loaded = {b: tasks.load(params, "vlmevalkit", b, Path("cache")) for b in benchmarks}
    found = simple_evaluate(
        model=HeimaReplay(predictions="predictions"),
        tasks=list(loaded.values()),
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        cli_args=argparse.Namespace(
            output_path="out", process_with_media=False, reasoning_tags="none"
        ),
    )
    names = {b: BENCHMARKS[b].tasks["vlmevalkit"] for b in benchmarks}
    results = {
        b: {key.partition(",")[0]: value for key, value in found["results"][name].items()}
        for b, name in names.items()
    }
    samples = {
        b: sorted(found["samples"][name], key=lambda one: one["doc_id"])
        for b, name in names.items()
    }
    return results, samples, loaded


def right_or_wrong(benchmark, place, doc):
    """Right, wrong, right without tags, empty; of MMBench one rotation of question 1 is wrong."""
    if benchmark == "mmbench":
        return concluded((WRONG if doc["index"] == 1 + 2 * ROTATION else RIGHT)[benchmark](doc))
    form = place % 4
    if form == 3:
        return ""
    text = (WRONG if form == 1 else RIGHT)[benchmark](doc)
    return text if form == 2 else concluded(text) + " </CONCLUSION>"


def test_every_task(workspace, open_gateway):
    from eval.breakdown import RULES as BREAKDOWN

    gateway = open_gateway(RULES)
    results, samples, loaded = evaluate(right_or_wrong)
    assert gateway.failures == []

    for benchmark in ("mmvet", "mathvista", "ai2d", "hallusionbench"):
        assert results[benchmark]["accuracy"] == 0.5, benchmark
    # 13 samples, the last right: a mean over samples, not over categories.
    assert results["mmstar"]["accuracy"] == pytest.approx(7 / 13)
    assert results["mmbench"]["accuracy"] == pytest.approx(2 / 3)
    # In each set of four, samples 0 and 2 are right: one figure wholly, each question by half.
    sets = docs_of("hallusionbench")[:4]
    assert [(doc["figure_id"], doc["question_id"]) for doc in sets] == [
        ("0", "0"), ("1", "0"), ("0", "1"), ("1", "1"),
    ]  # fmt: skip
    assert results["hallusionbench"]["figure_accuracy"] == 0.5
    assert results["hallusionbench"]["question_accuracy"] == 0

    for benchmark, found in samples.items():
        rules = BREAKDOWN["vlmevalkit"][benchmark]
        scores = rules.scores(found)
        docs = list(loaded[benchmark].eval_docs_no_media)
        units = [rules.unit(doc) for doc in docs] if rules.unit else range(len(docs))
        each = dict(zip(units, scores, strict=True))
        assert sum(each.values()) / len(each) == pytest.approx(results[benchmark]["accuracy"])
        if benchmark != "mmbench":
            assert scores[:4] == [1, 0, 1, 0]
        guesses = rules.guess(docs)
        assert len(guesses) == len(each)
        if benchmark in ("mmstar", "ai2d"):
            assert set(guesses) == {1 / 4}
        if benchmark == "mmbench":
            assert set(guesses) == {1 / 4**4}
    turns = [one["accuracy"] for one in samples["mmbench"]]
    assert {one["unit"]: one["score"] for one in turns} == {"0": 1, "1": 0, "2": 1}
    assert sorted({one["accuracy"]["by"] for one in samples["ai2d"]}) == ["empty", "judge", "rule"]


def test_prompts(workspace, open_gateway):
    """What a model is asked: the question, its options, and VLMEvalKit's line after them."""
    open_gateway(RULES)
    _, _, loaded = evaluate(lambda *_: "A")
    for benchmark in ("mmstar", "mmbench", "ai2d"):
        doc = next(iter(loaded[benchmark].eval_docs_no_media))
        options = options_of(benchmark, doc)
        question = doc["question"].partition("\nOptions:")[0]
        assert loaded[benchmark].doc_to_text(doc) == (
            f"Question: {question}\nOptions:\nA. {options['A']}\nB. {options['B']}\n"
            f"C. {options['C']}\nD. {options['D']}\n"
            "Please select the correct answer from the options above. \n"
        )
    doc = {**doc, "hint": "Look up."}
    assert loaded["ai2d"].doc_to_text(doc).startswith("Hint: Look up.\nQuestion: ")
    for benchmark, column in (
        ("mmvet", "question"), ("mathvista", "query"), ("hallusionbench", "question"),
    ):  # fmt: skip
        doc = next(iter(loaded[benchmark].eval_docs_no_media))
        assert loaded[benchmark].doc_to_text(doc) == doc[column]


def test_unusable_replies_behind_the_gateway_are_recorded(workspace, open_gateway, monkeypatch):
    """lmms-eval ends, with a number that nobody may use; the gateway has every failure."""
    from eval import rules

    monkeypatch.setitem(rules._RULES, "choice", lambda asked: "hard to say")
    monkeypatch.setitem(rules._RULES, "yes_no", lambda asked: "")
    gateway = open_gateway(RULES)
    results, samples, _ = evaluate(
        lambda benchmark, place, doc: WRONG[benchmark](doc) + "!" * place,
        benchmarks=("ai2d", "hallusionbench"),
    )
    assert len(gateway.failures) == 24
    for benchmark in ("ai2d", "hallusionbench"):
        assert math.isfinite(results[benchmark]["accuracy"])
        assert all(one["accuracy"]["unanswered"] for one in samples[benchmark])


def unread(*texts):
    row = {"index": 0, "question": "Which?", "options": ["x", "y"], "answer": "1"}
    return [
        scoring.sample(cases.read("ai2d", row | {"index": place}), text)
        for place, text in enumerate(texts)
    ]


@pytest.fixture
def server(monkeypatch):
    """A judge of the environment, without our gateway before it."""
    with JudgeServer() as server:
        monkeypatch.setenv("OPENAI_API_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield server


def test_judge_without_a_gateway(server):
    samples = unread("the second", "neither", "the second", "y", "")
    server.grade = lambda body: {
        **_completion("B" if "second" in body["messages"][0]["content"] else "Z"),
    }
    scoring.settle("ai2d", samples)
    assert [one["score"] for one in samples] == [1, 0, 1, 1, 0]
    assert [one["by"] for one in samples] == ["judge", "judge", "judge", "rule", "empty"]
    # The same prompt is asked once; what has a score is not asked again.
    assert server.requests == 2
    scoring.settle("ai2d", samples)
    assert server.requests == 2


def _completion(content):
    from tests.eval.judge_server import completion

    return completion(content)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (CONTENT["prose"], "unusable reply 'I would say"),
        (CONTENT["HTML"], "JSONDecodeError"),
        (CONTENT["broken JSON"], "JSONDecodeError"),
        (CONTENT["wrong shape"], "no text"),
        (CONTENT["a list"], "no text"),
        (CONTENT["null"], "no text"),
        (CONTENT["no choices"], "no text"),
        (CONTENT["empty"], "unusable reply ''"),
        (CONTENT["a refusal"], "no text"),
        (FATAL["key"], "AuthenticationError"),
        (FATAL["model"], "NotFoundError"),
    ],
)
def test_faults_of_a_judge_without_a_gateway(server, fault, message):
    """All samples that it concerns are named, and none gets a score."""
    server.grade = lambda body: _completion("B")
    server.plan = lambda body, attempt: None if "third" in body["messages"][0]["content"] else fault
    samples = unread("the first", "the second", "the third")
    with pytest.raises(JudgeError, match="left 2 answers without a usable reply") as caught:
        scoring.settle("ai2d", samples)
    for place in (0, 1):
        assert f"ai2d sample {place}: " in str(caught.value)
    assert message in str(caught.value)
    assert [one["score"] for one in samples] == [None] * 3


def test_letter_that_is_no_option_is_no_verdict(server):
    server.grade = lambda body: _completion("C")
    with pytest.raises(JudgeError, match="ai2d sample 0: unusable reply 'C'"):
        scoring.settle("ai2d", unread("the third"))


def test_no_judge_at_all(monkeypatch):
    monkeypatch.delenv("OPENAI_API_URL", raising=False)
    scoring.settle("ai2d", unread("A", ""))
    with pytest.raises(JudgeError, match="OPENAI_API_URL and OPENAI_API_KEY do not name one"):
        scoring.settle("ai2d", unread("the third"))


def test_unusable_row_ends_the_run(workspace, tmp_path):
    """It is named when the task is loaded, before anything is decoded."""
    from eval import tasks

    source = next(Path("data/benchmarks/mmstar").glob("*.parquet"))
    table = pd.read_parquet(source)
    table.loc[3, "question"] = "What is at a1?"
    table.loc[5, "answer"] = "E"
    Path("data").unlink()
    folder = Path("data/benchmarks/mmstar")
    folder.mkdir(parents=True)
    table.to_parquet(folder / "val-changed.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: val\n"
        "    path: val-changed.parquet\n---\n",
        encoding="utf-8",
    )
    assert BENCHMARKS["mmstar"].dataset.split == "val"
    params = config.load("params.yaml")
    with pytest.raises(ValueError, match="mmstar has 2 unusable rows") as caught:
        tasks.load(params, "vlmevalkit", "mmstar", tmp_path / "cache")
    assert "sample 3: its options cannot be told apart" in str(caught.value)
    assert "sample 5: its answer 'E' is none of its options A, B, C, D" in str(caught.value)
    # lmms-eval's own task does not read the options.
    tasks.load(params, "lmms", "mmstar", tmp_path / "cache")
