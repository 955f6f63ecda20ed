"""All that figures and the page read, small and invented, on toy data that is drawn for real."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save_file

from eval.units import image_label
from heima import config
from heima.config.benchmarks import BENCHMARKS
from heima.data.rewriting import rewrite
from heima.data.turns import load_turns
from heima.results.files import read_jsonl, write_json, write_jsonl
from heima.toy.benchmarks import write_benchmarks
from heima.toy.source import write_source
from reports import figures
from stages import runs
from tests import fabricated

HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)> <b>&amp;"
QUESTIONS = 20


def write(root: Path) -> config.Params:
    """A finished reproduction below `root`, without models; texts are `HOSTILE` here and there."""
    params = fabricated.write(root, questions=QUESTIONS)
    (root / "runs.yaml").write_text(yaml.safe_dump({"runs": runs.runs(params)}), encoding="utf-8")
    shutil.copy(fabricated.ROOT / "dvc.yaml", root)
    (root / "resolved.yaml").write_text(
        yaml.safe_dump(config.resolved(params), sort_keys=False), encoding="utf-8"
    )
    _write_data(root, params)
    _relabel(root, params)
    _write_predictions(root, params)
    _write_rebuilt(root, params)
    _write_training(root, params)
    return params


def draw_figures(root: Path, params: config.Params) -> Path:
    """The figures, where the stage has them."""
    folder = root / "reports" / params.profile / "figures"
    folder.mkdir(parents=True)
    figures.write(figures.Inputs(root, params), folder)
    return folder


def plan() -> dict:
    """As `stages.plan --json` has it, of two stages."""
    stage = {"gpu_hours": 0.5, "judge_calls": 0, "usd": 0.0}
    return {
        "machine": {"name": "h100", "gpus": 8, "mfu": 0.35},
        "stages": [
            {"name": "teach@text-cot", **stage},
            {"name": "teach@base", **stage},
            {"name": "judge", "gpu_hours": 0.0, "judge_calls": 1200, "usd": 3.5},
        ],
    }


def _write_data(root: Path, params: config.Params) -> None:
    source = root / "data" / "source"
    mix = params.source.mix
    write_source(source, records=24, turns=2, mix=mix, seed=7)
    (root / "data" / "rewritten").mkdir()
    rewrite(
        source,
        root / "data" / "rewritten",
        params.rewrite.model_copy(update={"heldout": 0.3}),
        seed=7,
    )
    # MMBench asks each question once for every order of its four options.
    sizes = dict.fromkeys(params.benchmarks, QUESTIONS) | {"mmbench": QUESTIONS // 4}
    write_benchmarks(root / "data" / "benchmarks", sizes=sizes, seed=7)
    [path] = (root / "data/benchmarks/mmvet").glob("*.parquet")
    table = pq.read_table(path)
    asked = [HOSTILE, *table["question"].to_pylist()[1:]]
    place = table.column_names.index("question")
    pq.write_table(table.set_column(place, table.schema.field(place), [asked]), path)


def _images(root: Path, benchmark: str) -> list[str]:
    [path] = (root / "data" / "benchmarks" / benchmark).glob("*.parquet")
    column = BENCHMARKS[benchmark].dataset.image
    return [image_label(one["bytes"]) for one in pq.read_table(path)[column].to_pylist()]


def _relabel(root: Path, params: config.Params) -> None:
    """Scores of questions about the images that were drawn."""
    labels = {benchmark: _images(root, benchmark) for benchmark in params.benchmarks}
    for variant in params.variants:
        path = root / "scores" / f"{variant}.jsonl"
        rows = read_jsonl(path)
        for row in rows:
            row["image"] = labels[row["benchmark"]][row["doc_id"]]
        write_jsonl(path, rows)


def _write_predictions(root: Path, params: config.Params) -> None:
    for variant, one in params.variants.items():
        for seed, (protocol, rules), benchmark in itertools.product(
            params.training_seeds(one.model), params.protocols.items(), params.benchmarks
        ):
            for run in rules.seeds:
                folder = root / "predictions" / variant / str(seed) / protocol / str(run)
                said = "<CAPTION> <THINKING_OF_CAPTION> </CAPTION> <CONCLUSION> A </CONCLUSION>"
                texts = [HOSTILE, *[f"{said} of {variant}"] * (QUESTIONS - 1)]
                rows = [{"doc_id": doc, "text": text} for doc, text in enumerate(texts)]
                write_jsonl(folder / f"{benchmark}.jsonl", rows)


def _write_rebuilt(root: Path, params: config.Params) -> None:
    turns = load_turns(root / "data" / "rewritten" / "heldout.parquet")
    for (name, one), seed in itertools.product(params.reconstructions.items(), params.seeds):
        rows = [
            {
                "id": turn.id,
                "image": turn.image,
                "question": turn.question,
                "control": control,
                "reference": turn.sections[one.section],
                "text": HOSTILE if place == 0 else f"from {control}",
                "nll": 3.25 + place,
                **({"same_gold": True} if control == "shuffled-same-gold" else {}),
            }
            for control in params.reconstruct.controls
            for place, turn in enumerate(turns)
        ]
        write_jsonl(root / "reconstructions" / name / f"{seed}.jsonl", rows)
        judged = [
            {"id": row["id"], "control": row["control"], "grade": 3}
            for row in rows
            if row["control"] in params.similarity.judged
        ]
        write_jsonl(root / "judgements" / name / f"{seed}.jsonl", judged)


def _write_training(root: Path, params: config.Params) -> None:
    def curve(folder: str, steps: int) -> None:
        rows = [{"step": step, "loss": 2 / step} for step in range(1, steps + 1)]
        write_jsonl(root / folder / "loss.jsonl", rows)

    random = np.random.default_rng(3)
    turns = len(load_turns(root / "data" / "rewritten" / "heldout.parquet"))
    for seed in params.seeds:
        for name in params.checkpoints:
            curve(f"models/{params.trained(name, seed)}", 30)
        for name, given in itertools.product(params.interpreters, ("own", "question-only")):
            curve(f"interpreters/{name}/{given}/{seed}", 20)
        states: dict[str, torch.Tensor] = {}
        for section in params.sections:
            states[section] = torch.tensor(random.normal(size=(turns, 8)), dtype=torch.float32)
            states[f"{section}.counts"] = torch.ones(turns, dtype=torch.int32)
        (root / "states" / str(seed)).mkdir(parents=True)
        save_file(states, root / "states" / str(seed) / "heldout.safetensors")
    write_json(
        root / "metrics" / "teach" / "base.json",
        {"cells": {}, "provenance": {"stage": "teach@base", "seconds": 90.0}},
    )
