"""Score one variant's saved predictions under every protocol, with a judge behind the gateway.

lmms-eval runs the tasks of both protocols and gives each benchmark one number. This module refuses
numbers that a fault made, and breaks the number down to samples: their weighted mean must give the
task's number again.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Image
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from eval import benchmark_data, prompts, tasks
from eval.breakdown import RULES, Docs, Samples
from eval.chat_models import HeimaReplay
from eval.gateway import Gateway, JudgeError
from eval.units import Row, Units, image_label
from eval.vlmevalkit import cases, questions
from eval.vlmevalkit.cases import shortened
from heima import config
from heima.config import Params
from heima.config.benchmarks import BENCHMARKS
from heima.results.cells import Cell, write_metrics
from heima.results.files import read_json, read_jsonl, write_jsonl
from heima.results.provenance import provenance
from heima.results.scores import ACCURACY, CHANCE, COUNTS, MEAN, score_group, seed_metric
from heima.results.statistics import Resampled, mean_of, resample


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

    An answer that the judge refuses to grade has `unanswered`, the reason, and `best`, the score if
    it is right after all; it counts as wrong, and its cells say so (`Cell.unanswered`). More than
    `judge.max_missing` of a benchmark's answers end the scoring.

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
            loaded = {
                b: LoadedBenchmark(params, protocol, b, Path(cache)) for b in params.benchmarks
            }
            runs = {
                trained: [
                    ScoredRun(
                        loaded,
                        protocol,
                        seed,
                        predictions / str(trained),
                        gateway,
                        params_file=params_file,
                    )
                    for seed in rules.seeds
                ]
                for trained in made["training_seeds"]
            }
            parts: list[dict[str, Resampled]] = []
            bests: list[dict[str, Best]] = []
            for place, benchmark in enumerate(params.benchmarks):
                found = {
                    trained: [row for run in same for row in run.rows[benchmark]]
                    for trained, same in runs.items()
                }
                docs = loaded[benchmark].docs
                part, best = _resampled(params, place, found, docs * len(rules.seeds))
                parts.append(part)
                bests.append(best)
                cells[score_group(protocol, benchmark)] = {
                    **_cells(params, part, best),
                    CHANCE: _chance(protocol, benchmark, docs),
                }
                rows += [
                    {"training_seed": trained, **row} for trained in found for row in found[trained]
                ]
            means = {metric: mean_of([part[metric] for part in parts]) for metric in parts[0]}
            cells[score_group(protocol, MEAN)] = _cells(params, means, _mean_best(parts, bests))
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
            tasks=tasks.names(params),
            training_seeds=made["training_seeds"],
            seeds={p: list(rules.seeds) for p, rules in params.protocols.items()},
            data=revisions,
        ),
    )


class LoadedBenchmark:
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
        self.images = [image_label(doc[column]["bytes"]) for doc in raw]


class ScoredRun:
    """One seed's answers of a protocol, scored: the `rows` of each benchmark, in order.

    `predictions` has them in `<protocol>/<seed>/<benchmark>.jsonl`, for each benchmark that
    `params_file` names. Raises `JudgeError` and `ValueError` as `score` does.
    """

    def __init__(
        self,
        loaded: Mapping[str, LoadedBenchmark],
        protocol: str,
        seed: int,
        predictions: Path,
        gateway: Gateway,
        *,
        params_file: str = "params.yaml",
    ) -> None:
        folder = predictions / protocol / str(seed)
        answers = {benchmark: read_jsonl(folder / f"{benchmark}.jsonl") for benchmark in loaded}
        before = len(gateway.failures)
        # HallusionBench keeps a judge's answers there and gives them to the next model.
        # MMBench prints its categories; here they have no reader.
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(None):
            results = simple_evaluate(
                model=HeimaReplay(predictions=str(folder), params=params_file),
                tasks=[one.task for one in loaded.values()],
                task_manager=TaskManager(include_defaults=False),
                bootstrap_iters=0,
                cli_args=argparse.Namespace(
                    output_path=scratch, process_with_media=False, reasoning_tags="none"
                ),
                process_docs_parallel=gateway.clients,
            )
        told = _unanswered(protocol, gateway, loaded, answers, known=before)
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for benchmark, one in loaded.items():
            rules = RULES[protocol][benchmark]
            name = BENCHMARKS[benchmark].tasks[protocol]
            samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
            found = _rows(protocol, benchmark, one, samples, answers[benchmark])
            official = rules.scale * _official(results["results"][name], rules.metric, benchmark)
            # Of an answer without a grade MMBench draws a letter, and each time another one.
            if not (told[benchmark] and BENCHMARKS[benchmark].dataset.rotation):
                _check_official(protocol, benchmark, found, one.docs, official)
            # The protocol vlmevalkit has told it itself, and knows what the other rotations are.
            mine = {} if protocol == "vlmevalkit" else told[benchmark]
            _leave_open(gateway, benchmark, found, mine)
            self.rows[benchmark] = [{"protocol": protocol, "seed": seed, **row} for row in found]
        # Breaking MMBench down asks its judge again; the gateway knows the replies.
        _unanswered(protocol, gateway, loaded, answers, known=before)


def _unanswered(
    protocol: str,
    gateway: Gateway,
    loaded: Mapping[str, LoadedBenchmark],
    answers: Mapping[str, Sequence[Row]],
    *,
    known: int,
) -> dict[str, dict[int, str]]:
    """Benchmark -> doc_id -> why no judge has graded this answer, and never will.

    `known` failures of the gateway are of runs before. Raises `JudgeError` naming the samples of
    whatever may be answered another time, or of all where the parameters let none stay open.
    """
    told: dict[str, dict[int, str]] = {benchmark: {} for benchmark in loaded}
    lines = []
    for number, failure in enumerate(gateway.failures):
        found = _asking(protocol, failure.prompt, loaded, answers)
        if failure.final and gateway.max_missing and (found or number < known):
            for benchmark, doc_id in found:
                told[benchmark][doc_id] = failure.reason
            continue
        named = ", ".join(f"{benchmark} sample {doc_id}" for benchmark, doc_id in found)
        named = named or f"a request ending {failure.prompt[-80:]!r}"
        lines.append(f"  {named}: {failure.reason}")
    if lines:
        raise JudgeError(
            f"the judge {gateway.identity['model']} left {len(lines)} requests without a usable "
            f"reply, so no score was written:\n{shortened(lines)}"
        )
    return told


def _leave_open(
    gateway: Gateway, benchmark: str, rows: Sequence[dict[str, Any]], told: Mapping[int, str]
) -> None:
    """Mark the rows that no judge has graded (`score`): wrong, and what they are at best.

    Raises `JudgeError` where they are more than the parameters let stay open.
    """
    for row in rows:
        if row["doc_id"] in told:
            row |= {"unanswered": told[row["doc_id"]], "best": 1.0}
    lost = {row["unit"] for row in rows if "unanswered" in row}
    for row in rows:
        if row["unit"] in lost:
            row["score"] = 0.0
    open_ = [row for row in rows if "unanswered" in row]
    if len(open_) > gateway.max_missing * len(rows):
        lines = [f"  {benchmark} sample {row['doc_id']}: {row['unanswered']}" for row in open_]
        raise JudgeError(
            f"the judge {gateway.identity['model']} left {len(open_)} of {len(rows)} answers to "
            f"{benchmark} without a usable reply, more than judge.max_missing = "
            f"{gateway.max_missing:g}, so no score was written:\n{shortened(lines)}"
        )


def _asking(
    protocol: str,
    prompt: str,
    loaded: Mapping[str, LoadedBenchmark],
    answers: Mapping[str, Sequence[Row]],
) -> list[tuple[str, int]]:
    """The samples that a judge prompt is about: benchmark and doc_id."""
    asked = prompts.recognise(prompt)
    if asked is None:
        return []
    # A prompt of a benchmark of its own names it; a choice or a yes or no can be of several.
    benchmarks = [asked.kind] if asked.kind in loaded else loaded
    return [
        (benchmark, row["doc_id"])
        for benchmark in benchmarks
        for row, doc in zip(answers[benchmark], loaded[benchmark].docs, strict=True)
        if tasks.scored_text(row["text"]).strip() == asked.answer.strip()
        and _asks(protocol, benchmark, asked, doc)
    ]


def _asks(protocol: str, benchmark: str, asked: prompts.Question, doc: Row) -> bool:
    """Whether a judge was asked about this row's question."""
    if protocol == "vlmevalkit":
        case = cases.read(benchmark, {"index": 0, **doc})
        return asked.question == case.question and (
            asked.kind != "choice" or asked.reference == questions.listed(case.options)
        )
    if benchmark == "hallusionbench" and asked.reference != doc["gt_answer_details"]:
        return False
    # MathVista's hints and choices are written around its question.
    return asked.question == doc["question"] or (
        benchmark == "mathvista" and doc["question"].partition("\n\n")[0] in asked.question
    )


