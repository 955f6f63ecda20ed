"""Score one variant's saved predictions with lmms-eval's own rules and a judge behind the gateway.

lmms-eval gives each benchmark one number. This module runs it, refuses numbers that a fault made,
and breaks the number down to samples: their weighted mean must give lmms-eval's number again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Image
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from eval import prompts, tasks
from eval.chat_models import HeimaReplay
from eval.gateway import Gateway, JudgeError
from heima import config
from heima.config import Params
from heima.results import Cell, provenance, read_json, read_jsonl, write_jsonl, write_metrics
from heima.statistics import cell, mean_of

COUNTS = ("decoded", "thinking", "tag", "conclusion")


def score(
    variant: str,
    rows_file: Path,
    metrics_file: Path,
    *,
    predictions: Path,
    gateway: Gateway,
    params_file: str = "params.yaml",
) -> None:
    """Write the scores of each sample and the cells of each benchmark.

    A row of `rows_file` is {benchmark, doc_id, unit, image, score, failed, finish, decoded,
    thinking, tag, conclusion}. `unit` is what the score belongs to: MMBench's rotations share one.
    `failed` says that the answer has no conclusion; it is then scored on its whole text.

    `metrics_file` has a group for each benchmark with `accuracy` (percent), the tokens of `COUNTS`,
    and `chance` (what guessing scores, percent), and a group `mean` over the benchmarks.

    Raises `JudgeError` where the judge left something unanswered, `ValueError` where a number is
    missing, differs from its samples, or belongs to other data than the predictions.
    """
    params = config.load(params_file)
    made = read_json(predictions / "provenance.json")
    revisions = {b: tasks.data_revision(tasks.data_folder(params, b)) for b in params.benchmarks}
    for benchmark, revision in revisions.items():
        if made["data"].get(benchmark) != revision:
            raise ValueError(
                f"{predictions} was predicted on another edition of {benchmark}; "
                f"run `dvc repro predict@{variant}`"
            )
    with tempfile.TemporaryDirectory() as scratch:
        loaded = {b: tasks.load(params, b, Path(scratch)) for b in params.benchmarks}
        replay = HeimaReplay(predictions=str(predictions), params=params_file)
        # MMBench prints its categories; here they have no reader.
        with contextlib.redirect_stdout(None):
            results = simple_evaluate(
                model=replay,
                tasks=list(loaded.values()),
                task_manager=TaskManager(include_defaults=False),
                bootstrap_iters=0,
                # HallusionBench keeps a judge's answers there and gives them to the next model.
                cli_args=argparse.Namespace(
                    output_path=scratch, process_with_media=False, reasoning_tags="none"
                ),
            )
        answers = {b: read_jsonl(predictions / f"{b}.jsonl") for b in loaded}
        _check_judge(gateway, loaded, answers)
        rows = []
        cells: dict[str, dict[str, Cell]] = {}
        for benchmark, task in loaded.items():
            known = params.benchmarks[benchmark]
            samples = sorted(results["samples"][known.task], key=lambda one: one["doc_id"])
            found = _rows(benchmark, task, samples, answers[benchmark])
            official = _official(results["results"][known.task], known.metric, benchmark)
            cells[benchmark] = _cells(params, benchmark, task, found, official * known.scale)
            rows += found
        _check_judge(gateway, loaded, answers)
    cells["mean"] = {
        metric: mean_of([cells[benchmark][metric] for benchmark in loaded])
        for metric in ("accuracy", *(f"{count}_tokens" for count in COUNTS))
    }
    write_jsonl(rows_file, rows)
    write_metrics(
        metrics_file,
        cells,
        provenance(
            f"score@{variant}",
            params,
            model=made["model"],
            judge=gateway.identity,
            lmms_eval=tasks.lmms_eval_version(),
            tasks={b: known.task for b, known in params.benchmarks.items()},
            data=revisions,
        ),
    )


def _check_judge(
    gateway: Gateway,
    loaded: Mapping[str, ConfigurableMessagesTask],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Raise `JudgeError` naming the samples whose prompts got no usable reply."""
    if not gateway.failures:
        return
    lines = []
    for failure in gateway.failures:
        asked = prompts.recognise(failure.prompt)
        names = [
            f"{asked.kind} sample {row['doc_id']}"
            for row, doc in zip(
                answers[asked.kind] if asked else (),
                loaded[asked.kind].eval_docs_no_media if asked else (),
                strict=True,
            )
            if doc["question"] in failure.prompt
            and tasks.scored_text(row["text"]).strip() == asked.answer.strip()
        ]
        named = ", ".join(names) or f"a request ending {failure.prompt[-80:]!r}"
        lines.append(f"  {named}: {failure.reason}")
    shown = lines[:20] + ([f"  … and {len(lines) - 20} more"] if len(lines) > 20 else [])
    raise JudgeError(
        f"the judge {gateway.identity['model']} left {len(lines)} requests without a usable "
        "reply, so no score was written:\n" + "\n".join(shown)
    )


