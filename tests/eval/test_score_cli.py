"""`python -m eval.score` on files of both kinds, against scores counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from eval import score
from eval.vlmevalkit import cases
from heima.config.benchmarks import BENCHMARKS
from tests.eval.judge_server import JudgeServer, _status, text_of

ROOT = Path(__file__).parents[2]
ROTATION = BENCHMARKS["mmbench"].dataset.rotation


@pytest.fixture(autouse=True)
def environment(workspace, monkeypatch):
    """The command sends lmms-eval to its judge; a process runs it once, tests several times."""
    from eval.gateway import _TASKS_THAT_KEEP_THE_URL

    for name in _TASKS_THAT_KEEP_THE_URL:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("API_TYPE", "OPENAI_API_URL", "OPENAI_API_KEY", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")


def docs_of(benchmark):
    file = next((Path("data/benchmarks") / benchmark).glob("*.parquet"))
    docs = pd.read_parquet(file).to_dict("records")
    return [{"index": place, **doc} for place, doc in enumerate(docs)]


def write_jsonl(rows, name="predictions.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def write_xlsx(rows, name="model_benchmark.xlsx"):
    pd.DataFrame(rows).to_excel(name, index=False)
    return name


def run(capsys, *arguments):
    """Exit code, last line, all of standard output, and standard error."""
    code = score.main(arguments)
    said = capsys.readouterr()
    last = said.out.splitlines()[-1] if said.out else "{}"
    return code, json.loads(last), said.out, said.err


def star_rows(**changed):
    """Right by letter, right by text, wrong by letter, and none by the judge; and so on."""
    rows = []
    for doc in docs_of("mmstar"):
        case = cases.read("mmstar", doc)
        place = len(rows)
        right = case.options[case.answer]
        wrong = next(letter for letter in case.options if letter != case.answer)
        text = (case.answer, right, wrong, "hard to say")[place % 4]
        rows.append({"index": doc["index"], "prediction": text, **changed})
    return rows


def test_jsonl(capsys):
    code, found, out, _ = run(
        capsys, write_jsonl(star_rows()), "--benchmark", "mmstar", "--protocol", "vlmevalkit"
    )
    assert code == 0
    # The first two of each four are right, and the last of the 13.
    assert found["accuracy"]["value"] == pytest.approx(100 * 7 / 13)
    assert (found["accuracy"]["n"], found["accuracy"]["n_failed"]) == (13, 0)
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert found["by"] == {"rule": 10, "judge": 3}
    assert len(found["categories"]) == 6
    assert sum(one["n"] for one in found["categories"].values()) == 13
    assert found["missing"] == []
    assert "judge embedded-rules" in out
    assert "53.85" in out


def test_our_own_rows(capsys):
    """Predictions of the pipeline, by doc_id; the conclusion counts, and none is a failure."""
    rows = []
    for place, doc in enumerate(docs_of("hallusionbench")):
        right, wrong = ("yes", "no") if doc["gt_answer"] == "1" else ("no", "yes")
        text = f"{wrong} <CONCLUSION> {right} </CONCLUSION>" if place % 4 else wrong
        conclusion = right if place % 4 else None
        rows.append({"doc_id": place, "text": text, "conclusion": conclusion, "counts": {}})
    code, found, _, _ = run(
        capsys, write_jsonl(rows[::-1]), "--benchmark", "hallusionbench", "--protocol", "vlmevalkit"
    )
    assert code == 0
    assert found["accuracy"]["value"] == 75
    assert (found["accuracy"]["n"], found["accuracy"]["n_failed"]) == (12, 3)
    # The first of each set's four is wrong: one of two figures, one of two questions.
    assert (found["figure_accuracy"], found["question_accuracy"]) == (50, 50)
    assert set(found["categories"]) == {"VD", "VS"}


def test_data_folder(capsys, tmp_path):
    Path("data").rename("elsewhere")
    file = write_jsonl([{"index": 0, "prediction": "A"}])
    asked = (file, "--benchmark", "mmstar", "--protocol", "vlmevalkit")
    code, _, _, err = run(capsys, *asked)
    assert code == 1
    assert "data/benchmarks/mmstar does not hold mmstar" in err
    code, found, _, _ = run(capsys, *asked, "--data", "elsewhere/benchmarks/mmstar")
    assert code == 1
    assert len(found["missing"]) == 12


def circular_table():
    """MMBench as VLMEvalKit writes it: question 0 right, 1 with one rotation wrong, 2 right."""
    rows = []
    for doc in docs_of("mmbench"):
        letters = {letter: doc[letter] for letter in "ABCD"}
        wrong = doc["index"] == 1 + 2 * ROTATION
        rows.append(
            {
                "index": doc["index"],
                "question": doc["question"],
                **letters,
                "answer": doc["answer"],
                "category": doc["category"],
                "l2-category": doc["L2-category"],
                "split": "dev",
                "prediction": "none" if wrong else f"{doc['answer']}. {doc[doc['answer']]}",
            }
        )
    return rows


def test_xlsx(capsys):
    file = write_xlsx(circular_table())
    Path("data").unlink()
    code, found, _, _ = run(capsys, file, "--benchmark", "mmbench", "--protocol", "vlmevalkit")
    assert code == 0
    assert found["accuracy"]["value"] == pytest.approx(200 / 3)
    assert found["accuracy"]["n"] == 3
    assert set(found["categories"]) == {
        "finegrained_perception (instance-level)",
        "logic_reasoning",
    }
    assert found["by"] == {"rule": 11, "judge": 1}


def star_table():
    return [
        {
            "index": place,
            "question": "Which?",
            "A": "None",
            "B": "NA",
            "C": 5,
            "D": None,
            "answer": "ABC"[place % 3],
            "prediction": prediction,
            "category": "math",
        }
        for place, prediction in enumerate(["none", "NA", 5, "The answer is C", None, "C", "A"])
    ]


def test_options_that_stand_in_the_question(capsys):
    """As MMStar's authors want submissions; an option may be empty, and the right one be that."""
    texts = ["A: x, B: y, C: z", "A: , B: y, C: z", "A: x, B: y, C: ", "A: x, B: y, C: "]
    rows = [
        {
            "index": place,
            "question": f"What?\nOptions: {listed}",
            "answer": answer,
            "category": "math",
            "prediction": said,
        }
        for place, (listed, answer, said) in enumerate(
            zip(texts, "CACB", ("z", "A", "C", "y"), strict=True)
        )
    ]
    asked = ("--benchmark", "mmstar", "--protocol", "vlmevalkit")
    for file in (write_xlsx(rows), write_jsonl(rows)):
        code, found, out, _ = run(capsys, file, *asked)
        assert code == 0
        assert found["accuracy"]["value"] == 50
        assert found["never_right"] == ["1", "2"]
        assert "whose right option is empty, so that no answer is right: 2: 1, 2" in out


