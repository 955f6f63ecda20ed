"""Given adapters alone through the stages that touch a model: nothing is trained, small, in one
process."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from eval import lmms_start

lmms_start.quiet()

from heima import config  # noqa: E402
from heima.config.profiles import written_out  # noqa: E402
from heima.data.turns import load_turns  # noqa: E402
from heima.results.cells import read_metrics  # noqa: E402
from heima.results.files import read_json, read_jsonl  # noqa: E402
from heima.toy import mllama  # noqa: E402
from heima.toy.models import build_llm  # noqa: E402
from stages import runs  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.pipeline.conftest import smaller  # noqa: E402
from tests.vlm.test_given_adapter import decoder, drawn  # noqa: E402


def test_the_authors_rows_come_about_without_training(tmp_path, monkeypatch, toy_processor):
    """The profile `paper-official` on the toy's world: their layouts, all controls."""
    from stages import adopt, audit, effects, predict, prepare, reconstruct, resolve, rewrite
    from stages import states as states_stage

    official = yaml.safe_load(written_out(ROOT / "profiles/paper-official.yaml"))
    raw = smaller(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    raw["seeds"] = [42]
    raw["source"]["records"] = 20
    raw["rewrite"]["heldout"] = 0.2
    for key in ("checkpoints", "interpreters", "reconstructions"):
        raw[key] = official[key]
    raw["states"] = official["states"] | {"position": "predicting", "batch_size": 8}
    raw["checkpoints"]["released"]["adapter"] = {"path": "adapter_0.pt"}
    for name, one in raw["interpreters"].items():
        one["adapter"] = {"path": f"decoder/{name}"}
    raw["variants"] = {name: official["variants"][name] for name in ("base", "text-cot", "heima")}
    raw["latency"]["cases"] = {"heima": {"variant": "heima"}}
    raw["benchmarks"] = ["mmstar"]
    raw["protocols"] = {"lmms": raw["protocols"]["lmms"]}
    raw["reconstruct"]["max_new_tokens"] = 4
    raw["predict"]["max_new_tokens"] = 8
    raw["audit"] |= {"checkpoints": official["audit"]["checkpoints"], "items": 12}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    params = config.load()
    resolve.write(params)
    prepare.main()
    rewrite.main()
    vlm = mllama.build_vlm(toy_processor, hidden_size=64, seed=1)
    vlm.save_pretrained("models/text-cot")
    toy_processor.save_pretrained("models/text-cot")
    llm = build_llm(toy_processor.tokenizer, hidden_size=64, seed=2)
    llm.save_pretrained("models/interpreter")
    toy_processor.tokenizer.save_pretrained("models/interpreter")
    torch.save(drawn(vlm)[0], "adapter_0.pt")
    for section in params.sections:
        decoder(Path("decoder") / section)

    listed = runs.runs(params)
    assert not listed["distill"] and not listed["interpret"]
    for item in listed["adopt"].values():
        adopt.main(item["folder"])
    assert len(list(Path("metrics/adopt").iterdir())) == 7
    [audited] = listed["audit"].values()
    assert Path("models", audited["model"]).is_dir() and list(listed["effects"]) == ["released"]
    audit.main(audited["checkpoint"], audited["seed"])
    effects.main("released")
    assert read_metrics("metrics/effects/released.json")[1]["questions"] == 12
    states_stage.main(42)
    reconstruct.main("caption", 42)
    rows = list(read_jsonl("reconstructions/caption/42.jsonl"))
    turns = load_turns("data/rewritten/heldout.parquet")
    assert [row["control"] for row in rows[:: len(turns)]] == list(params.reconstruct.controls)
    of = {name: [row["nll"] for row in rows if row["control"] == name]
          for name in params.reconstruct.controls}  # fmt: skip
    # Of one decoder, asked with a state and without a place for one.
    assert of["own"] != of["question-only"] and of["own"] != of["zero"]
    predict.main("heima", fresh=False)
    assert len(list(read_jsonl("predictions/heima/42/lmms/42/mmstar.jsonl"))) == 8
    assert read_json("predictions/heima/provenance.json")["training_seeds"] == [42]