def _official(results: Mapping[str, Any], metric: str, benchmark: str) -> float:
    """lmms-eval's aggregate of a metric, whatever filter it names."""
    found = [value for key, value in results.items() if key.partition(",")[0] == metric]
    if len(found) != 1:
        raise ValueError(f"{benchmark}: lmms-eval gives no single {metric!r} in {sorted(results)}")
    value = found[0]
    if value is None and BENCHMARKS[benchmark].scoring.none_is_zero:
        value = 0.0
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{benchmark}: lmms-eval's {metric} is {value!r}, not a number")
    return float(value)


def _rows(
    protocol: str,
    benchmark: str,
    loaded: LoadedBenchmark,
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
            **_left_open(sample),
        }
        for doc, answer, image, value, sample in zip(
            docs, answers, loaded.images, rules.scores(samples), samples, strict=True
        )
    ]


def _left_open(sample: Row) -> dict[str, Any]:
    """What the protocol vlmevalkit says of an answer that no judge has graded."""
    settled = sample.get("accuracy")
    if not isinstance(settled, Mapping) or "unanswered" not in settled:
        return {}
    return {key: settled[key] for key in ("unanswered", "best")}


def _units(protocol: str, benchmark: str, rows: Sequence[Row], docs: Docs) -> Units:
    """The units of a benchmark's rows; `docs` are their questions."""
    stratum = RULES[protocol][benchmark].stratum
    return Units.of(rows, [stratum(doc) for doc in docs] if stratum else None)


