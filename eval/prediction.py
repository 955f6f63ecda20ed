"""Decode all benchmarks under every protocol with one variant's model, each batch once.

Finished batches are kept in a journal (`heima.vlm.kept_answers`), and a run continues at the batch
it had reached. Where torchrun or `accelerate launch` starts several processes, they share the
batches.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset
from lmms_eval.api.instance import Instance

from eval import benchmark_data, lmms_start, tasks
from eval.decoding import prompts_of
from heima import config
from heima.config import Params, ProtocolName
from heima.config.mixtures import word
from heima.cot import parsing
from heima.cot.mixtures import asked
from heima.families.images import ImageCache
from heima.results.bars import bar
from heima.results.cells import write_metrics
from heima.results.files import atomic, write_json, write_jsonl
from heima.results.provenance import provenance
from heima.results.scores import score_group
from heima.results.statistics import DRAWS, cell
from heima.vlm import processes
from heima.vlm.budgets import Cut
from heima.vlm.generation import Decoder, Engine, Generation, Plan, Transformers, plan
from heima.vlm.kept_answers import ROOT as JOURNALS
from heima.vlm.kept_answers import Journal, key, weights_digest
from heima.vlm.models import feed, load_processor, load_vlm, vocabulary
from heima.vlm.processes import Processes

Run = tuple[ProtocolName, int]
"""A protocol and one of its seeds."""

Requests = dict[ProtocolName, list[tuple[str, Instance]]]
"""Protocol -> what it asks, each request behind its benchmark."""

Datasets = dict[str, Mapping[str, Dataset]]
"""Task -> split -> rows."""


def predict(
    variant: str,
    folder: Path,
    metrics_file: Path,
    *,
    models: Path,
    params_file: str = "params.yaml",
    journals: Path = JOURNALS,
    fresh: bool = False,
) -> None:
    """Write `folder` (`<training seed>/<protocol>/<seed>/<benchmark>.jsonl`, `provenance.json`),
    and seconds a sample as metrics.

    A row is {doc_id, text, conclusion (null without one), counts, finish}, sorted by doc_id. The
    rows depend on the weights and parameters alone; what the clock said stands in `metrics_file`,
    where a sample's seconds are its share of its batch when that was decoded.
    All benchmarks of a run are decoded as one list of requests, so that batches stay full. `fresh`
    forgets what `journals` holds of this variant's answers.

    Of several processes (RANK, WORLD_SIZE) each decodes its share, and the first writes the files.

    Raises `KeyError` for an unknown variant, `ValueError` naming every sample of every benchmark
    that cannot be asked, `RuntimeError` where another process has died.
    """
    params = config.load(params_file)
    if variant not in params.variants:
        raise KeyError(f"variant {variant!r} is not one of {sorted(params.variants)}")
    name, forced = params.variants[variant].model, params.variants[variant].forced_prefix
    prefix = params.prefix(name, forced)
    with processes.joined() as shared, tempfile.TemporaryDirectory() as cache:
        requests, datasets = _requests(params, Path(cache))
        asks = word(params, name, params.variants[variant].asks)
        plans = _plans(params, requests, datasets, models, prefix, asks)
        answers: dict[int, dict[Run, list[Generation]]] = {}
        images = ImageCache()
        for seed in params.training_seeds(name):
            model = params.trained(name, seed)
            weights = weights_digest(models, model)
            kept = {
                run: Journal(
                    journals,
                    key(
                        planned,
                        params,
                        weights=weights,
                        prefix=prefix,
                        feed=params.feed(name),
                        budget=params.variants[variant].budget,
                    ),
                    rank=shared.rank,
                    world=shared.world,
                )
                for run, planned in plans.items()
            }
            if fresh:
                if shared.first:
                    for journal in kept.values():
                        journal.clear()
                shared.meet()
            _decode(
                plans,
                kept,
                functools.partial(
                    _decoder, models, model, params, images, params.variants[variant].budget
                ),
                shared,
                title=f"predict@{variant}, model {model}",
            )
            shared.meet()
            if shared.first:
                answers[seed] = {
                    run: _answers(planned, kept[run]) for run, planned in plans.items()
                }
        if shared.first:
            _write(variant, params, requests, answers, folder, metrics_file)


def _requests(params: Params, cache: Path) -> tuple[Requests, Datasets]:
    """What every protocol asks, with the benchmark of each request, and the rows it is about."""
    lmms_start.ask_no_judge()
    requests: Requests = {}
    datasets: Datasets = {}
    for protocol in params.protocols:
        requests[protocol] = []
        for benchmark in params.benchmarks:
            task = tasks.load(params, protocol, benchmark, cache)
            task.build_all_requests()
            datasets[task.config.task] = task.dataset
            requests[protocol] += [(benchmark, request) for request in task.instances]
    return requests, datasets


def _plans(
    params: Params,
    requests: Requests,
    datasets: Datasets,
    models: Path,
    prefix: str,
    asks: str | None,
) -> dict[Run, Plan]:
    """The plan of every run. All faults of all samples are found before anything is decoded.

    `asks` is the control word behind each question.
    """
    prompts = (
        dataclasses.replace(prompt, question=asked(prompt.question, asks))
        for prompt in prompts_of(
            [
                (score_group(protocol, benchmark), request)
                for protocol, those in requests.items()
                for benchmark, request in those
            ],
            datasets,
            decoding=params.image_decoding,
        )
    )
    words = vocabulary(load_processor(models, params).tokenizer, params)
    plans: dict[Run, Plan] = {}
    for protocol, those in requests.items():
        seeds = params.protocols[protocol].seeds
        first = plan(
            words,
            list(itertools.islice(prompts, len(those))),
            decoding=params.decoding(protocol),
            seed=seeds[0],
            prefix=prefix,
        )
        plans |= {(protocol, seed): dataclasses.replace(first, seed=seed) for seed in seeds}
    return plans


def _decode(
    plans: Mapping[Run, Plan],
    kept: Mapping[Run, Journal],
    load: Callable[[], Decoder],
    shared: Processes,
    *,
    title: str,
) -> None:
    """Decode what the journals lack of this process's share of the batches."""
    finished = {run: journal.read() for run, journal in kept.items()}
    shared.meet()  # Or one would read what another has just added, and count it as known.
    if shared.first:
        total = sum(len(planned.prompts) for planned in plans.values())
        known = sum(len(answers) for found in finished.values() for answers in found.values())
        print(f"{title}: {known} of {total} answers known, {total - known} to decode", flush=True)
    decoder = None
    for run, planned in plans.items():
        batches = range(len(planned.batches))
        own = shared.share([batch for batch in batches if batch not in finished[run]])
        if not own:
            continue
        # Weights are loaded where there is something to decode, once.
        decoder = decoder or load()
        wanted = sum(len(planned.batches[batch]) for batch in own)
        name = f"{title}, {'/'.join(map(str, run))}"
        with kept[run] as journal, bar(name, wanted, "answer", show=shared.first) as shown:
            for batch, answers in zip(own, decoder.each(planned, own), strict=True):
                journal.append(batch, answers)
                shown.update(len(answers))


