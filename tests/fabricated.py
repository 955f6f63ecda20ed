"""Result files as the stages write them, with invented numbers, for tests of what reads them."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from eval import leaks, probe
from eval.audit import effects, theorem, truncation
from heima import config
from heima.data.turns import SCHEMA, Turn, TurnFile
from heima.results import statistics
from heima.results.cells import Cell, write_metrics
from heima.results.files import write_json, write_jsonl
from heima.results.measures import NLL, NLL_GAIN, difference, judge_column, metrics_of
from heima.results.provenance import provenance
from heima.results.scores import ACCURACY, CHANCE, COUNTS, MEAN, score_group, seed_metric
from stages import runs

LATENCY_METRICS = (
    *("preprocess_ms", "vision_ms", "prefill_ms", "ttft_ms", "tpot_ms", "e2e_ms", "e2e_p90_ms"),
    *("decode_ms", "samples_per_s", "decoded_tokens", "gflop_per_sample"),
    *("flop_utilisation", "bandwidth_utilisation"),
)
ROOT = Path(__file__).resolve().parents[1]


def toy_text() -> str:
    """The toy profile with two decoding seeds of the protocol `vlmevalkit`, as the paper's has."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    several = text.replace(
        "temperature: 0.6, top_k: 50, seeds: [42]", "temperature: 0.6, top_k: 50, seeds: [42, 43]"
    )
    assert several != text
    return several


def write(root: Path, *, questions: int = 20, params_text: str | None = None) -> config.Params:
    """Write params.yaml, metrics, scores and the published tables below `root`."""
    text = params_text or toy_text()
    (root / "params.yaml").write_text(text, encoding="utf-8")
    params = config.load(root / "params.yaml")
    published = root / "reports" / "published"
    shutil.copytree(ROOT / "reports" / "published", published, dirs_exist_ok=True)
    for seed, variant in enumerate(params.variants):
        _write_score(root, params, variant, questions, seed)
    for seed, name in enumerate(params.reconstructions):
        _write_similarity(root, params, name, seed)
        _write_rebuilt(root, params, name)
    for name in params.audit.checkpoints:
        _write_effects(root, params, name)
    if params.audit.predictors:
        _write_theorem(root, params)
    for name in params.examine.checkpoints:
        _write_examined(root, params, name)
    for name in params.examine.chains:
        _write_truncated(root, params, name)
    _write_latency(root, params)
    _write_flops(root, params)
    _write_leaks(root, params, questions)
    _write_probe(root, params)
    return params


_LOST = ("accuracy lost", "answers changed")


def _write_effects(root: Path, params: config.Params, name: str) -> None:
    """Of a checkpoint with a thinking token a section and two windows of layers."""
    seeds = params.training_seeds(name)
    effect = {
        **{("own", what): 50.0 for what in ("accuracy", "nll")},
        **{
            (measure, what): 10.0
            for measure in ("zero", "mean", "noise", "same", "other")
            for what in ("accuracy lost", "answers changed", "nll gained")
        },
        **{(f"first-{j}", what): 5.0 for j in (1, 2) for what in _LOST},
        **{(f"without/{part}", "accuracy lost"): 20.0 for part in ("slots", "markers", "both")},
        **{
            (f"closed/{what}/{window}", "nll gained"): 1.0
            for what in ("thinking", "image")
            for window in ("all", "0-1", "2-4")
        },
        ("other", "follows the donor"): 5.0,
        **{("mediation", what): 1.0 for what in ("te", "nie", "nde")},
        **({("mediation", "share"): 0.5} if name == params.audit.checkpoints[0] else {}),
    }
    random = np.random.default_rng(len(name))
    cells: dict[str, dict[str, Cell]] = {}
    for (measure, what), value in effect.items():
        drawn = {seed: value + random.normal(size=20) for seed in seeds}
        cells.setdefault(measure, {})[what] = statistics.seeded_cell(drawn, draws=100, seed=1)
    verdict, p = effects.judged(cells)
    write_metrics(
        root / "metrics" / "effects" / f"{name}.json",
        cells,
        provenance(
            f"effects@{name}",
            params,
            training_seeds=list(seeds),
            questions=20,
            power=effects.power(20),
            verdict=verdict,
            p=p,
            left_out={},
        ),
    )


