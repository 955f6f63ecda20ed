"""Score one variant's saved predictions under every protocol, with a judge behind the gateway.

lmms-eval runs the tasks of both protocols and gives each benchmark one number. This module refuses
numbers that a fault made, and breaks the number down to samples: their weighted mean must give the
task's number again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Image
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from eval import benchmark_data, prompts, tasks
from eval.breakdown import RULES, Docs, Samples
from eval.chat_models import HeimaReplay
from eval.gateway import Gateway, JudgeError
from heima import config
from heima.config import Params
from heima.results.cells import Cell, write_metrics
from heima.results.files import read_json, read_jsonl, write_jsonl
from heima.results.provenance import provenance
from heima.results.scores import ACCURACY, CHANCE, COUNTS, MEAN, score_group, seed_metric
from heima.results.statistics import Resampled, mean_of, resample

Row = Mapping[str, Any]


def score(
    variant: str,
    rows_file: Path,
    metrics_file: Path,
    *,
    predictions: Path,
    gateway: Gateway,
    params_file: str = "params.yaml",
) -> None:
    """Write the scores of each sample and the cells of each benchmark under each protocol.

    A row of `rows_file` is {training_seed, protocol, seed, benchmark, doc_id, unit, image, score,
    failed, finish, decoded, thinking, tag, conclusion}. `unit` is what the score belongs to:
    MMBench's rotations share one. `failed` says that the answer has no conclusion; it is then
    scored on its whole text, and its tokens count as they are.

    `metrics_file` has a group for each protocol and benchmark
    (`heima.results.measures.score_group`) with `accuracy` (percent), the tokens of `COUNTS`, and
    `chance` (what guessing scores, percent), and for each protocol a group of the means over
    benchmarks. n counts the answers of every training seed and every decoding seed. Training seeds
    and questions are resampled, a question with all of its answers; of several decoding seeds,
    `accuracy_seed_<seed>` is the accuracy with one.

    Raises `JudgeError` where the judge left something unanswered, `ValueError` where a number is
    missing, differs from its samples, or belongs to other data than the predictions.
    """
    params = config.load(params_file)
    made = read_json(predictions / "provenance.json")
    revisions = benchmark_data.revisions(params)
    for protocol, editions in revisions.items():
        for benchmark, revision in editions.items():
            if made["data"].get(protocol, {}).get(benchmark) != revision:
                raise ValueError(
                    f"{predictions} was predicted on another edition of {benchmark} ({protocol}); "
                    f"run `dvc repro predict@{variant}`"
                )
    rows: list[dict[str, Any]] = []
    cells: dict[str, dict[str, Cell]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for protocol, rules in params.protocols.items():
            loaded: dict[str, _Benchmark] = {
                b: _Benchmark(params, protocol, b, Path(cache)) for b in params.benchmarks
            }
            runs = {
                trained: [
                    _Run(loaded, protocol, seed, predictions / str(trained), gateway)
                    for seed in rules.seeds
                ]
                for trained in made["training_seeds"]
            }
            parts = []
            for place, benchmark in enumerate(params.benchmarks):
                found = {
                    trained: [row for run in same for row in run.rows[benchmark]]
                    for trained, same in runs.items()
                }
                docs = loaded[benchmark].docs
                parts.append(_resampled(params, place, found, docs * len(rules.seeds)))
                cells[score_group(protocol, benchmark)] = {
                    **{name: one.cell(seed=params.seed) for name, one in parts[-1].items()},
                    CHANCE: _chance(protocol, benchmark, docs),
                }
                rows += [
                    {"training_seed": trained, **row} for trained in found for row in found[trained]
                ]
            cells[score_group(protocol, MEAN)] = {
                metric: mean_of([part[metric] for part in parts]).cell(seed=params.seed)
                for metric in parts[0]
            }
    judge = gateway.usage()
    # What was known and paid differs when a run is repeated, so it is no part of the result.
    print(
        f"score@{variant}: {judge['replies']} replies of the judge, {judge['known']} known before, "
        f"{judge['asked']} asked, ${judge['usd']:.4f} paid"
    )
    write_jsonl(rows_file, rows)
    write_metrics(
        metrics_file,
        cells,
        provenance(
            f"score@{variant}",
            params,
            model=made["model"],
            judge={**gateway.identity, **{name: judge[name] for name in ("models", "replies")}},
            lmms_eval=tasks.lmms_eval_version(),
            tasks={p: {b: tasks.TASKS[p][b] for b in params.benchmarks} for p in params.protocols},
            training_seeds=made["training_seeds"],
            seeds={p: list(rules.seeds) for p, rules in params.protocols.items()},
            data=revisions,
        ),
    )


class _Benchmark:
    """A benchmark under a protocol, loaded once for all runs.

    `docs` are its rows without images, `images` a short hash of each one's image file: what
    clusters the samples.
    """

    def __init__(self, params: Params, protocol: str, benchmark: str, cache: Path) -> None:
        self.task = tasks.load(params, protocol, benchmark, cache)
        self.docs: list[dict[str, Any]] = self.task.eval_docs_no_media
        pictures = self.task.eval_docs
        column = next(name for name, kind in pictures.features.items() if isinstance(kind, Image))
        raw = pictures.select_columns(column).cast_column(column, Image(decode=False))
        self.images = [hashlib.sha256(doc[column]["bytes"]).hexdigest()[:12] for doc in raw]


class _Run:
    """One seed's answers of a protocol, scored: the `rows` of each benchmark, in order."""

    def __init__(
        self,
        loaded: Mapping[str, _Benchmark],
        protocol: str,
        seed: int,
        predictions: Path,
        gateway: Gateway,
    ) -> None:
        folder = predictions / protocol / str(seed)
        answers = {benchmark: read_jsonl(folder / f"{benchmark}.jsonl") for benchmark in loaded}
        # HallusionBench keeps a judge's answers there and gives them to the next model.
        # MMBench prints its categories; here they have no reader.
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(None):
            results = simple_evaluate(
                model=HeimaReplay(predictions=str(folder)),
                tasks=[one.task for one in loaded.values()],
                task_manager=TaskManager(include_defaults=False),
                bootstrap_iters=0,
                cli_args=argparse.Namespace(
                    output_path=scratch, process_with_media=False, reasoning_tags="none"
                ),
                process_docs_parallel=gateway.clients,
            )
        _check_judge(gateway, loaded, answers)
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for benchmark, one in loaded.items():
            rules = RULES[protocol][benchmark]
            name = tasks.TASKS[protocol][benchmark]
            samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
            found = _rows(protocol, benchmark, one, samples, answers[benchmark])
            self.rows[benchmark] = [{"protocol": protocol, "seed": seed, **row} for row in found]
            official = rules.scale * _official(results["results"][name], rules.metric, benchmark)
            _check_official(protocol, benchmark, found, one.docs, official)
        # Breaking MMBench down asks its judge again; the gateway knows the replies.
        _check_judge(gateway, loaded, answers)