def test_cells_that_look_empty(capsys):
    """ "None" and "NA" are options and predictions, an empty cell is neither, a number is text."""
    file = write_xlsx(star_table())
    asked = (file, "--benchmark", "mmstar", "--protocol", "vlmevalkit")
    code, found, out, _ = run(capsys, *asked)
    assert code == 1
    assert found["missing"] == ["4"]
    assert "missing predictions, counted as wrong: 1: 4" in out
    # Right: none, NA, 5, C (sample 5) and A (6). Wrong: "The answer is C" for A, and none at all.
    assert found["accuracy"]["value"] == pytest.approx(500 / 7)
    assert (found["accuracy"]["n"], found["accuracy"]["n_failed"]) == (7, 1)
    assert found["by"] == {"rule": 6, "empty": 1}
    code, again, _, _ = run(capsys, *asked, "--allow-missing")
    assert (code, again) == (0, found)


def test_predictions_that_vlmevalkit_did_not_get(capsys):
    rows = star_rows()
    rows[0]["prediction"] = "Failed to obtain answer via API."
    rows[1]["prediction"] = ""
    del rows[5]
    code, found, _, _ = run(
        capsys, write_jsonl(rows), "--benchmark", "mmstar", "--protocol", "vlmevalkit"
    )
    assert code == 1
    assert found["missing"] == ["0", "1", "5"]
    assert found["accuracy"]["n_failed"] == 3
    # Of the right ones 0, 1 and 5 are gone.
    assert found["accuracy"]["value"] == pytest.approx(100 * 4 / 13)


