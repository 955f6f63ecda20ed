"""Rows of the benchmarks with the columns, types and file layout of their cards on the hub.

Their oddities, too: an option of MMStar is empty, MMBench's rows have no column E.
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Sequence, Value

from heima.config.benchmarks import BENCHMARKS
from heima.toy.benchmarks import EDITIONS
from timings.rehearsal.records import IMAGES, file_of

_STRING, _INTEGER = Value("string"), Value("int64")
TSV = "MMBench_DEV_EN_V11.tsv"
"""VLMEvalKit's file, which the protocol `vlmevalkit` reads."""


def _picture(seed: int) -> dict[str, Any]:
    mode, size, kind = IMAGES[(0, 1, 3, 8, 4)[seed % 5]]
    return {"bytes": file_of(mode, size, kind, seed), "path": f"{seed}.{kind.lower()}"}


def _strings(*names: str) -> dict[str, Value]:
    return dict.fromkeys(names, _STRING)


def _mmstar() -> tuple[Features, list[dict[str, Any]]]:
    questions = [
        "Which of these is it?\nOptions: A: a red car, B: two, or three, C: None of these, D: 1:2",
        "What is <image 1>?\nOptions: A: (1) 12.5%, B: 3/4, C: $x^2$, D: 'a'",
        "How many?\nOptions: A: 1, B: , C: 3, D: 4",
    ]
    features = Features(
        {
            "index": _INTEGER,
            **_strings("question"),
            "image": Image(),
            **_strings("answer", "category", "l2_category"),
            "meta_info": _strings("source", "split", "image_path"),
        }
    )
    rows = [
        {
            "index": number,
            "question": question,
            "image": _picture(number),
            "answer": "AC"[number % 2],
            "category": ("math", "coarse perception")[number % 2],
            "l2_category": ("geometry", "image scene and topic")[number % 2],
            "meta_info": {"source": "MMMU", "split": "val", "image_path": f"images/{number}.jpg"},
        }
        for number, question in enumerate(questions)
    ]
    return features, rows


def _mmbench() -> tuple[Features, list[dict[str, Any]]]:
    letters = ("A", "B", "C", "D")
    features = Features(
        {
            "index": _INTEGER,
            **_strings("question", "hint", "answer", *letters, "category"),
            "image": Image(),
            **_strings("source", "L2-category", "comment", "split"),
        }
    )
    rows = []
    for question, options in enumerate((["yes", "no"], ["one", "two", "three"])):
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": question + 241 + turn * 1_000_000,
                    "question": "Is it so?" if question == 0 else "How many\nare there?",
                    "hint": "nan" if question == 0 else "A passage, with commas.\nTwo lines.",
                    "answer": "ABC"[turned.index(options[0])],
                    **dict.fromkeys(letters, "nan"),
                    **dict(zip("ABCD", turned, strict=False)),
                    "category": "attribute_recognition",
                    "image": _picture(question),
                    "source": "reasonseg",
                    "L2-category": "finegrained_perception (instance-level)",
                    "comment": "nan",
                    "split": "dev",
                }
            )
    return features, rows


def _mmvet() -> tuple[Features, list[dict[str, Any]]]:
    features = Features(
        {
            **_strings("question_id", "question", "answer", "image_source", "capability"),
            "image": Image(),
        }
    )
    # Alternatives and what must all be there, as MM-Vet's answers have them.
    given = ("x=-1<AND>x=-5", "green<OR>lime")
    rows = [
        {
            "question_id": f"v1_{number}",
            "question": "What is x in the equation?\nNOTE: both roots." if number else "Which?",
            "answer": given[number],
            "image_source": "https://a.example/it.png",
            "capability": ("ocr,math", "rec")[number],
            "image": _picture(number),
        }
        for number in range(2)
    ]
    return features, rows


