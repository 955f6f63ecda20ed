"""Take an adapter that others trained, in place of training one: fetch, check and convert it.

    python -m stages.adopt models/released/42                # checkpoints.released.adapter
    python -m stages.adopt interpreters/summary/own/42       # interpreters.summary.adapter

It comes from a path or the hub, as a file of torchtune (Llama 3.2 Vision) or a folder of peft, and
no code of it is run. Writes the folder, as `distill` and `interpret` do, and below `metrics/adopt/`
which files it was made from. DVC does not watch a path: after changing what lies there,
`dvc repro -f adopt@…`. Of an interpreter no adapter was trained without states: as the control that
reads the question alone stands the same one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from heima import config
from heima.data.hub import HubError
from heima.data.licences import terms
from heima.families.registry import FAMILIES
from heima.results.files import atomic, read_json, write_json
from heima.results.provenance import provenance
from heima.vlm import given_adapter, models
from heima.vlm.added_tokens import fit, untie
from heima.vlm.pointer import POINTER, ModelError, locate
from stages import arguments, runs


def main(folder: str) -> None:
    params = config.load_resolved()
    run, item = _item(params, folder)
    family = FAMILIES[params.family]
    lora, scope, lora_key = (
        (params.distill.lora, family.vlm_lora, "distill.lora")
        if item["base"] == "text-cot"
        else (params.interpret.lora, family.llm_lora, "interpret.lora")
    )
    key = f"{item['key']}.adapter"
    source = _source(params, item["key"])
    if source.id is not None and (licence := terms(source.id)):
        print(f"{source.id}: {licence}")
    try:
        base = _base(item["base"])
        found = given_adapter.fetch(source, key=key, again=f"run `dvc repro -f adopt@{run}`")
        adapter = given_adapter.read(found, base, called=source.base)
        model = given_adapter.skeleton(base)
        tokenizer = (
            models.load_processor(models.ROOT, params).tokenizer
            if base.kind == "vlm"
            else models.load_tokenizer(models.ROOT, params)
        )
        untie(model)
        fit(model, tokenizer, family)
        left = given_adapter.check(found.title, adapter, model, lora, scope=scope, key=lora_key)
    except (HubError, ModelError, given_adapter.AdapterError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if left:
        print(f"{found.title} leaves as they are: {', '.join(left)}")
    with atomic(Path(folder)) as temporary:
        given_adapter.write(adapter, lora, temporary)
    facts = {**given_adapter.facts(found, adapter), "left": left}
    write_json(
        f"metrics/adopt/{run}.json",
        {"cells": {}, "provenance": provenance(f"adopt@{run}", params, adapter=facts)},
    )


def _item(params: config.Params, folder: str) -> tuple[str, dict[str, str]]:
    """The run that makes a folder, and its item of `runs.yaml`."""
    known = runs.runs(params)["adopt"]
    return next((run, item) for run, item in known.items() if item["folder"] == folder)


def _source(params: config.Params, key: str) -> config.GivenAdapter:
    part, _, name = key.partition(".")
    entry = (params.checkpoints if part == "checkpoints" else params.interpreters)[name]
    return config.expected(config.GivenAdapter, getattr(entry, "adapter", None), f"{key}.adapter")


def _base(name: str) -> given_adapter.Base:
    pointer = models.ROOT / name / POINTER
    named = read_json(pointer) if pointer.exists() else {}
    return given_adapter.Base(
        locate(models.ROOT / name),
        named.get("id"),
        "llm" if name == "interpreter" else "vlm",
        named.get("id") or named.get("path") or str(models.ROOT / name),
    )


if __name__ == "__main__":
    (folder,) = arguments.read(
        __doc__,
        folder=lambda params: [one["folder"] for one in runs.runs(params)["adopt"].values()],
    )
    main(folder)
