"""Provide one of the models that everything starts from: text-cot, base or interpreter.

    python -m stages.teach text-cot

The toy profile trains it from scratch, the profile smol makes it of SmolLM2 (`heima.toy.smol`).
With `kind: pretrained` it is fetched into the hub's cache, or lies in a given folder, and is
checked: `models/<name>/` then holds a `pretrained.json`, by which all later stages load those very
files without the hub. DVC does not watch a given folder: after changing one,
`dvc repro -f teach@<name>`. Writes `models/<name>/` and `metrics/teach/<name>.json` (held-out loss
per labelled token, in nats; or which files were found).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from heima import config
from heima.data import places
from heima.data.hub import HubError
from heima.data.images import ImageZip
from heima.data.licences import terms
from heima.data.turns import load_turns
from heima.families.registry import FAMILIES
from heima.results.files import atomic, write_json
from heima.results.provenance import provenance
from heima.vlm import models, pretrained
from heima.vlm.pointer import ModelError
from stages import arguments, launch


def train_toy(name: str, params: config.Params) -> None:
    from heima.results.statistics import DRAWS, cell
    from heima.toy import teach
    from heima.training import outcome

    train, heldout = (
        load_turns(f"data/rewritten/{split}.parquet") for split in ("train", "heldout")
    )
    images = ImageZip(places.locate("data/source") / "images.zip", params.image_decoding)
    started = time.monotonic()
    if params.teach.llm.kind == "gguf":
        from heima.toy import smol, teach_smol

        scenes = teach.training_scenes(params, {turn.image for turn in train})
        try:
            taught = (
                teach_smol.take_llm(params, heldout)
                if name == "interpreter"
                else teach_smol.teach_vlm(name, params, train, heldout, images, scenes)
            )
        except smol.SmolError as error:
            sys.exit(f"error: {error}")
    elif name == "interpreter":
        vlm, processor = models.load_vlm(models.ROOT, "text-cot", params)
        taught = teach.teach_llm(params, train, heldout, vlm, processor, images)
    else:
        trained_on = {turn.image for turn in train}
        taught = teach.teach_vlm(
            name,
            params,
            train,
            heldout,
            images,
            teach.training_scenes(params, trained_on),
        )
    seconds = time.monotonic() - started

    def save(folder: Path) -> None:
        taught.model.save_pretrained(folder)
        taught.processor.save_pretrained(folder)

    outcome.write(
        save,
        taught.curve,
        cell(taught.heldout_losses, draws=DRAWS, seed=params.seed),
        models.ROOT / name,
        f"metrics/teach/{name}.json",
        origin=provenance(
            f"teach@{name}",
            params,
            parameters=taught.model.num_parameters(),
            updates=taught.curve[-1]["step"] if taught.curve else 0,
            seconds=round(seconds, 1),
            **taught.facts,
        ),
    )


def name_pretrained(name: str, params: config.Params) -> None:
    llm = name == "interpreter"
    key = "teach.llm" if llm else f"teach.vlm.{name}"
    named = {"text-cot": "text_cot", "base": "base"}
    model = config.expected(
        config.PretrainedModel,
        params.teach.llm if llm else getattr(params.teach.vlm, named[name]),
        key,
    )
    if model.id is not None and (licence := terms(model.id)):
        print(f"{model.id}: {licence}")
    try:
        with atomic(models.ROOT / name) as folder:
            found = pretrained.provide(
                model,
                folder,
                key=key,
                again=f"run `dvc repro -f teach@{name}`",
                kind="llm" if llm else "vlm",
                model_type=None if llm else FAMILIES[params.family].model_type,
            )
    except (HubError, ModelError) as error:
        sys.exit(f"error: {error}")
    write_json(
        f"metrics/teach/{name}.json",
        {"cells": {}, "provenance": provenance(f"teach@{name}", params, model=found)},
    )


def main(name: str) -> None:
    params = config.load_resolved()
    part = params.teach.llm if name == "interpreter" else params.teach.vlm
    if part.kind == "pretrained":  # where the hub is: a cluster's nodes may not reach it
        name_pretrained(name, params)
    else:
        launch.on_one_device(params, "stages.teach", name)
        train_toy(name, params)


if __name__ == "__main__":
    (part,) = arguments.read(__doc__, model=lambda params: config.PRETRAINED)
    main(part)
