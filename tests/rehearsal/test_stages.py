"""A small rehearsal: the stages of the paper's profile that touch a model, on one process and on
two, in the real shapes. `make rehearse` runs all stages of both families."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from eval import lmms_start

lmms_start.quiet()

from heima import config  # noqa: E402
from heima.config.profiles import written_out  # noqa: E402
from heima.results.files import read_json, read_jsonl  # noqa: E402
from stages import (  # noqa: E402
    distill,
    interpret,
    predict,
    prepare,
    reconstruct,
    resolve,
    rewrite,
    states,
    teach,
)
from tests.conftest import ROOT  # noqa: E402
from timings.rehearsal import make  # noqa: E402

FAMILIES = {
    "llava-cot-11b": "rehearsal",
    "llava-next-vicuna-7b": "rehearsal-llava-next",
}
"""The paper's, and the profile that rehearses each."""


def smaller(made: Path, profile: str) -> dict:
    """The profile with one checkpoint, one benchmark and one protocol, in fp32."""
    raw = yaml.safe_load(written_out(ROOT / f"profiles/{profile}.yaml"))
    raw = yaml.safe_load(yaml.safe_dump(raw).replace("data/rehearsal", str(made)))
    raw["precision"] = "fp32"
    raw["hardware"].update(accelerate=None, processes=1, workers=0)
    raw["checkpoints"] = {"p3": raw["checkpoints"]["p3"] | {"init": "text-cot", "batch_size": 2}}
    raw["interpret"]["batch_size"] = 2
    raw["states"]["checkpoint"] = "p3"
    raw["variants"] = {"heima": {"model": "p3", "forced_prefix": "p3"}}
    raw["latency"].update(cases={"heima": {"variant": "heima"}}, protocol="lmms")
    raw["benchmarks"] = ["mmstar"]
    given = raw["source"]["benchmarks"]
    raw["source"]["benchmarks"] = {"mmstar": given["mmstar"]}
    raw["protocols"] = {"lmms": raw["protocols"]["lmms"]}
    raw["reconstruct"].update(controls=["own"], max_new_tokens=4)
    raw["similarity"]["judged"] = ["own"]
    raw["predict"]["max_new_tokens"] = 4
    raw["audit"]["checkpoints"] = ["p3"]
    return raw


@pytest.fixture(
    scope="module",
    params=["llava-cot-11b", pytest.param("llava-next-vicuna-7b", marks=pytest.mark.slow)],
)
def one(request, tmp_path_factory):
    """The folder in which one process has run all of it."""
    folder = tmp_path_factory.mktemp("one")
    made = tmp_path_factory.mktemp("made")
    make.write(made, [request.param], records=5)
    params = smaller(made, FAMILIES[request.param])
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        resolve.write(config.load())
        prepare.main()
        rewrite.main()
        for name in ("text-cot", "interpreter"):
            teach.main(name)
        distill.main("p3", 42)
        states.main(42)
        interpret.main("shared", "own", 42)
        reconstruct.main("reasoning", 42)
        predict.main("heima", fresh=False)
    return folder


def test_every_turn_passes_through_the_real_shapes(one):
    counts = read_json(one / "metrics/rewrite.json")
    assert counts["turns"]["train"] >= 4 and counts["turns"]["heldout"] > 0
    assert counts["dropped"] == {"repeated_id": 1}
    found = load_file(one / "states/42/train.safetensors")
    assert all(torch.isfinite(part).all() for part in found.values() if part.is_floating_point())
    rows = read_jsonl(one / "predictions/heima/42/lmms/42/mmstar.jsonl")
    assert [row["counts"]["decoded"] > 0 for row in rows] == [True] * len(rows)


def two_processes(one: Path, folder: Path, stage: str, *arguments: str) -> None:
    """Run a stage in a copy of `one` as it starts itself where there are two GPUs."""
    shutil.copytree(one, folder, ignore=shutil.ignore_patterns(".cache", OUTPUTS[stage]))
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["hardware"]["processes"] = 2
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        resolve.write(config.load())
    launched = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr[-4000:]
    assert f"stages.{stage} on 2 processes" in launched.stdout


OUTPUTS = {
    "distill": "p3",
    "states": "states",
    "reconstruct": "reconstructions",
    "predict": "predictions",
}


# tests/training shards and copies a model over two processes, the test below starts a stage on two.
@pytest.mark.slow
def test_two_processes_train_what_one_trains(one, tmp_path):
    folder = tmp_path / "two"
    two_processes(one, folder, "distill", "p3", "42")
    place = "models/p3/42"
    alone, shared = (
        load_file(root / place / "adapter_model.safetensors") for root in (one, folder)
    )
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(weight, shared[name], atol=1e-5, rtol=1e-3)
    curves = [
        [row["loss"] for row in read_jsonl(root / place / "loss.jsonl")] for root in (one, folder)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


@pytest.mark.parametrize(
    ("stage", "arguments", "files"),
    [
        pytest.param(
            "states",
            ("42",),
            ["states/42/train.safetensors", "states/42/heldout.safetensors"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "reconstruct",
            ("reasoning", "42"),
            ["reconstructions/reasoning/42.jsonl"],
            marks=pytest.mark.slow,
        ),
        ("predict", ("heima",), ["predictions/heima/42/lmms/42/mmstar.jsonl"]),
    ],
)
def test_two_processes_write_the_bytes_of_one(one, tmp_path, stage, arguments, files):
    folder = tmp_path / "two"
    two_processes(one, folder, stage, *arguments)
    for file in files:
        assert (folder / file).read_bytes() == (one / file).read_bytes(), file
