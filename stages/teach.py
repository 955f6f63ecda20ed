"""Provide one of the models that everything starts from: text-cot, base or interpreter.

    python -m stages.teach text-cot

The toy profile trains it from scratch; a profile with `kind: pretrained` names it. Writes
`models/<name>/` and `metrics/teach/<name>.json` (held-out loss per labelled token, in nats).
"""

from __future__ import annotations

import sys
import time

from heima import config, corpus, models
from heima.results import atomic, provenance, write_json, write_metrics


def train_toy(name: str, params: config.Params) -> None:
    from heima.statistics import DRAWS, cell
    from heima.toy import models as toy
    from heima.toy import teach
    from heima.training import write_curve

    processor = toy.build_processor()
    vocabulary = models.vocabulary(processor.tokenizer, params)
    splits = [
        corpus.load_turns(f"data/rewritten/{split}.parquet") for split in ("train", "heldout")
    ]
    started = time.monotonic()
    if name == "interpreter":
        taught = teach.teach_llm(params, processor.tokenizer, vocabulary, *splits)
    else:
        images = corpus.ImageZip(corpus.locate("data/source") / "images.zip")
        trained_on = {turn.image for turn in splits[0]}
        taught = teach.teach_vlm(
            name,
            params,
            processor,
            vocabulary,
            *splits,
            images,
            teach.training_scenes(params, trained_on),
        )
    seconds = time.monotonic() - started
    with atomic(models.ROOT / name) as folder:
        taught.model.save_pretrained(folder)
        (processor.tokenizer if name == "interpreter" else processor).save_pretrained(folder)
        write_curve(folder / "loss.jsonl", taught.curve)
    write_metrics(
        f"metrics/teach/{name}.json",
        {"heldout": {"loss": cell(taught.heldout_losses, draws=DRAWS, seed=params.seed)}},
        provenance(
            f"teach@{name}",
            params,
            parameters=taught.model.num_parameters(),
            updates=taught.curve[-1]["step"],
            seconds=round(seconds, 1),
            **taught.facts,
        ),
    )


def name_pretrained(name: str, params: config.Params) -> None:
    teach = params.teach
    named = {"text-cot": "text_cot", "base": "base"}
    model = teach.llm if name == "interpreter" else getattr(teach.vlm, named[name])
    with atomic(models.ROOT / name) as folder:
        models.write_pretrained(folder, model.id, model.revision)
    write_json(
        f"metrics/teach/{name}.json",
        {"cells": {}, "provenance": provenance(f"teach@{name}", params, model=model.model_dump())},
    )


def main(name: str) -> None:
    params = config.load()
    part = params.teach.llm if name == "interpreter" else params.teach.vlm
    (train_toy if part.kind == "train" else name_pretrained)(name, params)


if __name__ == "__main__":
    main(sys.argv[1])
