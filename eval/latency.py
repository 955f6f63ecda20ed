"""How long answers take: the stage that times the cases of the parameters, and its cells."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eval import lmms_start, tasks
from eval.benchmark_data import edition
from eval.benchmark_rows import Rows
from eval.latency_cells import cells
from eval.timing import (
    Case,
    Measured,
    Question,
    Setup,
    environment,
    measure,
    measured_peaks,
    median_decoded,
)
from heima import config
from heima.config import Params, Peaks
from heima.config.benchmarks import BENCHMARKS
from heima.config.mixtures import word
from heima.results.cells import write_metrics
from heima.results.files import write_jsonl
from heima.results.provenance import provenance
from heima.vlm.models import feed, load_vlm, vocabulary


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
            **_looked_up(params, measured),
        ),
    )


def _looked_up(params: Params, measured: Measured) -> dict[str, Any]:
    """For each case that looks tokens up: of how many answers, and how many are the same as those
    of a case of its variant that does not."""
    cases = params.latency.cases
    found = {}
    for name, case in cases.items():
        if case.lookup is None:
            continue
        plain = [
            other
            for other, one in cases.items()
            if one.model_copy(update={"lookup": None}) == case.model_copy(update={"lookup": None})
            and one.lookup is None
        ]
        texts: dict[tuple[str, int], str] = {
            (timing.case, timing.batch): timing.texts
            for timing in measured.timings
            if timing.batch_size == 1
        }
        own = {batch: text for (which, batch), text in texts.items() if which == name}
        if plain:
            same = sum(texts[plain[0], batch] == text for batch, text in own.items())
            found[name] = {"answers": len(own), "same": same, "as": plain[0]}
    return {"lookup": found} if found else {}


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
            lookup=asked.cases[name].lookup,
            max_new_tokens=params.decoding(asked.protocol).max_new_tokens,
            prefix=params.prefix(variant.model, variant.forced_prefix),
            feed=feed(processor.tokenizer, params, variant.model),
            word=word(params, variant.model, variant.asks),
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
    lmms_start.ask_no_judge()
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