def _check_judge(
    gateway: Gateway,
    loaded: Mapping[str, _Benchmark],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Raise `JudgeError` naming the samples whose prompts got no usable reply."""
    if not gateway.failures:
        return
    lines = []
    for failure in gateway.failures:
        named = ", ".join(_asking(failure.prompt, loaded, answers))
        named = named or f"a request ending {failure.prompt[-80:]!r}"
        lines.append(f"  {named}: {failure.reason}")
    shown = lines[:20] + ([f"  … and {len(lines) - 20} more"] if len(lines) > 20 else [])
    raise JudgeError(
        f"the judge {gateway.identity['model']} left {len(lines)} requests without a usable "
        "reply, so no score was written:\n" + "\n".join(shown)
    )


def _asking(
    prompt: str,
    loaded: Mapping[str, _Benchmark],
    answers: Mapping[str, Sequence[Row]],
) -> list[str]:
    """The samples that a judge prompt is about."""
    asked = prompts.recognise(prompt)
    if asked is None:
        return []
    # A prompt of a benchmark of its own names it; a choice or a yes or no can be of several.
    benchmarks = [asked.kind] if asked.kind in loaded else loaded
    return [
        f"{benchmark} sample {row['doc_id']}"
        for benchmark in benchmarks
        for row, doc in zip(answers[benchmark], loaded[benchmark].docs, strict=True)
        if (doc["question"] in prompt or asked.question in doc["question"])
        and tasks.scored_text(row["text"]).strip() == asked.answer.strip()
    ]


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
    protocol: str,
    benchmark: str,
    loaded: _Benchmark,
    samples: Samples,
    answers: Sequence[Row],
) -> list[dict[str, Any]]:
    """One row a sample; a prediction without its sample, or the reverse, raises `ValueError`."""
    rules = RULES[protocol][benchmark]
    docs = loaded.docs
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
            docs, answers, loaded.images, rules.scores(samples), strict=True
        )
    ]


class _Units:
    """The rows of a benchmark by what a score belongs to, with the weights of the task's mean."""

    def __init__(self, protocol: str, benchmark: str, rows: Sequence[Row], docs: Docs) -> None:
        positions: dict[tuple[Any, Any], list[int]] = defaultdict(list)
        for position, row in enumerate(rows):
            positions[row.get("seed"), row["unit"]].append(position)
        self.rows = [[rows[i] for i in unit] for unit in positions.values()]
        self.weights: list[float] | None = None
        stratum = RULES[protocol][benchmark].stratum
        if stratum:
            strata = [stratum(docs[unit[0]]) for unit in positions.values()]
            sizes = Counter(strata)
            self.weights = [len(strata) / sizes[one] for one in strata]

    @property
    def scores(self) -> list[float]:
        return [unit[0]["score"] for unit in self.rows]

    @property
    def failed(self) -> int:
        return sum(any(row["failed"] for row in unit) for unit in self.rows)

    @property
    def images(self) -> list[str]:
        return [unit[0]["image"] for unit in self.rows]


def _check_official(
    protocol: str, benchmark: str, rows: Sequence[Row], docs: Docs, official: float
) -> None:
    """Raise `ValueError` where the samples do not give the task's number, in percent."""
    units = _Units(protocol, benchmark, rows, docs)
    weights = units.weights or [1.0] * len(units.rows)
    total = sum(weight * one for weight, one in zip(weights, units.scores, strict=True))
    value = 100 * total / sum(weights)
    # lmms-eval rounds some of its numbers to two digits.
    if abs(value - official) > 0.006:
        raise ValueError(
            f"{benchmark} ({protocol}): the samples give {value:.3f} %, lmms-eval {official:.3f} "
            "%; eval.breakdown must follow this version of the task"
        )


def _resampled(
    params: Params, place: int, rows: Mapping[int, Sequence[Row]], docs: Docs
) -> dict[str, Resampled]:
    """The statistics of one benchmark under one protocol, all decoding seeds together.

    `rows` are those of each training seed, `place` the benchmark's among all: benchmarks are
    resampled independently of each other. Questions about one image are drawn together.
    """
    first = next(iter(rows.values()))
    protocol, benchmark = first[0]["protocol"], first[0]["benchmark"]
    resampling: dict[str, Any] = {"draws": params.similarity.draws, "seed": (params.seed, place)}

    def accuracy(name: str, part: slice) -> dict[str, Resampled]:
        units = {
            trained: _Units(protocol, benchmark, found[part], docs[part])
            for trained, found in rows.items()
        }
        one = next(iter(units.values()))
        return resample(
            {name: {trained: found.scores for trained, found in units.items()}},
            **resampling,
            clusters=one.images,
            weights=one.weights,
            n_failed={name: sum(found.failed for found in units.values())},
            scale=100,
        )

    counts = resample(
        {
            f"{count}_tokens": {
                trained: [row[count] for row in found] for trained, found in rows.items()
            }
            for count in COUNTS
        },
        **resampling,
        clusters=[row["image"] for row in first],
        n_failed={
            f"{count}_tokens": sum(row["failed"] for found in rows.values() for row in found)
            for count in COUNTS
        },
    )
    by_seed: dict[str, Resampled] = {}
    seeds = params.protocols[protocol].seeds
    if len(seeds) > 1:
        one_run = len(docs) // len(seeds)
        for number, seed in enumerate(seeds):
            part = slice(number * one_run, (number + 1) * one_run)
            by_seed |= accuracy(seed_metric(seed), part)
    return {**accuracy(ACCURACY, slice(None)), **counts, **by_seed}


def _chance(protocol: str, benchmark: str, docs: Docs) -> Cell:
    """What guessing scores, in percent; `docs` are the questions, once each."""
    rules = RULES[protocol][benchmark]
    guesses = rules.guess(docs)
    chance = 100 * sum(guesses) / len(guesses)
    units = {rules.unit(doc) for doc in docs} if rules.unit else docs
    return Cell(chance, chance, chance, n=len(units))
