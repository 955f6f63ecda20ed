"""The profile smol through the stages that touch a model, around a small Llama, in one process."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from eval import lmms_start

lmms_start.quiet()

from heima import config  # noqa: E402
from heima.config.profiles import written_out  # noqa: E402
from heima.data.turns import load_turns  # noqa: E402
from heima.results.files import read_json, read_jsonl  # noqa: E402
from heima.toy import smol  # noqa: E402
from heima.vlm import models  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.toy.like_smollm2 import llama_like_smollm2  # noqa: E402


def small(source):
    model, tokenizer = llama_like_smollm2(layers=7)
    smol.reserve(model, tokenizer)
    return model, tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_every_stage_takes_the_family(tmp_path, monkeypatch, frozen):
    from stages import distill, interpret, predict, prepare, reconstruct, resolve, rewrite, teach
    from stages import states as states_stage

    raw = yaml.safe_load(written_out(ROOT / "profiles/smol-few.yaml"))
    raw["teach"]["vlm"] |= {"steps": 2, "vision_steps": 3}
    if not frozen:
        raw["teach"]["vlm"]["text_learning_rate"] = 1e-3
    raw["benchmarks"] = ["mmstar"]
    raw["protocols"] = {"lmms": raw["protocols"]["lmms"]}
    raw["states"]["checkpoint"] = "p3"
    raw["variants"] = {"heima": {"model": "p3"}}
    raw["latency"]["cases"] = {"heima": {"variant": "heima"}}
    raw["reconstruct"].update(controls=["own", "shuffled"], max_new_tokens=4)
    raw["similarity"]["judged"] = ["own"]
    raw["predict"]["max_new_tokens"] = 8
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smol, "language_model", small)
    params = config.load()
    resolve.write(params)
    prepare.main()
    with zipfile.ZipFile("data/source/images.zip") as images:
        assert len(images.namelist()) == 24
    first = json.loads(Path("data/source/train.jsonl").read_text().splitlines()[0])
    assert "The picture shows a " in first["conversations"][1]["value"]
    rewrite.main()
    assert len(load_turns("data/rewritten/train.parquet")) == 38
    for name in ("text-cot", "interpreter") if frozen else ("text-cot", "base"):
        teach.main(name)
    vlm, _ = models.load_vlm(models.ROOT, "text-cot", params)
    given = small(None)[0].model.layers[0].mlp.up_proj.weight
    assert torch.equal(vlm.model.language_model.layers[0].mlp.up_proj.weight, given) is frozen
    if not frozen:
        return
    assert not read_json("metrics/teach/interpreter.json")["provenance"]["updates"]
    llm = models.load_llm(models.ROOT, params)
    assert torch.equal(llm.model.layers[0].mlp.up_proj.weight, given)
    for name in ("p1", "p2", "p3"):
        distill.main(name, 42)
    states_stage.main(42)
    interpret.main("shared", "own", 42)
    reconstruct.main("caption", 42)
    turns = load_turns("data/rewritten/heldout.parquet")
    rows = list(read_jsonl("reconstructions/caption/42.jsonl"))
    assert [row["id"] for row in rows] == [turn.id for turn in turns] * 2
    assert all(row["reference"].startswith("The picture shows a ") for row in rows)
    predict.main("heima", fresh=False)
    assert len(list(read_jsonl("predictions/heima/42/lmms/42/mmstar.jsonl"))) == 4