def _write_theorem(root: Path, params: config.Params) -> None:
    """Of 2 bits, thinking tokens save a quarter and the text nearly all."""
    bits = {"nothing": 2.0, "tokens/ids": 1.9, "tokens/states": 1.5, "text": 0.25}
    random = np.random.default_rng(6)
    asked = {"turn": range(20), "image": [number // 2 for number in range(20)]}
    tables = {
        seed: pd.DataFrame(
            asked | {name: value + random.normal(size=20) / 20 for name, value in bits.items()}
        )
        for seed in params.seeds
    }
    named = config.given(params.audit.predictors, "audit.predictors")
    write_metrics(
        root / "metrics" / "theorem.json",
        theorem.information(tables, draws=100, seed=1),
        provenance(f"theorem@{named.tokens.model}", params, predictors=named.model_dump()),
    )


def _write_examined(root: Path, params: config.Params, name: str) -> None:
    """States of a thinking token; one position has no sensitivity, one kind is not probed."""
    for seed in params.training_seeds(name):
        measures = {"cosine": 0.9, "participation ratio": 3.0, "sensitivity": seed / 100}
        probed = {"accuracy": 0.75, "selectivity": 0.5, "bits": 1.25, "uniform bits": 2.0}
        write_json(
            root / "metrics" / "examine" / name / f"{seed}.json",
            {
                "geometry": {"prompt": {**measures, "sensitivity": None}, "thinking-1": measures},
                "information": {"colour": {"prompt": probed, "thinking-1": probed}},
                "provenance": provenance(
                    f"examine@{name}-{seed}", params, questions=20, not_probed={"count": "few"}
                ),
            },
        )


def _write_truncated(root: Path, params: config.Params, name: str) -> None:
    """Of one question no wrong fact is known."""
    random = np.random.default_rng(7)
    changes = (*(f"kept-{part}" for part in (0, 25, 50, 75, 100)), "wrong-fact", "filler")
    columns = [f"{change}/{what}" for change in changes for what in ("right", "changed")]
    table = pd.DataFrame(
        {name: random.integers(2, size=20) * 1.0 for name in ("own/written", "own/right", *columns)}
    )
    table["image"] = [number // 2 for number in range(20)]
    table.loc[0, "wrong-fact/right"] = np.nan
    write_metrics(
        root / "metrics" / "truncate" / f"{name}.json",
        truncation.effects(table, draws=100, seed=1),
        provenance(f"truncate@{name}", params, questions=20),
    )


def _write_flops(root: Path, params: config.Params) -> None:
    """Updates as the parameters have them, epochs as so many; invented FLOPs."""
    cells = {}
    for place, (name, one) in enumerate(params.checkpoints.items()):
        if isinstance(one, config.Checkpoint):
            updates = one.steps or round(100 * (one.epochs or 0))
            cells[name] = {
                metric: Cell(value, value, value, n=len(params.seeds))
                for metric, value in (("updates", updates), ("flops", updates * 3e9 + place))
            }
    write_metrics(root / "metrics" / "flops.json", cells, provenance("flops", params))


def _write_latency(root: Path, params: config.Params) -> None:
    """One batch size did not fit; answers of one case have a single token."""
    random = np.random.default_rng(5)
    cells: dict[str, dict[str, Cell]] = {}
    *sizes, too_large = params.latency.batch_sizes
    for case, one in params.latency.cases.items():
        for size in sizes if one.lookup is None else (1,):
            metrics = dict.fromkeys(LATENCY_METRICS)
            if one.lookup is not None:
                metrics["passes"] = None
            if case == "answer-only":
                del metrics["tpot_ms"], metrics["bandwidth_utilisation"]
            cells[f"{case}/batch-{size}"] = {
                metric: statistics.cell(random.random(9), draws=50, seed=1) for metric in metrics
            }
            if case != "text-cot":
                cells[f"{case}-vs-text-cot/batch-{size}"] = {
                    "speedup": statistics.cell(1 + random.random(9), draws=50, seed=1)
                }
    write_metrics(
        root / "metrics" / "latency.json",
        cells,
        provenance(
            "latency",
            params,
            device="a device",
            threads=1,
            dtype="float32",
            torch="2",
            peaks={"device": "a device", "tflops": 0.05, "gb_per_s": 20.0, "source": "measured"},
            limits=dict.fromkeys(params.latency.cases, 13),
            skipped={str(too_large): "out of memory: on purpose"},
        ),
    )


def _write_probe(root: Path, params: config.Params) -> None:
    random = np.random.default_rng(9)
    cells = {
        name: {
            column: statistics.seeded_cell(
                {seed: 50 + 10 * random.random(20) for seed in params.seeds}, draws=100, seed=1
            )
            for column in probe.columns(params)
        }
        for name in params.reconstructions
    }
    write_metrics(
        root / "metrics" / "probe.json", cells, provenance("probe", params, words={}, fitted=20)
    )


def _write_leaks(root: Path, params: config.Params, questions: int) -> None:
    """AI2D's first question asks about an image of training; MMStar has groups to be averaged."""
    data = leaks.data_of(params)
    names = ("train", "heldout", *data)
    cells, matches = {}, []
    for earlier, later in itertools.combinations(names, 2):
        counts = dict.fromkeys(leaks.COUNTS, 0.0) | {"question": 3.0}
        if (earlier, later) == ("train", "ai2d"):
            counts |= {"near": 1.0, "both": 1.0}
            matches.append(
                {
                    **{"set": later, "item": "0", "question": "What is\nin picture 0?"},
                    **{"in": earlier, "there": "turn-7", "question_there": "What is in picture 0"},
                    **{"image": "near", "bits": 2, "same_question": True, "both": True},
                }
            )
        cells[leaks.pair(earlier, later)] = {
            name: Cell(*[value] * 3, n=questions) for name, value in counts.items()
        }
    items = [
        {
            **{"set": name, "doc_id": number, "question": True, "both": False},
            "image": "near" if (name, number) == ("ai2d", 0) else None,
            "strata": {"lmms": str(number % 3)} if name == "mmstar" else {},
        }
        for name in data
        for number in range(questions)
    ]
    write_jsonl(root / "leaks" / "matches.jsonl", matches)
    write_jsonl(root / "leaks" / "items.jsonl", items)
    write_metrics(
        root / "metrics" / "leaks.json",
        cells,
        provenance("leaks", params, images=dict.fromkeys(names, questions), unreadable=0),
    )


def _write_score(
    root: Path, params: config.Params, variant: str, questions: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rows, cells = [], {}
    tokens = 140 if variant in ("base", "text-cot") else 42
    trained = params.training_seeds(params.variants[variant].model)
    for protocol, rules in params.protocols.items():
        parts = []
        for benchmark in params.benchmarks:
            found = [
                {
                    "training_seed": one,
                    "protocol": protocol,
                    "seed": run,
                    "benchmark": benchmark,
                    "doc_id": number,
                    "unit": number,
                    "image": f"image-{number // 2}",
                    "score": float(random.random() < 0.7),
                    "failed": number == 3 and variant == "heima",
                    "finish": "stop",
                    **{count: int(tokens + random.integers(5)) for count in COUNTS},
                }
                for one in trained
                for run in rules.seeds
                for number in range(questions)
            ]
            parts.append(_resampled(params, protocol, found))
            cells[score_group(protocol, benchmark)] = {
                **{name: one.cell(seed=1) for name, one in parts[-1].items()},
                CHANCE: Cell(25.0, 25.0, 25.0, n=questions),
            }
            rows += found
        cells[score_group(protocol, MEAN)] = {
            metric: statistics.mean_of([part[metric] for part in parts]).cell(seed=1)
            for metric in parts[0]
        }
    write_jsonl(root / "scores" / f"{variant}.jsonl", rows)
    write_metrics(
        root / "metrics" / "score" / f"{variant}.json",
        cells,
        provenance(
            f"score@{variant}",
            params,
            judge={"model": "embedded-rules"},
            seeds={protocol: list(rules.seeds) for protocol, rules in params.protocols.items()},
            data={
                protocol: {name: f"{protocol}-{name}" for name in params.benchmarks}
                for protocol in params.protocols
            },
        ),
    )


def _resampled(
    params: config.Params, protocol: str, rows: list[dict]
) -> dict[str, statistics.Resampled]:
    def by_training_seed(found: list[dict], column: str, scale: float) -> statistics.Resampled:
        values: dict[int, list[float]] = {}
        for row in found:
            values.setdefault(row["training_seed"], []).append(row[column])
        first = [row for row in found if row["training_seed"] == found[0]["training_seed"]]
        return statistics.resample(
            {column: values},
            draws=100,
            seed=1,
            clusters=[row["image"] for row in first],
            n_failed={column: sum(row["failed"] for row in found)},
            scale=scale,
        )[column]

    seeds = params.protocols[protocol].seeds
    by_seed = {
        seed_metric(seed): by_training_seed(
            [row for row in rows if row["seed"] == seed], "score", 100
        )
        for seed in (seeds if len(seeds) > 1 else ())
    }
    return {
        ACCURACY: by_training_seed(rows, "score", 100),
        **{f"{count}_tokens": by_training_seed(rows, count, 1) for count in COUNTS},
        **by_seed,
    }


def _write_similarity(root: Path, params: config.Params, name: str, seed: int) -> None:
    random = np.random.default_rng(seed)

    def drawn(mean: float) -> dict[int, np.ndarray]:
        return {one: mean + random.normal(size=20) for one in params.seeds}

    cells: dict[str, dict[str, Cell]] = {}
    rows = []
    for control in params.reconstruct.controls:
        shift = 30 if control == "own" else 0
        metrics = metrics_of(control, params)
        values = {metric: drawn(40 + shift) for metric in (*metrics, *NLL)}
        cells[control] = {
            metric: statistics.seeded_cell(column, draws=100, seed=1, n_failed=1)
            for metric, column in values.items()
        }
        if control != "own":
            cells[difference(control)] = {
                metric: statistics.seeded_cell(drawn(30), draws=100, seed=1)
                for metric in (*metrics, NLL_GAIN)
            }
        rows += [
            {
                "training_seed": one,
                "id": f"turn-{number}",
                "image": f"image-{number // 2}",
                "control": control,
                **{metric: column[one][number] for metric, column in values.items()},
            }
            for one in params.seeds
            for number in range(20)
        ]
    parquet = root / "scores" / "similarity" / f"{name}.parquet"
    parquet.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(parquet, index=False)
    write_metrics(
        root / "metrics" / "similarity" / f"{name}.json",
        cells,
        provenance(
            f"similarity@{name}",
            params,
            libraries={"nltk": "3"},
            corpus_bleu={"signature": "nrefs:1"},
            meteor={"column": "meteor_exact_stem", "sentences": "punkt, untrained"},
            bertscore={
                "column": "bertscore_minilm_l6",
                "model": "minilm-l6",
                "layers": 6,
                "tokenizer": "BertTokenizer",
            },
            judge={
                "column": judge_column(params.judge),
                "prompt": ["similarity-1"],
                "missing": [],
            },
        ),
    )


def _write_rebuilt(root: Path, params: config.Params, name: str) -> None:
    section = params.reconstructions[name].section
    for seed in params.seeds:
        rows = [
            {
                "id": f"turn-{number}",
                "image": f"image-{number // 2}",
                "question": f"What is in picture {number}?",
                "control": control,
                "reference": f"the {section} of turn {number}, " + "word for word, " * number,
                "text": "" if number == 6 else f"the {section} as read from {control}",
                "nll": 3.25,
                **({"same_gold": number != 4} if control == "shuffled-same-gold" else {}),
            }
            for control in params.reconstruct.controls
            for number in range(20)
        ]
        write_jsonl(root / "reconstructions" / name / f"{seed}.jsonl", rows)


PIPELINE = """
vars: [runs.yaml]
stages:
  rewrite: {cmd: python -m stages.rewrite}
  latency: {cmd: python -m stages.latency}
  distill:
    foreach: ${runs.distill}
    do: {cmd: "python -m stages.distill ${item.checkpoint} ${item.seed}"}
  similarity:
    foreach: ${reconstructions}
    do: {cmd: "python -m stages.similarity ${key}"}
  effects:
    foreach: ${runs.effects}
    do: {cmd: "python -m stages.effects ${key}"}
  predict:
    foreach: ${variants}
    do: {cmd: "python -m stages.predict ${key}"}
  score:
    foreach: ${variants}
    do: {cmd: "python -m stages.score ${key}"}
  tables: {cmd: python -m stages.tables}
"""


def lock(root: Path, params: config.Params) -> None:
    """Write dvc.yaml, dvc.lock, and what `write` leaves out of the outputs that it records."""
    (root / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (root / "runs.yaml").write_text(yaml.safe_dump({"runs": runs.runs(params)}), encoding="utf-8")
    plain = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    stages = {}

    def add(name: str, outs: list[str], reads: tuple[str, ...] = (), **used: object) -> None:
        entries = []
        for out in outs:
            path = root / out
            digest = "0" * 32
            if path.is_file():
                digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            entries.append({"path": out, "md5": digest})
        stages[name] = {
            "cmd": f"python -m stages.{name.replace('@', ' ')}",
            "deps": [
                {"path": f"fingerprints/{name.partition('@')[0]}.json", "md5": "c" * 32},
                *({"path": path, "md5": "0" * 32} for path in reads),
            ],
            "params": {"resolved.yaml": {"seed": params.seed, **used}},
            "outs": entries,
        }

    write_json(
        root / "metrics" / "rewrite.json",
        {"turns": {"train": 90, "heldout": 10}, "examples": {"p1": "text"}, "provenance": {}},
    )
    add("rewrite", ["data/rewritten", "metrics/rewrite.json"], rewrite=plain["rewrite"])
    add("latency", ["metrics/latency.json"], ("models",), latency=plain["latency"])
    for run, one in runs.runs(params)["distill"].items():
        name, seed = one["checkpoint"], one["seed"]
        place, metrics = params.trained(name, seed), f"metrics/distill/{name}/{seed}.json"
        rate = params.checkpoints[name].learning_rate
        write_jsonl(
            root / "models" / place / "loss.jsonl",
            [{"step": step, "loss": 2 / step, "learning_rate": rate} for step in range(1, 6)],
        )
        write_metrics(
            root / metrics,
            {"heldout": {"loss": Cell(0.5, 0.4, 0.6, n=10, seeds={seed: 0.5})}},
            provenance(
                f"distill@{run}",
                params,
                training_seed=seed,
                seconds=1.5,
                updates=params.checkpoints[name].steps,
            ),
        )
        used = {f"checkpoints.{name}": plain["checkpoints"][name]}
        reads = ("data/rewritten", f"models/{one['init']}")
        add(f"distill@{run}", [f"models/{place}", metrics], reads, **used)
    for name in params.reconstructions:
        add(f"similarity@{name}", [f"metrics/similarity/{name}.json"])
    for name in params.audit.checkpoints:
        add(f"effects@{name}", [f"metrics/effects/{name}.json"])
    for variant in params.variants:
        (root / "predictions" / variant).mkdir(parents=True, exist_ok=True)
        model = params.variants[variant].model
        used = {f"variants.{variant}": params.variants[variant].model_dump(mode="json")}
        add(f"predict@{variant}", [f"predictions/{variant}"], (f"models/{model}",), **used)
        reads = (f"predictions/{variant}",)
        add(f"score@{variant}", [f"metrics/score/{variant}.json"], reads, judge=plain["judge"])
    text = yaml.safe_dump({"schema": "2.0", "stages": stages})
    (root / "dvc.lock").write_text(text, encoding="utf-8")


def write_turns(path: str | Path, turns: Sequence[Turn]) -> None:
    """The parquet file that `heima.data.turns.load_turns` reads."""
    with TurnFile(path) as file:
        file.write(pa.Table.from_pylist([asdict(turn) for turn in turns], SCHEMA))
