"""How long answers take: the stage that times the cases of the parameters, and its cells."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from eval import tasks
from eval.benchmark_data import edition
from eval.benchmark_rows import Rows
from eval.timing import (
    Case,
    Measured,
    Question,
    Setup,
    Timing,
    environment,
    measure,
    measured_peaks,
    median_decoded,
)
from heima import config
from heima.config import Params, Peaks
from heima.config.benchmarks import BENCHMARKS
from heima.results.cells import Cell, write_metrics
from heima.results.files import write_jsonl
from heima.results.provenance import provenance
from heima.results.statistics import DRAWS, drawn_cell
from heima.vlm.models import load_vlm, vocabulary

BASELINE = "text-cot"
"""The case that speed-ups are relative to."""


# Cells


def cells(measured: Measured, peaks: Peaks, *, seed: int) -> dict[str, dict[str, Cell]]:
    """`{case}/batch-{size}` and `{case}-vs-text-cot/batch-{size}`: medians with 95 % intervals.

    A value is the median over all timed batches (`n`), or their 90th percentile where its name says
    so; its interval is a percentile bootstrap of that statistic over the batches. What the device
    reaches is held against `peaks`, on the batches whose work was counted: the first of each round.
    `speedup` is the baseline's end-to-end time over the case's, on the same batch and round; there
    is none where no case is named `text-cot`.
    """
    found: dict[str, dict[str, Cell]] = {}
    taken = {
        key: [t for t in measured.timings if (t.case, t.batch_size) == key] for key in measured.work
    }
    for (case, size), timings in taken.items():
        work = measured.work[case, size]
        counted = [timing for timing in timings if timing.batch == 0]
        columns = {
            "decoded_tokens": [n for t in timings if t.round == 0 for n in t.decoded],
            "longest_tokens": [max(timing.decoded) for timing in timings],
            **{
                name: [getattr(timing, name) for timing in timings]
                for name in (
                    *("preprocess_ms", "vision_ms", "prefill_ms"),
                    *("ttft_ms", "decode_ms", "tpot_ms", "e2e_ms"),
                )
            },
            "samples_per_s": [1e3 * size / timing.e2e_ms for timing in timings],
            "gflop_per_sample": [work.flops / size / 1e9],
            "flop_utilisation": [
                work.flops / (1e9 * peaks.tflops * timing.e2e_ms) for timing in counted
            ],
            "bandwidth_utilisation": [
                work.decode_bytes / (1e6 * peaks.gb_per_s * timing.decode_ms)
                for timing in counted
                if timing.tpot_ms is not None
            ],
        }
        # Answers of one token have neither a time per later token nor a rate of reading.
        present = {
            name: [value for value in values if value is not None]
            for name, values in columns.items()
        }
        row = {name: _median(values, seed) for name, values in present.items() if values}
        for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
            if present[name]:
                row[f"{name.removesuffix('_ms')}_p90_ms"] = _percentile(90, present[name], seed)
        found[f"{case}/batch-{size}"] = row
        base = taken.get((BASELINE, size))
        if base is not None and case != BASELINE:
            found[f"{case}-vs-{BASELINE}/batch-{size}"] = {
                "speedup": _median(_ratios(base, timings), seed)
            }
    return found


def _ratios(base: Sequence[Timing], timings: Sequence[Timing]) -> list[float]:
    theirs = {(timing.round, timing.batch): timing.e2e_ms for timing in base}
    return [theirs[timing.round, timing.batch] / timing.e2e_ms for timing in timings]


def _median(values: ArrayLike, seed: int) -> Cell:
    return _percentile(50, values, seed)


def _percentile(percent: float, values: ArrayLike, seed: int) -> Cell:
    """A percentile of values, shape (n,), with the interval of its bootstrap."""
    column = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(column, (DRAWS, len(column)))
    return drawn_cell(
        np.percentile(column, percent), np.percentile(drawn, percent, axis=1), n=len(column)
    )


# The stage


def latency(
    samples_file: Path, metrics_file: Path, *, models: Path, params_file: str = "params.yaml"
) -> None:
    """Measure the cases of params.latency; write every timing, and the table's cells.

    Rows of `samples_file` are `Timing`s. The questions are the benchmark's first ones under the
    protocol, as many as the largest batch holds. All models are in memory at once, each once, for
    the cases to take turns.
    """
    params = config.load(params_file)
    asked = params.latency
    setup = load_setup(params, models)
    measured = measure(setup, batch_sizes=asked.batch_sizes, rounds=asked.rounds)
    model = next(iter(setup.cases.values())).model
    stated = asked.peaks if isinstance(asked.peaks, Peaks) else None
    peaks = stated or measured_peaks(model.device, model.dtype)
    write_jsonl(samples_file, map(asdict, measured.timings))
    write_metrics(
        metrics_file,
        cells(measured, peaks, seed=params.seed),
        provenance(
            "latency",
            params,
            **environment(model),
            peaks={**peaks.model_dump(), "source": "stated" if stated else "measured"},
            task=BENCHMARKS[asked.benchmark].tasks[asked.protocol],
            data=edition(params, params.data_name(asked.protocol, asked.benchmark)),
            questions=len(setup.questions),
            limits={name: case.max_new_tokens for name, case in setup.cases.items()},
            skipped={str(size): reason for size, reason in measured.skipped.items()},
        ),
    )


def load_setup(params: Params, models: Path) -> Setup:
    """The cases of params.latency with their models, limits and questions.

    Cases of one model share it. A budget is the median of the named case's decoded tokens.
    """
    asked = params.latency
    variants = {name: params.variants[case.variant] for name, case in asked.cases.items()}
    loaded = {}
    for name in dict.fromkeys(variant.model for variant in variants.values()):
        # What an answer takes is measured on the models of the first training seed.
        trained = params.trained(name, params.training_seeds(name)[0])
        loaded[name], processor = load_vlm(models, trained, params)
    cases = {
        name: Case(
            loaded[variant.model],
            max_new_tokens=params.decoding(asked.protocol).max_new_tokens,
            prefix=params.prefix(variant.model, variant.forced_prefix),
        )
        for name, variant in variants.items()
    }
    setup = Setup(
        cases,
        processor,
        vocabulary(processor.tokenizer, params),
        load_questions(params, max(asked.batch_sizes)),
    )
    medians = {
        name: median_decoded(setup, name, batch_size=params.predict.batch_size)
        for name in sorted(
            {case.budget for case in asked.cases.values() if case.budget is not None}
        )
    }
    cut = {
        name: replace(cases[name], max_new_tokens=medians[case.budget])
        for name, case in asked.cases.items()
        if case.budget is not None
    }
    return replace(setup, cases={**cases, **cut})


def load_questions(params: Params, count: int) -> list[Question]:
    """The first `count` questions, or all, of params.latency.benchmark under its protocol.

    Raises `ValueError` for a sample that is not one image and one text.
    """
    asked = params.latency
    # Judged tasks want a key as soon as they are imported; no judge is asked here.
    os.environ.setdefault("OPENAI_API_KEY", "none")
    questions = []
    with tempfile.TemporaryDirectory() as cache:
        task = tasks.load(params, asked.protocol, asked.benchmark, Path(cache))
        rows = Rows(task.eval_docs, params.image_decoding)
        for number in range(min(count, len(rows))):
            messages = task.doc_to_messages(rows[number])
            parts = [part for message in messages for part in message["content"]]
            if [part["type"] for part in parts] != ["image", "text"]:
                raise ValueError(
                    f"{task.config.task}, sample {number}: expected an image and a text, got "
                    f"{[part['type'] for part in parts]}"
                )
            # Reading the file is no part of preprocessing.
            questions.append(Question(parts[1]["text"], parts[0]["url"]))
    return questions
