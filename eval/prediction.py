"""Decode all benchmarks of one variant, once; scoring replays the files."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from eval import tasks
from eval.chat_models import Heima
from heima import config, cot
from heima.results import atomic, provenance, write_json, write_jsonl, write_metrics
from heima.statistics import DRAWS, cell


def predict(
    variant: str,
    folder: Path,
    metrics_file: Path,
    *,
    models: Path,
    params_file: str = "params.yaml",
) -> None:
    """Write `folder` (`<benchmark>.jsonl`, `provenance.json`), and seconds a sample as metrics.

    A row is {doc_id, text, conclusion (null without one), counts, finish}, sorted by doc_id. The
    rows depend on the weights and parameters alone; what the clock said stands in `metrics_file`,
    where a sample's seconds are its share of its batch.
    All benchmarks are decoded as one list of requests, so that batches stay full.

    Raises `KeyError` for an unknown variant.
    """
    params = config.load(params_file)
    if variant not in params.variants:
        raise KeyError(f"variant {variant!r} is not one of {sorted(params.variants)}")
    name = params.variants[variant].model
    # Judged tasks want a key as soon as they are imported; predicting asks no judge.
    os.environ.setdefault("OPENAI_API_KEY", "none")
    data = {b: tasks.data_revision(tasks.data_folder(params, b)) for b in params.benchmarks}
    with tempfile.TemporaryDirectory() as cache:
        loaded = {b: tasks.load(params, b, Path(cache)) for b in params.benchmarks}
        model = Heima(name=name, models=str(models), params=params_file)
        for task in loaded.values():
            task.build_all_requests()
            model.task_dict[task.config.task] = task.dataset
        requests = [(b, request) for b, task in loaded.items() for request in task.instances]
        answers = model.generate([request for _, request in requests])
    rows: dict[str, dict[int, dict]] = {benchmark: {} for benchmark in loaded}
    seconds: dict[str, list[float]] = {benchmark: [] for benchmark in loaded}
    for (benchmark, request), answer in zip(requests, answers, strict=True):
        seconds[benchmark].append(answer.seconds)
        rows[benchmark][request.doc_id] = {
            "doc_id": request.doc_id,
            "text": answer.text,
            "conclusion": cot.conclusion(answer.text),
            "counts": asdict(answer.counts),
            "finish": answer.finish,
        }
    # What scoring depends on: nothing that could change while the answers stay the same.
    origin = {
        "model": name,
        "decoding": params.predict.model_dump(mode="json"),
        "lmms_eval": tasks.lmms_eval_version(),
        "tasks": {b: known.task for b, known in params.benchmarks.items()},
        "data": data,
    }
    with atomic(folder) as temporary:
        temporary.mkdir()
        for benchmark, found in rows.items():
            write_jsonl(temporary / f"{benchmark}.jsonl", (found[key] for key in sorted(found)))
        write_json(temporary / "provenance.json", origin)
    write_metrics(
        metrics_file,
        {
            benchmark: {"seconds_per_sample": cell(values, draws=DRAWS, seed=params.seed)}
            for benchmark, values in seconds.items()
        },
        provenance(f"predict@{variant}", params, **origin),
    )
