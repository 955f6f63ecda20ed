"""The other families' profiles through the stages that touch a model, small, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from eval import lmms_start

lmms_start.quiet()

from heima import config  # noqa: E402
from heima.config.profiles import written_out  # noqa: E402
from heima.cot.sections import COMPRESSIBLE  # noqa: E402
from heima.data.turns import load_turns  # noqa: E402
from heima.interpreting import states  # noqa: E402
from heima.results.cells import read_metrics  # noqa: E402
from heima.results.files import read_jsonl  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.pipeline.conftest import smaller  # noqa: E402

PHASES = ["p1", "p2", "p3"]


@pytest.fixture(params=["toy-llava-next", "toy-idefics3"])
def workspace(request, tmp_path, monkeypatch):
    """The working directory of the stages, with the profile made small."""
    raw = smaller(yaml.safe_load(written_out(ROOT / f"profiles/{request.param}.yaml")))
    raw["source"]["records"] = 60
    raw["seeds"] = [42]
    raw["benchmarks"] = ["mmstar"]
    raw["protocols"] = {"lmms": raw["protocols"]["lmms"]}
    raw["states"]["checkpoint"] = "p3"
    raw["variants"] = {
        "heima": {"model": "p3", "forced_prefix": None},
        "prefixed": {"model": "p3", "forced_prefix": "p3"},
    }
    raw["latency"].update(
        cases={"heima": {"variant": "heima"}}, batch_sizes=[4], rounds=1, peaks="measured"
    )
    raw["reconstruct"].update(controls=["own", "shuffled"], max_new_tokens=8)
    raw["similarity"]["judged"] = ["own"]
    raw["predict"]["max_new_tokens"] = 16
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_stage_takes_the_family(workspace):
    from eval import latency
    from stages import distill, interpret, predict, prepare, reconstruct, resolve, rewrite, teach
    from stages import states as states_stage

    params = config.load()
    resolve.write(params)
    prepare.main()
    rewrite.main()
    for name in ("text-cot", "interpreter"):
        teach.main(name)
    for name in PHASES:
        distill.main(name, 42)
        assert {path.name for path in Path("models", name, "42").iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "loss.jsonl",
        }
    states_stage.main(42)
    turns = load_turns("data/rewritten/heldout.parquet")
    for section in COMPRESSIBLE:
        found = states.load(Path("states/42/heldout.safetensors"), section, turns)
        assert found.values.shape == (len(turns), params.teach.vlm.hidden_size)
        assert found.values.unique(dim=0).shape[0] > 1, "states follow what is asked and seen"

    interpret.main("reasoning", "own", 42)
    reconstruct.main("reasoning", 42)
    rows = read_jsonl("reconstructions/reasoning/42.jsonl")
    assert [row["id"] for row in rows] == [turn.id for turn in turns] * 2

    for variant in ("heima", "prefixed"):
        predict.main(variant, fresh=False)
    answers, prefixed = (
        list(read_jsonl(f"predictions/{variant}/42/lmms/42/mmstar.jsonl"))
        for variant in ("heima", "prefixed")
    )
    for row, longer in zip(answers, prefixed, strict=True):
        # The prefix is read, not decoded: three thinking tokens and six tags.
        assert longer["counts"]["prompt"] == row["counts"]["prompt"] + 9
    latency.latency(Path("samples.jsonl"), Path("latency.json"), models=Path("models"))
    cells, _ = read_metrics(Path("latency.json"))
    (row,) = cells.values()
    assert row["vision_ms"].value > 0 and row["prefill_ms"].value > 0
    assert row["gflop_per_sample"].value > 0