def _official(results: Mapping[str, Any], metric: str, benchmark: str) -> float:
    """lmms-eval's aggregate of a metric, whatever filter it names."""
    found = [value for key, value in results.items() if key.partition(",")[0] == metric]
    if len(found) != 1:
        raise ValueError(f"{benchmark}: lmms-eval gives no single {metric!r} in {sorted(results)}")
    # MathVista's aggregation returns None for an accuracy of 0.
    value = 0.0 if found[0] is None and benchmark == "mathvista" else found[0]
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{benchmark}: lmms-eval's {metric} is {value!r}, not a number")
    return float(value)


def _rows(
    benchmark: str,
    task: ConfigurableMessagesTask,
    samples: Samples,
    answers: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One row a sample; a prediction without its sample, or the reverse, raises `ValueError`."""
    rules = RULES[benchmark]
    docs = list(task.eval_docs_no_media)
    for name, found in {"predictions": answers, "lmms-eval's samples": samples}.items():
        if [one["doc_id"] for one in found] != list(range(len(docs))):
            raise ValueError(f"{benchmark} has {len(docs)} samples, other than the {name}")
    return [
        {
            "benchmark": benchmark,
            "doc_id": answer["doc_id"],
            "unit": rules.unit(doc) if rules.unit else answer["doc_id"],
            "image": image,
            "score": value,
            "failed": not answer["conclusion"],
            "finish": answer["finish"],
            **{count: answer["counts"][count] for count in COUNTS},
        }
        for doc, answer, image, value in zip(
            docs, answers, _images(task), rules.scores(samples), strict=True
        )
    ]


def _images(task: ConfigurableMessagesTask) -> list[str]:
    """A short hash of each sample's image file: what clusters the samples."""
    column = next(
        name for name, feature in task.eval_docs.features.items() if isinstance(feature, Image)
    )
    raw = task.eval_docs.select_columns(column).cast_column(column, Image(decode=False))
    return [hashlib.sha256(doc[column]["bytes"]).hexdigest()[:12] for doc in raw]


def _cells(
    params: Params,
    benchmark: str,
    task: ConfigurableMessagesTask,
    rows: Sequence[Mapping[str, Any]],
    official: float,
) -> dict[str, Cell]:
    """The cells of one benchmark; `official` is lmms-eval's number in percent."""
    rules = RULES[benchmark]
    docs = list(task.eval_docs_no_media)
    resampling = {"draws": params.similarity.draws, "seed": params.seed}
    # Questions about one image are drawn together: their answers are not independent.
    images = [row["image"] for row in rows]
    failed = [row["failed"] for row in rows]
    units: dict[int, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        units[row["unit"]].append(position)
    first = [positions[0] for positions in units.values()]
    weights = None
    if rules.stratum:
        strata = [rules.stratum(docs[position]) for position in first]
        sizes = Counter(strata)
        weights = [len(first) / sizes[stratum] for stratum in strata]
    accuracy = cell(
        [rows[position]["score"] for position in first],
        **resampling,
        clusters=[images[position] for position in first],
        weights=weights,
        n_failed=sum(any(failed[i] for i in positions) for positions in units.values()),
        scale=100,
    )
    # lmms-eval rounds some of its numbers to two digits.
    if abs(accuracy.value - official) > 0.006:
        raise ValueError(
            f"{benchmark}: the samples give {accuracy.value:.3f} %, lmms-eval {official:.3f} %; "
            "eval.scoring.RULES must follow this version of lmms-eval"
        )
    guesses = rules.guess(docs)
    chance = 100 * sum(guesses) / len(guesses)
    return {
        "accuracy": accuracy,
        "chance": Cell(chance, chance, chance, n=len(first)),
        **{
            f"{count}_tokens": cell(
                [row[count] for row in rows], **resampling, clusters=images, n_failed=sum(failed)
            )
            for count in COUNTS
        },
    }