def dropped(rows, *columns):
    return [{k: v for k, v in row.items() if k not in columns} for row in rows]


@pytest.mark.parametrize(
    ("write", "rows", "benchmark", "message"),
    [
        (write_jsonl, [], "mmstar", "has no rows"),
        (write_jsonl, [{"index": 0}], "mmstar", "no column text or prediction"),
        (write_jsonl, [{"text": "A"}], "mmstar", "without doc_id or index: 1"),
        (
            write_jsonl,
            [{"doc_id": 1, "text": "A"}, {"doc_id": 1, "text": "B"}],
            "mmstar",
            "doc_id stands there more than once: 1",
        ),
        (write_jsonl, [{"doc_id": 13, "text": "A"}], "mmstar", "13 rows does not have: 13"),
        (write_jsonl, [{"index": "x", "text": "A"}], "mmvet", "12 rows does not have: x"),
        (write_xlsx, dropped(star_table(), "answer", "B"), "mmstar", "lacks the columns answer"),
        (
            write_xlsx,
            [row | {"answer": "E"} for row in star_table()[:2]],
            "mmstar",
            "sample 1: its answer 'E' is none of its options A, B, C",
        ),
        (write_xlsx, [star_table()[0]] * 2, "mmstar", "the index 0 stands there twice"),
        (
            write_xlsx,
            [row | {"B": None, "C": None} for row in star_table()],
            "mmstar",
            "sample 0: it has fewer than two options",
        ),
    ],
)
def test_bad_input(capsys, write, rows, benchmark, message):
    code, _, out, err = run(
        capsys, write(rows), "--benchmark", benchmark, "--protocol", "vlmevalkit"
    )
    assert (code, out) == (1, "")
    assert err.startswith("eval.score: ")
    assert message in err


def test_rotations_that_are_absent(capsys):
    rows = [row for row in circular_table() if row["index"] != 2 + 3 * ROTATION]
    code, _, _, err = run(
        capsys, write_xlsx(rows), "--benchmark", "mmbench", "--protocol", "vlmevalkit"
    )
    assert code == 1
    assert "1 questions do not stand there once for each of their options" in err
    assert err.rstrip().endswith(": 2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "does not exist"),
        ("table.csv", "index,prediction\n", "must be a .jsonl, an .xlsx or a .tsv file"),
        ("broken.jsonl", '{"index": 0, "text": "A"}\n{"index": ', "line 2 is not JSON"),
        ("list.jsonl", "[1]\n", "line 1 is not a JSON object"),
    ],
)
def test_bad_files(capsys, name, content, message):
    if content is not None:
        Path(name).write_text(content, encoding="utf-8")
    code, _, _, err = run(capsys, name, "--benchmark", "mmstar", "--protocol", "vlmevalkit")
    assert code == 1
    assert message in err