def _check_official(
    protocol: str, benchmark: str, rows: Sequence[Row], docs: Docs, official: float
) -> None:
    """Raise `ValueError` where the samples do not give the task's number, in percent."""
    value = _units(protocol, benchmark, rows, docs).percent
    # lmms-eval rounds some of its numbers to two digits.
    if abs(value - official) > 0.006:
        raise ValueError(
            f"{benchmark} ({protocol}): the samples give {value:.3f} %, lmms-eval {official:.3f} "
            "%; eval.breakdown must follow this version of the task"
        )


def _resampled(
    params: Params, place: int, rows: Mapping[int, Sequence[Row]], docs: Docs
) -> tuple[dict[str, Resampled], dict[str, Best]]:
    """The statistics of one benchmark under one protocol, all decoding seeds together.

    Also those that differ if the answers which no judge has graded are right.

    `rows` are those of each training seed, `place` the benchmark's among all: benchmarks are
    resampled independently of each other. Questions about one image are drawn together.
    """
    best: dict[str, Best] = {}
    first = next(iter(rows.values()))
    protocol, benchmark = first[0]["protocol"], first[0]["benchmark"]
    resampling: dict[str, Any] = {"draws": params.similarity.draws, "seed": (params.seed, place)}

    def accuracy(name: str, part: slice) -> dict[str, Resampled]:
        units = {
            trained: _units(protocol, benchmark, found[part], docs[part])
            for trained, found in rows.items()
        }
        one = next(iter(units.values()))
        names = [
            f"{benchmark} sample {row['doc_id']}, training seed {trained}, decoding seed "
            f"{row['seed']}: {row['unanswered']}"
            for trained, found in rows.items()
            for row in found[part]
            if "unanswered" in row
        ]

        def of(scores: Mapping[int, Sequence[float]]) -> dict[str, Resampled]:
            return resample(
                {name: scores},
                **resampling,
                clusters=one.images,
                weights=one.weights,
                n_failed={name: sum(found.failed for found in units.values())},
                scale=100,
            )

        if names:
            right = of({trained: found.best for trained, found in units.items()})
            best[name] = Best(right[name], names)
        return of({trained: found.scores for trained, found in units.items()})

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
    return {**accuracy(ACCURACY, slice(None)), **counts, **by_seed}, best


@dataclass(frozen=True)
class Best:
    """A statistic if the answers that no judge has graded are right, and their names."""

    right: Resampled
    names: Sequence[str]


def _mean_best(
    parts: Sequence[Mapping[str, Resampled]], bests: Sequence[Mapping[str, Best]]
) -> dict[str, Best]:
    """The best means over benchmarks, of the statistics of which one differs."""
    return {
        metric: Best(
            mean_of(
                [
                    best[metric].right if metric in best else part[metric]
                    for part, best in zip(parts, bests, strict=True)
                ]
            ),
            [name for best in bests if metric in best for name in best[metric].names],
        )
        for metric in parts[0]
        if any(metric in best for best in bests)
    }


def _cells(
    params: Params, found: Mapping[str, Resampled], best: Mapping[str, Best]
) -> dict[str, Cell]:
    cells = {metric: one.cell(seed=params.seed) for metric, one in found.items()}
    for metric, one in best.items():
        right = one.right.cell(seed=params.seed)
        cells[metric] = cells[metric].with_unanswered(one.names, right)
    return cells


def _chance(protocol: str, benchmark: str, docs: Docs) -> Cell:
    """What guessing scores, in percent; `docs` are the questions, once each."""
    rules = RULES[protocol][benchmark]
    guesses = rules.guess(docs)
    chance = 100 * sum(guesses) / len(guesses)
    units = {rules.unit(doc) for doc in docs} if rules.unit else docs
    return Cell(chance, chance, chance, n=len(units))