def _decoder(
    models: Path, name: str, params: Params, images: ImageCache, budget: int | None
) -> Decoder:
    base = name.partition("/")[0]
    if params.predict.engine == "vllm":
        from heima.vlm.vllm_engine import Vllm

        engine: Engine = Vllm(models, name, params)
    else:
        model, processor = load_vlm(models, name, params)
        engine = Transformers(
            model,
            processor,
            images,
            workers=params.hardware.workers,
            feed=feed(processor.tokenizer, params, base),
        )
    words = vocabulary(load_processor(models, params).tokenizer, params)
    tags = params.rendering(base).tags
    if budget is not None:
        engine = Cut(engine, words, budget=budget, tags=tags)
    return Decoder(engine, words, tags)


def _answers(planned: Plan, journal: Journal) -> list[Generation]:
    """Every answer of a run. Raises `RuntimeError` where a batch was not decoded."""
    found = journal.read()
    lacking = sorted(set(range(len(planned.batches))) - set(found))
    if lacking:
        raise RuntimeError(
            f"{journal.folder} lacks the batches {lacking}; do all processes share this folder?"
        )
    return planned.in_order(found[batch] for batch in range(len(planned.batches)))


def _write(
    variant: str,
    params: Params,
    requests: Requests,
    answers: Mapping[int, Mapping[Run, Sequence[Generation]]],
    folder: Path,
    metrics_file: Path,
) -> None:
    # What scoring depends on: nothing that could change while the answers stay the same.
    origin = {
        "model": params.variants[variant].model,
        "training_seeds": list(answers),
        "forced_prefix": params.variants[variant].forced_prefix,
        **({"budget": budget} if (budget := params.variants[variant].budget) else {}),
        **({"asks": asks} if (asks := params.variants[variant].asks) else {}),
        "engine": params.predict.engine,
        "decoding": {p: params.decoding(p).model_dump(mode="json") for p in params.protocols},
        "seeds": {p: list(rules.seeds) for p, rules in params.protocols.items()},
        "lmms_eval": tasks.lmms_eval_version(),
        "tasks": tasks.names(params),
        "data": benchmark_data.revisions(params),
    }
    tags = params.rendering(params.variants[variant].model).tags
    seconds: dict[str, list[float]] = defaultdict(list)
    with atomic(folder) as temporary:
        for trained, (protocol, seed), generations in (
            (trained, run, found)
            for trained, runs in answers.items()
            for run, found in runs.items()
        ):
            rows: dict[str, list[dict]] = defaultdict(list)
            for (benchmark, request), one in zip(requests[protocol], generations, strict=True):
                seconds[score_group(protocol, benchmark)].append(one.seconds)
                rows[benchmark].append(
                    {
                        "doc_id": request.doc_id,
                        "text": one.text,
                        "conclusion": parsing.conclusion(
                            one.text, tags, ended=one.finish == "stop"
                        ),
                        "counts": dataclasses.asdict(one.counts),
                        "finish": one.finish,
                    }
                )
            for benchmark, those in rows.items():
                write_jsonl(
                    temporary / str(trained) / protocol / str(seed) / f"{benchmark}.jsonl",
                    sorted(those, key=lambda row: row["doc_id"]),
                )
        write_json(temporary / "provenance.json", origin)
    write_metrics(
        metrics_file,
        {
            group: {"seconds_per_sample": cell(values, draws=DRAWS, seed=params.seed)}
            for group, values in seconds.items()
        },
        provenance(f"predict@{variant}", params, **origin),
    )