def judge(url, **options):
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    raw["judge"] = {
        "backend": "openai",
        "base_url": url,
        "model": "my-judge",
        "api_key_env": "TEST_JUDGE_KEY",
        "max_retries": 0,
        **options,
    }
    Path("judged.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return ("--params", "judged.yaml", "--benchmark", "mmstar", "--protocol", "vlmevalkit")


def test_another_judge(capsys, monkeypatch):
    """The judge of params is asked about what no rule reads; a paid reply is paid once."""
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    with JudgeServer() as server:
        asked = (write_jsonl(star_rows()), *judge(server.url))
        code, found, _, _ = run(capsys, *asked)
        assert code == 0
        assert found["judge"] == {"backend": "openai", "model": "my-judge"}
        assert found["accuracy"]["value"] == pytest.approx(100 * 7 / 13)
        assert found["by"] == {"rule": 10, "judge": 3}
        # The canary, and the three.
        requests = server.requests
        assert requests == 4
        assert run(capsys, *asked)[1] == found
        assert server.requests == requests


def test_a_judge_that_says_nothing_usable(capsys, monkeypatch):
    """No score is printed, and the samples are named."""
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    from tests.eval.judge_server import completion

    with JudgeServer() as server:
        right = server.grade
        server.grade = lambda body: (
            right(body) if "intelligent teacher" in str(body) else completion("it depends")
        )
        code, _, out, err = run(capsys, write_jsonl(star_rows()), *judge(server.url))
    assert (code, out) == (1, "")
    assert "without a usable reply, more than judge.max_missing = 0, so nothing was scored:" in err
    assert "\n  mmstar sample 3: " in err


def test_a_judge_that_refuses_an_answer(capsys, monkeypatch):
    """Its reason is told; within judge.max_missing the rest is scored, with both bounds."""
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    rows = [
        {"index": place, "question": "Which animal?", "A": "cat", "B": "dog", "answer": "B",
         "category": "x", "prediction": said}
        for place, said in enumerate(["B", "perhaps the other one", "A", "dog"])
    ]  # fmt: skip
    refused = _status(400, {"message": "the content filter says no", "code": "content_filter"})
    with JudgeServer() as server:
        server.plan = lambda body, attempt: refused if "other one" in text_of(body) else None
        asked = (write_jsonl(rows), *judge(server.url))
        code, _, out, err = run(capsys, *asked)
        assert (code, out) == (1, "")
        assert "judge.max_missing = 0, so nothing was scored:\n  mmstar sample 1: BadReq" in err
        assert "the content filter says no" in err
        judge(server.url, max_missing=0.25)
        code, found, out, _ = run(capsys, *asked)
        assert code == 0
        accuracy = found["accuracy"]
        assert (accuracy["value"], accuracy["if_right"]) == (50, 75)
        (named,) = accuracy["unanswered"]
        assert named.startswith("1: ") and "the content filter says no" in named
        assert "counted as wrong (75.00 if all are right): 1:\n  1: BadRequest" in out
        judge(server.url, max_missing=0.2)
        assert run(capsys, *asked)[0] == 1


def test_no_judge(capsys, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    code, _, out, err = run(capsys, write_jsonl(star_rows()), *judge("http://127.0.0.1:9/v1"))
    assert (code, out) == (1, "")
    assert "my-judge at http://127.0.0.1:9/v1 does not answer" in err


def test_protocol_lmms(capsys):
    """lmms-eval's own number: the mean of the categories' means, by letter alone."""
    docs = docs_of("mmstar")
    rows = [
        {"index": doc["index"], "prediction": doc["answer"] if place else "cannot tell"}
        for place, doc in enumerate(docs)
    ]
    code, found, _, _ = run(
        capsys, write_jsonl(rows), "--benchmark", "mmstar", "--protocol", "lmms"
    )
    assert code == 0
    first = [doc["l2_category"] for doc in docs].count(docs[0]["l2_category"])
    assert found["accuracy"]["value"] == pytest.approx(100 * (1 - 1 / first / 6))
    assert found["by"] == {"lmms-eval": 13}


def test_command(edition):
    """As typed: a process of its own, the exit code, and JSON as the last line."""
    rows = [{"doc_id": place, "text": "A"} for place in range(12)]
    ended = subprocess.run(
        [sys.executable, "-m", "eval.score", write_jsonl(rows),
         "--benchmark", "ai2d", "--protocol", "vlmevalkit"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    right = sum(doc["answer"] == "0" for doc in docs_of("ai2d"))
    assert found["accuracy"]["value"] == pytest.approx(100 * right / 12)
    assert found["by"] == {"rule": 12}