def _mathvista() -> tuple[Features, list[dict[str, Any]]]:
    kinds = [
        ("multi_choice", "text", ["Yes", "No"], None, None, "Yes"),
        ("free_form", "integer", None, None, None, "7"),
        ("free_form", "float", None, "cm", 1.0, "2.5"),
        ("free_form", "list", None, None, None, "[1, 2]"),
    ]
    rows = [
        {
            "pid": str(number + 1),
            "question": "What is it?",
            "image": f"images/{number + 1}.jpg",
            "decoded_image": _picture(number),
            "choices": choices,
            "unit": unit,
            "precision": precision,
            "answer": answer,
            "question_type": question_type,
            "answer_type": answer_type,
            "metadata": {
                "category": "math-targeted-vqa",
                "context": "geometry diagram",
                "grade": "high school",
                "img_height": 300,
                "img_width": 400,
                "language": "english",
                "skills": ["geometry reasoning", "algebraic reasoning"],
                "source": "GEOS",
                "split": "testmini",
                "task": "geometry problem solving",
            },
            "query": "Hint: Please answer the question.\nQuestion: What is it?\nSolution:",
        }
        for number, (question_type, answer_type, choices, unit, precision, answer) in enumerate(
            kinds
        )
    ]
    return EDITIONS["mathvista"].features, rows


def _ai2d() -> tuple[Features, list[dict[str, Any]]]:
    features = Features(
        {
            "question": _STRING,
            "options": Sequence(_STRING),
            "answer": _STRING,
            "image": Image(),
        }
    )
    rows = [
        {
            "question": "Which label names the root?",
            "options": ["A", "B", "C", "D"],
            "answer": str(number),
            "image": _picture(number),
        }
        for number in range(2)
    ]
    return features, rows


def _hallusionbench() -> tuple[Features, list[dict[str, Any]]]:
    features = Features(
        {
            **_strings("category", "subcategory", "visual_input", "set_id", "figure_id"),
            **_strings("sample_note", "question_id", "question", "gt_answer_details"),
            **_strings("gt_answer", "filename"),
            "image": Image(),
        }
    )
    rows = [
        {
            "category": "VD",
            "subcategory": "illusion",
            "visual_input": str(figure + 1),
            "set_id": "0",
            "figure_id": str(figure),
            "sample_note": "circle",
            "question_id": str(question),
            "question": ("Are they the same?", "Do they differ?")[question],
            "gt_answer_details": "They are.",
            "gt_answer": str((figure + question) % 2),
            "filename": f"./hallusion_bench/VD/illusion/0_{figure}.png",
            "image": _picture(figure),
        }
        for figure in range(2)
        for question in range(2)
    ]
    return features, rows


_ROWS = {
    "mmstar": _mmstar,
    "mmbench": _mmbench,
    "mmvet": _mmvet,
    "mathvista": _mathvista,
    "ai2d": _ai2d,
    "hallusionbench": _hallusionbench,
}


def write(folder: Path) -> None:
    """A data set folder for each benchmark, and VLMEvalKit's MMBench V1.1."""
    for name, make in _ROWS.items():
        features, rows = make()
        dataset = BENCHMARKS[name].dataset
        place = folder / name
        (place / "data").mkdir(parents=True)
        file = f"data/{dataset.split}-00000-of-00001.parquet"
        # As on the hub: types in the file's own schema.
        pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), place / file)
        (place / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {dataset.configuration or 'default'}\n  data_files:\n"
            f"  - split: {dataset.split}\n    path: data/{dataset.split}-*\n---\n",
            encoding="utf-8",
        )
    _write_tsv(folder / TSV)


def _write_tsv(path: Path) -> None:
    """Options that are not there are empty; a rotation's image is the index of the first one's."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    columns += ["l2-category", "split"]
    _, rows = _mmbench()
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(columns)
        for row in rows:
            stated = {key: "" if value == "nan" else value for key, value in row.items()}
            whole, first = row["index"] < 1_000_000, row["index"] % 1_000_000
            stated["image"] = (
                base64.b64encode(row["image"]["bytes"]).decode() if whole else str(first)
            )
            stated["l2-category"] = row["L2-category"]
            table.writerow([stated[column] for column in columns])


def rows_of(name: str) -> Many[dict[str, Any]]:
    """The rows of a benchmark."""
    return _ROWS[name]()[1]
